"""Batch = one by one, left = right padding, cached = uncached; on the tiny checkpoints of the vectors."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llava.model.builder import load_pretrained_model
from llava.model.image_inputs import ImageInputs
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.multimodal_projector.image_rows import ImageCountError
from tests.support.vlora_models import pad, random_images

PROMPTS = [[1, 300, -200, 13, 301, 302], [1, 305, 306], [1, -200, 310, 311, 312, 313, 314, -200, 315]]


@pytest.fixture
def model(llava_vectors: Path) -> Any:
    path = "checkpoints/llava-v1-tiny-mlp2x"
    return load_pretrained_model(path, None, "llava-v1-tiny-mlp2x", device="cpu", dtype=torch.float32)[1]


@pytest.fixture
def acformer(model: Any) -> Any:
    """The same language model behind an AcFormer connector."""
    torch.manual_seed(0)
    config = SimpleNamespace(
        mm_projector_type="acformer", mm_hidden_size=64, hidden_size=64, mm_num_visual_tokens=9, mm_resampler_depth=2
    )
    model.model.mm_projector = build_vision_projector(config).eval()
    return model


@pytest.mark.parametrize("which", ["model", "acformer"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("beams", [1, 2])
def test_batch_answers_as_one_by_one(which: str, side: str, beams: int, request: pytest.FixtureRequest) -> None:
    """Whatever side the caller pads on; row 1 is text only and uses up a dummy image."""
    model, images = request.getfixturevalue(which), random_images(4)
    options = {"do_sample": False, "num_beams": beams, "max_new_tokens": 8, "pad_token_id": 0}
    shown = [images[:1], images[1:2], images[2:]]
    alone = [
        model.generate(torch.tensor([row]), images=own, **options)[0].tolist()
        for row, own in zip(PROMPTS, shown, strict=True)
    ]
    ids, mask = pad(PROMPTS, side)
    together = model.generate(ids, images=images, attention_mask=mask, **options).tolist()
    for one, row in zip(alone, together, strict=True):
        assert row[: len(one)] == one
        assert set(row[len(one) :]) <= {0, 2}  # beams are filled with the end token


def test_text_only_batch_without_images(model: Any) -> None:
    rows = [[1, 300, 301], [1, 302, 303, 304, 305]]
    options = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    for side in ("left", "right"):
        ids, mask = pad(rows, side)
        together = model.generate(ids, attention_mask=mask, **options).tolist()
        for row, out in zip(rows, together, strict=True):
            one = model.generate(torch.tensor([row]), **options)[0].tolist()
            assert out[: len(one)] == one


@pytest.mark.parametrize("which", ["model", "acformer"])
def test_padding_side_does_not_change_logits(which: str, request: pytest.FixtureRequest) -> None:
    model, images = request.getfixturevalue(which), random_images(4)
    results = {}
    for side in ("left", "right"):
        model.config.tokenizer_padding_side = side
        ids, mask = pad(PROMPTS, side)
        labels = ids.masked_fill(ids < 2, -100)  # nothing predicts a row's first token
        out = model.prepare_inputs_labels_for_multimodal(ids, None, mask, None, labels, images)
        _, _, mask, _, embeds, labels = out
        result = model(inputs_embeds=embeds, attention_mask=mask, labels=labels)
        results[side] = ([row[m.bool()] for row, m in zip(result.logits, mask, strict=True)], result.loss)
    for left, right in zip(results["left"][0], results["right"][0], strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-4)
    torch.testing.assert_close(results["left"][1], results["right"][1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("which", ["model", "acformer"])
def test_cached_equals_uncached(which: str, request: pytest.FixtureRequest) -> None:
    """Greedy decoding by hand, whole sequence anew each time, gives the tokens of the cached generate."""
    model, images = request.getfixturevalue(which), random_images(1)
    prompt = torch.tensor([PROMPTS[0]])
    cached = model.generate(prompt, images=images, do_sample=False, max_new_tokens=8, pad_token_id=0)[0].tolist()
    ids = prompt
    for expected in cached:
        with torch.no_grad():
            logits = model(ids, images=images, use_cache=False).logits
        assert logits[0, -1].argmax().item() == expected
        ids = torch.cat([ids, torch.tensor([[expected]])], dim=1)


def test_dummy_images_are_not_encoded(acformer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    encode = acformer.encode_images
    monkeypatch.setattr(acformer, "encode_images", lambda x, budget: seen.append(len(x)) or encode(x, budget))
    ids, mask = pad(PROMPTS, "right")
    acformer(ids, attention_mask=mask, images=random_images(4))
    assert seen == [3]
    text = torch.tensor([[1, 300, 301]] * 2)
    loss = acformer(text, labels=text, images=random_images(2)).loss
    assert seen == [3, 1], "a text-only step of a distributed run must still run the connector"
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in acformer.model.mm_projector.parameters())
    with torch.no_grad():
        plain = acformer(text, labels=text).loss
    torch.testing.assert_close(loss.detach(), plain, rtol=0, atol=1e-6)


def test_generate_fills_in_missing_dummy_images(model: Any) -> None:
    """As evaluation suites leave them out; sizes move with their images, and other counts stay an error."""
    (ids, mask), images = pad(PROMPTS, "right"), random_images(4)
    options = {"attention_mask": mask, "do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
    expected = model.generate(ids, images=images, **options)
    shown = images[[0, 2, 3]]
    assert torch.equal(model.generate(ids, images=shown, **options), expected)
    assert torch.equal(model.generate(ids, images=list(shown), **options), expected)
    with pytest.raises(ImageCountError, match="needs 2 image"):
        model.generate(ids, images=images[:2], **options)
    filled = ImageInputs(shown, [(1, 1), (2, 2), (3, 3)]).with_dummies([0, 1, 0, 2])
    assert torch.equal(filled.pixels, shown[[0, 0, 0, 1, 2]])
    assert filled.sizes == [(1, 1), (1, 1), (1, 1), (2, 2), (3, 3)]
    assert len(ImageInputs(images[:2]).with_dummies([1, 0])) == 2, "nothing is missing"


def test_images_and_markers_must_match(model: Any) -> None:
    ids, mask = pad(PROMPTS, "right")
    with pytest.raises(ImageCountError, match=r"Row 2 .* needs 2 image"):
        model(ids, attention_mask=mask, images=random_images(3))
    with pytest.raises(ImageCountError, match="5 images were given for 4"):
        model(ids, attention_mask=mask, images=random_images(5))
    with pytest.raises(ImageCountError, match="no image was given"):
        model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=2)


def test_half_precision_images(acformer: Any) -> None:
    """Evaluation suites hand over float16 images whatever the model's dtype is."""
    prompt, images = torch.tensor([PROMPTS[0]]), random_images(1)
    with torch.no_grad():
        whole, half = acformer(prompt, images=images).logits, acformer(prompt, images=images.half()).logits
    torch.testing.assert_close(half, whole, rtol=0, atol=0.1)


def test_inputs_that_a_model_of_tokens_refuses(model: Any) -> None:
    """Nothing that concerns perceptual weights is silently ignored."""
    ids = torch.tensor([PROMPTS[0]])
    weights = SimpleNamespace(num_rows=1)
    for call in (model.generate, model):
        with pytest.raises(ValueError, match="perceptual_weights replace images that become weights only"):
            call(ids, perceptual_weights=weights)
    with pytest.raises(ValueError, match="merge_weights needs a connector that makes perceptual weights"):
        model.generate(ids, images=random_images(1), merge_weights=True)


def test_an_unknown_select_feature_is_refused(model: Any) -> None:
    config = copy.deepcopy(model.config)
    config.mm_vision_select_feature = "cls"
    with pytest.raises(ValueError, match="Unexpected select feature: cls"):
        build_vision_projector(config)


def test_another_module_in_the_connector_s_place_is_called_as_in_llava(model: Any) -> None:
    """A module of the user's, or PEFT's wrapper around ours."""
    images = random_images(2)
    expected = model.encode_images(images)
    model.model.mm_projector = torch.nn.Sequential(*model.model.mm_projector)
    torch.testing.assert_close(model.encode_images(images), expected, rtol=0, atol=0)
    assert (
        model.generate(torch.tensor([PROMPTS[0]]), images=images[:1], max_new_tokens=2, do_sample=False).shape[1] <= 2
    )
    with pytest.raises(ValueError, match="has a fixed number of visual tokens"):
        model.encode_images(images, 4)
