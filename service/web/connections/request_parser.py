"""Parse HTTP/1.1 with httptools: strictly, ignoring offers of other protocols, and with pauses.

A client may offer to switch to another protocol: `Upgrade: h2c`, as curl --http2 and Java's client do in their first
request, or `websocket`. A server may ignore that (RFC 9110, 7.8), and this one does. httptools cannot ignore it: its
parser takes everything after the head, even a body, for the other protocol. So such a head is parsed again by a new
parser without the offer, and then what followed it.

httptools cannot be paused either, so this class keeps track of the parser's position. A request that has to wait is not
parsed; its bytes are kept, and nothing more is read meanwhile.
"""

import asyncio
import re
from abc import ABC, abstractmethod

import httptools
import structlog

from service.web.connections.framing import FRAMING_HEADERS, MAX_HEADERS, MAX_TARGET_BYTES, RefusedHeadError, check_head
from service.web.problems import BAD_REQUEST, HEADER_TOO_LARGE, HTTP_VERSION, INTERNAL, TARGET_TOO_LONG, ProblemType

_OTHER_VERSION = ("Invalid HTTP version", "Pause on PRI/Upgrade")
"""httptools' errors for a request with another version of HTTP, or the start of HTTP/2."""
_NO_HTTP = "what was sent cannot be read as HTTP/1.1"
_LINE_ENDS = re.compile(rb"[\r\n]*")
_log = structlog.get_logger()


class _NoRoomError(Exception):
    """The request that begins here has to wait. Raised to leave httptools' parser."""


class StrictProtocol(asyncio.Protocol, ABC):
    """Parses requests. After a refusal nothing more is read.

    Attributes:
        url: the target of the current request: as sent, and in origin form once it has been checked.
        headers: its headers, with names in lower case.
        expect_100_continue: whether its client waits for 100 Continue before it sends the body.
    """

    parser: httptools.HttpRequestParser

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.expect_100_continue = False
        self._in_head = True
        self._has_begun = False  # a part of a head has arrived
        self._in_last_chunk = False  # also true before the first data of a chunk
        self._begun = bytearray()  # the part of a head or of trailers before the current segment
        self._segment: bytes | bytearray = b""  # that part and the current segment
        self._at = 0  # offset in the segment after what was parsed last
        self._unparsed = b""  # bytes of requests that have to wait
        self._framing: list[tuple[bytes, bytes]] = []
        self._has_offer = False  # of another protocol, at which the parser stops after the head
        self._is_checked = False  # whether the head that is parsed again has been checked
        self._renew_parser()

    @abstractmethod
    def refuse(self, problem_type: ProblemType, detail: str, headers: str = "") -> None:
        """Answer with an error, and read nothing more."""

    @abstractmethod
    def on_head(self) -> None:
        """Called when a head is complete and valid."""

    @abstractmethod
    def on_data(self, body: bytes) -> None:
        """Called with a part of a body."""

    @abstractmethod
    def has_room(self) -> bool:
        """Whether another request may be parsed."""

    def parse(self, data: bytes) -> None:
        """Parse bytes as far as requests may be parsed. Answers invalid requests with an error; raises nothing."""
        if self._begun:
            self._begun += data
        self._segment = self._begun or data
        self._at = 0
        pieces: list[bytes | memoryview] = [data]
        while pieces:
            piece = pieces.pop()
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as offer:
                pieces += [memoryview(piece)[offer.args[0] :], self._head_without_offer()]
                self._renew_parser()
                self._has_offer = False
                self._is_checked = True
            except httptools.HttpParserError as error:
                if isinstance(error.__context__, _NoRoomError):
                    self._unparsed = bytes(memoryview(self._segment)[self._at :])
                    self._renew_parser()
                else:
                    self._refuse_error(error)
                self._has_begun = self._in_last_chunk = False
                break
        if not (self._has_begun or self._in_last_chunk):
            self._begun.clear()
        elif self._begun:
            del self._begun[: self._at]
        else:
            self._begun += memoryview(data)[self._at :]
        self._segment = b""

    def on_message_begin(self) -> None:
        """Called at the first byte of a head."""
        if not (self._is_checked or self.has_room()):
            raise _NoRoomError
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._has_begun = True
        self._framing = []

    def on_url(self, url: bytes) -> None:
        """Called with a part of the target."""
        self.url += url
        if len(self.url) > MAX_TARGET_BYTES:
            raise RefusedHeadError(TARGET_TOO_LONG, f"a path with its query has at most {MAX_TARGET_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called with a header, which is kept, or a trailer, which is ignored."""
        if self._in_head:
            if len(self.headers) == MAX_HEADERS:  # each takes many times the memory of its bytes
                raise RefusedHeadError(HEADER_TOO_LARGE, f"at most {MAX_HEADERS} headers are accepted")
            name = name.lower()
            self.headers.append((name, value))
            if name in FRAMING_HEADERS:
                self._framing.append((name, value))
            elif name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True

    def on_headers_complete(self) -> None:
        """Called when the head is complete: check it."""
        version = self.parser.get_http_version()
        if self._is_checked:
            self._is_checked = False
        else:
            self._check_first_line(version)
            self.url = check_head(self.parser.get_method(), self.url, version, self._framing)
            if self.parser.should_upgrade():
                self._has_offer = True
                return
        if version == "1.0":
            self.expect_100_continue = False  # HTTP/1.0 has no interim answers (RFC 9110, 10.1.1)
        self._has_begun = False
        self._in_head = False
        try:
            self.on_head()
        except httptools.HttpParserInvalidURLError:
            self._in_head = True
            raise RefusedHeadError(BAD_REQUEST, "the request's target cannot be read") from None
        except RefusedHeadError:
            self._in_head = True
            raise

    def on_chunk_header(self) -> None:
        """Called after the line with a chunk's size. The parser accepts only CR LF as line end, and no folded lines."""
        self._at = self._segment.find(b"\n", self._at)
        self._in_last_chunk = True

    def on_body(self, body: bytes) -> None:
        """Called with a part of the body."""
        self._at += len(body) + self._in_last_chunk  # and the line end before it
        self._in_last_chunk = False
        self.on_data(body)

    def on_chunk_complete(self) -> None:
        """Called after the line end of a chunk's data, or the empty line after the last chunk and its trailers."""
        end = b"\n\r\n" if self._in_last_chunk else b"\n"
        self._at = self._segment.find(end, self._at) + len(end)
        self._in_last_chunk = False

    def _check_first_line(self, version: str) -> None:
        """Refuse what the parser accepts in request lines: several spaces, and the protocols RTSP and ICE."""
        if version == "0.9":
            return
        found = _LINE_ENDS.match(self._segment, self._at)
        start = found.end() if found else self._at
        if not self._segment.startswith(b"%b %b HTTP/" % (self.parser.get_method(), self.url), start):
            raise RefusedHeadError(BAD_REQUEST, _NO_HTTP)
        self._at = self._segment.find(b"\n\r\n", start) + 3

    def _head_without_offer(self) -> bytes:
        """The head that was just read, without the headers that offer another protocol."""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _renew_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # later bytes are not read anyway

    def _refuse_error(self, error: httptools.HttpParserError) -> None:
        reason = error.__context__
        if isinstance(reason, RefusedHeadError):
            self.refuse(reason.problem_type, reason.detail, reason.headers)
        elif isinstance(error, httptools.HttpParserCallbackError):
            _log.error("unexpected error", exc_info=reason)
            self.refuse(INTERNAL, "an unexpected error; the service's log has it")
        elif str(error) in _OTHER_VERSION:
            self.refuse(HTTP_VERSION, "only HTTP/1.1 and HTTP/1.0 are understood")
        else:
            self.refuse(BAD_REQUEST, _NO_HTTP)
