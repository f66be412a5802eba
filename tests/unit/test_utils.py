"""Loggers, redirected prints, moderation without a network."""

import logging
import sys
import threading
from types import SimpleNamespace

import pytest
import requests

from llava import utils


@pytest.fixture
def clean_logging(monkeypatch, tmp_path):
    """build_logger changes the process; put everything back afterwards."""
    root = logging.getLogger()
    handlers, level, stdout, stderr = list(root.handlers), root.level, sys.stdout, sys.stderr
    root.handlers[:] = []
    monkeypatch.setattr(utils, "handler", None)
    monkeypatch.setattr(utils, "LOGDIR", str(tmp_path))
    yield tmp_path
    sys.stdout, sys.stderr = stdout, stderr
    if utils.handler is not None:
        utils.handler.close()
    for item in [root, *logging.root.manager.loggerDict.values()]:
        if isinstance(item, logging.Logger) and utils.handler in item.handlers:
            item.removeHandler(utils.handler)
    root.handlers[:], root.level = handlers, level


def test_build_logger_writes_one_file(clean_logging) -> None:
    earlier = logging.getLogger("llava_test_lib")
    child = logging.getLogger("llava_test_lib.child")
    logger = utils.build_logger("llava_test", "server.log")
    shared = utils.handler
    second = utils.build_logger("llava_test_two", "ignored.log")
    assert utils.handler is shared
    assert isinstance(sys.stdout, utils.StreamToLogger)
    assert not isinstance(sys.stdout.terminal, utils.StreamToLogger)  # the second call does not wrap again
    logger.info("one")
    second.info("two")
    earlier.warning("three")
    child.warning("four")
    print("five")
    shared.flush()
    assert [path.name for path in clean_logging.iterdir()] == ["server.log"]
    path = clean_logging / "server.log"
    assert path.stat().st_mode & 0o007 == 0
    lines = path.read_text().splitlines()
    assert [line.split(" | ")[1:] for line in lines] == [
        ["INFO", "llava_test", "one"],
        ["INFO", "llava_test_two", "two"],
        ["WARNING", "llava_test_lib", "three"],
        ["WARNING", "llava_test_lib.child", "four"],
        ["INFO", "stdout", "five"],
    ]


def test_stream_to_logger_waits_for_the_newline(caplog) -> None:
    stream = utils.StreamToLogger(logging.getLogger("stream_test"), logging.WARNING)
    stream.write("a  \nb")
    assert [record.message for record in caplog.records] == ["a"]
    stream.write("c\n\nd")
    assert [record.message for record in caplog.records] == ["a", "bc", ""]
    stream.flush()
    stream.flush()
    assert [record.message for record in caplog.records] == ["a", "bc", "", "d"]
    assert stream.encoding == stream.terminal.encoding


def reply_with(monkeypatch, result, seen: list):
    def post(url, **kwargs):
        seen.append((url, kwargs))
        if isinstance(result, Exception):
            raise result
        return SimpleNamespace(json=lambda: result)

    monkeypatch.setattr(requests, "post", post)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")


def test_moderation_sends_valid_json(monkeypatch) -> None:
    seen: list = []
    reply_with(monkeypatch, {"results": [{"flagged": True}]}, seen)
    assert utils.violates_moderation('say "x"\nplease') is True
    url, kwargs = seen[0]
    assert url == "https://api.openai.com/v1/moderations"
    assert kwargs["json"] == {"input": 'say "x"please'}
    assert kwargs["headers"] == {"Authorization": "Bearer secret"}
    assert kwargs["timeout"] == 5
    reply_with(monkeypatch, {"results": [{"flagged": False}]}, seen)
    assert utils.violates_moderation("x") is False


@pytest.mark.parametrize("result", [requests.exceptions.ConnectionError("down"), {"error": "bad"}, {"results": []}])
def test_moderation_failures_pass_the_text_and_are_logged(monkeypatch, caplog, result) -> None:
    reply_with(monkeypatch, result, [])
    assert utils.violates_moderation("x") is False
    assert "passes unchecked" in caplog.text


def test_moderation_without_a_key(monkeypatch, caplog) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert utils.violates_moderation("x") is False
    assert "OPENAI_API_KEY" in caplog.text


def test_small_helpers() -> None:
    semaphore = threading.Semaphore(2)
    semaphore.locked = lambda: False  # asyncio's has it; threading's not in every Python
    assert utils.pretty_print_semaphore(semaphore) == "Semaphore(value=2, locked=False)"
    assert utils.pretty_print_semaphore(None) == "None"
    assert utils.disable_torch_init() is None


def test_disable_torch_init_leaves_initialisation_alone() -> None:
    import torch

    utils.disable_torch_init()
    torch.manual_seed(0)
    assert torch.nn.Linear(64, 64).weight.std() > 0.01
