"""How connections end, against the real process: whoever still sends is answered, and so is whoever has said all."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.web import plain_http
from tests.web.forms import npy
from tests.web.test_admission import read
from tests.web.test_process import Start, address, start

__all__ = ["start"]  # the fixture
BODY = npy(np.zeros((1, 28, 28), np.uint8))
POST = b"POST /v1/encode HTTP/1.1\r\nHost: here\r\n"
NPY = b"Content-Type: application/x-npy\r\n"
CLOSE = b"Connection: close\r\n"
MANY = 16 * 2**20  # bytes: more than the buffers of both ends hold
KEY = "a-key-of-the-test"
WHOLE = POST + NPY + b"X-API-Key: %s\r\nContent-Length: %d\r\n\r\n" % (KEY.encode(), len(BODY)) + BODY


class Service:
    """A process, and its log so far."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        (told,) = self.wait_for(lambda line: "running on http" in line["event"])
        self.port = int(told["event"].split("127.0.0.1:")[1].split(" ")[0])
        self.url = f"http://127.0.0.1:{self.port}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._came:
                self.lines.append(json.loads(line))
                self._came.notify_all()

    def wait_for(self, wanted: Any, number: int = 1) -> list[dict[str, Any]]:
        """So many lines like that."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [line for line in self.lines if wanted(line)]
            return len(found) >= number

        with self._came:
            assert self._came.wait_for(there, timeout=60), self.lines
        return found

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


@pytest.fixture(scope="module")
def service(digits_store: Path) -> Iterator[Service]:
    settings = {"MODEL_STORE": digits_store, "MODEL": "digits", "PORT": 0, "HEADER_SECONDS": 4, "API_KEYS": KEY}
    environment = {**os.environ, **{f"LOGPX_{name}": str(value) for name, value in settings.items()}}
    command = [sys.executable, "-m", "service"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            service = Service(process)
            while plain_http.get(f"{service.url}/readyz").status_code != 200:
                pass
            yield service
        finally:
            process.kill()


def rest(connection: socket.socket) -> bytes:
    """All that comes to the end; a reset is an error."""
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


REFUSED = {
    413: POST + NPY + b"X-API-Key: %s\r\nContent-Length: 99999999\r\n" % KEY.encode(),
    415: POST + NPY + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n" % MANY,
    404: b"POST /nowhere HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n" % MANY,
    405: b"POST /v1/models HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n" % MANY,
    406: POST + NPY + b"Accept: text/html\r\nX-API-Key: %s\r\nContent-Length: %d\r\n" % (KEY.encode(), MANY),
    401: POST + NPY + b"Content-Length: %d\r\n" % MANY,
    422: (POST + NPY).replace(b"encode", b"encode?no=1")
    + b"X-API-Key: %s\r\nContent-Length: %d\r\n" % (KEY.encode(), MANY),
    431: POST + NPY + b"X: y\r\n" * 101 + b"Content-Length: %d\r\n" % MANY,
    400: POST + b"Transfer-Encoding: chunked\r\n\r\nno chunk\r\n",
}


@pytest.mark.parametrize("close", [True, False], ids=["close", "keep-alive"])
@pytest.mark.parametrize("status", REFUSED)
def test_a_refusal_reaches_a_client_that_sends_all_before_it_reads(service: Service, status: int, close: bool) -> None:
    head = REFUSED[status]
    head = head.replace(b"Host: here\r\n", b"Host: here\r\n" + CLOSE) if close else head
    with service.connect() as connection:
        connection.sendall(head if head.endswith(b"\r\n\r\n") else head + b"\r\n")
        for _ in range(MANY // 2**20):
            connection.sendall(bytes(2**20))
        answer, body = read(connection)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert json.loads(body)["status"] == status
        if close:
            assert rest(connection) == b""


def test_after_a_refusal_whose_body_is_sent_to_its_end_the_connection_goes_on(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(REFUSED[404].replace(b"%d" % MANY, b"200000") + b"\r\n" + bytes(200_000))
        assert read(connection)[0].startswith(b"HTTP/1.1 404 ")
        connection.sendall(WHOLE)
        assert read(connection)[0].startswith(b"HTTP/1.1 200 ")


def test_who_expects_to_be_asked_for_the_body_and_is_refused_sends_neither_it_nor_another_request(
    service: Service,
) -> None:
    with service.connect() as connection:
        connection.sendall(REFUSED[415] + b"Expect: 100-continue\r\n\r\n")
        head, _ = read(connection)
        assert head.startswith(b"HTTP/1.1 415 ")
        assert b"\r\nconnection: close" in head
        assert rest(connection) == b""


def test_who_is_asked_for_the_body_keeps_the_connection(service: Service) -> None:
    with service.connect() as connection:
        for _ in range(2):
            head, body = WHOLE.split(b"\r\n\r\n", 1)
            connection.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
            assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(body)
            answer, _ = read(connection)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close" not in answer


@pytest.mark.parametrize(
    "request_line", [b"POST /v1/encode HTTP/1.1", b"GET /livez HTTP/1.1", b"GET /livez HTTP/1.0"], ids=bytes.decode
)
def test_a_client_that_closes_its_side_is_answered(service: Service, request_line: bytes) -> None:
    request = WHOLE if request_line in WHOLE else request_line + b"\r\nHost: here\r\n\r\n"
    with service.connect() as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = rest(connection).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    head, body = answer.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body)


def test_in_http_1_0_a_client_that_closes_its_side_is_taken_for_gone_after_a_second(service: Service) -> None:
    body = npy(np.zeros((50, 28, 28), np.uint8))
    route = b"/v1/log-likelihood?proposal=prior&num_samples=100000"  # the most that is taken: it would take minutes
    head = WHOLE.split(b"Content-Length")[0].replace(b"/v1/encode", route).replace(b"HTTP/1.1", b"HTTP/1.0")
    with service.connect() as connection:
        connection.sendall(head + b"X-Request-ID: gone\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        connection.shutdown(socket.SHUT_WR)
        assert rest(connection) == b""
    (line,) = service.wait_for(lambda line: line.get("request_id") == "gone")
    assert (line["status"], line["problem"]) == (499, "client-gone")


def test_a_client_that_closes_its_side_is_answered_however_long_that_takes(service: Service) -> None:
    body = npy(np.zeros((60, 28, 28), np.uint8))
    route = b"/v1/log-likelihood?proposal=encoder&num_samples=5000"
    head = WHOLE.split(b"Content-Length")[0].replace(b"/v1/encode", route)
    with service.connect() as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        connection.shutdown(socket.SHUT_WR)
        interim, answer = rest(connection).split(b"HTTP/1.1 200 ", 1)
    assert interim  # it was asked whether it is still there
    assert interim.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"") == b""
    assert len(json.loads(answer.split(b"\r\n\r\n", 1)[1])["results"]) == 60


def test_pipelined_requests_before_a_closed_side_are_all_answered(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(WHOLE * 5, socket.MSG_MORE)  # so that they arrive with the end, not all answered before it
        connection.shutdown(socket.SHUT_WR)
        answers = rest(connection)
    assert answers.count(b"HTTP/1.1 200 ") == 5
    assert answers.count(b"\r\nconnection: close\r\n") == 1


def test_what_is_no_request_is_refused_after_the_answers_before_it(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(WHOLE * 2 + b"\x16\x03\x01 this is TLS\r\n\r\n")
        answers = rest(connection)
    statuses = [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"200", b"400"]
    assert json.loads(answers.split(b"\r\n\r\n")[-1])["type"] == "urn:logpx:problem:bad-request"


def test_a_hundred_connections_at_once_are_answered(service: Service) -> None:
    connections = [service.connect() for _ in range(100)]
    for connection in connections:
        connection.sendall(WHOLE)
    for connection in connections:
        assert read(connection)[0].startswith(b"HTTP/1.1 200 ")
        connection.close()


def test_a_reset_harms_nobody(service: Service) -> None:
    for sent in (b"", WHOLE[:50], REFUSED[413] + b"\r\n", WHOLE):
        with service.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(sent)
    with service.connect() as connection:
        connection.sendall(WHOLE)
        assert read(connection)[0].startswith(b"HTTP/1.1 200 ")
    assert service.process.poll() is None
    assert not [line for line in service.lines if line["level"] not in ("info", "warning")]


@pytest.mark.parametrize(
    ("sent", "problem", "method", "path", "status"),
    [
        (b"\x16\x03\x01 no method\r\n\r\n", "bad-request", "", "", 400),
        (b"GET /late?secret=1 HTTP/1.1\r\nX-Request-ID: mine\r\nX-A", "request-timeout", "GET", "/late", 408),
        (b"PUT /v1/models HTTP/1.1\r\nX: " + b"x" * 40_000, "header-too-large", "PUT", "/v1/models", 431),
        (b"HEAD /livez HTTP/1.1\r\nX: " + b"x" * 40_000, "header-too-large", "HEAD", "/livez", 431),
    ],
)
def test_what_the_connection_answers_is_logged_counted_and_formed_as_all_is(
    service: Service, sent: bytes, problem: str, method: str, path: str, status: int
) -> None:
    def count() -> float:
        route = path if path == "/v1/models" or path == "/livez" else "unknown"
        label = f'method="{method}",model="",route="{route}",status="{status}",version=""'
        text = plain_http.get(f"{service.url}/metrics", headers={"X-API-Key": KEY}).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if f"requests_total{{{label}" in line)

    before = count()
    with service.connect() as connection:
        connection.sendall(sent)
        head, _, body = rest(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"connection"] == b"close"
    assert b"date" in headers
    request_id = headers[b"x-request-id"].decode()
    assert request_id == "mine" or (len(request_id) == 32 and b"mine" not in sent)
    if method == "HEAD":
        assert body == b""
        assert int(headers[b"content-length"]) > 0
    else:
        document = json.loads(body)
        assert document["type"] == f"urn:logpx:problem:{problem}"
        assert (document["status"], document["request_id"]) == (status, request_id)
    (line,) = service.wait_for(lambda line: line.get("request_id") == request_id)
    told = {name: line[name] for name in ("event", "method", "path", "status", "client", "problem")}
    assert told == {
        "event": "request",
        "method": method,
        "path": path,
        "status": status,
        "client": "127.0.0.1",
        "problem": problem,
    }
    assert count() == before + 1


def test_lines_of_answered_requests_have_the_client_and_no_header_changes_it(service: Service) -> None:
    headers = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9", "X-Request-ID": "forwarded"}
    plain_http.get(f"{service.url}/v1/models", headers={**headers, "X-API-Key": KEY})
    (line,) = service.wait_for(lambda line: line.get("request_id") == "forwarded")
    assert line["client"] == "127.0.0.1"


def test_a_client_that_is_being_hung_up_on_does_not_hold_up_the_end(start: Start) -> None:
    process = start()
    url = address(process)
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(POST + CLOSE + b"Content-Length: 99999999\r\n\r\n")
        assert read(connection)[0].startswith(b"HTTP/1.1 413 ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0  # the bound on a drain and then some would be 21 s, that on lingering 30 s
