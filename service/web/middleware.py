"""The layer round the app that names, logs and counts each request."""

import re
import time
import uuid
from collections.abc import Collection
from typing import Any

import structlog
from opentelemetry import trace
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.web.errors import INTERNAL, problem
from service.web.metrics import Metrics
from service.web.probes import QUIET_PATHS

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_log = structlog.get_logger()


class Observe:
    """Gives each request an id (the client's `X-Request-ID` where it is well formed), logs and counts its answer.

    Args:
        app: what answers. It may tell more of a request in `scope["observed"]`: see `observe`.
        metrics: where answers are counted.
        paths: of the routes, for what is refused before one is found.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan, which passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _annotate_span(scope, request_id)
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers.append("X-Content-Type-Options", "nosniff")
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            _log.exception("unexpected error")
            if status:
                raise  # the answer has begun; only the server can cut it off
            answer = problem(Request(scope), INTERNAL, "an unexpected error; the service's log has it under this id")
            await answer(scope, receive, send_with_id)
        finally:
            self._record(scope, status, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = self._route(scope)
        observed = scope.get("observed", {})
        model = observed.get("model", ""), observed.get("version", "")
        self._metrics.requests.labels(route, scope["method"], status, *model).inc()
        self._metrics.request_seconds.labels(route, *model).observe(seconds)
        more = {**observed, **scope.get("problem", {})}
        if "problem" in more:
            self._metrics.refusals.labels(more["problem"]).inc()
        write = _log.debug if route in QUIET_PATHS else _log.info
        write("request", method=scope["method"], path=scope["path"], status=status, seconds=round(seconds, 6), **more)

    def _route(self, scope: Scope) -> str:
        """The route's template; one label for all unknown paths, so that a scanner cannot grow the metrics."""
        if "route" in scope:
            return getattr(scope["route"], "path", "unknown")
        return scope["path"] if scope["path"] in self._paths else "unknown"


def _annotate_span(scope: Scope, request_id: str) -> None:
    """Add what only we know to the span that FastAPI made, where it made one."""
    span = trace.get_current_span()
    if span.is_recording():
        known = {**scope.get("observed", {}), **scope.get("problem", {}), "request_id": request_id}
        span.set_attributes({f"logpx.{name}": value for name, value in known.items()})


def observe(request: Request, **known: Any) -> None:
    """Tell the log, the metrics and the trace more of a request: its model and version, its rows and seconds."""
    request.scope.setdefault("observed", {}).update(known)
