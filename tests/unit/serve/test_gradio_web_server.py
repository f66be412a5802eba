"""The web server's flags, imports and factory."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llava.program import RequestError
from llava.serve.gradio_web_server import build_demo, build_parser, get_model_list
from tests.conftest import REPOSITORY


def test_flags() -> None:
    args = build_parser().parse_args([])
    assert vars(args) == {
        "host": "127.0.0.1", "port": None, "controller_url": "http://localhost:21001", "concurrency_count": 16,
        "model_list_mode": "once", "share": False, "moderate": False, "embed": False,
    }  # fmt: skip
    assert build_parser().parse_args(["--controller", "http://x:1"]).controller_url == "http://x:1"
    assert build_parser().parse_args(["--model-list-mode", "reload"]).model_list_mode == "reload"


def test_importing_has_no_side_effect_and_needs_no_torch(tmp_path: Path) -> None:
    code = """
import sys
before = sys.stdout
import llava.serve.gradio_web_server, llava.serve.page.log, llava.serve.page.chat
print(sys.stdout is before, [m for m in ("torch", "transformers", "gradio", "httpx") if m in sys.modules])
from llava.serve.gradio_web_server import build_demo
build_demo(models=["m"])
print([m for m in ("torch", "transformers") if m in sys.modules])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert result.stdout.splitlines() == ["True []", "[]"], result.stdout + result.stderr
    assert list(tmp_path.glob("*.log")) == []


def test_no_controller_is_one_clear_error() -> None:
    pytest.importorskip("httpx")
    with pytest.raises(RequestError, match=r"start the controller first .* --controller-url"):
        get_model_list("http://127.0.0.1:9")


def test_layout() -> None:
    pytest.importorskip("gradio")
    config = build_demo(models=["a", "b"]).get_config_file()
    parts = [(part["type"], part["props"]) for part in config["components"]]
    assert config["title"] == "LLaVA"
    assert [props["label"] for kind, props in parts if kind == "tabitem"] == [
        "Chat", "Compare", "What the model looks at",
    ]  # fmt: skip
    ids = {props.get("elem_id") for _, props in parts}
    assert {"model_selector_row", "chatbot", "buttons"} <= ids
    chatbot = next(props for _, props in parts if props.get("elem_id") == "chatbot")
    assert (chatbot["label"], chatbot["height"], chatbot["layout"]) == ("LLaVA Chatbot", 650, "panel")
    assert chatbot["sanitize_html"] and not chatbot["render_markdown"]
    radio = next(props for kind, props in parts if kind == "radio")
    assert radio["label"] == "Preprocess for non-square image" and radio["visible"] is False
    assert [c[0] for c in radio["choices"]] == ["Crop", "Resize", "Pad", "Default"] and radio["value"] == "Default"
    sliders = [
        (p["label"], p["minimum"], p["maximum"], p["step"], p["value"]) for kind, p in parts if kind == "slider"
    ][:3]
    assert sliders == [
        ("Temperature", 0.0, 1.0, 0.1, 0.2),
        ("Top P", 0.0, 1.0, 0.1, 0.7),
        ("Max output tokens", 0, 1024, 64, 512),
    ]
    named = {props["value"].split()[-1]: props for kind, props in parts if kind == "button"}
    for name in ("Upvote", "Downvote", "Flag", "Regenerate"):
        assert named[name]["interactive"] is False and not named[name]["value"].isascii()
    # The page is the only client; the events of the examples are Gradio's own.
    assert {event["api_visibility"] for event in config["dependencies"]} <= {"private", "undocumented"}


def test_embedded_page_has_no_terms() -> None:
    pytest.importorskip("gradio")

    def texts(embed: bool) -> str:
        config = build_demo(models=[], embed=embed).get_config_file()
        return " ".join(str(part["props"].get("value")) for part in config["components"] if part["type"] == "markdown")

    assert "Terms of use" in texts(False) and "Licence" in texts(False)
    assert "Terms of use" not in texts(True) and "Licence" not in texts(True)


def test_example_images_belong_to_the_package() -> None:
    from PIL import Image

    for name in ("extreme_ironing", "waterview"):
        path = REPOSITORY / f"llava/serve/examples/{name}.jpg"
        assert path.stat().st_size < 60_000
        assert min(Image.open(path).size) >= 400
    assert "examples/*.jpg" in (REPOSITORY / "setup.py").read_text()


def test_a_turn_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The right answer gives its place in the queue free when the left one never begins."""
    import gradio as gr

    from llava.serve.page import compare_tab

    monkeypatch.setattr(compare_tab, "LONGEST_TURN", 0.01)
    with gr.Blocks():
        tab = compare_tab.CompareTab(None, [], 1)
    pair = compare_tab.Pair(left_done=asyncio.Event())
    pair.chats[1].add_text("Hello")

    async def right() -> list[Any]:
        return [step async for step in tab._answering(1)(pair, "m", 0, True, 0.2, 0.7, 64, None)]

    assert len(asyncio.run(asyncio.wait_for(right(), 10))) == 1
    assert pair.chats[1].remarks == {1: "Stopped before it began."}


def test_a_budget_that_is_no_number_is_the_models_own() -> None:
    pytest.importorskip("gradio")
    from llava.serve.page.inputs import chosen_budget

    assert [chosen_budget(choice) for choice in (0, None, "", "abc", "-3", 17, "17")] == [None] * 5 + [17, 17]
