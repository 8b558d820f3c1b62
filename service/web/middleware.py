"""ASGI middleware: request ids, the log and metrics of requests, HEAD, and the path prefix of a proxy."""

import time
from collections.abc import Iterable, Iterator
from http import HTTPStatus

import structlog
from opentelemetry import trace
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.web.operations.request_log import RequestLog, request_id_of
from service.web.problem_format import own_path, problem_form
from service.web.problems import INTERNAL, MAX_DETAIL, foreign_problem, problem

_REFUSED = int(HTTPStatus.BAD_REQUEST)  # a constant, because looking it up is a call
_NO_SNIFFING = (b"x-content-type-options", b"nosniff")
_log = structlog.get_logger()


class Observe:
    """Gives each request an id (the client's `X-Request-ID` where it is well formed), logs and counts its answer.

    HEAD is answered like GET on every route, without the body. If a library refuses a request in its own format (a
    preflight from a foreign origin, a range of a page's file), the answer is replaced by a problem document.

    Args:
        app: answers the request. It can put more information into `scope["observed"]`: model, version, rows, seconds.
        request_log: where answers are logged and counted.
        traced: whether there are spans, to which the same information is added.
    """

    def __init__(self, app: ASGIApp, request_log: RequestLog, *, traced: bool = False) -> None:
        self._app = app
        self._request_log = request_log
        self._traced = traced

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan, which passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope["headers"])
        scope.setdefault("state", {})["request_id"] = request_id
        scope["observed"] = {}
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        status = 0
        foreign: Message | None = None  # the start of a library's own refusal, until its text has come
        text = b""

        async def send_with_id(message: Message) -> None:
            nonlocal status, foreign, text
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), _NO_SNIFFING]
                if status >= _REFUSED and "problem" not in scope:
                    foreign = message
                    return
                if self._traced:
                    _annotate_span(scope, request_id)
            elif foreign is not None:
                text += message["body"][: MAX_DETAIL - len(text)]
                if message.get("more_body", False):
                    return
                document = foreign_problem(scope, status, text.decode(errors="replace"))
                if self._traced:
                    _annotate_span(scope, request_id)
                head = _head_of(document, problem_form(own_path(scope), "")[0])
                await send({**foreign, "headers": [*_without_body(foreign["headers"]), *head]})
                message = {**message, "body": b"" if scope["method"] == "HEAD" else document}
            await send(message)

        try:
            if scope["method"] == "HEAD":
                await self._answer_head(scope, receive, send_with_id)
            else:
                await self._app(scope, receive, send_with_id)
        except Exception:
            _log.exception("unexpected error")
            if status:
                raise  # the answer has begun, so only the server can cut it off
            answer = problem(Request(scope), INTERNAL, "an unexpected error; the service's log has it under this id")
            await answer(scope, receive, send_with_id)
        finally:
            self._request_log.answered(scope, status, time.perf_counter() - started)

    async def _answer_head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as for GET, without sending the body (RFC 9110, 9.3.2)."""
        get = {**scope, "method": "GET"}

        async def send_without_body(message: Message) -> None:
            scope.update({**get, "method": "HEAD"})  # keep what has been added to the scope
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        try:
            await self._app(get, receive, send_without_body)
        finally:
            scope.update({**get, "method": "HEAD"})


class RootPath:
    """Supports a proxy that puts a prefix before all paths, whether it strips the prefix or not.

    For the app, as ASGI says, `path` begins with `root_path`; `/docs` and `/openapi.json` make their links from it.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan, which passes through."""
        if scope["type"] == "http":
            scope["root_path"] = self._root_path
            if scope["path"] == self._root_path:  # what the router calls `/`; see page_assets.py
                scope["path"], scope["without_slash"] = f"{self._root_path}/", True
            if not f"{scope['path']}/".startswith(f"{self._root_path}/"):
                scope["path"] = self._root_path + scope["path"]
                scope["raw_path"] = self._root_path.encode() + scope.get("raw_path", b"")
        await self._app(scope, receive, send)


def _without_body(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    return ((name, value) for name, value in headers if name.lower() not in (b"content-type", b"content-length"))


def _head_of(document: bytes, media_type: str) -> tuple[tuple[bytes, bytes], ...]:
    return (b"content-type", media_type.encode()), (b"content-length", b"%d" % len(document))


def _annotate_span(scope: Scope, request_id: str) -> None:
    """Add our information about the request to FastAPI's span, if there is one."""
    span = trace.get_current_span()
    if span.is_recording():
        known = {**scope.get("observed", {}), **scope.get("problem", {}), "request_id": request_id}
        span.set_attributes({f"logpx.{name}": value for name, value in known.items()})
