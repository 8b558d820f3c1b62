"""Make the ASGI app from the settings."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

import structlog
from anyio.to_thread import current_default_thread_limiter
from fastapi import Depends, FastAPI
from fastapi_offline import FastAPIOffline
from opentelemetry.trace import TracerProvider
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from service.web import problems, routes
from service.web.connections.request_limits import Limits
from service.web.decoding.interface import Decoding, InProcess
from service.web.documentation import describe_problems, openapi_route
from service.web.endpoint import ComputedRoute, Dispatch
from service.web.memory_budget import Budget, computing_bytes
from service.web.middleware import Observe, RootPath
from service.web.operations.allocator import trim_after_peaks
from service.web.operations.auth import Auth, require_admin, require_key
from service.web.operations.gpu import GpuFigures
from service.web.operations.metrics import Metrics, SharedText
from service.web.operations.request_log import QUIET_PATHS, RequestLog
from service.web.operations.settings import Settings
from service.web.page_assets import page_routes
from service.web.page_files import PageFiles
from service.web.serving.backend import Backend
from service.web.v2 import routes as open_inference
from service.web.v2.inference import LENGTH_HEADER

_READERS = 8
"""Threads that read bodies. The event loop can have to wait for each, so they are few; 40 is the library's default."""
_LOOK_SECONDS = 0.05
_log = structlog.get_logger()


def create_app(
    settings: Settings,
    *,
    on_failure: Callable[[], None] = lambda: None,
    tracer_provider: TracerProvider | None = None,
    decoding: Callable[[Metrics], Decoding] = lambda _: InProcess(),
    load_first: bool = False,
) -> FastAPI:
    """The service as an ASGI app, traced if there is a provider.

    `decoding` makes the object that reads images. For `python -m service` that is a pool of `LOGPX_DECODERS` processes.

    Models are loaded in the background once the app has started: `/livez` answers at once, `/readyz` once every model
    is loaded and has run; with `load_first` the app has started only then. If loading fails or the inference thread
    dies, the reason is logged and `on_failure` is called; the process should then exit.
    """
    metrics = Metrics()
    budget = Budget(settings.max_memory_bytes - computing_bytes(settings.max_memory_bytes))
    metrics.held_memory.set_function(lambda: budget.held)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = _READERS
        backend = Backend(settings, metrics, on_failure, decoding(metrics))
        app.state.backend = backend
        app.state.metrics_text = SharedText(metrics.texts, GpuFigures(metrics, lambda: backend.cuda_device).refresh)
        budget.retry_seconds = backend.retry_seconds

        async def load() -> None:
            try:
                await backend.load()
                gc.collect()
                gc.freeze()  # never collect what is loaded by now; walking it delays requests
            except Exception as error:  # noqa: BLE001 - logged, then the process ends
                backend.state = "failed"
                _log.error("the models cannot be served", reason=str(error), kind=type(error).__name__)
                on_failure()
            else:
                await backend.registry.watch()

        tasks = [asyncio.create_task(load()), asyncio.create_task(trim_after_peaks(budget))]
        while load_first and backend.state == "starting":
            await asyncio.sleep(_LOOK_SECONDS)
        yield
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await backend.decoding.close()
        backend.stop()
        gc.unfreeze()

    # Serves /docs without a content delivery network, which FastAPI's own routes use for Swagger UI. Why this package:
    # docs/security.md, What is installed.
    app = FastAPIOffline(
        redoc_url=None,
        telemetry={
            "tracing": tracer_provider is not None,
            "tracer_provider": tracer_provider,
            "exclude": lambda scope: scope["path"].removeprefix(settings.root_path) in QUIET_PATHS,
            "operation_spans": False,
            "metrics": False,
            "logs": False,
            "auto_configure": False,
        },
        servers=[{"url": settings.root_path}] if settings.root_path else None,
        title="logpx",
        version=version("logpx"),
        summary="Latent codes, imagined images, log P(x) with an error bar, and anomaly scores, for any image.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    for route in app.routes:
        if isinstance(route, Mount) and isinstance(route.app, StaticFiles):
            route.app = PageFiles(str(route.app.directory))
    api_keys, admin_keys = settings.all_keys()
    auth = Auth(keys=api_keys, admin_keys=admin_keys)
    app.state.auth = auth
    app.state.metrics = metrics
    closed = [Depends(require_key)] if auth.closed else []
    app.router.routes[:0] = [openapi_route(app)]  # before FastAPI's own
    app.include_router(routes.router, dependencies=closed)
    app.include_router(routes.admin_router, dependencies=[Depends(require_admin)])
    app.include_router(open_inference.router, dependencies=closed)
    app.include_router(open_inference.admin_router, dependencies=[Depends(require_admin)])
    app.include_router(open_inference.health_router)
    app.include_router(routes.probes_router)
    app.include_router(routes.metrics_router, dependencies=closed)
    pages = page_routes() if settings.page == "on" else []
    app.router.routes.extend(pages)
    problems.install(app)
    openapi = app.openapi
    app.openapi = lambda: describe_problems(openapi())  # type: ignore[method-assign]  # as FastAPI advises
    both = *routes.router.routes, *open_inference.router.routes
    computed = [route for route in both if isinstance(route, ComputedRoute)]
    app.add_middleware(Dispatch, routes=computed, root_path=settings.root_path)
    app.add_middleware(Limits, settings=settings, budget=budget)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                LENGTH_HEADER,
                "X-API-Key",
                "X-Request-ID",
                "X-Request-Timeout-Ms",
            ],
            expose_headers=[
                LENGTH_HEADER,
                "Retry-After",
                "Server-Timing",
                "X-Model",
                "X-Model-Version",
                "X-Request-ID",
                "X-Seed",
                "X-Warning",
            ],
        )
    routers = [routes.probes_router, routes.metrics_router, routes.router, routes.admin_router, open_inference.router]
    routers += [open_inference.admin_router, open_inference.health_router]
    listed = [route for router in routers for route in router.routes]
    paths = {str(getattr(route, "path", "")) for route in [*listed, *pages]}
    app.state.request_log = RequestLog(metrics, paths, settings.root_path)
    app.add_middleware(Observe, request_log=app.state.request_log, traced=tracer_provider is not None)
    if settings.root_path:
        app.add_middleware(RootPath, root_path=settings.root_path)
    return app
