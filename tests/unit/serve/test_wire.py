"""Frames: written as recorded, read however they are cut, bounded, and refused when they are none."""

import base64
import json

import pytest

from llava.serve import wire
from llava.serve.http_client import stream_request
from llava.utils import server_error_msg
from tests.conftest import VECTORS
from tests.support.serve_doubles import old_worker

TRANSCRIPT = json.loads((VECTORS / "llava/serve/transcript.json").read_text())
RECORDED = [entry for entry in TRANSCRIPT if entry.get("body_base64")]


@pytest.mark.parametrize("entry", RECORDED, ids=lambda entry: entry["name"])
def test_recorded_bodies(entry: dict) -> None:
    body = base64.b64decode(entry["body_base64"])
    assert b"".join(wire.frame(**one) for one in entry["frames"]) == body
    assert list(wire.read_frames([body])) == entry["frames"]


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_pieces_may_be_cut_anywhere(size: int) -> None:
    frames = [{"text": "a", "error_code": 0}, {"text": "a \u00e9\u4e16\U0001f600", "error_code": 0}]
    body = b"".join(wire.frame(**one) for one in frames)
    assert body.isascii()
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    assert list(wire.read_frames(pieces)) == frames
    assert list(wire.read_frames([b"\0\0", *pieces, b"\0"])) == frames  # empty pieces are skipped
    assert list(wire.read_frames([*pieces[:-1], pieces[-1].rstrip(b"\0")])) == frames


def test_error_frames() -> None:
    assert json.loads(wire.error_frame(3)[:-1]) == {"text": server_error_msg, "error_code": 3}
    assert wire.error_frame(1, "too many images") == wire.error_frame(1)  # as upstream, unless details are requested
    with_reason = json.loads(wire.error_frame(1, "too many images", with_details=True)[:-1])
    assert with_reason == {"text": server_error_msg, "error_code": 1, "message": "too many images"}
    assert wire.error_message(with_reason) == "too many images"
    assert wire.error_message({"text": "old", "error_code": 1}) == "old"


def test_an_endless_frame_is_refused() -> None:
    reader = wire.FrameReader(max_frame_bytes=100)
    reader.feed(b"x" * 60)
    with pytest.raises(wire.WireError, match="larger than 100 bytes"):
        reader.feed(b"x" * 60)
    with pytest.raises(wire.WireError):
        wire.FrameReader(max_frame_bytes=100).feed(b"x" * 101 + b"\0")


@pytest.mark.parametrize(
    "body", [b"<html>\0", b"[1]\0", b'{"text": "a"}\0', b'{"text": 1, "error_code": 0}\0', b"[" * 99_999]
)
def test_other_things_than_frames_are_refused(body: bytes) -> None:
    with pytest.raises(wire.WireError, match=r"address of a LLaVA server\?"):
        list(wire.read_frames([body]))


def test_stream_request() -> None:
    frames = [{"text": "p", "error_code": 0}, {"text": "p q", "error_code": 0}]
    with old_worker(["m"]) as worker:
        worker.frames = frames
        assert list(stream_request(worker.url + "/", {"prompt": "p"})) == frames
        request = worker.requests[0]
        assert (request.path, request.question) == ("/worker_generate_stream", {"prompt": "p"})
        assert request.headers["User-Agent"] == "LLaVA Client"
        worker.frames = [*frames, ConnectionError]
        with pytest.raises(wire.WireError):
            list(stream_request(worker.url, {"prompt": "p"}))


def test_stream_request_follows_no_redirect() -> None:
    with old_worker(["m"]) as worker, old_worker(["m"]) as other:
        worker.redirect = other.url + "/worker_generate_stream"
        with pytest.raises(wire.WireError, match="status 307"):
            list(stream_request(worker.url, {"prompt": "p"}))
        assert other.requests == []
