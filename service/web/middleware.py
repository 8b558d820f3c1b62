"""The layer round the app that names, logs and counts each request."""

import os
import re
import time
from collections.abc import Collection
from functools import cache
from typing import Any

import structlog
from opentelemetry import trace
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.web.errors import INTERNAL, problem
from service.web.metrics import Metrics
from service.web.probes import QUIET_PATHS

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_NO_SNIFFING = (b"x-content-type-options", b"nosniff")
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
        # Finding a counter by its labels takes as long as counting.
        self._requests = cache(metrics.requests.labels)
        self._request_seconds = cache(metrics.request_seconds.labels)
        self._refusals = metrics.refusals
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan, which passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = b""
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                given = value
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _annotate_span(scope, request_id)
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), _NO_SNIFFING]
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
        self._requests(route, scope["method"], status, *model).inc()
        self._request_seconds(route, *model).observe(seconds)
        more = {**observed, **scope.get("problem", {})}
        if "problem" in more:
            self._refusals.labels(more["problem"]).inc()
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
