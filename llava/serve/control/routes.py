"""The HTTP endpoints of a controller. Needs the `serve` extra."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from llava.constants import CONTROLLER_HEART_BEAT_EXPIRATION
from llava.program import RequestError
from llava.serve import wire
from llava.serve.access import MAX_ADDRESS_LENGTH, MAX_REQUEST_MB, RegistrationRefused, RegistrationRules
from llava.serve.control.metrics import ControllerMetrics
from llava.serve.control.relay import find_worker, no_worker_for, openai_routes, request_schema
from llava.serve.control.state import LARGEST_NUMBER, Controller
from llava.serve.control.worker_client import MAX_HOPS, Timeouts, WorkerClient, hops_of
from llava.serve.http_layer import handle_errors, parse_json_object, protect
from llava.serve.live_stream import LiveStream

logger = logging.getLogger(__name__)


class Registration(BaseModel):
    worker_name: str = Field(max_length=MAX_ADDRESS_LENGTH)
    check_heart_beat: bool
    worker_status: dict[str, Any] | None = None


class HeartBeatReport(BaseModel):
    worker_name: str = Field(max_length=MAX_ADDRESS_LENGTH)
    queue_length: int = Field(ge=0, le=LARGEST_NUMBER)


class ModelQuestion(BaseModel):
    model: str


def create_app(
    controller: Controller,
    *,
    rules: RegistrationRules | None = None,
    timeouts: Timeouts | None = None,
    max_body_bytes: int = MAX_REQUEST_MB * 2**20,
    expire_every: float = CONTROLLER_HEART_BEAT_EXPIRATION,
) -> FastAPI:
    """The web application of a controller.

    Args:
        controller: its state.
        rules: who may register; by default workers on this machine, without a secret.
        timeouts: how long workers are waited for.
        max_body_bytes: larger requests are answered with 413.
        expire_every: seconds between two checks for workers whose heart beats have stopped.
    """
    rules = rules or RegistrationRules()
    client = WorkerClient(timeouts or Timeouts())
    metrics = ControllerMetrics(controller)
    refresh = Refresh(controller, client)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        expiry = asyncio.create_task(_expire(controller, expire_every))
        yield
        expiry.cancel()
        await client.close()

    app = FastAPI(title="LLaVA controller", lifespan=lifespan)
    app.state.controller = controller
    protect(app, max_body_bytes)
    handle_errors(app, status=400)
    app.include_router(openai_routes(controller, client, metrics))

    @app.exception_handler(RegistrationRefused)
    async def refused(_: Request, refusal: RegistrationRefused) -> JSONResponse:
        logger.warning("Refused: %s", refusal)
        return JSONResponse({"message": str(refusal)}, status_code=403)

    @app.post("/register_worker")
    async def register_worker(registration: Registration, request: Request) -> Response:
        name, secret = registration.worker_name, request.headers.get(wire.SECRET_HEADER)
        try:
            rules.check_secret(secret)
            rules.check_address(name)
            status = registration.worker_status or await client.get_status(name)
            if status is not None:
                may_share = rules.may_share_models(secret, request.client.host if request.client else "")
                controller.register_worker(name, registration.check_heart_beat, status, may_share=may_share)
        except RegistrationRefused:
            metrics.registrations.labels("refused").inc()
            raise
        except ValueError as error:
            metrics.registrations.labels("failed").inc()
            return JSONResponse({"message": str(error)}, status_code=400)
        # Old workers stop at any other answer. A missing status is answered like success, and the worker's next heart
        # beat repairs it.
        metrics.registrations.labels("failed" if status is None else "registered").inc()
        return JSONResponse(None)

    @app.post("/receive_heart_beat")
    async def receive_heart_beat(report: HeartBeatReport, request: Request) -> dict[str, bool]:
        rules.check_secret(request.headers.get(wire.SECRET_HEADER))
        return {"exist": controller.receive_heart_beat(report.worker_name, report.queue_length)}

    @app.post("/refresh_all_workers")
    async def refresh_all_workers() -> None:
        await refresh()

    @app.post("/list_models")
    async def list_models() -> dict[str, list[str]]:
        return {"models": controller.list_models()}

    @app.post("/get_worker_address")
    async def get_worker_address(question: ModelQuestion) -> dict[str, str]:
        return {"address": controller.get_worker_address(question.model)}

    @app.post(
        "/worker_generate_stream", openapi_extra=request_schema("model", "prompt", model="string", prompt="string")
    )
    async def worker_generate_stream(request: Request) -> Response:
        return LiveStream(_relay(controller, client, metrics, await request.body(), hops_of(request.headers)))

    @app.post("/worker_get_status")
    async def worker_get_status(request: Request) -> Response:
        hops = hops_of(request.headers)
        if hops >= MAX_HOPS:
            return JSONResponse({"message": "controllers are registered with each other in a circle"}, 503)
        return JSONResponse(await total_status(controller, client, hops))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


class Refresh:
    """Asks all workers for their status at once; calls during a refresh wait for it instead of starting another."""

    def __init__(self, controller: Controller, client: WorkerClient) -> None:
        self.controller = controller
        self.client = client
        self._running: asyncio.Task[None] | None = None

    async def __call__(self) -> None:
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._ask_all())
        await asyncio.shield(self._running)

    async def _ask_all(self) -> None:
        workers = self.controller.workers()
        statuses = await asyncio.gather(*map(self.client.get_status, workers))
        for (name, asked), status in zip(workers.items(), statuses):
            self.controller.apply_status(name, asked, status)


async def total_status(controller: Controller, client: WorkerClient, hops: int) -> dict[str, Any]:
    """The status of a controller that is a worker of another one: sums over its workers, asked live."""
    answers = await asyncio.gather(*(client.get_status(name, hops) for name in controller.workers()))
    statuses = [status for status in answers if status is not None]
    return {
        "model_names": list(dict.fromkeys(name for status in statuses for name in status["model_names"])),
        "speed": sum(status["speed"] for status in statuses),
        "queue_length": sum(status["queue_length"] for status in statuses),
    }


async def _relay(
    controller: Controller, client: WorkerClient, metrics: ControllerMetrics, body: bytes, hops: int
) -> AsyncGenerator[bytes, None]:
    """A worker's frames, or exactly one frame with error 2."""
    try:
        params = parse_json_object(body)
    except RequestError:
        params = {}
    model = params.get("model") if isinstance(params.get("model"), str) else None
    address = find_worker(controller, metrics, "worker_generate_stream", model, hops)
    if not address:
        reason = "the request names no model" if model is None else no_worker_for(model)
        logger.info("A request fails: %s", reason)
        yield wire.error_frame(wire.NO_WORKER, reason, wire.wants_details(params))
        return
    async with aclosing(client.stream(address, body, hops, wire.wants_details(params))) as frames:
        async for frame in frames:
            yield frame


async def _expire(controller: Controller, expire_every: float) -> None:
    while True:
        await asyncio.sleep(expire_every)
        controller.remove_expired()
