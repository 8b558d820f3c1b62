"""The limits of one request: refuse it by its head alone, and limit the size and duration of its body."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import NoReturn
from urllib.parse import parse_qsl

from fastapi import Response
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.web.connections.exchange import EXCHANGE, Exchange
from service.web.connections.framing import MAX_HEADERS
from service.web.connections.incoming_bodies import IncomingBodies, IncomingBody
from service.web.memory_budget import FREE_BYTES, MEMORY, SENT_AT_ONCE, Budget, Share
from service.web.operations.settings import Settings
from service.web.problem_format import is_open_inference, own_path
from service.web.problems import (
    HEADER_TOO_LARGE,
    INVALID_PARAMETER,
    PROBLEM_TYPES,
    LimitError,
    MemoryFullError,
    RequestError,
    SlowBodyError,
    UnsupportedMediaTypeError,
    problem,
)

MAX_PARAMETERS = 100
CODINGS = ("gzip", "deflate")
"""Content codings of bodies that are unpacked, on `/v2` alone; see v2/compression.py."""
_MAX_LISTED = 10


class Limits:
    """Refuses requests by their heads before reading bodies; then counts the bytes that arrive, and the seconds.

    Args:
        budget: the memory of all requests. Each has a share in `scope[MEMORY]` until its answer is sent.
    """

    def __init__(self, app: ASGIApp, settings: Settings, budget: Budget) -> None:
        self._app = app
        self._settings = settings
        self._budget = budget
        self._incoming_bodies = IncomingBodies(budget)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; lifespan events are passed on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (refusal := self._refusal(scope)) is not None:
            await refusal(scope, receive, send)
            return
        seconds = self._settings.body_seconds
        deadline: float | None = None  # counted from when the application asks for the body, which may be late
        arrived = 0
        in_a_row = 0  # bytes of the answer since others were let in
        complete = False
        share = scope[MEMORY] = Share(self._budget)
        exchange: Exchange | None = scope.get(EXCHANGE)
        incoming: IncomingBody | None = None

        async def receive_bounded() -> Message:
            nonlocal deadline
            if complete:
                return await receive()  # only a disconnection can follow, for which there is no limit
            if incoming is None and exchange is not None and not exchange.more_body:  # it has all arrived
                return count(await receive())
            if incoming is not None and incoming.gave_way:
                self._incoming_bodies.refuse()
            if deadline is None:
                deadline = asyncio.get_running_loop().time() + seconds
            try:
                async with asyncio.timeout_at(deadline) as timer:
                    if incoming is not None:
                        incoming.timer = timer
                    message = await receive()
            except TimeoutError:
                if incoming is not None and incoming.gave_way:
                    self._incoming_bodies.refuse()
                raise SlowBodyError(f"the body was not complete after {seconds:g} s") from None
            finally:
                if incoming is not None:
                    incoming.timer = None
            return count(message)

        def count(message: Message) -> Message:
            nonlocal arrived, complete, incoming
            arrived += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if arrived > self._settings.max_body_bytes:
                self._refuse_length(arrived)
            if incoming is not None or arrived > FREE_BYTES:
                incoming = incoming or self._incoming_bodies.add()
                self._incoming_bodies.grow(incoming, arrived)
                if complete:
                    self._incoming_bodies.end(incoming)
            if arrived > FREE_BYTES and arrived > share.held:
                share.hold(arrived)  # more may be held for computing by now
            return message

        async def receive_or_end() -> Message:
            """A refused body no longer counts as arriving, however long its client takes to read the refusal."""
            try:
                return await receive_bounded()
            except RequestError:
                if incoming is not None:
                    self._incoming_bodies.end(incoming)
                raise

        async def send_counted(message: Message) -> None:
            """From here on only the answer is held, which may have to wait for a slow client.

            A fast client takes every piece at once, and none has to wait: so others are let in between them.
            """
            nonlocal in_a_row
            if message["type"] == "http.response.start":
                if share.held:
                    share.has(min(_content_length(message["headers"]), share.held))  # files are read piece by piece
                await send(message)
                return
            view, more = memoryview(message.get("body", b"")), message.get("more_body", False)
            if len(view) > FREE_BYTES and len(view) > share.held:
                share.has(len(view))
            if len(view) <= SENT_AT_ONCE and share.held == 0:
                await send(message)
                return
            for start in range(0, max(1, len(view)), SENT_AT_ONCE):  # waits until the piece before is nearly sent
                piece = bytes(view[start : start + SENT_AT_ONCE])  # a view would keep the whole answer in memory
                last = start + SENT_AT_ONCE >= len(view)
                await send({"type": "http.response.body", "body": piece, "more_body": more or not last})
                in_a_row += len(piece)
                if in_a_row >= SENT_AT_ONCE:
                    in_a_row = 0
                    await asyncio.sleep(0)

        try:
            await self._app(scope, receive_or_end, send_counted)
        finally:
            if incoming is not None:
                self._incoming_bodies.end(incoming)
            share.end()

    def _refusal(self, scope: Scope) -> Response | None:
        size, coding, declared = len(scope["path"]) + len(scope["query_string"]), b"", b"0"
        for name, value in scope["headers"]:  # one pass, because this runs for every request
            size += len(name) + len(value)
            if name == b"content-encoding":
                coding = value
            elif name == b"content-length":
                declared = value
        count = len(scope["headers"])
        if count > MAX_HEADERS or size > self._settings.max_header_bytes:
            limits = f"{MAX_HEADERS} headers, {self._settings.max_header_bytes} bytes with path and query"
            detail = f"at most {limits} are accepted; found {count}, {size} bytes"
            return problem(Request(scope), HEADER_TOO_LARGE, detail)
        if coding and (refusal := _coding_refusal(scope, coding.strip().lower().decode("latin-1"))) is not None:
            return refusal
        try:
            length = int(declared[:20]) if declared.isdigit() else 0
            if length > self._settings.max_body_bytes:
                self._refuse_length(length)
            if length > FREE_BYTES:
                self._budget.check(length)
        except LimitError as error:
            return problem(Request(scope), PROBLEM_TYPES[LimitError], str(error))
        except MemoryFullError as error:
            headers = {"Retry-After": str(error.retry_after)}
            return problem(Request(scope), PROBLEM_TYPES[MemoryFullError], str(error), headers=headers)
        if scope["query_string"].count(b"&") >= MAX_PARAMETERS:  # checking very many takes longer than computing
            detail = f"the query has more than {MAX_PARAMETERS} parameters"
            return problem(Request(scope), INVALID_PARAMETER, detail)
        if b"&" in scope["query_string"] and (repeated := _repeated(scope["query_string"])):
            detail = f"{', '.join(repeated)}: given more than once"
            errors = [{"parameter": name, "problem": "given more than once"} for name in repeated[:_MAX_LISTED]]
            return problem(Request(scope), INVALID_PARAMETER, detail, errors=errors)
        return None

    def _refuse_length(self, length: int) -> NoReturn:
        most = self._settings.max_body_bytes
        raise LimitError(f"the body has {length} bytes or more; at most {most} are accepted")


def _coding_refusal(scope: Scope, coding: str) -> Response | None:
    accepted = ("identity", *(CODINGS if is_open_inference(own_path(scope)) else ()))
    if coding in accepted:
        return None
    named = f", or as {' or '.join(accepted[1:])}" if accepted[1:] else ""
    detail = f"content coding {coding[:100]!r} is not accepted; send the body as it is{named}"
    headers = {"Accept-Encoding": ", ".join(accepted)}
    return problem(Request(scope), PROBLEM_TYPES[UnsupportedMediaTypeError], detail, headers=headers)


def _content_length(headers: Iterable[tuple[bytes, bytes]]) -> int:
    return next((int(value) for name, value in headers if name.lower() == b"content-length"), 0)


def _repeated(query: bytes) -> list[str]:
    """Parameters given more than once, which are refused because only one value could be used."""
    counts = Counter(name for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True))
    return [ascii(name)[1:-1] for name, count in counts.items() if count > 1]
