"""Visual tokens and perceptual weights at once: each part does what it does alone, and they go everywhere together."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llava.model.builder import load_pretrained_model
from llava.model.image_inputs import ImageInputs
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.multimodal_projector.image_rows import ImageCountError
from llava.model.splice import LanguageInputs
from tests.support.training import losses_of, run_training
from tests.support.vlora_models import (
    GREEDY,
    PROMPTS,
    SMALL,
    assert_cached_equals_uncached,
    build,
    logits,
    pad,
    random_images,
)

RESAMPLER = {"mm_num_visual_tokens": 5, "mm_resampler_depth": 1, "mm_resampler_heads": 2, "mm_resampler_dim_head": 8}
FLAGS = [
    *("--mm_projector_type", "acformer_vlora"),
    *(part for key, value in (SMALL | RESAMPLER).items() for part in (f"--{key}", str(value))),
]


def build_both(**settings: Any) -> Any:
    return build(projector="acformer_vlora", **(RESAMPLER | settings))


@pytest.fixture
def model(llava_vectors: Path) -> Any:
    return build_both()


@torch.no_grad()
def logits_of_row(model: Any) -> torch.Tensor:
    return model(torch.tensor(PROMPTS[:1]), images=random_images(1)).logits[0]


def test_without_weights_it_is_acformer_bit_for_bit(model: Any) -> None:
    for factor in model.model.mm_projector.weights.Bs.values():
        torch.nn.init.zeros_(factor)
    ours = logits_of_row(model)
    config = model.config
    config.mm_projector_type = "acformer"
    alone = build_vision_projector(config)
    alone.load_state_dict(model.model.mm_projector.tokens.state_dict())
    model.model.mm_projector = alone.eval()
    assert torch.equal(ours, logits_of_row(model))


def test_the_weights_are_those_of_vlora(model: Any) -> None:
    both = model.assemble_inputs(LanguageInputs(torch.tensor(PROMPTS[:1])), ImageInputs(random_images(1)))
    assert both.inputs_embeds.shape[1] == len(PROMPTS[0]) + 4, "five tokens stand for the marker"
    model.model.mm_projector = model.model.mm_projector.weights
    alone = model.assemble_inputs(LanguageInputs(torch.tensor(PROMPTS[:1])), ImageInputs(random_images(1)))
    for letter, a in alone.weights.inputs.items():
        assert torch.equal(both.weights.inputs[letter], a)


@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_equals_one_by_one(model: Any, side: str) -> None:
    model.config.tokenizer_padding_side = side
    images = random_images(3)
    ids, mask = pad(PROMPTS, side)
    with torch.no_grad():
        together = model(ids, attention_mask=mask, images=images).logits
    for i, row in enumerate(PROMPTS):
        with torch.no_grad():
            alone = model(torch.tensor([row]), images=images[i : i + 1]).logits[0]
        ours = together[i, -len(alone) :] if side == "left" else together[i, : len(alone)]
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_generation_answers_row_by_row(model: Any, options: dict[str, Any]) -> None:
    images = random_images(3)
    ids, mask = pad(PROMPTS)
    together = model.generate(ids, images=images, attention_mask=mask, **GREEDY, **options)
    for i, row in enumerate(PROMPTS):
        alone = model.generate(torch.tensor([row]), images=images[i : i + 1], **GREEDY, **options)
        assert torch.equal(together[i : i + 1, : alone.shape[1]], alone)


def test_merging_changes_no_answer(model: Any) -> None:
    prompt = {"inputs": torch.tensor(PROMPTS[:1]), "images": random_images(1), **GREEDY}
    assert torch.equal(model.generate(**prompt), model.generate(**prompt, merge_weights=True))


def test_cached_equals_uncached(model: Any) -> None:
    assert_cached_equals_uncached(model)


def test_text_alone_is_the_language_model(model: Any) -> None:
    rows = [[1, 305, 306, 307]]
    plain = logits(model, rows, None)[0]
    model(torch.tensor(PROMPTS[:1]), images=random_images(1))  # hooks are there from now on
    assert torch.equal(plain, logits(model, rows, random_images(1))[0])


def test_a_text_only_training_step_reaches_every_parameter(model: Any) -> None:
    ids = torch.tensor([[1, 305, 306]])
    model.train()(ids, labels=ids, images=random_images(1)).loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.model.mm_projector.parameters())


def test_the_budget_can_change_in_every_call(model: Any) -> None:
    few = model(torch.tensor(PROMPTS[:1]), images=random_images(1)).logits.shape[1]
    assert model(torch.tensor(PROMPTS[:1]), images=random_images(1), num_visual_tokens=9).logits.shape[1] == few + 4


def test_both_stages_lora_and_opening_again(tmp_path: Path, llava_vectors: Path) -> None:
    base, options = "assets/base-llama", {"device": "cpu", "dtype": torch.float32}
    step = ["--save_strategy", "no", "--max_steps", "2"]
    first = run_training(
        tmp_path / "llava-first", "--version", "plain", "--data_path", "train/data_plain.json",
        "--tune_mm_mlp_adapter", "True", *step, *FLAGS,
    )  # fmt: skip
    adapter = ["--pretrain_mm_mlp_adapter", str(tmp_path / "llava-first/mm_projector.bin")]
    v1 = ["--version", "v1", "--data_path", "train/data.json", "--group_by_modality_length", "True", *step, *FLAGS]
    full = run_training(tmp_path / "full", *v1, *adapter, "--gradient_checkpointing", "True", "--B_matrix_lr", "1e-3")
    lora = run_training(tmp_path / "llava-lora", *v1, *adapter, "--lora_enable", "True", "--lora_r", "4")
    ids = torch.tensor(PROMPTS[:1])
    for folder, opened_on, trainer in (("llava-first", base, first), ("full", None, full), ("llava-lora", base, lora)):
        assert all(torch.isfinite(torch.tensor(losses_of(trainer))))
        model = load_pretrained_model(str(tmp_path / folder), opened_on, "llava", **options)[1]
        with torch.no_grad():
            expected = trainer.model.eval()(ids, images=random_images(1)).logits
            torch.testing.assert_close(model(ids, images=random_images(1)).logits, expected, rtol=0, atol=1e-4)
    elastic = load_pretrained_model(str(tmp_path / "full"), None, "llava", mm_num_visual_tokens=9, **options)[1]
    assert elastic.num_visual_tokens == 9


def test_several_crops_are_refused_when_the_model_is_built(llava_vectors: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"image_aspect_ratio anyres makes several crops .* use pad or square"):
        run_training(tmp_path / "x", "--version", "plain", "--data_path", "train/data_plain.json",
                     "--image_aspect_ratio", "anyres", "--max_steps", "1", *FLAGS)  # fmt: skip


def test_a_marker_alone_needs_its_image(model: Any) -> None:
    with pytest.raises(ImageCountError, match="no image was given"):
        model(torch.tensor([[-200]]))
