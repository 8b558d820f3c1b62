"""The routes of `/v2`: health, metadata, inference, and the repository."""

from collections.abc import Iterator
from importlib.metadata import version as installed_version
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from model_store import Manifest, ModelNotFoundError
from service.web.bodies import json_object
from service.web.media_types import JSON
from service.web.models.registry import Registry
from service.web.problems import NOT_IMPLEMENTED, InvalidBodyError, LimitError, problem
from service.web.requests import read_body
from service.web.responses import json_reply
from service.web.schemas import ModelSummary
from service.web.serving.backend import Backend
from service.web.v2 import schemas
from service.web.v2.infer_route import add_operation, version_of
from service.web.v2.operations import OPERATIONS, Axes, split_name

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": schemas.InferenceProblem},
    "5XX": {"model": schemas.InferenceProblem},
}
router = APIRouter(prefix="/v2", responses=_PROBLEMS)
health_router = APIRouter(prefix="/v2/health", responses=_PROBLEMS)
admin_router = APIRouter(prefix="/v2/repository/models", responses=_PROBLEMS)
"""Routes for operators, which need an admin key."""
EXTENSIONS = ("binary_tensor_data", "model_repository")
PLATFORM = "onnxruntime_onnx"
_MAX_REPOSITORY_BYTES = 2**16
_NOT_IN_MEMORY = "not in memory; it is loaded when it is first requested"

for _operation in OPERATIONS:
    add_operation(router, _operation)


@health_router.get("/live", response_model=schemas.Live)
async def live() -> Response:
    """The process answers; it says nothing of models."""
    return json_reply({"live": True})


@health_router.get("/ready", response_model=schemas.Ready)
async def ready(request: Request) -> Response:
    """Models are loaded and warm, and the service is not shutting down; else 503."""
    request.app.state.backend.require_ready()
    return json_reply({"ready": True})


@router.get("/", include_in_schema=False)
@router.get("", response_model=schemas.ServerMetadata)
async def server() -> Response:
    """Name, version and extensions of the server."""
    return json_reply({"name": "logpx", "version": installed_version("logpx"), "extensions": list(EXTENSIONS)})


@router.get("/models/{name}/versions/{version}", response_model=schemas.ModelMetadata)
async def version_metadata(request: Request, name: str, version: str) -> Response:
    """Inputs and outputs of a version of `MODEL.OPERATION`."""
    return await _metadata(request, name, version)


@router.get("/models/{name}", response_model=schemas.ModelMetadata)
async def metadata(request: Request, name: str) -> Response:
    """Inputs and outputs of the default version of `MODEL.OPERATION`."""
    return await _metadata(request, name, None)


@router.get("/models/{name}/versions/{version}/ready", response_model=schemas.ModelReady)
async def version_ready(request: Request, name: str, version: str) -> Response:
    """A version answers requests; one that is not in memory is loaded first."""
    return await _ready(request, name, version)


@router.get("/models/{name}/ready", response_model=schemas.ModelReady)
async def model_ready(request: Request, name: str) -> Response:
    """The default version answers requests."""
    return await _ready(request, name, None)


@router.post("/models/{name}/infer", include_in_schema=False)
@router.post("/models/{name}/versions/{version}/infer", include_in_schema=False)
async def no_operation(name: str) -> None:
    """The answer for a name that has no operation; raises ModelNotFoundError."""
    split_name(name)


@router.post("/repository/index", response_model=list[schemas.IndexRow])
async def index(request: Request) -> Response:
    """Every operation of every version of every model; with `{"ready": true}` only of those in memory."""
    registry = _registry(request)
    only_ready = (await _document(request)).get("ready", False)
    if not isinstance(only_ready, bool):
        raise InvalidBodyError("ready must be true or false")
    rows = [row for summary in await registry.summaries() for row in _rows(summary)]
    shown = [row for row in rows if row["state"] == "READY" or not only_ready]
    return Response(orjson.dumps(shown), media_type=JSON)


@admin_router.post("/{name}/load", response_model=schemas.Loaded)
async def load(request: Request, name: str) -> Response:
    """Serve what the store holds now, as `POST /v1/admin/reload`; answers when that is done.

    `name` is a model, or one of its operations.
    """
    registry = _registry(request)
    given = (await _document(request)).get("parameters") or {}
    if not isinstance(given, dict) or given:
        raise InvalidBodyError("load takes no parameters: a model's configuration and files are those of the store")
    await registry.reload(retry=True)
    names = [summary.name for summary in await registry.summaries()]
    model = name if name in names else split_name(name)[0]
    await registry.model(model, timeout_seconds=request.app.state.backend.settings.timeout_seconds)
    return json_reply({"name": name, "load": True})


@admin_router.post("/{name}/unload", status_code=501, response_model=schemas.InferenceProblem)
async def unload(request: Request, name: str) -> Response:
    """Refused: what is served is what the store holds."""
    detail = f"{name} is not unloaded by request: remove or pin versions in the store, then load"
    return problem(request, NOT_IMPLEMENTED, detail)


def _registry(request: Request) -> Registry:
    backend: Backend = request.app.state.backend.require_ready()
    return backend.registry


async def _ready(request: Request, name: str, version: str | None) -> Response:
    model, _ = split_name(name)
    settings = request.app.state.backend.settings
    await _registry(request).model(model, version_of(version), timeout_seconds=settings.timeout_seconds)
    return json_reply({"name": name, "ready": True})


async def _metadata(request: Request, name: str, version: str | None) -> Response:
    model, operation = split_name(name)
    summary = await _registry(request).summary(model, version_of(version))
    manifest = summary.manifest
    if manifest is None:
        raise ModelNotFoundError(f"no version of {model} is served")
    taken = operation.request
    axes: Axes = "one" if taken.given == "n" else "latents" if taken.given == "latents" else "images"
    described = schemas.ModelMetadata(
        name=name,
        versions=[str(number) for number in summary.versions],
        platform=PLATFORM,
        inputs=[_tensor(taken.given, taken.accepted[0], axes, manifest)],
        outputs=[_tensor(output, datatype, axes, manifest) for output, (datatype, axes) in operation.outputs.items()],
    )
    return Response(described.model_dump_json(), media_type=JSON)


def _tensor(name: str, datatype: str, axes: Axes, manifest: Manifest) -> schemas.TensorMetadata:
    sizes = {
        "images": [-1, *manifest.image.chw],
        "decoded": [-1, *manifest.x_shape.chw],
        "latents": [-1, manifest.latent_dim],
        "rows": [-1],
        "one": [1],
    }
    return schemas.TensorMetadata(name=name, datatype=datatype, shape=sizes[axes])


def _rows(summary: ModelSummary) -> Iterator[dict[str, str]]:
    """One row for each version and operation of a model."""
    refused = {refusal.version: refusal.reason for refusal in summary.refused}
    loaded = set(summary.loaded_versions)
    for number in sorted({*summary.versions, *loaded}):
        reason = "" if number in loaded else refused.get(number, _NOT_IN_MEMORY)
        state = "READY" if number in loaded else "UNAVAILABLE"
        for operation in OPERATIONS:
            name = f"{summary.name}.{operation.name}"
            yield {"name": name, "version": str(number), "state": state, "reason": reason}


async def _document(request: Request) -> dict[str, Any]:
    """The JSON object of a request to the repository; an empty body stands for an empty one.

    Raises:
        InvalidBodyError, LimitError: it is no JSON object, or is large.
    """
    body = await read_body(request)
    if len(body) > _MAX_REPOSITORY_BYTES:
        raise LimitError(f"the body has {len(body)} bytes; at most {_MAX_REPOSITORY_BYTES} are accepted here")
    return json_object(body) if body.strip() else {}
