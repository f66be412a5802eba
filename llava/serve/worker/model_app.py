"""The HTTP endpoints of a worker with a model: upstream's, the OpenAI API, details, visual anchors, metrics."""

import base64
import io
from typing import Any

import anyio
from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from llava.images import ImageError
from llava.program import RequestError
from llava.serve.access import MAX_REQUEST_MB
from llava.serve.worker.app import create_worker_app
from llava.serve.worker.base import BaseWorker
from llava.serve.worker.openai_api import openai_router
from llava.serve.worker.served_model import ServedModel
from llava.serve.worker.slots import Slots

MAX_DRAWINGS_WAITING = 16


def create_app(
    worker: BaseWorker, served: ServedModel, max_body_bytes: int = MAX_REQUEST_MB * 2**20, api_key: str | None = None
) -> FastAPI:
    """The web application of a worker with a model.

    Args:
        worker: streams upstream's frames.
        served: the model behind it.
        max_body_bytes: larger requests are answered with 413.
        api_key: required by `/v1` if set.
    """
    routers = [extras_router(served), openai_router(served, api_key)]
    return create_worker_app(worker, max_body_bytes=max_body_bytes, extra_routers=routers)


class AnchorsRequest(BaseModel):
    """An image as a base64 file, and the budget whose anchors are drawn."""

    image: str
    num_visual_tokens: int | None = Field(default=None, ge=2, le=2**20)


def extras_router(served: ServedModel) -> APIRouter:
    """`/worker_get_details`, `/worker_visual_anchors`, `/metrics`; upstream's worker does not have them."""
    router = APIRouter()
    drawing = Slots(1, MAX_DRAWINGS_WAITING)  # each runs the tower, in parallel to the engine

    @router.post("/worker_get_details")
    async def details() -> dict[str, Any]:
        return served.details()

    @router.post("/worker_visual_anchors", responses={400: {"description": "The image cannot be used."}})
    async def visual_anchors(request: AnchorsRequest) -> Response:
        try:
            async with drawing.one():
                return JSONResponse(await anyio.to_thread.run_sync(_draw, served, request))
        except (RequestError, ImageError) as error:
            return JSONResponse({"message": str(error)}, status_code=400)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(served.engine.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


def _draw(served: ServedModel, request: AnchorsRequest) -> dict[str, str]:
    image = served.limits.decode_base64(request.image)
    sheet, caption = served.draw_anchors(image, request.num_visual_tokens)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return {"image": base64.b64encode(buffer.getvalue()).decode(), "caption": caption}
