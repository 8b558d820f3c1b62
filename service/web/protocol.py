"""HTTP/1.1 as it is read: uvicorn's protocol, strict about every head, and without other protocols on its connection.

A client may offer to go on in another protocol: `Upgrade: h2c`, as curl --http2 and Java's client do with their first
request, or `websocket`. A server may ignore that (RFC 9110, 7.8), and this one does: it answers as if it had not been
offered. httptools cannot be told to ignore it: its parser takes what follows the head, a body too, for the other
protocol's. So such a head is given to a new parser without the offer, and then what followed it.
"""

from typing import Any

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.web.errors import BAD_REQUEST, HTTP_VERSION, INTERNAL, Kind
from service.web.framing import FRAMING_HEADERS, RefusedHeadError, check_head

_OTHER_VERSION = ("Invalid HTTP version", "Pause on PRI/Upgrade")
"""How httptools says that a request names another version of HTTP, or opens HTTP/2."""
_NO_HTTP = "what was sent cannot be read as HTTP/1.1"
_log = structlog.get_logger()


class StrictProtocol(HttpToolsProtocol):
    """Parses requests; what is refused here is the last thing that is read.

    Args:
        max_header_bytes: the most that is kept of a head that comes in pieces, to look at its first line again.
    """

    def __init__(self, *args: Any, max_header_bytes: int, **named: Any) -> None:
        super().__init__(*args, **named)
        self.url = b""
        self._max_header_bytes = max_header_bytes
        self._in_head = True
        self._has_begun = False  # some of a head has come, not all
        self._begun = bytearray()  # what came of it before the segment that is parsed
        self._segment: bytes | bytearray = b""  # that, and the segment
        self._looked_until = 0  # first lines of heads before here have been found
        self._framing: list[tuple[bytes, bytes]] = []
        self._has_offer = False  # of another protocol: the parser will stop at the end of the head
        self._is_checked = False  # the head, which is parsed again without its offer

    def refuse(self, kind: Kind, detail: str, headers: str = "") -> None:
        """Answer with a refusal, and read nothing more."""
        raise NotImplementedError

    def on_head(self) -> None:
        """A request's head has come, and can be served."""
        raise NotImplementedError

    def parse(self, data: bytes) -> None:
        """Read what has come. It refuses what is no request, and raises nothing."""
        if self._begun:
            self._begun += data
        self._segment = self._begun or data
        self._looked_until = 0
        pieces: list[bytes | memoryview] = [data]
        while pieces:
            piece = pieces.pop()
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as offer:
                pieces += [memoryview(piece)[offer.args[0] :], self._head_without_offer()]
                self._renew_parser()
            except httptools.HttpParserError as error:
                self._refuse_error(error)
                break
        if not self._has_begun:
            self._begun.clear()
        elif not self._begun:
            self._begun += data[-self._max_header_bytes :]
        self._segment = b""

    def on_message_begin(self) -> None:
        """The first byte of a head."""
        super().on_message_begin()
        self._has_begun = True
        self._framing = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, kept; or a trailer, of which we know none."""
        if self._in_head:
            name = name.lower()
            self.headers.append((name, value))
            if name in FRAMING_HEADERS:
                self._framing.append((name, value))
            elif name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True

    def on_headers_complete(self) -> None:
        """The head is read, and checked."""
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
            self.expect_100_continue = False  # it knows no interim answers (RFC 9110, 10.1.1)
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

    def start_request(self) -> None:
        """Hand the request to the application."""
        super().on_headers_complete()

    def _check_first_line(self, version: str) -> None:
        """The parser also takes lines with more than one space between words, and the protocols RTSP and ICE."""
        if version == "0.9":
            return
        line = b"%b %b HTTP/" % (self.parser.get_method(), self.url)
        found = self._segment.find(line, self._looked_until)
        if found < 0:
            raise RefusedHeadError(BAD_REQUEST, _NO_HTTP)
        self._looked_until = found + len(line)

    def _head_without_offer(self) -> bytes:
        """The head that was just read, less what offers another protocol."""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _renew_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's is
        self._has_offer = False
        self._is_checked = True

    def _refuse_error(self, error: httptools.HttpParserError) -> None:
        reason = error.__context__
        if isinstance(reason, RefusedHeadError):
            self.refuse(reason.kind, reason.detail, reason.headers)
        elif isinstance(error, httptools.HttpParserCallbackError):
            _log.error("unexpected error", exc_info=reason)
            self.refuse(INTERNAL, "an unexpected error; the service's log has it")
        elif str(error) in _OTHER_VERSION:
            self.refuse(HTTP_VERSION, "only HTTP/1.1 and HTTP/1.0 are understood")
        else:
            self.refuse(BAD_REQUEST, _NO_HTTP)
