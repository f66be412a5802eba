"""The demo's requests to its controller and to the workers that the controller names.

Everything is asynchronous: one thread serves all visitors, and closing a stream hangs up at once, so that the worker
stops generating.
"""

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

from llava.program import RequestError
from llava.serve.http_client import client_options, read_limited
from llava.serve.wire import FrameReader, WireError

CONNECT_TIMEOUT = 10.0  # seconds
QUESTION_TIMEOUT = 10.0  # seconds for an answer that needs no model
# Seconds without a frame. Upstream's 10 s are too few for a model on a CPU, or for a full queue.
STREAM_TIMEOUT = 60.0
MAX_ANSWER_BYTES = 64 * 2**20  # the image with the anchors
MAX_REPLY_FRAME = 2**20  # besides the prompt; a reply has at most 1536 tokens
FRONT_MODELS = ("vicuna-13b", "koala-13b")  # listed first


class ServerError(Exception):
    """Controller or worker cannot be reached, or gives no valid answer; the message is shown to the visitor."""


@dataclass(frozen=True)
class ModelDetails:
    """A worker's description of its model; the defaults are for old workers, which do not describe it.

    Attributes:
        num_visual_tokens: per image.
        budgets: numbers of visual tokens per image to choose from, if the connector is elastic.
        conv_mode: the template that the model was trained with.
    """

    num_visual_tokens: int | None = None
    budgets: tuple[int, ...] = ()
    conv_mode: str | None = None

    @classmethod
    def from_json(cls, reply: dict[str, Any]) -> "ModelDetails":
        """The fields of a worker's reply that have the right type; others keep their defaults."""

        def field(key: str, kind: type) -> Any:
            value = reply.get(key)
            return value if isinstance(value, kind) else None

        budgets = [one for one in field("budgets", list) or () if isinstance(one, int)]
        return cls(
            num_visual_tokens=field("num_visual_tokens", int),
            budgets=tuple(budgets) if reply.get("is_elastic") else (),
            conv_mode=field("conv_mode", str),
        )


@dataclass(frozen=True)
class AnchorImage:
    """An image with its visual anchors marked, as a PNG file, and its caption."""

    png: bytes
    caption: str


def sort_models(models: list[str]) -> list[str]:
    """By name, with upstream's favourites in front."""
    return sorted(models, key=lambda name: (FRONT_MODELS.index(name) if name in FRONT_MODELS else 2, name))


class ModelClient:
    """Requests to one controller and its workers.

    Args:
        controller_url: base URL of the controller.
        transport: for tests; None: the network.
    """

    def __init__(self, controller_url: str, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.controller_url = controller_url.rstrip("/")
        self._transport = transport

    def _session(self, timeout: float) -> httpx.AsyncClient:
        return httpx.AsyncClient(**client_options(timeout, CONNECT_TIMEOUT), transport=self._transport)

    async def _ask(self, url: str, question: dict[str, Any], timeout: float = QUESTION_TIMEOUT) -> httpx.Response:
        try:
            async with self._session(timeout) as session, session.stream("POST", url, json=question) as response:
                return httpx.Response(response.status_code, content=await read_limited(response, MAX_ANSWER_BYTES))
        except WireError as error:
            raise ServerError(f"{url}: {error}") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerError(f"{url} cannot be reached ({type(error).__name__})") from error

    async def _ask_controller(self, path: str, question: dict[str, Any]) -> Any:
        response = await self._ask(f"{self.controller_url}{path}", question)
        if response.status_code != 200:
            raise ServerError(f"the controller answered {path} with status {response.status_code}")
        return _json(response, "the controller")

    async def list_models(self) -> list[str]:
        """Sorted names of the models that workers serve now.

        Raises:
            ServerError: no controller.
        """
        await self._ask_controller("/refresh_all_workers", {})
        reply = await self._ask_controller("/list_models", {})
        names = reply.get("models")
        return sort_models([str(name) for name in names]) if isinstance(names, list) else []

    async def worker_address(self, model: str) -> str:
        """Base URL of a worker for a model; empty if there is none.

        Raises:
            ServerError: no controller.
        """
        reply = await self._ask_controller("/get_worker_address", {"model": model})
        return str(reply.get("address") or "")

    async def details(self, address: str) -> ModelDetails:
        """A worker's description of its model; the defaults if the worker is old, or does not answer."""
        try:
            response = await self._ask(f"{address}/worker_get_details", {})
            if response.status_code == 200:
                return ModelDetails.from_json(_json(response, "the worker"))
        except ServerError:
            pass
        return ModelDetails()

    async def details_of(self, model: str) -> ModelDetails:
        """The same for a model by name; the defaults if no worker serves it.

        Raises:
            ServerError: no controller.
        """
        address = await self.worker_address(model)
        return await self.details(address) if address else ModelDetails()

    async def anchors(self, model: str, image: bytes, num_visual_tokens: int | None) -> AnchorImage:
        """The visual anchors of an image (bytes of a file).

        Raises:
            RequestError: no worker, or the worker refuses; contains its reason.
            ServerError: controller or worker does not answer.
        """
        address = await self.worker_address(model)
        if not address:
            raise RequestError(f"no worker serves {model} at the moment; reload the page to see which models there are")
        question = {"image": base64.b64encode(image).decode(), "num_visual_tokens": num_visual_tokens}
        response = await self._ask(f"{address}/worker_visual_anchors", question, STREAM_TIMEOUT)
        if response.status_code in (404, 405):
            raise RequestError("this worker cannot draw visual anchors; start it from this package's model_worker")
        reply = _json(response, "the worker")
        if response.status_code != 200:
            raise RequestError(str(reply.get("message") or f"the worker answered with status {response.status_code}"))
        try:
            return AnchorImage(base64.b64decode(reply["image"]), str(reply.get("caption") or ""))
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError("the worker's answer has no image") from error

    async def stream(self, address: str, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The frames of a worker's answer as they arrive; closing the iterator closes the connection.

        Raises:
            ServerError: no connection, a status other than 200, or the connection broke.
            WireError: the peer does not send frames.
        """
        reader = FrameReader(MAX_REPLY_FRAME + len(json.dumps(request["prompt"])))
        try:
            async with (
                self._session(STREAM_TIMEOUT) as session,
                session.stream("POST", f"{address}/worker_generate_stream", json=request) as response,
            ):
                if response.status_code != 200:
                    raise ServerError(f"the worker answered with status {response.status_code}")
                async for piece in response.aiter_raw():
                    for frame in reader.feed(piece):
                        yield frame
            for frame in reader.finish():
                yield frame
        except httpx.TimeoutException as error:
            raise ServerError(f"the worker was silent for {STREAM_TIMEOUT:.0f} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerError("the connection to the worker is broken") from error


def _json(response: httpx.Response, who: str) -> dict[str, Any]:
    try:
        reply = response.json()
    except ValueError as error:
        raise ServerError(f"{who} did not answer with JSON; is this the address of a LLaVA server?") from error
    return reply if isinstance(reply, dict) else {}
