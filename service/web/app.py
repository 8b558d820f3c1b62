"""Put the pieces together: settings in, an ASGI app out."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

import structlog
from fastapi import FastAPI

from service.web import admin, errors, probes, routes
from service.web.backend import Backend
from service.web.metrics import Metrics
from service.web.middleware import LimitBody, Observe
from service.web.settings import Settings

_log = structlog.get_logger()


def create_app(settings: Settings, *, on_failure: Callable[[], None] = lambda: None) -> FastAPI:
    """The service as an ASGI app.

    Models load in the background once the app starts: `/livez` answers at once, `/readyz` when they are warm. When
    loading fails, the reason is logged and `on_failure` is called; the process should then exit.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        backend = Backend(settings, metrics)
        app.state.backend = backend

        async def load() -> None:
            try:
                await backend.load()
            except Exception as error:  # noqa: BLE001 - logged, then the process ends
                backend.state = "failed"
                _log.error("the models cannot be served", reason=str(error), kind=type(error).__name__)
                on_failure()
            else:
                await backend.registry.watch()

        loading = asyncio.create_task(load())
        yield
        loading.cancel()
        await asyncio.wait([loading])
        backend.stop()

    app = FastAPI(
        title="logpx",
        version=version("logpx"),
        summary="Latent codes, imagined images, log P(x) with an error bar, and anomaly scores, for any image.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.metrics = metrics
    app.include_router(probes.router)
    app.include_router(routes.router)
    if settings.admin:
        app.include_router(admin.router)
    errors.install(app)
    app.add_middleware(LimitBody, max_bytes=settings.max_body_bytes)
    app.add_middleware(Observe, metrics=metrics)
    return app
