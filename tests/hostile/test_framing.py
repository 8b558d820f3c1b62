"""Requests that a proxy and the service could read in two ways, over raw sockets: none is served, none brings another.

What is sent ends with a request that must be answered, or with one that must never be: no path that was not asked for
is ever logged as asked for.
"""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from service.web.connections.framing import decode_path
from tests.hostile import wire
from tests.hostile.harness import ChildService, watched
from tests.hostile.wire import Answer
from tests.web.forms import npy

BODY = npy(np.zeros((1, 28, 28), np.uint8))
POST = b"POST /v1/encode HTTP/1.1\r\nHost: here\r\nContent-Type: application/x-npy\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
SMUGGLED = b"POST /v1/admin/reload HTTP/1.1\r\nHost: here\r\n\r\n"
LAST = b"GET /v1/models HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def service(store: Path) -> Iterator[ChildService]:
    """Nothing here is slow, and a client that is not hung up on waits for that long at most."""
    with ChildService(store, model="digits", header_seconds=20, body_seconds=20) as started, watched(started):
        yield started


@pytest.fixture(autouse=True)
def nothing_is_smuggled(service: ChildService) -> Iterator[None]:
    """No test asks for it; nor does anything go wrong that is only in the log."""
    yield
    assert "/v1/admin/reload" not in service.log()
    lines = [line for line in service.log_lines() if line["level"] != "info"]
    assert lines == []


def sent(service: ChildService, *pieces: bytes, pause: float = 0.05) -> list[Answer]:
    """The answers to what is sent; the service must hang up."""
    with service.connect() as connection:
        return wire.answers(wire.send_and_read(connection, pieces, pause=pause, read_seconds=60))


def statuses(service: ChildService, *pieces: bytes) -> list[int]:
    return [answer.status for answer in sent(service, *pieces)]


# ── Offers of another protocol

OFFERS = {
    "h2c": OFFER,
    "websocket": b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\n",
    "TLS": b"Upgrade: TLS/1.0\r\nConnection: Upgrade\r\n",
    "several": b"Upgrade: h2c\r\nUpgrade: websocket\r\nConnection: keep-alive\r\nConnection: upgrade\r\n",
    "HTTP/1.1": b"Upgrade: HTTP/1.1\r\nConnection: Upgrade\r\n",
    "nameless": b"Connection: Upgrade\r\nUpgrade:\r\n",
    "other case": b"CONNECTION: UPGRADE\r\nUPGRADE: H2C\r\n",
    "no connection": b"Upgrade: h2c\r\n",
    "connection only": b"Connection: upgrade\r\n",
    "signs": b"Connection: Upgrade\r\nUpgrade: \xff\xfe h2c\r\nX-Note: \xe9\r\n",
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
def test_an_offer_of_another_protocol_changes_nothing(service: ChildService, offer: bytes) -> None:
    plain = sent(service, POST + LENGTH + b"\r\n" + BODY + LAST)
    for framing, body in ((LENGTH, BODY), (b"Transfer-Encoding: chunked\r\n", CHUNKS)):
        head = POST + offer + framing + b"\r\n"
        for pieces in (
            (head + body + LAST,),
            (head, body, LAST),
            (head[:40], head[40:-1], head[-1:] + body[:7], body[7:] + LAST),
            (head + body[:-1], body[-1:] + LAST[:5], LAST[5:]),
        ):
            found = sent(service, *pieces)
            assert [(answer.status, answer.body) for answer in found] == [(a.status, a.body) for a in plain]


def test_a_body_after_an_offer_is_no_request(service: ChildService) -> None:
    head = POST + OFFER + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED)
    for pieces in ((head + SMUGGLED + LAST,), (head, SMUGGLED, LAST), (head + SMUGGLED[:9], SMUGGLED[9:] + LAST)):
        assert statuses(service, *pieces) == [422, 200]


def test_offers_in_a_row_are_each_ignored(service: ChildService) -> None:
    request = POST + OFFER + LENGTH + b"\r\n" + BODY
    assert statuses(service, request * 300 + LAST) == [200] * 301


def test_an_offer_of_a_client_that_waits_to_be_asked_for_its_body(service: ChildService) -> None:
    head = POST + OFFER + LENGTH + b"Expect: 100-continue\r\n\r\n"
    with service.connect() as connection:
        connection.sendall(head)
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        found = wire.answers(wire.send_and_read(connection, [BODY + LAST]))
    assert [answer.status for answer in found] == [200, 200]


def test_an_offer_on_head_get_and_http_1_0(service: ChildService) -> None:
    received = service.raw(b"HEAD /v1/models HTTP/1.1\r\nHost: here\r\n" + OFFER + b"\r\n" + LAST)
    assert [answer.status for answer in wire.answers(received, methods=["HEAD", "GET"])] == [200, 200]
    assert statuses(service, b"GET /livez HTTP/1.1\r\nHost: here\r\n" + OFFER + b"\r\n" + LAST) == [200, 200]
    assert statuses(service, POST.replace(b"1.1", b"1.0") + OFFER + LENGTH + b"\r\n" + BODY) == [200]


@pytest.mark.parametrize("length", [31_000, 40_000])
def test_the_bounds_of_a_head_hold_with_an_offer(service: ChildService, length: int) -> None:
    head = POST + OFFER + LENGTH + b"X-Long: " + b"x" * length + b"\r\n\r\n"
    for pieces in ((head + BODY + LAST,), (head[:-300], head[-300:] + BODY + LAST)):
        assert statuses(service, *pieces)[0] == (200 if length < 32_768 else 431)


# ── Heads that are refused


def get(line: bytes = b"GET /livez HTTP/1.1", headers: bytes = b"Host: here\r\n") -> bytes:
    return line + b"\r\n" + headers + b"\r\n"


def target(text: bytes) -> bytes:
    return get(b"GET " + text + b" HTTP/1.1")


def post(headers: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return POST.replace(b"1.1", version) + headers + b"\r\n" + body


def coded(coding: bytes) -> bytes:
    return post(b"Transfer-Encoding: " + coding + b"\r\n", CHUNKS)


def chunks(text: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked\r\n", text)


REFUSED: dict[str, tuple[int, bytes]] = {
    # the request line
    "HTTP/0.9": (400, b"GET /livez\r\n\r\n"),
    "HTTP/0.9 by name": (400, get(b"GET /livez HTTP/0.9")),
    "HTTP/1.2": (505, get(b"GET /livez HTTP/1.2")),
    "HTTP/2.0": (505, get(b"GET /livez HTTP/2.0")),
    "HTTP/3.0": (505, get(b"GET /livez HTTP/3.0")),
    "HTTP/2's preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"),
    "HTTP/11.1": (400, get(b"GET /livez HTTP/11.1")),
    "HTTP/1.": (400, get(b"GET /livez HTTP/1.")),
    "http/1.1": (400, get(b"GET /livez http/1.1")),
    "RTSP": (400, get(b"GET /livez RTSP/1.0")),
    "ICE": (400, get(b"SOURCE /livez ICE/1.0")),
    "TLS hello": (400, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(40)),
    "SSH": (400, b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    "two spaces before the target": (400, get(b"GET  /livez HTTP/1.1")),
    "two spaces, and the right line in a header": (
        400,
        get(b"GET  /livez HTTP/1.1", b"Host: here\r\nX: GET /livez HTTP/1.1\r\n"),
    ),
    "RTSP, and the right line in a header": (
        400,
        get(b"GET /livez RTSP/1.1", b"X: GET /livez HTTP/1.1\r\nHost: a\r\n"),
    ),
    "two spaces, and the right line in what follows": (400, get(b"GET  /livez HTTP/1.1") + get()),
    "two spaces after the target": (400, get(b"GET /livez  HTTP/1.1")),
    "a space at the end of the line": (400, get(b"GET /livez HTTP/1.1 ")),
    "tabs in the line": (400, get(b"GET\t/livez\tHTTP/1.1")),
    "a space before the method": (400, get(b" GET /livez HTTP/1.1")),
    "a method in lower case": (400, get(b"get /livez HTTP/1.1")),
    "no method of HTTP": (400, get(b"FETCH /livez HTTP/1.1")),
    "a method of WebDAV": (501, get(b"PROPFIND /livez HTTP/1.1")),
    "a method of RTSP": (400, get(b"DESCRIBE /livez HTTP/1.1")),
    "CONNECT": (501, get(b"CONNECT here:80 HTTP/1.1")),
    "CONNECT with a body": (501, get(b"CONNECT here:80 HTTP/1.1", b"Host: here\r\nContent-Length: 5\r\n") + b"12345"),
    "a line end of LF": (400, b"GET /livez HTTP/1.1\nHost: here\r\n\r\n"),
    "all line ends of LF": (400, b"GET /livez HTTP/1.1\nHost: here\n\n"),
    # the target
    "OPTIONS *": (405, get(b"OPTIONS * HTTP/1.1")),
    "GET *": (400, target(b"*")),
    "authority form": (400, target(b"here:80")),
    "a name": (400, target(b"livez")),
    "a query alone": (400, target(b"?n=1")),
    "a fragment": (400, target(b"/livez#/v1/other")),
    "a fragment in a URL": (400, target(b"http://here/livez#x")),
    "ftp": (400, target(b"ftp://here/livez")),
    "no host in a URL": (400, target(b"http:///livez")),
    "a user in a URL": (400, target(b"http://you@here/livez")),
    "a port alone in a URL": (400, target(b"http://:80/livez")),
    "é": (400, target("/é".encode())),
    "\\xff": (400, target(b"/\xff")),
    "NUL": (400, target(b"/livez\0")),
    "DEL": (400, target(b"/livez\x7f")),
    "a space in the target": (400, target(b"/livez /v1/other")),
    "a CR in the target": (400, target(b"/livez\r/x")),
    # the host
    "no host": (400, get(headers=b"")),
    "two hosts": (400, get(headers=b"Host: here\r\nHost: there\r\n")),
    "a host twice": (400, get(headers=b"Host: here\r\nX: y\r\nHost: here\r\n")),
    "two hosts in HTTP/1.0": (400, get(b"GET /livez HTTP/1.0", b"Host: here\r\nHost: there\r\n")),
    "hosts in a list": (400, get(headers=b"Host: here, there:80\r\n")),
    "a host with a path": (400, get(headers=b"Host: here/livez\r\n")),
    "a host with a user": (400, get(headers=b"Host: you@here\r\n")),
    "a host with a space": (400, get(headers=b"Host: he re\r\n")),
    "a host with a scheme": (400, get(headers=b"Host: http://here\r\n")),
    "a port that is none": (400, get(headers=b"Host: here:http\r\n")),
    "a host of signs": (400, get(headers=b"Host: h\xc3\xa9re\r\n")),
    "a broken address": (400, get(headers=b"Host: [::1\r\n")),
    "a host with a quote": (400, get(headers=b'Host: "here"\r\n')),
    # headers
    "a folded header": (400, get(headers=b"Host: here\r\nX: a\r\n b\r\n")),
    "a header folded by a tab": (400, get(headers=b"Host: here\r\nX: a\r\n\tb\r\n")),
    "a folded first header": (400, get(headers=b" X: a\r\nHost: here\r\n")),
    "a folded host": (400, get(headers=b"Host:\r\n here\r\n")),
    "a bare LF": (400, get(headers=b"Host: here\r\nX: a\nY: b\r\n")),
    "a bare CR": (400, get(headers=b"Host: here\r\nX: a\rY: b\r\n")),
    "two CR": (400, get(headers=b"Host: here\r\nX: a\r\r\n")),
    "NUL in a value": (400, get(headers=b"Host: here\r\nX: a\0b\r\n")),
    "a control in a value": (400, get(headers=b"Host: here\r\nX: a\x0bb\r\n")),
    "a space before the colon": (400, get(headers=b"Host: here\r\nX : a\r\n")),
    "a space before the colon of a length": (400, post(b"Content-Length : %d\r\n" % len(BODY), BODY)),
    "no colon": (400, get(headers=b"Host: here\r\nX\r\n")),
    "no name": (400, get(headers=b"Host: here\r\n: a\r\n")),
    "a name of signs": (400, get(headers=b"Host: here\r\nX\xc3\xa9: a\r\n")),
    "a name in brackets": (400, get(headers=b"Host: here\r\n(X): a\r\n")),
    # the body's length
    "two lengths": (400, post(LENGTH + b"Content-Length: 5\r\n", BODY)),
    "a length twice": (400, post(LENGTH * 2, BODY)),
    **{
        f"length {text.decode('latin-1')!r}": (400, post(b"Content-Length: " + text + b"\r\n", BODY))
        for text in (
            b"+5",
            b"-5",
            b"0x5",
            b"5 5",
            b"5,5",
            b"5, 5",
            b"",
            b"5.0",
            b"1e3",
            b"five",
            b"5;",
            b"\xd9\xa5",
            b"9" * 30,
        )
    },
    "a length beside a coding": (400, post(b"Transfer-Encoding: chunked\r\n" + LENGTH, CHUNKS)),
    "a coding beside a length": (400, post(LENGTH + b"Transfer-Encoding: chunked\r\n", CHUNKS)),
    "a coding in HTTP/1.0": (400, post(b"Transfer-Encoding: chunked\r\n", CHUNKS, b"1.0")),
    # the body's coding
    **{
        f"coding {text.decode('latin-1')!r}": (501, coded(text))
        for text in (
            b"gzip, chunked",
            b"gzip,chunked",
            b"identity, chunked",
            b"deflate,gzip , chunked",
            b"x-a, CHUNKED",
        )
    },
    "codings in two lines": (501, post(b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", CHUNKS)),
    **{
        f"coding {text.decode('latin-1')!r}": (400, coded(text))
        for text in (
            *(
                b"gzip",
                b"identity",
                b"chunked, gzip",
                b"chunked, chunked",
                b"chunked,identity",
                b", chunked",
                b"chunked,",
            ),
            *(
                b"",
                b"xchunked",
                b"chunked-x",
                b"chunked;q=1",
                b'"chunked"',
                b"chunked\x0b",
                b"\x0bchunked",
                b"gzip chunked",
            ),
            *(b"gzip\tchunked", b"chunke\xc4\x8f", b"gzip;, chunked", b"\xff, chunked"),
        )
    },
    "chunked twice in two lines": (400, post(b"Transfer-Encoding: chunked\r\n" * 2, CHUNKS)),
    "a coding before the colon": (400, post(b"Transfer-Encoding : chunked\r\n", CHUNKS)),
    "a folded coding": (400, post(b"Transfer-Encoding:\r\n chunked\r\n", CHUNKS)),
    # chunks
    **{
        f"chunk {text.decode('latin-1')!r}": (400, chunks(text + b"\r\n12345\r\n0\r\n\r\n"))
        for text in (
            *(
                b"0x5",
                b"+5",
                b"-5",
                b" 5",
                b"5 ",
                b"",
                b"g",
                b"10000000000000005",
                b"f" * 17,
                b"5,",
                b"5_",
                b"5\0",
                b"5;\0",
            ),
            *(b"5;a\nb", b"5;a\rb", b'5;a="b', b"\xef\xbc\x95"),
        )
    },
    "a chunk's line end of LF": (400, chunks(b"5\n12345\r\n0\r\n\r\n")),
    "a chunk's line end of CR": (400, chunks(b"5\r12345\r\n0\r\n\r\n")),
    "an extension's line end of LF": (400, chunks(b"5;a\n12345\r\n0\r\n\r\n")),
    "data longer than the chunk": (400, chunks(b"5\r\n123456\r\n0\r\n\r\n")),
    "data that end in LF": (400, chunks(b"5\r\n12345\n0\r\n\r\n")),
    "a last chunk that ends in LF": (400, chunks(b"5\r\n12345\r\n0\n\n")),
    "a trailer with a space before its colon": (400, chunks(b"0\r\nX : y\r\n\r\n")),
    "a length in the trailer": (400, chunks(b"0\r\nContent-Length: 5\r\n\r\n")),
    "a coding in the trailer": (400, chunks(b"0\r\nTransfer-Encoding: chunked\r\n\r\n")),
}
SLUGS = {
    400: "bad-request",
    405: "method-not-allowed",
    431: "header-too-large",
    501: "not-implemented",
    505: "http-version-not-supported",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_read_in_two_ways_is_refused_and_the_last_thing_read(service: ChildService, name: str) -> None:
    status, request = REFUSED[name]
    before = service.metric("logpx_requests_total", status=str(status))
    for pieces in ((request + SMUGGLED,), (request[:-3], request[-3:] + SMUGGLED)):
        (answer,) = sent(service, *pieces)
        assert answer.status == status
        assert answer.problem == SLUGS[status]
        assert answer.headers["connection"] == "close"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert ("allow" in answer.headers) is (status == 405)
        document = answer.json()
        assert (document["status"], document["request_id"]) == (status, answer.headers["x-request-id"])
    assert service.metric("logpx_requests_total", status=str(status)) == before + 2


@pytest.mark.parametrize("name", ["no host", "coding 'gzip, chunked'", "HTTP/2.0", "CONNECT", "a folded header"])
def test_a_refused_head_after_others_is_answered_after_them(service: ChildService, name: str) -> None:
    status, request = REFUSED[name]
    ahead = POST + LENGTH + b"\r\n" + BODY
    assert statuses(service, ahead * 3 + request + SMUGGLED) == [200, 200, 200, status]


CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
COPY = b"GET /livez HTTP/1.1\r\n"


@pytest.mark.parametrize(
    ("request_", "last"),
    [
        (CHUNKED + b"no chunk\r\n", [400]),
        (CHUNKED + b"1;" + b"e" * 40_000 + b"\r\nx\r\n", [431]),
        (CHUNKED + b"5\r\nx", []),
        (POST + b"Content-Length: 5\r\n\r\nx", []),
    ],
    ids=["no chunk", "extensions", "a chunk cut off", "a body cut off"],
)
def test_a_body_that_breaks_off_takes_no_answer_from_requests_before_it(
    service: ChildService, request_: bytes, last: list[int]
) -> None:
    ahead = POST + LENGTH + b"\r\n" + BODY
    for times in (1, 3):
        with service.connect() as connection:
            connection.sendall(ahead * times + request_)
            if not last:
                connection.shutdown(socket.SHUT_WR)
            found = wire.answers(wire.send_and_read(connection, [], read_seconds=60))
        assert [answer.status for answer in found] == [200] * times + last


@pytest.mark.parametrize(
    "before",
    [
        POST.replace(b"/v1/encode", b"/livez") + b"Content-Length: %d\r\n\r\n\r\n%b" % (len(COPY) + 2, COPY),
        CHUNKED.replace(b"/v1/encode", b"/livez") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(COPY), COPY),
        CHUNKED.replace(b"/v1/encode", b"/livez")
        + b"1;%b\r\n\n\r\n%x\r\n%b\r\n0\r\nX: y\r\n\r\n" % (b"e" * 40, len(COPY), COPY),
        get(headers=b"Host: here\r\nX: GET /livez HTTP/1.1\r\n"),
    ],
    ids=["length", "chunk", "chunks", "header"],
)
def test_the_right_line_elsewhere_does_not_make_a_wrong_one_right(service: ChildService, before: bytes) -> None:
    for request in (before + get(b"GET  /livez HTTP/1.1"), before + get(b"GET /livez RTSP/1.1")):
        for cut in (len(request), len(before), len(before) - 1, len(before) - 3, len(before) - 8):
            assert statuses(service, request[:cut], request[cut:] + SMUGGLED)[1:] == [400]


def test_a_request_that_is_answered_is_not_answered_again_for_its_body(service: ChildService) -> None:
    head = b"POST /nowhere HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
    with service.connect() as connection:
        connection.sendall(head)
        first = connection.recv(65536)
        assert first.startswith(b"HTTP/1.1 404 ")
        more = wire.send_and_read(connection, [b"no chunk\r\n\r\n" + SMUGGLED])
    assert [answer.status for answer in wire.answers(first + more)] == [404]


# ── What looks odd and is right

SERVED = {
    "http": target(b"http://here/v1/models"),
    "https": target(b"https://there:8443/v1/models?"),
    "URL in capitals": target(b"HTTP://HERE/v1/models"),
    "escaped": target(b"/%76%31/models"),
    "empty host": get(b"GET /v1/models HTTP/1.1", b"Host:\r\n"),
    "IPv6": get(b"GET /v1/models HTTP/1.1", b"Host: [::1]:8000\r\n"),
    "a name of compose": get(b"GET /v1/models HTTP/1.1", b"Host: logpx_api-1.local.:80\r\n"),
    "HTTP/1.0 without host": get(b"GET /v1/models HTTP/1.0", b""),
    "empty lines before it": b"\r\n\r\n" + get(b"GET /v1/models HTTP/1.1"),
    "tabs round a value": get(b"GET /v1/models HTTP/1.1", b"Host:\there\t \r\n"),
    "zeros before a length": post(b"Content-Length: 000%d\r\n" % len(BODY), BODY),
    "zeros before a chunk": chunks(b"000%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)),
    "extensions": chunks(b'%x;a=b;c="d e"\r\n%b\r\n0;f\r\n\r\n' % (len(BODY), BODY)),
    "CHUNKED": coded(b"CHUNKED"),
    "trailers": chunks(CHUNKS[:-2] + b"X: y\r\nHost: there\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"),
    "chunks of a byte": chunks(b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"),
}


@pytest.mark.parametrize("name", SERVED)
def test_what_is_right_is_served_at_whatever_place_it_is_cut(service: ChildService, name: str) -> None:
    request = SERVED[name]
    assert statuses(service, request + (LAST if b"1.0" not in request else b""))[0] == 200
    head = request.index(b"\r\n\r\n", 4) + 4
    cuts = {*range(1, head + 1, 9), head - 1, head - 2, head, len(request) - 1} - {len(request)}
    connections = [(service.connect(), cut) for cut in sorted(cuts)]
    for connection, cut in connections:
        connection.sendall(request[:cut])
    time.sleep(0.05)
    for connection, cut in connections:
        with connection:
            connection.sendall(request[cut:])
            assert connection.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("name", [name for name in SERVED if "1.0" not in name and name != "chunks of a byte"])
def test_what_follows_it_is_served_too_at_whatever_place_it_is_cut(service: ChildService, name: str) -> None:
    request = SERVED[name]
    cuts = {*range(1, min(len(request), 200), 7), *range(max(1, len(request) - 90), len(request))}
    connections = [(service.connect(), cut) for cut in sorted(cuts)]
    for connection, cut in connections:
        connection.sendall(request[:cut])
    time.sleep(0.05)
    for connection, cut in connections:
        connection.sendall(request[cut:] + LAST)
    for connection, _ in connections:
        with connection:
            found = wire.answers(wire.send_and_read(connection, [], read_seconds=60))
        assert [answer.status for answer in found] == [200, 200]


def test_http_1_0_is_not_asked_for_its_body(service: ChildService) -> None:
    (answer,) = sent(service, post(b"Expect: 100-continue\r\n" + LENGTH, BODY, b"1.0"))
    assert answer.status == 200
    received = service.raw(post(b"Expect: 100-continue\r\n" + LENGTH, b"", b"1.0"), b"x", pause=0.3, read_seconds=0.3)
    assert received == b""


@pytest.mark.parametrize(
    "frames",
    [
        b"1;" + b"e" * 3000 + b"\r\nx\r\n",
        b'1;e="' + b"v" * 900 + b'"\r\nx\r\n',
    ],
    ids=["names", "values"],
)
def test_a_body_of_extensions_is_cut_off(service: ChildService, frames: bytes) -> None:
    head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    (answer,) = sent(service, head, *([frames] * 200), pause=0.001)
    assert (answer.status, answer.problem) == (431, "header-too-large")


@pytest.mark.parametrize("path", [b"/v1/encode", b"/nowhere"])
def test_a_trailer_that_closes_the_connection_closes_it(service: ChildService, path: bytes) -> None:
    """What comes after it is not read; nor is it waited for."""
    request = chunks(CHUNKS[:-2] + b"Connection: close\r\n\r\n").replace(b"/v1/encode", path)
    for pieces in (
        (request + SMUGGLED,),
        (request[:-40], request[-40:] + SMUGGLED),
        (request[:-2], request[-2:], SMUGGLED),
    ):
        (answer,) = sent(service, *pieces, pause=0.3)
        assert answer.status in (200, 404)


def test_a_target_is_logged_as_it_is_asked_for(service: ChildService) -> None:
    service.raw(
        b"GET http://there/v1/nowhere?x=1 HTTP/1.1\r\nHost: here\r\nX-Request-ID: of-a-url\r\nConnection: close\r\n\r\n"
    )
    service.raw(
        b"GET http://there?/v1/nowhere HTTP/1.1\r\nHost: here\r\nX-Request-ID: of-a-host\r\nConnection: close\r\n\r\n"
    )
    paths: dict[str, str] = {}
    while len(paths) < 2:  # lines are written a moment after the answer
        paths = {
            line["request_id"]: line["path"] for line in service.log_lines() if "of-a" in line.get("request_id", "")
        }
    assert (paths["of-a-url"], paths["of-a-host"]) == ("/v1/nowhere", "/")
    assert json.loads(sent(service, LAST)[0].body)["models"]


def test_a_path_is_decoded_as_the_standard_library_does() -> None:
    chance = np.random.default_rng(0)
    pieces = np.array(["%", "%%", "%4", "%41", "%c3%A9", "%ff", "%0a", "%20", "%3d", "=", "==", "=41", "=%", "_", "a"])
    for _ in range(3000):
        path = "".join(chance.choice(pieces, chance.integers(12)))
        assert decode_path(path.encode()) == unquote(path), path
