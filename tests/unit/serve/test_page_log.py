"""Log lines and stored images of the demo."""

import hashlib
import json
import stat
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from llava.conversation import conv_templates
from llava.serve.page.log import ChatLog


def test_lines(tmp_path: Path) -> None:
    log, conversation = ChatLog(str(tmp_path / "logs")), conv_templates["llava_v1"].copy()
    conversation.append_message("USER", ("Hi\n<image>", Image.new("RGB", (2, 2)), "Default"))
    log.chat("m", conversation, 1.23456, 2.34567, ["abc"], "127.0.0.1")
    log.vote("flag", "m", conversation, "127.0.0.1")
    path = tmp_path / "logs" / f"{time.strftime('%Y-%m-%d')}-conv.json"
    chat, vote = map(json.loads, path.open())
    assert (chat["start"], chat["finish"], chat["tstamp"]) == (1.2346, 2.3457, 2.3457)
    assert list(chat) == ["tstamp", "type", "model", "start", "finish", "state", "images", "ip"]
    assert list(vote) == ["tstamp", "type", "model", "state", "ip"] and vote["type"] == "flag"
    assert chat["state"]["messages"] == [["USER", "Hi\n<image>"]]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_images_are_stored_once_a_day(tmp_path: Path) -> None:
    log, image = ChatLog(str(tmp_path)), Image.new("RGB", (20, 10), "red")
    name = log.store_image(image)
    assert name == hashlib.md5(image.tobytes()).hexdigest()
    path = tmp_path / "serve_images" / time.strftime("%Y-%m-%d") / f"{name}.jpg"
    first = path.stat()
    assert log.store_image(image) == name and path.stat().st_mtime_ns == first.st_mtime_ns
    assert Image.open(path).size == (20, 10) and stat.S_IMODE(first.st_mode) == 0o600
    for folder in (path.parent, path.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_lines_of_several_threads_stay_whole(tmp_path: Path) -> None:
    log, conversation = ChatLog(str(tmp_path)), conv_templates["llava_v1"].copy()
    conversation.append_message("USER", "x" * 5000)

    def vote() -> None:
        for _ in range(20):
            log.vote("upvote", "m", conversation, "")

    threads = [threading.Thread(target=vote) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (path,) = tmp_path.glob("*-conv.json")
    assert len([json.loads(line) for line in path.open()]) == 160


def test_a_disk_that_takes_nothing_ends_no_chat(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    log = ChatLog(str(tmp_path / "file"))
    log.vote("flag", "m", conv_templates["llava_v1"].copy(), "")
    assert len(log.store_image(Image.new("RGB", (2, 2)))) == 32
    assert "chat log could not be written" in caplog.text and "could not be stored" in caplog.text
