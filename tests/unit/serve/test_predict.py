"""predict.py with a stub of Cog and a tiny model: streaming, its limits, and what is downloaded."""

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import REPOSITORY

MODEL = "checkpoints/llava-v1-tiny-mlp2x"
IMAGE = "assets/images/img0.png"


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch) -> Any:
    cog = ModuleType("cog")
    cog.BasePredictor = object
    cog.ConcatenateIterator = Iterator
    cog.Input = lambda **options: SimpleNamespace(**options)
    cog.Path = Path
    monkeypatch.setitem(sys.modules, "cog", cog)
    spec = importlib.util.spec_from_file_location("predict", REPOSITORY / "predict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def predictor(predict: Any, llava_vectors: Path) -> Any:
    predictor = predict.Predictor()
    predictor.load(MODEL, device="cpu")
    return predictor


def test_inputs(predict: Any) -> None:
    import inspect

    inputs = {name: one.default for name, one in inspect.signature(predict.Predictor.predict).parameters.items()}
    del inputs["self"]
    assert list(inputs) == ["image", "prompt", "top_p", "temperature", "max_tokens"]
    assert vars(inputs["top_p"]) | {"description": ""} == {"description": "", "ge": 0.0, "le": 1.0, "default": 1.0}
    assert (inputs["temperature"].default, inputs["temperature"].ge) == (0.2, 0.0)
    assert (inputs["max_tokens"].default, inputs["max_tokens"].ge) == (1024, 0)


def test_cog_yaml_names_it() -> None:
    assert 'predict: "predict.py:Predictor"' in (REPOSITORY / "cog.yaml").read_text()


def test_greedy_reply_is_streamed(predict: Any, predictor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temperature 0 works, and images are preprocessed as the model's configuration requires."""
    seen = []
    prepare = predict.prepare_images
    monkeypatch.setattr(predict, "prepare_images", lambda *args: seen.append(args[2]) or prepare(*args))
    pieces = list(predictor.predict(Path(IMAGE), "Describe <image> the cat.", 1.0, 0, 12))
    assert len(pieces) > 1
    assert "</s>" not in "".join(pieces)
    assert seen == [predictor.model.config]
    assert pieces == list(predictor.predict(Path(IMAGE), "Describe  the cat.", 1.0, 0, 12))


def test_sampled_reply(predictor: Any) -> None:
    torch.manual_seed(0)
    assert "".join(predictor.predict(Path(IMAGE), "Describe the cat.", 0.9, 0.7, 8))
    assert list(predictor.predict(Path(IMAGE), "Describe the cat.", 0.9, 0.7, 0)) == []


def test_failure_reaches_the_reader_at_once(predict: Any, predictor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(predict, "generate_reply", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(predictor.predict(Path(IMAGE), "Hi", 1.0, 0, 4))


def test_silence_is_an_error(predict: Any, predictor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "STREAMER_TIMEOUT", 0.01)
    monkeypatch.setattr(predict, "generate_reply", lambda *_, **__: None)
    with pytest.raises(TimeoutError, match="no new token"):
        list(predictor.predict(Path(IMAGE), "Hi", 1.0, 0, 4))


def test_generation_ends_with_its_reader(predict: Any, predictor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    criteria: list[Any] = []
    generate = predict.generate_reply

    def note(*args: Any, **options: Any) -> str:
        criteria.extend(options["stopping_criteria"])
        return generate(*args, **options)

    monkeypatch.setattr(predict, "generate_reply", note)
    reply = predictor.predict(Path(IMAGE), "Describe the cat.", 1.0, 0, 200)
    next(reply)
    reply.close()
    assert criteria[0](torch.zeros(2, 1), None).tolist() == [True, True]


@pytest.mark.parametrize(
    ("pieces", "joined"),
    [
        (["a", " ", "b"], ["a", " b"]),
        ([" ", " ", "b", " "], ["  b"]),
        (["a", "b</s>"], ["a", "b"]),
        (["a", "</s>"], ["a"]),
        (["", "a"], ["a"]),
    ],
)
def test_spaces_travel_with_the_next_piece(predict: Any, pieces: list[str], joined: list[str]) -> None:
    assert list(predict.join_spaces(iter(pieces))) == joined


def test_weights_are_pinned_and_checked(predict: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls: list[tuple[str, str]] = []
    good = hashlib.sha256(b"weights").hexdigest()

    def download(name: str, revision: str, local_dir: str, cache_dir: str) -> None:
        calls.append((name, revision))
        Path(local_dir).mkdir(parents=True, exist_ok=True)
        (Path(local_dir) / "model.bin").write_bytes(b"weights")
        (Path(local_dir) / "config.json").write_bytes(b"{}")

    class Api:
        sha256 = "0" * 64

        def model_info(self, name: str, revision: str, files_metadata: bool) -> Any:
            large = SimpleNamespace(rfilename="model.bin", lfs=SimpleNamespace(sha256=self.sha256))
            return SimpleNamespace(siblings=[large, SimpleNamespace(rfilename="config.json", lfs=None)])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(OSError, match=r"model.bin is damaged.*delete it"):
        predict.download_weights("who/model", "abc")
    Api.sha256 = good
    predict.download_weights("who/model", "abc")
    predict.download_weights("who/model", "abc")  # checked already
    predict.download_weights("who/model", "def")  # another revision is another download
    assert calls == [("who/model", "abc"), ("who/model", "abc"), ("who/model", "def")]


def test_setup(predict: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(predict, "download_weights", lambda *args: calls.append(args))
    predictor = predict.Predictor()
    monkeypatch.setattr(predictor, "load", calls.append)
    predictor.setup()
    assert [call[0] for call in calls[:2]] == ["liuhaotian/llava-v1.5-13b", "openai/clip-vit-large-patch14-336"]
    assert all(len(call[1]) == 40 for call in calls[:2])  # a commit, not a branch
    assert calls[2] == "liuhaotian/llava-v1.5-13b"
