"""The open checkpoint and its data loader: decoding options, devices, templates, unusable checkpoints."""

import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from llava.eval import model_vqa_loader
from llava.eval.answering.answerer import Answerer
from llava.eval.answering.model_names import template_for
from llava.eval.answering.options import DecodingOptions, RunOptions
from llava.inference import generate_reply, inference_options, place_images, prepare_images
from llava.program import RequestError
from llava.tokenization import load_tokenizer

PLAIN = SimpleNamespace()

# --- decoding ---


class FakeModel:
    """Records the options of `generate`; replies with a BOS, a word and an EOS."""

    device = torch.device("cpu")
    dtype = torch.float64

    def generate(self, ids: torch.Tensor, **options: Any) -> torch.Tensor:
        self.options = options
        return torch.tensor([[1, 263, 2]])


def test_decoding_options(llava_vectors: Path) -> None:
    model, tokenizer = FakeModel(), load_tokenizer("assets/tokenizer-llama")
    ids = torch.tensor([[1, 2]])
    word = tokenizer.decode([263]).strip()
    greedy = DecodingOptions(temperature=0, top_p=0.5, num_beams=3, max_new_tokens=9)
    assert generate_reply(model, tokenizer, ids, **greedy.for_generate()) == word
    expected = {"images": None, "image_sizes": None, "use_cache": True, "pad_token_id": 2, "max_new_tokens": 9}
    assert model.options == expected | {"do_sample": False, "num_beams": 3}
    generate_reply(model, tokenizer, ids, **DecodingOptions(max_new_tokens=9).for_generate())
    assert model.options == expected | {"do_sample": True, "temperature": 0.2, "top_p": 1.0, "num_beams": 1}


def test_images_follow_the_model() -> None:
    model = FakeModel()
    assert place_images(None, model) is None
    assert place_images(torch.zeros(1, 3, 2, 2), model).dtype == torch.float64
    assert [image.dtype for image in place_images([torch.zeros(1), torch.zeros(2)], model)] == [torch.float64] * 2
    with pytest.raises(RequestError, match="plain language model"):
        prepare_images([Image.new("RGB", (2, 2))], None, PLAIN)


def test_inference_options(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    on_cpu = {"device": "cpu", "dtype": torch.float32}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert inference_options() == {"device": "cuda"}
    assert inference_options("cpu") == on_cpu
    assert inference_options("mps") == {"device": "mps"}
    assert not caplog.records
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert inference_options("cuda:1") == on_cpu
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("flag", "value"),
    [("num_beams", 0), ("max_new_tokens", 0), ("top_p", 2.0), ("top_p", 0.0), ("temperature", float("nan"))],
)
def test_values_out_of_range(flag: str, value: float) -> None:
    with pytest.raises(RequestError, match=f"--{flag} is {value}; it must be"):
        DecodingOptions(**{flag: value})
    DecodingOptions(temperature=0, top_p=1.0, num_beams=1, max_new_tokens=1)
    with pytest.raises(RequestError, match="--batch-size is 0; it must be"):
        RunOptions("m", "a.jsonl", "llava_v1", batch_size=0)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere/llava", "there is no folder '/nowhere/llava'"),
        ("checkpoints/my/llava", "there is no folder"),
        ("", "there is no folder ''"),
        ("checkpoint-500", "no parent folder"),
        ("no-model", "no-model cannot be opened as a model"),
        ("~/my models/llava", "there is no folder '/home/nobody/my models/llava'"),
    ],
)
def test_unusable_checkpoints(path: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One error with its cause, whatever transformers raises."""
    monkeypatch.setenv("HOME", "/home/nobody")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no-model").mkdir()
    (tmp_path / "no-model" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(RequestError, match=message):
        Answerer.open(path, None)


def test_a_checkpoint_without_its_vision_tower(llava_vectors: Path, tmp_path: Path) -> None:
    shutil.copytree("checkpoints/llava-v1-tiny-mlp2x", tmp_path / "llava")
    config = json.loads((tmp_path / "llava/config.json").read_text())
    (tmp_path / "llava/config.json").write_text(json.dumps(config | {"mm_vision_tower": "bases/gone"}))
    with pytest.raises(RequestError, match="llava cannot be opened as a model: Unknown vision tower: bases/gone"):
        Answerer.open(str(tmp_path / "llava"), None)


# --- the data loader ---


@pytest.mark.parametrize(
    ("name", "mode", "expected"),
    [
        ("llava-plain", "vicuna_v1", "v1_mmtag"),
        ("llava-plain", "llava_v1", "v1_mmtag"),
        ("llava-plain", "v0", "v0_mmtag"),
        ("llava-plain", "v1_mmtag", "v1_mmtag"),
        ("llava-plain", "mpt", "mpt"),
        ("llava-Plain", "llava_v1", "llava_v1"),
        ("llava-plain-finetune", "llava_v1", "llava_v1"),
    ],
)
def test_mmtag(name: str, mode: str, expected: str, caplog: pytest.LogCaptureFixture) -> None:
    assert template_for(name, mode) == expected
    assert len(caplog.records) == (mode != expected)


@pytest.fixture
def parts(llava_vectors: Path) -> tuple[Any, Any]:
    from transformers import CLIPImageProcessor

    return load_tokenizer("assets/tokenizer-llama"), CLIPImageProcessor.from_pretrained("assets/towers/clip-a")


def _questions(*images: str) -> list[dict[str, Any]]:
    return [{"question_id": f"q{i}", "image": image, "text": f"What {i}?"} for i, image in enumerate(images)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_data_loader_keeps_the_order(parts: tuple[Any, Any], num_workers: int) -> None:
    """Also with a configuration that has neither `mm_use_im_start_end` nor `image_aspect_ratio`."""
    names = [f"img{i}.png" for i in (3, 0, 2, 1)]
    loader = model_vqa_loader.create_data_loader(
        _questions(*names), "assets/images", *parts, PLAIN, num_workers=num_workers
    )
    sizes = []
    for ids, images, image_sizes in loader:
        assert ids.shape[0] == images.shape[0] == 1
        assert (ids == -200).sum() == 1
        sizes += image_sizes
    assert sizes == [Image.open(f"assets/images/{name}").size for name in names]
    with pytest.raises(AssertionError):
        model_vqa_loader.create_data_loader([], "", *parts, PLAIN, batch_size=2)


def test_the_data_set_can_be_pickled(parts: tuple[Any, Any]) -> None:
    """Upstream's data set reads a global variable, which spawned workers do not have."""
    loader = model_vqa_loader.create_data_loader(_questions("img0.png"), "assets/images", *parts, PLAIN)
    copy = pickle.loads(pickle.dumps(loader.dataset))
    assert torch.equal(copy[0].input_ids, loader.dataset[0].input_ids)


def test_marker_in_a_question_is_refused(parts: tuple[Any, Any]) -> None:
    question = {"question_id": 3, "image": "img0.png", "text": "Is <image> nice?"}
    loader = model_vqa_loader.create_data_loader([question], "assets/images", *parts, PLAIN, num_workers=0)
    with pytest.raises(RequestError, match="the prompt has 2 image marker"):
        next(iter(loader))
