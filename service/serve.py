"""Serve the model store over HTTP until SIGTERM."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from importlib.metadata import version
from types import FrameType
from typing import TYPE_CHECKING, cast

import structlog
import uvicorn
from fastapi import FastAPI
from opentelemetry.trace import TracerProvider
from pydantic import ValidationError
from threadpoolctl import threadpool_limits

from service.web.app import create_app
from service.web.connections.admission import AdmissionLimit
from service.web.connections.connection_limit import ConnectionLimit, connections_that_fit
from service.web.connections.protocol import HttpConnection
from service.web.connections.slow_readers import SlowReaders
from service.web.decoding.interface import Decoding, InProcess
from service.web.decoding.process_pool import DecodingPool, decoder_memory_bytes
from service.web.operations.allocator import tune_allocator
from service.web.operations.environment import Environment
from service.web.operations.logs import configure_logging, open_standard_descriptors, write_to_stderr
from service.web.operations.metrics import Metrics
from service.web.operations.settings import Settings, environment, sentences

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_LAST_SECONDS = 1.0  # for answers that are written when the drain is over
_log = structlog.get_logger()


class Server(uvicorn.Server):
    """Drains before it stops: `/readyz` turns 503 at the first signal, and accepted work is finished."""

    failed = False
    _drain: "Future[None] | None" = None

    def __init__(self, config: uvicorn.Config, *, app: FastAPI, drain_seconds: float) -> None:
        super().__init__(config)
        self.app = app
        self._drain_seconds = drain_seconds

    def fail(self) -> None:
        """Stop, with exit status 1."""
        self.failed = True
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain, then exit. Second: end at once, as the signal does where nothing handles it."""
        if self._drain is None:
            loop = asyncio.get_running_loop()
            self._drain = asyncio.run_coroutine_threadsafe(
                self._drain_then_exit(), loop
            )  # safe in a signal handler too
        else:
            signal.signal(sig, signal.SIG_DFL)  # uvicorn would wait for requests, as long as they may take
            signal.raise_signal(sig)
            os._exit(128 + sig)  # the kernel spares process 1, which this is in a container

    async def _drain_then_exit(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._drain_seconds
        try:
            await self.app.state.backend.drain()
        finally:
            left = max(deadline - loop.time(), _LAST_SECONDS)
            loop.call_later(left, self._abort_connections)
            self.config.timeout_graceful_shutdown = int(left) + 2  # never reached: by then all connections are gone
            self.should_exit = True

    def _abort_connections(self) -> None:
        """Nobody is waited for any longer, who does not read an answer or does not send a body."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def read_settings() -> Settings | None:
    """The settings of the environment; None where they are wrong, which it writes to standard error."""
    try:
        return Settings()
    except ValidationError as error:
        write_to_stderr("\n".join(sentences(error)))
        return None


def serve(listeners: Callable[[Settings], list[socket.socket]] | None = None, *, load_first: bool = False) -> int:
    """Read the settings, serve, and return the exit status.

    Args:
        listeners: opens the sockets at which to listen; without it, one at the settings' address.
        load_first: listen only once the models are loaded.
    """
    tune_allocator()
    open_standard_descriptors()
    if (settings := read_settings()) is None:
        return 2
    output = configure_logging(settings)
    _log_environment(environment())
    threadpool_limits(1, user_api="blas")  # NumPy's matrices are small here: threads would only wait for one another
    try:
        tracer_provider = _tracer_provider()
    except ModuleNotFoundError as error:
        write_to_stderr(f"{_ENDPOINT} asks for traces, and {error.name} is missing: install the extra `otel`")
        return 2
    server = make_server(settings, tracer_provider, load_first=load_first)
    try:
        sockets = None if listeners is None else listeners(settings)
    except OSError as error:
        _log.error("the port cannot be had", reason=str(error))
        return 3
    output.count_dropped(server.app.state.metrics.dropped_log_lines)
    server.app.openapi()  # kept; at the first request it would hold up all others, for a tenth of a second
    server.run(sockets)
    return 1 if server.failed else 0


def make_server(
    settings: Settings, tracer_provider: TracerProvider | None = None, *, load_first: bool = False
) -> Server:
    """What serves, once it is run; see `serve`."""
    server: Server | None = None

    def fail() -> None:
        if server is not None:
            server.fail()

    app = create_app(
        settings,
        on_failure=fail,
        tracer_provider=tracer_provider,
        decoding=partial(_decoding, settings),
        load_first=load_first,
    )
    server = Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=_connection(settings, app),
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # anybody can write them: the log has the address of whoever connects
            server_header=False,
        ),
        app=app,
        drain_seconds=settings.drain_seconds,
    )
    return server


def _decoding(settings: Settings, metrics: Metrics) -> Decoding:
    """Where images are read."""
    if not settings.decoders:
        return InProcess()
    memory = decoder_memory_bytes(settings.max_pixels, settings.max_body_bytes)
    return DecodingPool(settings.decoders, memory_bytes=memory, metrics=metrics)


def _log_environment(environment: Environment) -> None:
    """Log the variables that look like settings and are none."""
    for notice in environment.ignored:
        _log.info("environment variable ignored", variable=notice.variable, reason=notice.sentence)
    for notice in environment.warnings:
        _log.warning("environment variable unknown", variable=notice.variable, reason=notice.sentence)


def _tracer_provider() -> TracerProvider | None:
    """Where spans go, if OpenTelemetry's own variables say that they shall go anywhere."""
    if not (os.environ.get(_ENDPOINT) or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")):
        return None
    return export_traces()


def export_traces() -> "SdkTracerProvider":
    """Send spans, in batches and off the event loop, where `OTEL_EXPORTER_OTLP_ENDPOINT` says.

    FastAPI makes the spans; packages of the extra `otel`, which are imported only here, send them.

    Raises:
        ModuleNotFoundError: one is not installed.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    ours = Resource.create({SERVICE_NAME: "logpx", SERVICE_VERSION: version("logpx")})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))  # what the environment says wins
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _connection(settings: Settings, app: FastAPI) -> type[asyncio.Protocol]:
    """What uvicorn makes of each connection; any callable will do, though it asks for a class."""
    metrics: Metrics = app.state.metrics
    if (most := connections_that_fit(settings.max_connections)) < settings.max_connections:
        _log.warning("fewer connections than set: the process may not open more files", connections=most)
    bounded = partial(
        HttpConnection,
        admission_limit=AdmissionLimit(settings.max_queued_requests),
        lingering=set(),
        max_header_bytes=settings.max_header_bytes,
        header_seconds=settings.header_seconds,
        limit=ConnectionLimit(most, metrics.closed_connections),
        slow_readers=SlowReaders(settings.write_seconds, settings.max_unsent_bytes, metrics.closed_connections),
        request_log=app.state.request_log,
        root_path=settings.root_path,
    )
    return cast(type[asyncio.Protocol], bounded)
