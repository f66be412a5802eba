"""Endpoints of the model worker that upstream's does not have: what the model is, its anchors, metrics."""

import base64
import io
from typing import Any

import anyio
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from llava.image_utils import ImageError
from llava.program import RequestError
from llava.serve.worker.served_model import ServedModel
from llava.serve.worker.slots import Slots

MAX_DRAWINGS_WAITING = 16


class AnchorsRequest(BaseModel):
    """A picture as a base64 file, and for which budget its anchors are wanted."""

    image: str
    num_visual_tokens: int | None = Field(default=None, ge=2, le=2**20)


def extras_router(served: ServedModel) -> APIRouter:
    """`/worker_get_details`, `/worker_visual_anchors`, `/metrics`."""
    router = APIRouter()
    drawing = Slots(1, MAX_DRAWINGS_WAITING)  # each runs the tower, beside the engine

    @router.post("/worker_get_details")
    async def details() -> dict[str, Any]:
        return served.details()

    @router.post("/worker_visual_anchors", responses={400: {"description": "The picture cannot be used."}})
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
    picture = served.limits.decode_base64(request.image)
    sheet, caption = served.draw_anchors(picture, request.num_visual_tokens)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return {"image": base64.b64encode(buffer.getvalue()).decode(), "caption": caption}
