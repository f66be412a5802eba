"""The demo as visitors use it: the real web server in a process, doubles of controller and workers, a real browser."""

import json
import os
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="pip install 'llava[serve]'")

from tests.conftest import REPOSITORY
from tests.support.browser import chromium
from tests.support.serve_doubles import ANSWER, Behaviour, ControllerDouble, WorkerDouble, deployment, elastic_details
from tests.support.serving import free_port, wait_until
from tests.support.visitor import BOTH, QUESTION, Visitor

pytestmark = pytest.mark.e2e

NEW, OLD, GONE = "llava-acformer", "llava-v1.5-old", "llava-v1.6-gone"
CURSOR = "\N{LEFT HALF BLOCK}"


@dataclass
class Demo:
    """A running demo and what is behind it."""

    url: str
    folder: Path
    controller: ControllerDouble
    workers: dict[str, WorkerDouble]

    def logged(self, kind: str) -> list[dict[str, Any]]:
        """Lines of one type in the chat log."""
        lines = [json.loads(line) for path in sorted(self.folder.glob("*-conv.json")) for line in path.open()]
        return [line for line in lines if line["type"] == kind]


@contextmanager
def web_server(controller: ControllerDouble, folder: Path, *flags: str) -> Iterator[str]:
    """The program of the contract in a process of its own; gives its address."""
    port = free_port()
    environment = os.environ | {"LLAVA_LOGDIR": str(folder), "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(folder)}
    environment.pop("GRADIO_TEMP_DIR", None)
    command = [sys.executable, "-m", "llava.serve.gradio_web_server", "--controller", controller.url]
    with (folder / "out.log").open("w") as out:
        process = subprocess.Popen(
            [*command, "--port", str(port), *flags], env=environment, stdout=out, stderr=out, cwd=folder
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: is_up(url, process), 120)
        yield url
    finally:
        process.terminate()
        process.wait(20)
    assert not list(folder.glob("llava-uploads-*")), "uploads are left behind"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("logs")
    behaviours = [Behaviour(NEW, details=elastic_details()), Behaviour(OLD), Behaviour(GONE)]
    with deployment(*behaviours) as (controller, workers):
        workers[2].close()
        with web_server(controller, folder) as url:
            yield Demo(url, folder, controller, dict(zip((NEW, OLD, GONE), workers, strict=True)))


def is_up(url: str, process: subprocess.Popen) -> bool:
    assert process.poll() is None, "the web server ended"
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


ALL_ON = dict.fromkeys(("Upvote", "Downvote", "Flag", "Regenerate", "Clear"), True)
ALL_OFF = dict.fromkeys(ALL_ON, False)
AFTER_ERROR = ALL_OFF | {"Regenerate": True, "Clear": True}


@pytest.fixture
def visitor(browser: Any, demo: Demo) -> Iterator[Visitor]:
    visitor = Visitor(browser, demo.url)
    yield visitor
    visitor.page.close()
    assert visitor.strangers == []  # all requests go to the page's own server


@pytest.fixture
def worker(demo: Demo) -> Iterator[WorkerDouble]:
    """The first model's worker; behaves again afterwards."""
    worker = demo.workers[NEW]
    worker.requests.clear()
    worker.hung_up.clear()
    demo.workers[OLD].requests.clear()
    yield worker
    worker.behaviour.hold.set()
    worker.behaviour.__dict__.update(answer=ANSWER, pause=0.0, error=None, breaks_after=None, says_nothing=False)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{i}.png" for i in range(3)]
    for path, colour, size in zip(paths, ("red", "green", "blue"), ((120, 80), (60, 60), (40, 90)), strict=True):
        Image.new("RGB", size, colour).save(path)
    return paths


def test_upload_ask_and_watch_the_reply_grow(
    demo: Demo, visitor: Visitor, worker: WorkerDouble, images: list[Path]
) -> None:
    assert visitor.states() == ALL_OFF and not visitor.is_enabled("Stop")
    worker.behaviour.hold.clear()
    visitor.upload(images[0])
    visitor.ask("What is it?")
    visitor.wait_reply(f"The image{CURSOR}")
    assert visitor.page.input_value(QUESTION) == ""
    assert visitor.states() == ALL_OFF and visitor.is_enabled("Stop")
    worker.behaviour.hold.set()
    visitor.wait_enabled("Upvote")
    assert visitor.states() == ALL_ON and not visitor.is_enabled("Stop")
    assert visitor.replies[-1].startswith(f"{ANSWER}\n33 visual tokens · 10 tokens · first after 125 ms")
    assert visitor.page.locator("#chatbot img").count() == 1

    (request,) = worker.asked("/worker_generate_stream")
    assert {key: request[key] for key in ("model", "temperature", "top_p", "max_new_tokens", "stop")} == {
        "model": NEW, "temperature": 0.2, "top_p": 0.7, "max_new_tokens": 512, "stop": "</s>",
    }  # fmt: skip
    assert request["prompt"].endswith("USER: <image>\nWhat is it? ASSISTANT:") and len(request["images"]) == 1
    headers = next(one.headers for one in worker.requests if one.path == "/worker_generate_stream")
    assert headers["User-Agent"] == "LLaVA Client"

    line = demo.logged("chat")[-1]
    assert (line["model"], line["ip"]) == (NEW, "127.0.0.1") and line["state"]["messages"][-1][1] == ANSWER
    (uploads,) = demo.folder.glob("llava-uploads-*")
    assert stat.S_IMODE(uploads.stat().st_mode) == 0o700 and any(uploads.rglob("*.png"))
    stored = next(demo.folder.glob(f"serve_images/*/{line['images'][0]}.jpg"))
    for path in (stored, next(demo.folder.glob("*-conv.json")), demo.folder / "gradio_web_server.log"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0
    assert "<image>" in (demo.folder / "gradio_web_server.log").read_text()  # the request is logged ...
    assert request["images"][0][:60] not in (demo.folder / "gradio_web_server.log").read_text()  # ... without images


def test_stop_ends_the_stream_and_keeps_what_came(demo: Demo, visitor: Visitor, worker: WorkerDouble) -> None:
    worker.behaviour.hold.clear()
    visitor.ask("Tell me a story.")
    visitor.wait_reply(f"The image{CURSOR}")
    visitor.press("Stop")
    visitor.wait_enabled("Upvote")
    assert visitor.states() == ALL_ON and not visitor.is_enabled("Stop")
    assert visitor.replies[-1].startswith("The image\n") and visitor.replies[-1].endswith("stopped")
    assert worker.hung_up.wait(10)  # the worker need not go on
    assert demo.logged("chat")[-1]["state"]["messages"][-1][1] == "The image"


def test_leaving_the_page_ends_the_stream(browser: Any, demo: Demo, worker: WorkerDouble) -> None:
    worker.behaviour.hold.clear()
    visitor = Visitor(browser, demo.url)
    visitor.ask("Tell me a story.")
    visitor.wait_reply("The image")
    visitor.page.close()
    assert worker.hung_up.wait(20)


def test_regenerate_vote_and_clear(demo: Demo, visitor: Visitor, worker: WorkerDouble) -> None:
    visitor.ask("Hello")
    visitor.wait_reply(ANSWER)
    worker.behaviour.answer = "Another answer."
    visitor.press("Regenerate")
    visitor.wait_reply("Another answer.")
    visitor.wait_enabled("Upvote")
    assert len(visitor.replies) == 1
    assert [r["prompt"].count("Hello") for r in worker.asked("/worker_generate_stream")] == [1, 1]

    for name, kind in (("Upvote", "upvote"), ("Downvote", "downvote"), ("Flag", "flag")):
        before = len(demo.logged(kind))
        visitor.press(name)
        visitor.wait_enabled(name, False)
        assert visitor.states() == AFTER_ERROR
        assert len(demo.logged(kind)) == before + 1
        assert demo.logged(kind)[-1]["state"]["messages"][-1][1] == "Another answer."
        visitor.press("Regenerate")
        visitor.wait_enabled("Upvote")

    visitor.press("Clear")
    visitor.wait_enabled("Clear", False)
    assert visitor.states() == ALL_OFF and visitor.replies == []
    visitor.ask("Again")
    visitor.wait_reply("Another answer.")
    assert worker.asked("/worker_generate_stream")[-1]["prompt"].count("USER:") == 1


def test_several_images_and_a_second_turn(visitor: Visitor, worker: WorkerDouble, images: list[Path]) -> None:
    visitor.upload(*images)
    visitor.ask("Which is <image> larger?")
    visitor.wait_enabled("Upvote")
    first = worker.asked("/worker_generate_stream")[-1]
    assert first["prompt"].count("<image>") == len(first["images"]) == 3
    assert "99 visual tokens · 10 tokens" in visitor.replies[-1]

    visitor.ask("And why?")
    visitor.wait_reply(ANSWER)
    wait_until(lambda: len(visitor.replies) == 2)
    visitor.wait_enabled("Upvote")
    second = worker.asked("/worker_generate_stream")[-1]
    assert second["prompt"].count("<image>") == len(second["images"]) == 3
    assert second["prompt"].endswith(f"ASSISTANT: {ANSWER}</s>USER: And why? ASSISTANT:")

    visitor.page.get_by_text("Images join the running chat").click()
    visitor.upload(images[1])
    visitor.ask("And this one?")
    wait_until(lambda: len(visitor.replies) == 3)
    visitor.wait_enabled("Upvote")
    third = worker.asked("/worker_generate_stream")[-1]
    assert third["prompt"].count("<image>") == len(third["images"]) == 4

    visitor.page.get_by_text("Images join the running chat").click()
    visitor.upload(images[2])
    visitor.ask("From the beginning: what is it?")
    wait_until(lambda: len(visitor.replies) == 1)
    visitor.wait_enabled("Upvote")
    assert len(worker.asked("/worker_generate_stream")[-1]["images"]) == 1


def test_logs_cannot_be_fetched(demo: Demo, visitor: Visitor, worker: WorkerDouble) -> None:
    """They lie in the working directory by default, next to what Gradio serves."""
    visitor.ask("Hello")
    visitor.wait_enabled("Upvote")
    for path in (demo.folder / "gradio_web_server.log", *demo.folder.glob("*-conv.json"), Path("/etc/hostname")):
        for name in (path, path.name):
            reply = visitor.page.request.get(f"{demo.url}/gradio_api/file={name}")
            assert reply.status in (403, 404), path


def test_the_server_fetches_nothing(demo: Demo, visitor: Visitor) -> None:
    """Gradio would download a file that an event names by a link."""
    request = visitor.page.request
    link = {"path": "https://198.51.100.1/a.png", "meta": {"_type": "gradio.FileData"}}
    for data in (link, [{"image": {**link, "path": "HTTP://198.51.100.1/a.png"}}]):
        event = {"data": [data], "fn_index": 1, "session_hash": "stranger"}
        reply = request.post(f"{demo.url}/gradio_api/queue/join", data=event)
        assert (reply.status, reply.json()) == (403, {"message": "files are uploaded, not fetched"})
    event = {"data": ["x" * 2**20], "fn_index": 1, "session_hash": "stranger"}
    assert request.post(f"{demo.url}/gradio_api/queue/join", data=event).status == 413


EVIL = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> **bold** "
    "[here](javascript:window.hacked=1) ![spy](http://127.0.0.1:9/spy.png) <a href='javascript:window.hacked=1'>a</a>"
)


def test_nothing_that_is_shown_is_run(visitor: Visitor, worker: WorkerDouble) -> None:
    worker.behaviour.answer = EVIL
    visitor.ask(EVIL)
    visitor.wait_enabled("Upvote")
    page = visitor.page
    shown = page.locator("#chatbot .message-content").all_inner_texts()
    assert len(shown) == 2
    for text in shown:
        assert "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>" in text
        assert "[here](javascript:window.hacked=1)" in text and "**bold**" not in text
    assert page.locator("#chatbot .message-content").locator("img, a, script").count() == 0
    worker.behaviour.error = (1, EVIL)
    visitor.press("Regenerate")
    visitor.wait_reply("(error_code: 1)")
    assert page.locator("#chatbot .message-content").locator("img, a, script").count() == 0
    assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ({"error": (1, "the server is busy: 64 requests are waiting; try again")}, "the server is busy"),
        ({"error": (1, None)}, "NETWORK ERROR DUE TO HIGH TRAFFIC"),
        ({"breaks_after": 3}, "The connection to the worker is broken."),
        ({"says_nothing": True}, "The worker ended the connection without an answer."),
    ],
)
def test_trouble_gives_one_clear_message(
    visitor: Visitor, worker: WorkerDouble, trouble: dict[str, Any], message: str
) -> None:
    worker.behaviour.__dict__.update(trouble)
    visitor.ask("Hello")
    visitor.wait_reply(message)
    visitor.wait_enabled("Regenerate")
    assert visitor.states() == AFTER_ERROR and len(visitor.replies) == 1
    worker.behaviour.__dict__.update(error=None, breaks_after=None, says_nothing=False)
    visitor.press("Regenerate")
    visitor.wait_reply(ANSWER)
    visitor.wait_enabled("Upvote")
    assert message not in visitor.replies[-1]


def test_worker_that_is_gone(browser: Any, demo: Demo) -> None:
    visitor = Visitor(browser, f"{demo.url}?model={GONE}")
    visitor.wait_model(GONE)
    visitor.ask("Hello")
    visitor.wait_reply("NETWORK ERROR")
    visitor.wait_enabled("Regenerate")
    assert visitor.states() == AFTER_ERROR
    address = demo.controller.addresses.pop(GONE)  # as the controller forgets it after a while
    try:
        visitor.press("Regenerate")
        visitor.wait_reply(f"No worker serves {GONE}.")
    finally:
        demo.controller.addresses[GONE] = address
    visitor.page.close()


def test_an_old_worker_and_the_model_of_the_address(browser: Any, demo: Demo, worker: WorkerDouble) -> None:
    visitor = Visitor(browser, f"{demo.url}?model={OLD}")
    visitor.wait_model(OLD)
    visitor.ask("Hello")
    visitor.wait_reply(ANSWER)
    visitor.wait_enabled("Upvote")
    (request,) = demo.workers[OLD].asked("/worker_generate_stream")
    assert request["prompt"].startswith("A chat between a curious human") and request["model"] == OLD
    assert "visual token" not in visitor.replies[-1]
    visitor.page.close()


def test_a_file_that_is_no_image(visitor: Visitor, worker: WorkerDouble, tmp_path: Path) -> None:
    bomb = tmp_path / "tiny.png"
    Image.new("RGB", (1, 1)).save(bomb)
    visitor.upload(bomb)
    visitor.ask("What is it?")
    visitor.page.get_by_text("too small to see anything").wait_for()
    assert visitor.replies == [] and worker.asked("/worker_generate_stream") == []


def test_compare_two_budgets_of_one_model(visitor: Visitor, worker: WorkerDouble, images: list[Path]) -> None:
    page = visitor.page
    page.get_by_role("tab", name="Compare").click()
    wait_until(lambda: page.locator("#compare_budget_left input").input_value() == "33 (default)")
    assert page.locator("#compare_model_right input").input_value() == OLD
    page.locator("#compare_model_right input").click()
    page.get_by_role("option", name=NEW).click()
    wait_until(lambda: page.locator("#compare_budget_right input").input_value() == "33 (default)")
    page.locator("#compare_budget_right input").click()
    page.get_by_role("option", name="5", exact=True).click()
    page.locator("#compare_image input[type=file]").set_input_files(images[0])
    page.locator("#compare_image img").wait_for()
    worker.behaviour.hold.clear()
    page.fill(BOTH, "What is it?")
    page.keyboard.press("Enter")
    for side in ("left", "right"):  # at the same time
        visitor.wait_reply(f"The image{CURSOR}", f"#compare_{side}")
    worker.behaviour.hold.set()
    visitor.wait_reply("33 visual tokens · 10 tokens", "#compare_left")
    visitor.wait_reply("5 visual tokens · 10 tokens", "#compare_right")
    asked = worker.asked("/worker_generate_stream")
    assert sorted(request.get("num_visual_tokens", 0) for request in asked) == [0, 5]

    worker.behaviour.hold.clear()
    page.get_by_text("One after the other").click()
    page.fill(BOTH, "And now?")
    page.get_by_role("button", name="Compare").click()
    visitor.wait_reply(f"The image{CURSOR}", "#compare_left")
    assert len(worker.asked("/worker_generate_stream")) == 3
    page.locator("#compare_stop").click()
    visitor.wait_reply("stopped", "#compare_left")
    visitor.wait_reply("Stopped before it began.", "#compare_right")
    assert len(worker.asked("/worker_generate_stream")) == 3
    page.locator("#compare_clear").click()
    wait_until(lambda: page.locator('#compare_left [data-testid="bot"]').count() == 0)


def test_what_the_model_looks_at(visitor: Visitor, worker: WorkerDouble, images: list[Path]) -> None:
    page = visitor.page
    page.get_by_role("tab", name="What the model looks at").click()
    page.get_by_role("button", name="Show the anchors").click()
    page.locator("#anchors_caption").get_by_text("Choose an image first.").wait_for()
    page.locator("#anchors_image input[type=file]").set_input_files(images[0])
    page.locator("#anchors_image img").wait_for()
    page.locator("#anchors_budget input").click()
    page.get_by_role("option", name="17", exact=True).click()
    page.get_by_role("button", name="Show the anchors").click()
    page.locator("#anchors_caption").get_by_text("16 anchors of 64 patches").wait_for()
    page.locator("#anchors_drawn img").wait_for()
    assert worker.asked("/worker_visual_anchors")[-1]["num_visual_tokens"] == 17

    page.locator("#anchors_model input").click()
    page.get_by_role("option", name=OLD).click()
    page.get_by_role("button", name="Show the anchors").click()
    page.locator("#anchors_caption").get_by_text("This worker cannot draw visual anchors").wait_for()


@pytest.mark.parametrize("width", [360, 390])
def test_the_page_fits_a_phone(browser: Any, demo: Demo, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, is_mobile=True, has_touch=True)
    page.goto(demo.url, wait_until="domcontentloaded")
    page.get_by_role("tab", name="What the model looks at").wait_for()
    wait_until(lambda: page.evaluate("document.documentElement.scrollWidth") == width)
    page.close()


def test_models_at_every_page_load(browser: Any, tmp_path: Path) -> None:
    with (
        deployment(Behaviour(NEW)) as (controller, workers),
        web_server(controller, tmp_path, "--model-list-mode", "reload", "--embed") as url,
    ):
        visitor = Visitor(browser, f"{url}?model={OLD}")
        visitor.wait_model(NEW)  # the first one; the address is not asked
        assert visitor.page.get_by_text("Terms of use").count() == 0
        controller.addresses = {"vicuna-13b": workers[0].url, **controller.addresses}
        visitor.page.reload(wait_until="domcontentloaded")
        visitor.wait_model("vicuna-13b")
        visitor.ask("Hello")
        visitor.wait_reply(ANSWER)
        controller.close()
        visitor.page.reload(wait_until="domcontentloaded")
        visitor.page.get_by_text("cannot be reached").first.wait_for()
        visitor.page.close()


def test_no_controller_is_an_error_at_the_start(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "llava.serve.gradio_web_server", "--controller", "http://127.0.0.1:9"],
        env=os.environ | {"LLAVA_LOGDIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert "start the controller first" in result.stderr and "Traceback" not in result.stderr
