"""What a request asks for before anything is computed: the backend, if it may come in; its model; its images."""

from typing import Any

from fastapi import Request

from service.engine.model import Model, Pixels
from service.web import schemas
from service.web.middleware import observe
from service.web.requests import read_pixels
from service.web.serving.backend import Backend
from service.web.timing import note_load, seconds_left


def admitted(request: Request) -> Backend:
    """What stands behind the routes, if this request may come in; once in, it is answered even while draining.

    Raises:
        NotReadyError: not yet, or no longer.
    """
    backend = backend_of(request)
    backend.require_ready()
    return backend


def backend_of(request: Request) -> Backend:
    """What stands behind the routes, whatever its state."""
    backend: Backend = request.app.state.backend
    return backend


async def model_of(request: Request, query: schemas.ModelQuery, timeout: float) -> Model:
    """The model that the query means, loaded.

    Raises:
        NotReadyError, QueueFullError, and what `Registry.model` raises.
    """
    backend = admitted(request)
    backend.check_capacity()
    found, seconds = await backend.registry.model(query.model, query.version, timeout_seconds=timeout)
    observe(request, **named(found))
    note_load(request, seconds)
    return found


async def pixels_of(request: Request, query: schemas.ImagesQuery, timeout: float) -> tuple[Model, Pixels]:
    """The model, and the body's images as it takes them: [B, C, H, W].

    Raises: as `model_of` and `read_pixels`.
    """
    model, backend = await model_of(request, query, timeout), backend_of(request)
    pixels = await read_pixels(
        request,
        model.description.image,
        resize=query.resize,
        limits=backend.settings,
        decoding=backend.decoding,
        timeout_seconds=seconds_left(request, timeout),
    )
    return model, pixels


def named(model: Model) -> dict[str, Any]:
    """Its name and version, for answers and the log."""
    return {"model": model.manifest.name, "version": model.manifest.version}
