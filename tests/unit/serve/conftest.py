"""A controller without workers, and one worker behind it, for the tests of the relay."""

from collections.abc import Iterator

import pytest

from llava.serve.control.routes import create_app
from llava.serve.control.worker_client import Timeouts
from llava.serve.controller import Controller
from tests.support.serve_doubles import WorkerDouble, old_worker
from tests.support.serving import serving


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Controller, str]]:
    """A controller with short time limits, and its address."""
    state = Controller("shortest_queue")
    with serving(create_app(state, timeouts=Timeouts(connect=2, status=0.3, stream=0.3, reply=0.3))) as address:
        yield state, address


@pytest.fixture
def state(running: tuple[Controller, str]) -> Iterator[Controller]:
    """Without workers."""
    yield running[0]
    running[0].worker_info.clear()


@pytest.fixture
def controller(running: tuple[Controller, str], state: Controller) -> str:
    return running[1]


@pytest.fixture
def worker(state: Controller) -> Iterator[WorkerDouble]:
    with old_worker(["m"]) as fake:
        state.register_worker(fake.url, True, fake.status)
        yield fake
