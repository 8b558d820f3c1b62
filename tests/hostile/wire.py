"""HTTP/1.1 by hand: sends any bytes at all, and reads what comes back strictly. Only the standard library."""

import re
import select
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Headers = Mapping[str, str] | Sequence[tuple[str, str]]
HEAD_END = b"\r\n\r\n"
WITHOUT_BODY = (204, 304)


@dataclass(frozen=True)
class Answer:
    """One answer; names of headers are in lower case, and each is there once but `set-cookie` and `vary`."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float = field(default=0.0, compare=False)

    def json(self) -> Any:
        """The body's JSON."""
        import json

        return json.loads(self.body)

    @property
    def problem(self) -> str:
        """The last part of a problem document's type, like `invalid-body`; empty without one, as for HEAD."""
        media_type = self.headers.get("content-type")
        if media_type not in ("application/problem+json", "application/json") or not self.body:
            return ""
        problem = self.json()
        if media_type == "application/json" and problem.get("error") != problem["detail"]:  # of `/v2`
            return ""
        return str(problem["type"]).rpartition(":")[2]


def answers(received: bytes, *, methods: Sequence[str] = ()) -> list[Answer]:
    """Take a connection's bytes apart into answers, interim ones (1xx) left out.

    `methods` are those of the requests, in order; only HEAD makes a difference, whose answer has no body.

    Raises:
        AssertionError: it is not a sequence of whole HTTP/1.1 answers with sure lengths, and nothing else.
    """
    found: list[Answer] = []
    while received:
        head, end, rest = received.partition(HEAD_END)
        assert end, f"a head without end: {received[:200]!r}"
        line, *lines = head.split(b"\r\n")
        status = re.fullmatch(rb"HTTP/1\.1 ([1-5]\d\d) [ -~]*", line)
        assert status, f"not a status line: {line[:200]!r}"
        code, headers = int(status[1]), _headers(lines)
        if code < 200:
            received = rest
            continue
        head_only = len(found) < len(methods) and methods[len(found)] == "HEAD"
        body, received = (b"", rest) if head_only or code in WITHOUT_BODY else _body(headers, rest)
        found.append(Answer(code, headers, body))
    return found


def _headers(lines: Iterable[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        pair = re.fullmatch(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?((?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*))?)", line)
        assert pair, f"not a header: {line[:200]!r}"
        name, value = pair[1].decode().lower(), pair[2].decode("latin-1")
        assert name not in headers or name in ("set-cookie", "vary"), f"{name} is there twice"
        headers[name] = value
    return headers


def _body(headers: Mapping[str, str], rest: bytes) -> tuple[bytes, bytes]:
    """The body and what comes after it."""
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    assert (length is None) != (coding is None), f"content-length {length}, transfer-encoding {coding}"
    if length is not None:
        assert re.fullmatch(r"\d+", length), f"content-length {length}"
        assert len(rest) >= int(length), f"{len(rest)} bytes of a body of {length}"
        return rest[: int(length)], rest[int(length) :]
    assert coding == "chunked", f"transfer-encoding {coding}"
    body = b""
    while True:
        line, end, rest = rest.partition(b"\r\n")
        assert end and re.fullmatch(rb"[0-9a-fA-F]+", line), f"not a chunk's size: {line[:50]!r}"  # noqa: PT018
        size = int(line, 16)
        assert rest[size : size + 2] == b"\r\n", f"a chunk of {size} bytes is cut short"
        body, rest = body + rest[:size], rest[size + 2 :]
        if size == 0:
            return body, rest


def request(method: str, path: str, body: bytes = b"", headers: Headers = (), *, close: bool = True) -> bytes:
    """A whole request's bytes; Host, Content-Length and `Connection: close` are added where they are not given."""
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    given = {name.lower() for name, _ in pairs}
    if "host" not in given:
        pairs.insert(0, ("Host", "localhost"))
    if not given & {"content-length", "transfer-encoding"} and (body or method not in ("GET", "HEAD")):
        pairs.append(("Content-Length", str(len(body))))
    if close and "connection" not in given:
        pairs.append(("Connection", "close"))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in pairs)]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + HEAD_END + body


def send_and_read(
    connection: socket.socket, pieces: Iterable[bytes], *, pause: float = 0, read_seconds: float = 30
) -> bytes:
    """Send piece after piece while reading; all that came until the peer closed, or said nothing for `read_seconds`.

    A peer that answers early and hangs up is no error: what it said before counts.
    """
    received = bytearray()
    for number, piece in enumerate(pieces):
        if number and pause and _read(connection, received, time.monotonic() + pause):
            return bytes(received)
        left = memoryview(piece)
        quiet_at = time.monotonic() + read_seconds
        while left:
            readable, writable = _ready(connection, quiet_at, writing=True)
            if not (readable or writable):
                return bytes(received)
            try:
                if readable:
                    if not (more := connection.recv(1 << 20)):
                        return bytes(received)
                    received += more
                if writable:
                    left = left[connection.send(left[: 1 << 20]) :]
            except ConnectionError:
                return bytes(received)
            quiet_at = time.monotonic() + read_seconds
    while not _read(connection, received, time.monotonic() + read_seconds, once=True):
        pass
    return bytes(received)


def _ready(connection: socket.socket, until: float, *, writing: bool = False) -> tuple[bool, bool]:
    """Whether there is something to read, or an end, and whether there is room to write; waits until one, or till then.

    Not by `select.select`, which takes no descriptor over 1023.
    """
    poll = select.poll()
    poll.register(connection, select.POLLIN | (select.POLLOUT if writing else 0))
    events = dict(poll.poll(max(0.0, 1000 * (until - time.monotonic())))).get(connection.fileno(), 0)
    gone = bool(events & (select.POLLHUP | select.POLLERR))
    return bool(events & select.POLLIN) or gone, bool(events & select.POLLOUT) and not gone


def _read(connection: socket.socket, received: bytearray, until: float, *, once: bool = False) -> bool:
    """Read till then, or one piece; whether it is over: the peer closed, or, of one piece, none came."""
    while time.monotonic() < until:
        if _ready(connection, until)[0]:
            try:
                more = connection.recv(1 << 20)
            except ConnectionError:
                return True
            if not more:
                return True
            received += more
            if once:
                return False
    return once
