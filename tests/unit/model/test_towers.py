"""Vision towers beyond their vectors: only the needed blocks run, S2 features, refusals, training through the tower."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower

CLIP = "assets/towers/clip-a"


def tower(**settings: object) -> CLIPVisionTower:
    defaults = {"mm_vision_tower": CLIP, "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch"}
    return build_vision_tower(SimpleNamespace(**(defaults | settings)))


def test_blocks_above_the_select_layer_do_not_run(llava_vectors: Path) -> None:
    clip = tower()
    calls: list[int] = []
    for i, layer in enumerate(clip.vision_tower.vision_model.encoder.layers):
        layer.register_forward_hook(lambda *_, i=i: calls.append(i))
    clip(torch.zeros(1, 3, 56, 56))
    assert calls == [0, 1]  # of three


def test_cls_attention_equals_eager_attention(llava_vectors: Path) -> None:
    clip, images = tower(), torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    features = clip.encode(images, need_cls_attention=True)
    model = clip.vision_tower.vision_model
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(images, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(features.cls_attention, output.attentions[-2][:, :, 0, 1:], rtol=0, atol=1e-6)
    torch.testing.assert_close(features.hidden, output.hidden_states[-2], rtol=0, atol=1e-5)
    assert torch.equal(clip.feature_select(output), output.hidden_states[-2][:, 1:])


def test_positive_layers_pair_attention_and_output(llava_vectors: Path) -> None:
    images = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    negative = tower(mm_vision_select_layer=-2).encode(images, True)
    positive = tower(mm_vision_select_layer=2).encode(images, True)
    assert torch.equal(negative.hidden, positive.hidden)
    assert torch.equal(negative.cls_attention, positive.cls_attention)
    with pytest.raises(ValueError, match="class attention"):
        tower(mm_vision_select_layer=0).encode(images, True)
    with pytest.raises(ValueError, match="outside the 4 hidden states"):
        tower(mm_vision_select_layer=9)(images)


def test_output_has_the_dtype_of_the_input(llava_vectors: Path) -> None:
    clip = tower()
    assert clip(torch.zeros(1, 3, 56, 56, dtype=torch.float16)).dtype == torch.float16
    assert clip.dtype == torch.float32


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="Unknown vision tower: nowhere/clip"):
        build_vision_tower(SimpleNamespace(mm_vision_tower="nowhere/clip"))
    with pytest.raises(ValueError, match="Unknown vision tower: None"):
        build_vision_tower(SimpleNamespace())


def test_s2_equals_the_written_rule(llava_vectors: Path) -> None:
    clip = tower(s2=True, s2_scales="112,56")
    plain = tower()
    assert clip.hidden_size == 2 * plain.hidden_size
    assert clip.image_processor.crop_size["height"] == 112
    images = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    small = plain(F.interpolate(images, size=(56, 56), mode="bicubic"))
    rows = []
    for i in range(2):  # 2x2 tiles of the large scale, put together again and averaged 2x2
        tiles = [
            [plain(images[i : i + 1, :, 56 * r : 56 * r + 56, 56 * c : 56 * c + 56]) for c in (0, 1)] for r in (0, 1)
        ]
        maps = [[t.transpose(1, 2).view(1, 64, 4, 4) for t in row] for row in tiles]
        whole = torch.cat([torch.cat(row, dim=3) for row in maps], dim=2)
        rows.append(F.avg_pool2d(whole, 2).flatten(2).transpose(1, 2))
    expected = torch.cat([small, torch.cat(rows)], dim=-1)
    torch.testing.assert_close(clip(images), expected, rtol=0, atol=1e-5)
    assert [t.shape for t in clip(list(images))] == [(1, 16, 128)] * 2


def test_s2_refusals(llava_vectors: Path) -> None:
    clip = tower(s2=True, s2_scales="56,112")
    with pytest.raises(ValueError, match="class token"):
        clip.encode(torch.zeros(1, 3, 112, 112), need_cls_attention=True)
    with pytest.raises(ValueError, match="square"):
        clip(torch.zeros(1, 3, 112, 56))
    with pytest.raises(ValueError, match="patch"):
        tower(s2=True, s2_scales="56,112", mm_vision_select_feature="cls_patch")


def test_gradients_only_where_asked(llava_vectors: Path) -> None:
    clip, images = tower(), torch.zeros(1, 3, 56, 56)
    assert not clip.encode(images).hidden.requires_grad
    clip.requires_grad_(True)
    assert clip.encode(images).hidden.requires_grad


def test_a_tower_without_class_token_is_refused(tmp_path: Path) -> None:
    from transformers import SiglipVisionConfig

    SiglipVisionConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'siglip_vision_model'; only CLIP is supported, whose class token"):
        build_vision_tower(SimpleNamespace(mm_vision_tower=str(tmp_path), mm_vision_select_layer=-2), delay_load=True)


@pytest.mark.parametrize("anchor_layer", [1, 2, -2, -1, None])
def test_anchor_layer(anchor_layer: int | None, llava_vectors: Path) -> None:
    """The attention is that of the block that makes the anchor layer's hidden state, wherever the select layer is."""
    args = SimpleNamespace(mm_vision_select_layer=-2, mm_anchor_layer=anchor_layer)
    tower = CLIPVisionTower("assets/towers/clip-a", args)
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    got = tower.encode(images, need_cls_attention=True)
    clip = tower.vision_tower.vision_model
    clip.set_attn_implementation("eager")
    out = clip(images, output_hidden_states=True, output_attentions=True)
    layer = -2 if anchor_layer is None else anchor_layer
    index = layer if layer >= 0 else len(out.hidden_states) + layer
    torch.testing.assert_close(got.cls_attention, out.attentions[index - 1][:, :, 0, 1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(got.hidden, out.hidden_states[-2], rtol=0, atol=1e-4)


def test_anchor_layer_outside_the_tower(llava_vectors: Path) -> None:
    for layer, message in ((9, "mm_anchor_layer 9 is outside"), (0, "mm_anchor_layer selects the embeddings")):
        args = SimpleNamespace(mm_vision_select_layer=-2, mm_anchor_layer=layer)
        with pytest.raises(ValueError, match=message):
            CLIPVisionTower("assets/towers/clip-a", args, delay_load=True)


def test_attention_is_ranked_in_float32_under_autocast(llava_vectors: Path) -> None:
    """The logits' product and softmax stay in float32: bfloat16 would leave 8 bits, and ties."""
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attention = tower().encode(images, need_cls_attention=True).cls_attention
    assert attention.dtype == torch.float32
    assert not torch.equal(attention, attention.bfloat16().float())
