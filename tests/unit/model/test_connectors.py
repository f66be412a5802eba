"""Every connector: definitions by plain loops, batches, compile, precision, budgets, refusals."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.families import read_config
from llava.model.multimodal_projector.builder import build_vision_projector, known_projector_types
from llava.model.multimodal_projector.vision_features import VisionFeatures
from llava.model.multimodal_projector.visual_anchors import select_visual_anchors
from llava.model.vision_config import check_vision_config
from tests.support.connectors import CONNECTOR_NAMES, ELASTIC, SMALL, TOKENS, connector, features


@pytest.mark.parametrize("name", CONNECTOR_NAMES)
def test_shape_and_count(name: str) -> None:
    module = connector(name)
    assert module.num_visual_tokens == TOKENS[name][1]
    assert module(features()).shape == (2, TOKENS[name][1], 48)
    assert name in known_projector_types()


@pytest.mark.parametrize("name", CONNECTOR_NAMES)
def test_batch_equals_one_by_one_and_empty_batch(name: str) -> None:
    module, batch = connector(name), features(3)
    parts = [batch.hidden, batch.cls_attention, batch.patch_keys]
    alone = [module(VisionFeatures(*(part[i : i + 1] for part in parts))) for i in range(3)]
    torch.testing.assert_close(module(batch), torch.cat(alone), rtol=0, atol=1e-5)
    assert module(VisionFeatures(*(part[:0] for part in parts))).shape == (0, TOKENS[name][1], 48)


@pytest.mark.parametrize("name", CONNECTOR_NAMES)
def test_compiled_equals_plain(name: str) -> None:
    """Traced, differentiated and run as graphs; code generation itself is torch's affair."""
    module, batch = connector(name), features(3)
    compiled = torch.compile(module, backend="aot_eager")
    torch.testing.assert_close(compiled(batch), module(batch), rtol=0, atol=1e-5)
    compiled(batch).sum().backward()
    torch._dynamo.reset()


@pytest.mark.parametrize("name", CONNECTOR_NAMES)
@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_bfloat16(name: str, how: str) -> None:
    module, batch = connector(name), features(3)
    expected = module(batch)
    if how == "weights":
        result = module.bfloat16()(batch.to(torch.bfloat16))
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = module(batch)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("name", CONNECTOR_NAMES)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    module = connector(name).train()
    module(features()).square().sum().backward()
    assert [n for n, p in module.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", CONNECTOR_NAMES)
def test_a_checkpoint_without_the_connector_gets_a_fresh_one(name: str, llava_vectors: Path) -> None:
    """transformers builds what a checkpoint lacks without running constructors: nothing may stay unwritten."""
    config = read_config(LlavaConfig, "assets/base-llama")
    settings = SMALL | {"mm_num_visual_tokens": TOKENS[name][0], "mm_abstractor_position_side": 4}
    for key, value in {"mm_projector_type": name, "mm_vision_tower": "assets/towers/clip-a", "mm_hidden_size": 64,
                       "mm_vision_select_layer": -2, **settings}.items():  # fmt: skip
        setattr(config, key, value)
    torch.manual_seed(0)
    fresh = build_vision_projector(config).state_dict()
    made = LlavaLlamaForCausalLM.from_pretrained("assets/base-llama", config=config).model.mm_projector.state_dict()
    for key, value in made.items():
        assert value.isfinite().all(), key
        spread = fresh[key].std().item() if fresh[key].numel() > 1 else 0.0
        assert value.std().item() <= max(3 * spread, 0.1), key
        if "norm" in key:  # starts as the identity
            assert torch.equal(value, fresh[key]), key


@pytest.mark.parametrize("name", ELASTIC)
def test_budget_per_call_is_the_same_as_built_with_it(name: str) -> None:
    budgets = {"pooling": (5, 17, 2), "pooling_pr": (5, 17, 2), "c_abstractor": (4, 9, 16)}.get(name, (5, 9, 13))
    module = connector(name, budgets[0])
    for tokens in budgets:
        other = connector(name, tokens)
        other.load_state_dict(module.state_dict())
        assert torch.equal(module(features(), tokens), other(features()))
    assert torch.equal(module(features()), module(features(), budgets[0])), "nothing is remembered from a call"


REFUSED = {
    "acformer": (3, "Legal values of mm_num_visual_tokens for this tower are 5, 9, 13, 17"),
    "top_p": (25, "more than the 16 patches"),
    "evit": (17, "leaves none to fuse. Use 14 at most"),
    "pooling": (9, "Legal values for this tower are 2, 5, 17"),
    "pooling_pr": (10, "Legal values for this tower are 2, 5, 17"),
    "random_pr": (18, "Legal values for this tower are 1 to 17"),
    "perceiver": (0, "must be a whole number of 1 or more, not 0"),
    "pr": (-1, "must be a whole number of 1 or more, not -1"),
    "c_abstractor": (8, "1, 4, 9, ..., 16"),
    "pixel_shuffle": (9, "legal are 4 and 5"),
    "visionzip": (18, "Legal values for this tower are 3 to 17"),
}


@pytest.mark.parametrize("name", CONNECTOR_NAMES)
def test_illegal_numbers_are_refused_with_the_legal_ones(name: str) -> None:
    tokens, message = REFUSED[name]
    config = SimpleNamespace(mm_projector_type=name, mm_hidden_size=32, hidden_size=48, mm_num_visual_tokens=tokens)
    with pytest.raises(ValueError) as caught:
        build_vision_projector(config).check_tower(4, 16)
    assert message in str(caught.value)
    if name in ELASTIC:
        with pytest.raises(ValueError) as caught:
            connector(name)(features(), tokens)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("pixel_shuffle", {"mm_pixel_shuffle_factor": 3}, "does not divide the 4x4"),
        ("c_abstractor", {"mm_abstractor_position_side": 3}, "has 4 patches per side"),
        ("visionzip", {"mm_contextual_tokens": 8}, "Legal values for this tower are 10 to 17"),
        ("visionzip", {"mm_contextual_tokens": 40}, "mm_contextual_tokens is 40; the tower's patches allow 15"),
        ("top_p", {"mm_projector_mlp": "linear"}, "mlp<k>x_gelu"),
        ("acformer", {"mm_projector_mlp": "mlp2x"}, "mlp<k>x_gelu"),
    ],
)
def test_other_refused_settings(name: str, settings: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        connector(name, **settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", CONNECTOR_NAMES)
def test_the_checks_read_no_weight(name: str) -> None:
    """Under ZeRO-3 every parameter is empty while the model is built and checked."""
    settings = {"mm_abstractor_position_side": 4} if name == "c_abstractor" else {}
    module = connector(name, **settings)
    for parameter in module.parameters():
        parameter.data = torch.empty(0)
    module.check_tower(num_heads=4, num_patches=16)
    if settings:
        with pytest.raises(ValueError, match="mm_abstractor_position_side is 4, but the tower has 5"):
            module.check_tower(num_heads=4, num_patches=25)


@pytest.mark.parametrize("name", CONNECTOR_NAMES)
def test_spatial_layouts_and_multi_scale_towers_are_refused(name: str) -> None:
    tower = SimpleNamespace(config=SimpleNamespace(num_attention_heads=4), num_patches=16)
    for merge in ("spatial", "spatial_unpad"):
        with pytest.raises(ValueError, match="use flat"):
            check_vision_config(
                SimpleNamespace(mm_projector_type=name, mm_patch_merge_type=merge), tower, connector(name)
            )
    with pytest.raises(ValueError, match="S2"):
        check_vision_config(SimpleNamespace(mm_projector_type=name, s2=True), tower, connector(name))


def test_evit_is_the_written_rule() -> None:
    batch = features()
    for normalize in (True, False):
        tokens = connector("evit", mm_evit_normalize=normalize).reduce(batch, 10)
        for hidden, attention, got in zip(batch.hidden, batch.cls_attention, tokens, strict=True):
            anchors = select_visual_anchors(attention[None], 8)[0]
            rest = [j for j in range(1, 17) if j not in anchors.tolist()]
            weights = torch.stack([attention[:, j - 1].mean() for j in rest])
            fused = sum(w * hidden[j] for w, j in zip(weights, rest, strict=True))
            fused = fused / weights.sum() if normalize else fused
            torch.testing.assert_close(got, torch.cat([hidden[anchors], fused[None]]), rtol=0, atol=1e-5)


def test_evit_counts_the_fused_token_or_leaves_it_out() -> None:
    assert connector("evit", 9).num_visual_tokens == connector("evit", 10).num_visual_tokens == 10
    assert torch.equal(connector("evit", 9)(features()), connector("evit", 10)(features()))


def test_pixel_shuffle_is_the_written_rule() -> None:
    module, batch = connector("pixel_shuffle"), features()
    grid = batch.hidden[:, 1:].reshape(2, 4, 4, 32)
    for row in range(2):
        for column in range(2):
            block = grid[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(2, 4 * 32)
            expected = module.mlp(F.layer_norm(block, (128,)))
            torch.testing.assert_close(module(batch)[:, 2 * row + column], expected, rtol=0, atol=1e-5)


def test_visionzip_is_the_written_rule() -> None:
    batch = features()
    tokens = connector("visionzip", mm_contextual_tokens=3).reduce(batch, 9)
    for hidden, attention, keys, got in zip(
        batch.hidden[:, 1:], batch.cls_attention, batch.patch_keys, tokens, strict=True
    ):
        ranked = attention.mean(0).argsort(descending=True).tolist()
        dominant, others = sorted(ranked[:5]), sorted(ranked[5:])
        targets = others[:: len(others) // 3][:3]
        groups = {t: [t] for t in targets}
        for j in others:
            if j not in targets:
                best = max(targets, key=lambda t: F.cosine_similarity(keys[j], keys[t], dim=0).item())
                groups[best].append(j)
        contextual = torch.stack([hidden[members].mean(0) for members in groups.values()])
        torch.testing.assert_close(got[1:], torch.cat([hidden[dominant], contextual]), rtol=0, atol=1e-5)
    assert torch.equal(tokens[:, 0], batch.hidden[:, 0])


def test_random_pr_draws_afresh_in_training_only() -> None:
    module, batch = connector("random_pr"), features()
    assert torch.equal(module(batch), module(batch))
    assert torch.equal(module(batch), connector("random_pr")(batch))
    assert not torch.equal(module(batch), connector("random_pr", mm_random_seed=1)(batch))
    module.train()
    assert not torch.equal(module(batch), module(batch))
    queries = module.queries(batch.hidden, batch, 9)
    for hidden, drawn in zip(batch.hidden, queries, strict=True):
        places = [(hidden == token).all(-1).nonzero().item() for token in drawn]
        assert places[0] == 0 and places == sorted(set(places)), "class token first, then ascending, no patch twice"


def test_c_abstractor_position_embedding_is_an_option() -> None:
    plain, placed = connector("c_abstractor"), connector("c_abstractor", mm_abstractor_position_side=4)
    assert placed.state_dict().keys() - plain.state_dict().keys() == {"position"}
    assert torch.equal(plain(features()), placed(features())), "it starts at zero"
    with torch.no_grad():
        placed.position.normal_()
    assert not torch.equal(plain(features()), placed(features()))


def test_query_order_does_not_matter_to_the_resampler() -> None:
    module, batch = connector("acformer"), features()
    query = batch.hidden[:, :9]
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffled = module.resampler(query[:, order], batch.hidden)
    torch.testing.assert_close(shuffled, module.resampler(query, batch.hidden)[:, order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONNECTOR_NAMES)
@pytest.mark.parametrize("training", [False, True])
def test_no_value_is_read_by_the_host(name: str, training: bool) -> None:
    """Tensors without values go through: on a GPU nothing waits for a result, whatever the images show."""
    with FakeTensorMode():
        module = connector(name).train(training)
        assert module(features()).shape == (2, TOKENS[name][1], 48)
        with pytest.raises(DataDependentOutputException):  # what would happen otherwise
            features().hidden.sum().item()


@pytest.mark.parametrize(
    "name, settings",
    [
        *((name, {"mm_num_visual_tokens": value}) for name in CONNECTOR_NAMES for value in (0, -1, 9.0, True)),
        *(("acformer", {f"mm_resampler_{part}": 0}) for part in ("depth", "heads", "dim_head", "ff_mult", "dim")),
        ("c_abstractor", {"mm_abstractor_depth": 0}),
        ("c_abstractor", {"mm_abstractor_position_side": -1}),
        ("pixel_shuffle", {"mm_pixel_shuffle_factor": 0}),
        ("visionzip", {"mm_contextual_tokens": 0}),
    ],
)
def test_numbers_out_of_range_are_named(name: str, settings: dict) -> None:
    (key,) = settings
    config = SimpleNamespace(mm_projector_type=name, mm_hidden_size=32, hidden_size=48, **settings)
    with pytest.raises(ValueError, match=f"{key} must be a whole number of . or more, not"):
        build_vision_projector(config)


def test_visionzip_merges_in_float32() -> None:
    """Keys with a large common part: half precision would see them all alike."""
    batch = features()
    keys = (batch.patch_keys + 3).bfloat16()
    hidden = batch.hidden.bfloat16()
    half = connector("visionzip").reduce(VisionFeatures(hidden, batch.cls_attention, keys), 9)
    full = connector("visionzip").reduce(VisionFeatures(hidden.float(), batch.cls_attention, keys.float()), 9)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, full.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(connector("visionzip").reduce(VisionFeatures(hidden, batch.cls_attention, keys), 9), half)
