"""Clients that trickle, flood, fall silent or go away, against the real process: others never notice."""

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest

from tests.web import plain_http
from tests.web.forms import npy
from tests.web.test_admission import read
from tests.web.test_process import NPY, address, score

BODY = npy(np.zeros((1, 28, 28), np.uint8))
HEAD = b"POST /v1/encode HTTP/1.1\r\nHost: here\r\nContent-Type: application/x-npy\r\n"
ENDLESS = repeat(b"X" * 40_000)


@contextmanager
def service(store: Path, *, header_seconds: float, body_seconds: float) -> Iterator[str]:
    settings = {"MODEL_STORE": store, "MODEL": "digits", "PORT": 0, "DECODERS": 0}
    settings |= {"HEADER_SECONDS": header_seconds, "BODY_SECONDS": body_seconds}
    environment = {**os.environ, **{f"LOGPX_{key}": str(value) for key, value in settings.items()}}
    with subprocess.Popen(
        [sys.executable, "-m", "service"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield address(process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def url(digits_store: Path) -> Iterator[str]:
    """A service with little patience."""
    with service(digits_store, header_seconds=1, body_seconds=0.5) as found:
        yield found


@pytest.fixture(scope="module")
def patient_url(digits_store: Path) -> Iterator[str]:
    """A service for what does not depend on time: however busy the machine is, none of its times run out first."""
    with service(digits_store, header_seconds=60, body_seconds=60) as found:
        yield found


@pytest.fixture(autouse=True)
def others_are_served(url: str) -> Iterator[None]:
    """During each test some client asks and is answered, and nothing is left afterwards."""
    yield
    assert plain_http.post(f"{url}/v1/encode", content=BODY, headers=NPY, timeout=60).status_code == 200
    while "logpx_queued_requests 0.0" not in (metrics := plain_http.get(f"{url}/metrics", timeout=60).text):
        pass
    assert "logpx_queued_rows 0.0" in metrics
    assert 'status="500"' not in metrics


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)))


def send_until_answered(connection: socket.socket, url: str, pieces: Iterator[bytes], pause: float) -> bytes:
    """Send piece after piece, with a pause between, until the service answers or hangs up; then all that it said.

    Between pieces another client asks.
    """
    for piece in pieces:
        try:
            connection.sendall(piece)
        except ConnectionError:
            break
        assert plain_http.get(f"{url}/livez", timeout=60).status_code == 200
        if select.select([connection], [], [], pause)[0]:
            break
    return rest(connection)


def rest(connection: socket.socket) -> bytes:
    """All that comes until the service hangs up; it must."""
    received = b""
    connection.settimeout(60)
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionError:
        pass  # it hung up while we were still sending
    return received


def test_headers_that_trickle_are_408(url: str) -> None:
    with connect(url) as connection:
        answer = send_until_answered(connection, url, chain([HEAD], repeat(b"X-A: b\r\n")), 0.02)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"urn:logpx:problem:request-timeout" in answer
    assert "logpx_refusals_total" in plain_http.get(f"{url}/metrics", timeout=60).text


def test_a_connection_that_says_nothing_is_closed(url: str) -> None:
    with connect(url) as connection:
        assert rest(connection) == b""


def test_empty_lines_do_not_keep_a_connection(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
        while b"alive" not in connection.recv(65536):
            pass
        assert send_until_answered(connection, url, repeat(b"\r\n"), 0.02).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("begin", "status", "problem"),
    [
        (b"GET /", b"414", b"target-too-long"),
        (HEAD + b"X-Long: ", b"431", b"header-too-large"),
        (HEAD + b"X-", b"431", b"header-too-large"),
    ],
    ids=["path", "value", "name"],
)
def test_heads_without_end_are_refused(patient_url: str, begin: bytes, status: bytes, problem: bytes) -> None:
    with connect(patient_url) as connection:
        answer = send_until_answered(connection, patient_url, chain([begin], ENDLESS), 0)
    assert answer.startswith(b"HTTP/1.1 " + status + b" ")
    assert b"urn:logpx:problem:" + problem in answer


def test_a_body_that_trickles_is_408_and_the_connection_closed(url: str) -> None:
    head = HEAD + b"Content-Length: 1000000\r\n\r\n"
    with connect(url) as connection:
        answer = send_until_answered(connection, url, chain([head], repeat(b"x")), 0.02)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()
    assert b"not complete after 0.5 s" in answer


def test_what_is_left_of_a_refused_body_has_its_time_too(url: str) -> None:
    head = HEAD + b"Content-Length: 999999999\r\n\r\n"
    with connect(url) as connection:
        answer = b""
        for piece in chain([head], repeat(b"x")):
            try:
                connection.sendall(piece)
            except ConnectionError:
                break
            if select.select([connection], [], [], 0.02)[0]:
                if not (received := connection.recv(65536)):
                    break
                answer += received
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_connection_whose_refused_body_came_to_its_end_waits_for_the_next_request(url: str) -> None:
    """As long as after any answer, which is longer than a head may take."""
    with connect(url) as connection:
        connection.settimeout(60)
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: here\r\nContent-Length: 6\r\n\r\nabc")
        assert read(connection)[0].startswith(b"HTTP/1.1 404 ")
        connection.sendall(b"def")
        time.sleep(1.5)
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n")
        assert read(connection)[0].startswith(b"HTTP/1.1 200 ")


def test_trailers_without_end_are_cut_off(patient_url: str) -> None:
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Trailer: "
    with connect(patient_url) as connection:
        answer = send_until_answered(connection, patient_url, chain([head], ENDLESS), 0)
    assert answer.startswith(b"HTTP/1.1 431 ")


def test_a_trailer_is_no_header(patient_url: str) -> None:
    body = b"%x\r\n%s\r\n0\r\nX-Request-ID: trailer\r\nContent-Encoding: gzip\r\n\r\n" % (len(BODY), BODY)
    with connect(patient_url) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + body)
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"trailer" not in answer


def test_two_requests_sent_at_once_get_two_answers_in_order(patient_url: str) -> None:
    length = b"Content-Length: %d\r\n" % len(BODY)
    first, last = HEAD + length + b"X-Request-ID: first\r\n\r\n", HEAD + length + b"X-Request-ID: last\r\n"
    with connect(patient_url) as connection:
        connection.sendall(first + BODY + last + b"Connection: close\r\n\r\n" + BODY)
        answer = rest(connection)
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert answer.index(b"first") < answer.index(b"last")


def test_the_bounds_end_with_the_body_and_leave_long_work_alone(url: str) -> None:
    assert score(url, 200, 2500).status_code == 200


def test_a_client_that_goes_away_while_it_sends_leaves_nothing(url: str) -> None:
    def gone() -> str:
        lines = plain_http.get(f"{url}/metrics", timeout=60).text.splitlines()
        return "".join(line for line in lines if "requests_total" in line and 'status="499"' in line)

    before = gone()
    for length in (b"Content-Length: 1000000\r\n", b"Transfer-Encoding: chunked\r\n"):
        with connect(url) as connection:
            connection.sendall(HEAD + length + b"\r\n" + b"400\r\n" + bytes(1000))
        while gone() == before:
            pass
        before = gone()
