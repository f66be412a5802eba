"""The bridge between the connectors and other code bases, in a small model of the kind that a graft makes.

`python -m pytest tests/unit/patches/test_bridge.py` also runs in environments with transformers 4.31 to 4.37.
"""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, make_dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import HfArgumentParser, LogitsProcessor, LogitsProcessorList

from llava.model.multimodal_projector.visual_anchors import gather_tokens, select_visual_anchors
from llava.model.multimodal_projector.weight_merging import merged
from patches import bridge
from patches.bridge.vision import read_tower, run_connector
from tests.support.host_model import IMAGE, NewHost, OldHost, build, pixels

IDS = [1, 30, IMAGE, 31, 32, 33]
TEXT = [1, 40, 41, 42]
GREEDY = {"do_sample": False, "max_new_tokens": 6}


def reference(model: Any, ids: list[int], images: torch.Tensor) -> torch.Tensor:
    """Logits `[n, vocab]` with the image's weights written into the matrices and the slots masked by hand."""
    row = torch.tensor([ids])
    slots = row == IMAGE
    with torch.no_grad():
        weights = run_connector(model, model.model.mm_projector, images)
        with merged(model.model.layers, weights.for_rows([list(range(len(images)))])):
            decoder = model.model(
                input_ids=row.masked_fill(slots, 0), attention_mask=(~slots).long(),
                position_ids=torch.arange(row.shape[1])[None],
            )  # fmt: skip
            return model.lm_head(decoder[0])[0]


def reference_greedy(model: Any, ids: list[int], images: torch.Tensor, count: int = 6) -> list[int]:
    new: list[int] = []
    for _ in range(count):
        new.append(int(reference(model, ids + new, images)[-1].argmax()))
    return new


def pad(rows: list[list[int]], left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, rows))
    ids = [[0] * (length - len(row)) + row if left else row + [0] * (length - len(row)) for row in rows]
    return torch.tensor(ids), torch.tensor([[int(token != 0) for token in row] for row in ids])


@pytest.mark.parametrize("name", ["acformer", "visionzip", "perceiver", "top_p"])
def test_the_tower_is_read_as_transformers_reports_it(name: str) -> None:
    """Hidden states, class attention and keys against `output_attentions` of the CLIP model."""
    model, images = build(name), pixels(2)
    tower, connector = model.get_vision_tower(), model.model.mm_projector
    features = read_tower(tower, images, connector)
    clip = tower.vision_tower
    if hasattr(clip, "set_attn_implementation"):
        clip.set_attn_implementation("eager")
    with torch.no_grad():
        output = clip(images, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(features.hidden, output.hidden_states[-2])
    if connector.needs_cls_attention:
        torch.testing.assert_close(features.cls_attention, output.attentions[-2][:, :, 0, 1:])
    tokens = model.encode_images(images)
    assert tokens.shape == (2, 9, 32)
    if name == "acformer":
        queries = gather_tokens(features.hidden, select_visual_anchors(output.attentions[-2][:, :, 0, 1:], 8))
        assert torch.equal(queries, connector.queries(features.hidden, features, 9))


@pytest.mark.parametrize("host", [NewHost, OldHost])
@pytest.mark.parametrize("projector", ["acformer", "acformer_vlora"])
def test_visual_tokens_are_spliced_by_the_host(host: type, projector: str) -> None:
    """One forward of the whole sequence, and generation in steps, say the same."""
    model, images = build(projector, host), pixels(1)
    new = model.generate(torch.tensor([IDS]), images=images, **GREEDY)[0].tolist()[-6:]
    with torch.no_grad():
        logits = model(torch.tensor([IDS + new]), images=images).logits[0]
    assert logits[-7:-1].argmax(dim=-1).tolist() == new


@pytest.mark.parametrize("host", [NewHost, OldHost])
def test_weights_act_in_forward(host: type) -> None:
    model, images = build("vlora", host), pixels(4)
    rows = [IDS, TEXT, [1, IMAGE, 50, IMAGE, 51]]
    ids, mask = pad(rows)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, images=images).logits
        plain = model(torch.tensor([TEXT])).logits[0]
    torch.testing.assert_close(logits[0, : len(IDS)], reference(model, IDS, images[:1]))
    torch.testing.assert_close(logits[1, : len(TEXT)], plain)
    torch.testing.assert_close(logits[2, :5], reference(model, rows[2], images[2:]))
    assert (reference(model, IDS, images[:1])[-1] - reference(model, IDS, images[1:2])[-1]).abs().max() > 1e-2


@pytest.mark.parametrize("host", [NewHost, OldHost])
@pytest.mark.parametrize("with_mask", [False, True])
def test_weights_act_in_every_step_of_generate(host: type, with_mask: bool) -> None:
    model, images = build("vlora", host), pixels(2)
    ids = torch.tensor([IDS])
    given = {"attention_mask": torch.ones_like(ids)} if with_mask else {}
    new = model.generate(ids, images=images[:1], **given, **GREEDY)[0].tolist()[-6:]
    assert new == reference_greedy(model, IDS, images[:1])
    assert new != reference_greedy(model, IDS, images[1:]), "the images make no difference"
    again = model.generate(torch.tensor([TEXT]), **GREEDY)[0].tolist()[-6:]
    with torch.no_grad():  # weights are gone after the call
        assert model(torch.tensor([TEXT + again])).logits[0, -7:-1].argmax(dim=-1).tolist() == again


@pytest.mark.parametrize("host", [NewHost, OldHost])
def test_batches_and_beams(host: type) -> None:
    model, images = build("vlora", host), pixels(2)
    short = [1, IMAGE, 35]
    ids, mask = pad([IDS, short], left=True)
    new = model.generate(ids, images=images, attention_mask=mask, **GREEDY)[:, -6:].tolist()
    assert new == [reference_greedy(model, IDS, images[:1]), reference_greedy(model, short, images[1:])]
    options = {"num_beams": 3, **GREEDY}
    both = model.generate(torch.tensor([IDS, IDS]), images=images, **options)[:, -6:].tolist()
    alone = [model.generate(torch.tensor([IDS]), images=i[None], **options)[0, -6:].tolist() for i in images]
    assert both == alone and both[0] != both[1]


def test_a_model_with_hooks_can_be_copied() -> None:
    model, images = build("vlora"), pixels(1)
    expected = reference_greedy(model, IDS, images)
    model.generate(torch.tensor([IDS]), images=images, **GREEDY)
    twin = copy.deepcopy(model)
    assert twin.generate(torch.tensor([IDS]), images=images, **GREEDY)[0].tolist()[-6:] == expected


class Asking(LogitsProcessor):
    """Asks a model something in every step of another's reply."""

    def __init__(self, model: Any, images: torch.Tensor) -> None:
        self.model, self.images = model, images

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.model(torch.tensor([IDS]), images=self.images)
        return scores


def test_a_call_inside_a_reply() -> None:
    model, other, images = build("vlora"), build("vlora"), pixels(2)
    expected = reference_greedy(model, IDS, images[:1])

    def ask(inner: Any, seen: torch.Tensor) -> list[int]:
        processors = LogitsProcessorList([Asking(inner, seen)])
        return model.generate(
            torch.tensor([IDS]), images=images[:1], logits_processor=processors, **GREEDY
        )[0].tolist()[-6:]  # fmt: skip

    assert ask(other, images[1:]) == expected
    with pytest.raises(RuntimeError, match="other images inside a running generate"):
        ask(model, images[1:])
    assert model.generate(torch.tensor([IDS]), images=images[:1], **GREEDY)[0].tolist()[-6:] == expected


def test_a_cache_does_not_outlive_its_call() -> None:
    model, images = build("vlora"), pixels(1)
    with torch.no_grad():
        past = model(torch.tensor([IDS]), images=images, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="this step of a reply came alone"):
            model(torch.tensor([[7]]), images=images, past_key_values=past)
        with pytest.raises(ValueError, match="filled in another call"):
            model(torch.tensor([IDS]), images=images, past_key_values=past)


def test_first_requests_of_many_threads_add_one_hook() -> None:
    model, images = build("vlora"), pixels(4)
    expected = [reference_greedy(model, IDS, image[None]) for image in images]
    for hooks in (model.get_vision_tower().vision_tower._forward_hooks, model.model._forward_pre_hooks):
        hooks.clear()

    def reply(image: torch.Tensor) -> list[int]:
        return model.generate(torch.tensor([IDS]), images=image[None], **GREEDY)[0].tolist()[-6:]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(reply, images)) == expected
    assert len(model.model._forward_pre_hooks) == 1


def test_a_wrapped_connector_is_found() -> None:
    model, images = build("acformer"), pixels(1)
    expected = model.encode_images(images)
    wrapper = nn.Module()
    wrapper.modules_to_save = nn.ModuleDict({"mine": model.model.mm_projector})
    wrapper.active_adapter = "mine"
    model.model.mm_projector = wrapper
    assert torch.equal(model.encode_images(images), expected)


def gradients(model: Any, recompute: bool, calls: int = 1) -> dict[str, torch.Tensor]:
    model.train()
    if recompute:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    else:
        model.gradient_checkpointing_disable()
    model.zero_grad()
    ids, mask = pad([IDS, TEXT])
    labels = ids.masked_fill(mask == 0, -100)
    images = pixels(4)
    # Several forward passes before one backward pass: each must be recomputed with its own images.
    losses = [model(ids, attention_mask=mask, labels=labels, images=images[2 * i :][:2]).loss for i in range(calls)]
    sum(losses).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.skipif(transformers.__version__ < "4.35", reason="recomputation is re-entrant there")
@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("projector", ["vlora"])
def test_recomputation_finds_the_weights(projector: str, calls: int) -> None:
    model = build(projector)
    expected, found = gradients(model, recompute=False, calls=calls), gradients(model, recompute=True, calls=calls)
    assert expected.keys() == found.keys()
    assert any("mm_projector" in name and grad.abs().max() > 0 for name, grad in expected.items())
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, msg=name)


def test_recomputation_that_cannot_find_them_is_refused() -> None:
    model = build("vlora").train()
    for module in (model.model, *model.model.layers):
        module.gradient_checkpointing = True
        vars(module).pop("_gradient_checkpointing_func", None)
    with pytest.raises(ValueError, match=r"transformers 4\.35 or newer"):
        model(torch.tensor([IDS]), labels=torch.tensor([IDS]), images=pixels(1))


def call_outside(model: Any) -> None:
    bridge.assemble_inputs(model, torch.tensor([IDS]), None, None, pixels(1))


def replica(model: Any) -> None:
    model.model._is_replica = True
    model(torch.tensor([IDS]), images=pixels(1))


def quantised(model: Any) -> None:
    model.model.mm_projector.visual_proj.weight = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    model(torch.tensor([IDS]), images=pixels(1))


def xformers(model: Any) -> None:
    class Attention(type(model.model.layers[0].self_attn)):
        def forward(self, *args: Any) -> None:
            raise AssertionError

    Attention.forward.__module__ = "llama_xformers_attn_monkey_patch"
    model.model.layers[0].self_attn.__class__ = Attention
    model(torch.tensor([IDS]), images=pixels(1))


def streaming(model: Any) -> None:
    class Streaming(type(model)):
        def generate(self, inputs: torch.Tensor, images: torch.Tensor) -> Any:
            yield self(inputs, images=images)

    model.__class__ = Streaming
    model.generate(torch.tensor([IDS]), images=pixels(1))


def flash(model: Any) -> None:
    model.config._flash_attn_2_enabled = True
    model(torch.tensor([IDS]), labels=torch.tensor([IDS]), images=pixels(1))


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (call_outside, RuntimeError, "use its forward or generate"),
        (flash, ValueError, "not FlashAttention"),
        (xformers, ValueError, "xformers attention, which ignores masks"),
        (replica, TypeError, "under nn.DataParallel"),
        (quantised, ValueError, "are quantised"),
        (streaming, TypeError, "is a generator"),
        (lambda m: m(torch.tensor([IDS])), ValueError, "no image was given"),
        (lambda m: m(torch.tensor([IDS]), images=pixels(0)), ValueError, "no image was given"),
        (lambda m: m(torch.tensor([IDS, IDS]), images=pixels(1)), ValueError, "only 1 were given"),
        (lambda m: m(torch.tensor([[IMAGE, 5, 6]]), images=pixels(1)), ValueError, "starts with an image"),
        (lambda m: m(torch.tensor([IDS]), images=[pixels(3)]), ValueError, "cut into crops"),
        (lambda m: m.encode_images(pixels(1)), TypeError, "into weights, not into visual tokens"),
        (lambda m: m.model.mm_projector(torch.zeros(1, 16, 32)), TypeError, "calls mm_projector by itself"),
    ],
)
def test_misuse_is_explained(act: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        act(build("vlora"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tower: delattr(tower, "vision_tower"), "is not a CLIP"),
        (lambda tower: setattr(tower, "forward", lambda images: None), "ran its CLIP model 0 times"),
        (lambda tower: setattr(tower, "select_layer", 0), "no class attention"),
    ],
)
def test_a_tower_that_cannot_be_read_is_explained(change: Any, message: str) -> None:
    model = build("acformer")
    change(model.get_vision_tower())
    with pytest.raises((TypeError, ValueError), match=message):
        model.encode_images(pixels(1))


def test_the_hosts_own_projector_stays() -> None:
    model = build("linear")
    assert type(model.model.mm_projector) is nn.Linear
    images = pixels(1)
    expected = model.model.mm_projector(model.get_vision_tower()(images))
    assert torch.equal(model.encode_images(images), expected)
    assert not hasattr(model.config, "mm_num_visual_tokens")


def test_settings_are_written_before_the_connector_is_built() -> None:
    model = build("acformer", mm_num_visual_tokens=11)
    assert model.config.mm_num_visual_tokens == model.model.mm_projector.num_visual_tokens == 9  # 1 + 2 x 4 heads
    config = build("vlora").config
    assert (config.vlora_pos_num, config.vlora_llm_depth, config.vlora_alpha) == (16, 3, 2)
    with pytest.raises(ValueError, match="Legal values"):
        build("acformer", mm_num_visual_tokens=3)
    with pytest.raises(ValueError, match="that are not a grid"):
        broken = build("linear")
        del broken.model.mm_projector
        broken.config.mm_patch_merge_type = "spatial"
        broken.model.initialize_vision_modules(SimpleNamespace(mm_projector_type="acformer"))


def test_a_checkpoint_keeps_its_connector() -> None:
    model = build("acformer")
    model.model.initialize_vision_modules(SimpleNamespace(mm_projector_type="linear", mm_num_visual_tokens=5))
    assert model.config.mm_projector_type == "acformer" and model.config.mm_num_visual_tokens == 9
    with pytest.raises(ValueError, match="has the connector 'acformer'"):
        model.model.initialize_vision_modules(SimpleNamespace(mm_projector_type="vlora"))
    with pytest.raises(ValueError, match="connector of another type"):
        build("linear").model.initialize_vision_modules(SimpleNamespace(mm_projector_type="acformer"))


def test_published_names_are_accepted_while_loading() -> None:
    """A plain MLP of LLaVA is the MLP of a training-free connector, also when the whole model is loaded."""
    model = build("top_p")
    state = model.state_dict()
    values = {key: torch.randn_like(value) for key, value in state.items() if "mm_projector" in key}
    renamed = {key.replace("mm_projector.mlp.", "mm_projector."): value for key, value in values.items()}
    model.load_state_dict({**{k: v for k, v in state.items() if k not in values}, **renamed})
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in values.items())
    model.model.mm_projector.load_state_dict({key.split("mm_projector.")[1]: value for key, value in renamed.items()})

    other = build("vlora", vlora_dim=32).model.mm_projector.state_dict()
    with pytest.raises(RuntimeError, match="Give --vlora_dim 32"):
        build("vlora").model.mm_projector.load_state_dict(other)


def test_flags_are_added_once() -> None:
    @dataclass
    class ModelArguments:
        mm_projector_type: str = "linear"
        vlora_dim: int = 7

    extended = bridge.with_connector_flags(ModelArguments)
    names = [f.name for f in fields(extended)]
    assert len(names) == len(set(names)) and "mm_num_visual_tokens" in names
    (parsed,) = HfArgumentParser((extended,)).parse_args_into_dataclasses(
        ["--mm_num_visual_tokens", "65", "--weights_sep", "False", "--vlora_alpha", "4"]
    )
    assert isinstance(parsed, ModelArguments) and extended.__name__ == "ModelArguments"
    assert (parsed.mm_num_visual_tokens, parsed.weights_sep, parsed.vlora_alpha) == (65, False, 4.0)
    assert parsed.vlora_dim == 7 and parsed.mm_random_seed is None
    frozen = bridge.with_connector_flags(make_dataclass("ModelArguments", ["version"], frozen=True))
    assert frozen("v1").vlora_dim is None
