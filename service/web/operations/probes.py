"""`/livez`, `/readyz` and `/metrics`: for machines that watch the service."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from service.web.responses import json_reply
from service.web.schemas import Problem

QUIET_PATHS = ("/livez", "/readyz", "/metrics")
router = APIRouter()
metrics_router = APIRouter(responses={"4XX": {"model": Problem}})


@router.get("/livez")
async def livez() -> Response:
    """The process answers; it says nothing of models."""
    return json_reply({"status": "alive"})


@router.get("/readyz", responses={503: {"model": Problem}})
async def readyz(request: Request) -> Response:
    """Models are loaded and warm, the inference thread runs, and the service is not shutting down."""
    request.app.state.backend.require_ready()
    return json_reply({"status": "ready"})


@metrics_router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus text format."""
    return Response(await request.app.state.metrics_text.get(), media_type=CONTENT_TYPE_LATEST)
