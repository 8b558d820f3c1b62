"""Pure ASGI layers round the app: request ids with the access log and metrics, and the limit on bodies."""

import re
import time
import uuid
from collections.abc import MutableMapping
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.web.errors import INTERNAL, LimitError, problem
from service.web.metrics import Metrics

_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,128}$")
_QUIET = ("/livez", "/readyz", "/metrics")
_log = structlog.get_logger()


class Observe:
    """Gives each request an id (the client's `X-Request-ID` where it is well formed), logs and counts its answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan, which passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.match(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
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
        route = _route(scope)
        self._metrics.requests.labels(route, scope["method"], status).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        more = scope.get("problem", {})
        if more:
            self._metrics.refusals.labels(more["problem"]).inc()
        write = _log.debug if route in _QUIET else _log.info
        write("request", method=scope["method"], path=scope["path"], status=status, seconds=round(seconds, 6), **more)


class LimitBody:
    """Refuses a body over `max_bytes`: by its Content-Length at once, and by counting what really arrives."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan, which passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        arrived = 0

        async def receive_counted() -> Message:
            nonlocal arrived
            if declared.isdecimal():
                self._check(int(declared))
            message = await receive()
            arrived += len(message.get("body", b""))
            self._check(arrived)
            return message

        await self._app(scope, receive_counted, send)

    def _check(self, length: int) -> None:
        if length > self._max_bytes:
            raise LimitError(f"the body has {length} bytes or more; at most {self._max_bytes} are accepted")


def _route(scope: MutableMapping[str, Any]) -> str:
    """The route's template; one label for all unknown paths, so that a scanner cannot grow the metrics."""
    return getattr(scope.get("route"), "path", "unknown")
