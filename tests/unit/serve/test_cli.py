"""The command line chat: loading, prompts, output."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llava.conversation import conv_templates
from llava.program import RequestError
from llava.serve import cli

MODEL = ["--model-path", "checkpoints/llava-v1-tiny-mlp2x", "--image-file", "assets/images/img1.png"]


def _say(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replies that the model is made to give; prompts it got are in `replies.prompts`."""

    class Replies(list):
        prompts: list[str]

    scripted = Replies()
    scripted.prompts = []
    tokenize = cli.tokenizer_image_token

    def note_prompt(prompt: str, *args: Any, **kwargs: Any) -> Any:
        scripted.prompts.append(prompt)
        return tokenize(prompt, *args, **kwargs)

    monkeypatch.setattr(cli, "tokenizer_image_token", note_prompt)
    monkeypatch.setattr(cli, "generate_reply", lambda *args, **kwargs: scripted.pop(0))
    return scripted


def test_flags() -> None:
    args = cli.build_parser().parse_args(["--image-file", "a.png"])
    assert vars(args) == {
        "model_path": "facebook/opt-350m",
        "model_base": None,
        "image_file": "a.png",
        "device": "cuda",
        "conv_mode": None,
        "temperature": 0.2,
        "max_new_tokens": 512,
        "load_8bit": False,
        "load_4bit": False,
        "debug": False,
        "mm_num_visual_tokens": None,
        "mm_projector_type": None,
    }
    assert cli.build_parser().parse_args(["--image-file", "a.png", "--load-4bit"]).load_4bit
    with pytest.raises(SystemExit):
        cli.build_parser().parse_args([])


def test_image_is_announced_once(llava_vectors: Path, monkeypatch: pytest.MonkeyPatch, replies: Any) -> None:
    _say(monkeypatch, "One?\nTwo?\n\nnot read\n")
    replies += ["yes", "no"]
    cli.main(cli.build_parser().parse_args(MODEL))
    system = conv_templates["llava_v1"].system
    assert replies.prompts == [
        f"{system} USER: <image>\nOne? ASSISTANT:",
        f"{system} USER: <image>\nOne? ASSISTANT: yes</s>USER: Two? ASSISTANT:",
    ]


def test_typed_markers_are_removed(
    llava_vectors: Path, monkeypatch: pytest.MonkeyPatch, replies: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither by the user nor by the model; a line with nothing else does not end the chat."""
    _say(monkeypatch, "<image>\nwhat is <image>?\nmore\n")
    replies += ["an <image> it is", "bye"]
    cli.main(cli.build_parser().parse_args(MODEL))
    assert [prompt.count("<image>") for prompt in replies.prompts] == [1, 1]
    assert "<image> is removed" in capsys.readouterr().out


def test_start_and_end_tokens(llava_vectors: Path, monkeypatch: pytest.MonkeyPatch, replies: Any) -> None:
    _say(monkeypatch, "Hi\n")
    replies.append("Hello")
    argv = ["--model-path", "checkpoints/llava-v1-tiny-linear-imse", *MODEL[2:], "--conv-mode", "llava_v0"]
    cli.main(cli.build_parser().parse_args(argv))
    assert "Human: <im_start><image><im_end>\nHi###" in replies.prompts[0]


def test_sampled_reply_is_streamed(
    llava_vectors: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    _say(monkeypatch, "Hi\n")
    cli.main(cli.build_parser().parse_args([*MODEL, "--temperature", "0.9", "--max-new-tokens", "5"]))
    out, _ = capsys.readouterr()
    assert out.startswith("USER: ASSISTANT: ")
    assert "</s>" not in out
    assert out.endswith("\nUSER: exit...\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows the fallback of a machine without CUDA")
def test_loading_options(
    llava_vectors: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: dict[str, Any] = {}

    def load(*args: Any, **kwargs: Any) -> Any:
        seen.update(args=args, kwargs=kwargs)
        return None, SimpleNamespace(config=None), None, 2048

    monkeypatch.setattr("llava.model.builder.load_pretrained_model", load)
    with pytest.raises(RequestError, match="plain language model"):  # no image processor came back
        cli.main(cli.build_parser().parse_args([*MODEL, "--load-4bit", "--model-base", "~/base"]))
    base = str(Path("~/base").expanduser())
    assert seen["args"] == ("checkpoints/llava-v1-tiny-mlp2x", base, "llava-v1-tiny-mlp2x", False, True)
    assert seen["kwargs"] == {"device": "cpu", "dtype": torch.float32}
    assert [record.message for record in caplog.records if "no CUDA device" in record.message] != []


@pytest.mark.parametrize(
    ("template", "name", "roles"),
    [
        ("llava_v1", "llava-v1.5-7b", ("USER", "ASSISTANT")),
        ("llava_v1", "LLaVA-MPT-7b", ("user", "assistant")),
        ("chatml_direct", "llava-v1.6-34b", ("user", "assistant")),
        ("llava_v0", "llava", ("Human", "Assistant")),
    ],
)
def test_shown_roles(template: str, name: str, roles: tuple[str, str]) -> None:
    assert cli.shown_roles(conv_templates[template], name) == roles


def test_bad_requests_fail_before_the_model_is_loaded(llava_vectors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava.model.builder.load_pretrained_model", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(RequestError, match=r"no conversation template 'nope'.*llava_v1"):
        cli.main(cli.build_parser().parse_args([*MODEL, "--conv-mode", "nope"]))
    with pytest.raises(ValueError, match=r"missing.png' does not exist"):
        cli.main(cli.build_parser().parse_args([*MODEL[:2], "--image-file", "missing.png"]))


def test_interrupt_ends_the_chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupted)
    monkeypatch.setattr(sys, "argv", ["cli", "--image-file", "a.png"])
    cli.chat()
    assert capsys.readouterr().out == "\nexit...\n"
