"""The AcFormer connector beyond its vectors: the plain rule, limits, batches, compile, autocast, refusals."""

import logging
from types import SimpleNamespace

import pytest
import torch

from llava.model.multimodal_projector.acformer import AcFormer, AcFormerConfig
from llava.model.multimodal_projector.builder import build_vision_projector, known_projector_types
from llava.model.multimodal_projector.vision_features import VisionFeatures
from llava.model.multimodal_projector.visual_anchors import select_visual_anchors
from llava.model.vision_config import check_vision_config, write_vision_config

SMALL = {"mm_resampler_depth": 2, "mm_resampler_heads": 2, "mm_resampler_dim_head": 8}


def connector(tokens: int = 9, **more: object) -> AcFormer:
    torch.manual_seed(0)
    return AcFormer(AcFormerConfig(mm_num_visual_tokens=tokens, **(SMALL | more)), vision_width=32, llm_width=48)


def features(batch: int = 2, heads: int = 4, patches: int = 16) -> VisionFeatures:
    generator = torch.Generator().manual_seed(batch)
    attention = torch.randn(batch, heads, patches, generator=generator).softmax(-1)
    return VisionFeatures(torch.randn(batch, 1 + patches, 32, generator=generator), attention)


def written_rule(attention: torch.Tensor, per_head: int) -> list[int]:
    """The progressive per-head rule of the paper, written out for one image `[H, P]`."""
    taken: set[int] = set()
    for row in attention.tolist():
        free = sorted((p for p in range(len(row)) if p not in taken), key=lambda p: (row[p], p), reverse=True)
        taken |= set(free[:per_head])
    return [0, *(p + 1 for p in sorted(taken))]


@pytest.mark.parametrize("levels", [0, 3, 10])
def test_selection_is_the_written_rule(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    for heads, patches, anchors in ((1, 5, 3), (4, 16, 8), (3, 20, 10), (8, 64, 64), (16, 100, 48)):
        attention = torch.rand(5, heads, patches, generator=generator)
        if levels:  # ties
            attention = (attention * levels).floor()
        expected = [written_rule(image, anchors // heads) for image in attention]
        assert select_visual_anchors(attention, anchors).tolist() == expected


@pytest.mark.parametrize("anchors, message", [(3, "4 attention heads"), (20, "more than the 16 patches")])
def test_illegal_counts(anchors: int, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        select_visual_anchors(torch.rand(1, 4, 16), anchors)
    assert "5, 9, 13, 17" in str(caught.value)
    with pytest.raises(ValueError, match=message):
        connector(anchors + 1).check_tower(num_heads=4, num_patches=16)


def test_uneven_count_is_rounded_down_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    module = connector(11)
    with caplog.at_level(logging.WARNING):
        module.check_tower(num_heads=4, num_patches=16)
    assert module.num_visual_tokens == 9
    assert "asks for 11" in caplog.text and "gives 9 visual tokens" in caplog.text
    assert module(features()).shape == (2, 9, 48)


def test_one_set_of_weights_serves_any_budget() -> None:
    """The queries come from the image: no weight depends on the number of tokens."""
    large, small = connector(17), connector(5)
    assert {k: v.shape for k, v in large.state_dict().items()} == {k: v.shape for k, v in small.state_dict().items()}


def test_own_width_and_mlp_depth() -> None:
    assert connector(mm_resampler_dim=24, mm_projector_mlp="mlp1x_gelu")(features()).shape == (2, 9, 48)
    with pytest.raises(ValueError, match="mlp<k>x_gelu"):
        connector(mm_projector_mlp="linear")


def test_compiled_selection_equals_plain() -> None:
    attention = torch.rand(3, 4, 16, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(select_visual_anchors, fullgraph=True, backend="eager")
    assert torch.equal(compiled(attention, 8), select_visual_anchors(attention, 8))


def test_settings_travel_through_the_configuration() -> None:
    config = SimpleNamespace(hidden_size=48)
    tower = SimpleNamespace(hidden_size=32)
    args = SimpleNamespace(
        vision_tower="t", mm_projector_type="acformer", mm_vision_select_layer=-2, mm_vision_select_feature="patch",
        mm_patch_merge_type="flat", mm_num_visual_tokens=17, mm_resampler_depth=1, mm_resampler_heads=None,
    )  # fmt: skip
    write_vision_config(config, args, tower, has_projector=False)
    assert (config.mm_num_visual_tokens, config.mm_resampler_depth, config.mm_resampler_heads) == (17, 1, 8)
    again = build_vision_projector(config)
    assert again.num_visual_tokens == 17
    assert len(again.resampler.layers) == 1


def test_refused_configurations() -> None:
    tower = SimpleNamespace(config=SimpleNamespace(num_attention_heads=4), num_patches=16)
    config = SimpleNamespace(mm_projector_type="acformer", mm_patch_merge_type="spatial_unpad")
    with pytest.raises(ValueError, match="use flat"):
        check_vision_config(config, tower, connector())
    config = SimpleNamespace(mm_projector_type="acformer", mm_patch_merge_type="flat", s2=True)
    with pytest.raises(ValueError, match="S2"):
        check_vision_config(config, tower, connector())
    with pytest.raises(ValueError, match="0 visual anchors cannot be shared by 4"):
        connector(1).check_tower(num_heads=4, num_patches=16)


def test_a_checkpoint_keeps_its_own_connector(caplog: pytest.LogCaptureFixture) -> None:
    config = SimpleNamespace(mm_projector_type="acformer", mm_vision_tower="a", mm_vision_select_layer=-2)
    args = SimpleNamespace(mm_projector_type="linear", vision_tower="b", mm_vision_select_layer=-1)
    with caplog.at_level(logging.WARNING):
        write_vision_config(config, args, None, has_projector=True)
    assert (config.mm_projector_type, config.mm_vision_tower, config.mm_vision_select_layer) == ("acformer", "a", -2)
    assert "--vision_tower" in caplog.text
    args.mm_projector_type = "mlp2x_gelu"
    with pytest.raises(ValueError, match=r"'acformer'.*'mlp2x_gelu'"):
        write_vision_config(config, args, None, has_projector=True)


def test_unknown_type_lists_the_known_ones() -> None:
    with pytest.raises(ValueError) as caught:
        build_vision_projector(SimpleNamespace(mm_projector_type="acfromer", mm_hidden_size=4, hidden_size=4))
    assert all(name in str(caught.value) for name in known_projector_types())


def test_features_move_whole() -> None:
    """accelerate moves what it hands to a layer on another device by calling `to(device)`."""
    moved = features().to("meta")
    assert moved.hidden.device.type == moved.cls_attention.device.type == "meta"
    half = features().to(torch.bfloat16)
    assert (half.hidden.dtype, half.cls_attention.dtype) == (torch.bfloat16, torch.float32)
