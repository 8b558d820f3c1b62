"""More requests than are let in, against the real process: the others get a 429 by their head alone."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from tests.web import plain_http
from tests.web.forms import npy
from tests.web.test_process import NPY, Start, address, endless_job, start, start_in_module, start_long_job

__all__ = ["start", "start_in_module"]  # the fixtures
BODY = npy(np.zeros((1, 28, 28), np.uint8))
HEAD = b"POST /v1/encode HTTP/1.1\r\nHost: here\r\nContent-Type: application/x-npy\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture(scope="module")
def one_place(start_in_module: Start) -> str:
    """A service that lets one request in at a time, perhaps behind a proxy."""
    return address(start_in_module(max_queued_requests=1, root_path="/logpx", max_header_bytes=100_000, decoders=0))


@pytest.fixture
def full(one_place: str) -> Iterator[str]:
    """While its place is taken."""
    assert_let_in(one_place)
    with endless_job(one_place):
        yield one_place
    assert_let_in(one_place)


def assert_let_in(url: str) -> None:
    """A request comes in, if not the first one: the one before may be answered, and not quite over."""
    assert 200 in (plain_http.post(f"{url}/v1/encode", content=BODY, headers=NPY).status_code for _ in range(1000))


def refusals(url: str) -> list[float]:
    """How many requests were refused for want of room, as two metrics count them."""
    text = plain_http.get(f"{url}/metrics").text
    beginnings = 'logpx_refusals_total{problem="queue-full"}', 'logpx_requests_total{method="POST",'
    lines = [[line for line in text.splitlines() if line.startswith(beginning)] for beginning in beginnings]
    answered = [line for line in lines[1] if 'model="",route="/v1/encode",status="429",version=""' in line]
    return [float(line.split()[-1]) for line in (*lines[0], *answered)] or [0.0, 0.0]


def test_what_was_let_in_is_answered_while_others_are_refused(one_place: str) -> None:
    assert_let_in(one_place)
    job, answers = start_long_job(one_place)
    assert plain_http.post(f"{one_place}/v1/encode", content=BODY, headers=NPY).status_code == 429
    job.join()
    assert answers[0].status_code == 200
    assert_let_in(one_place)


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def read(connection: socket.socket) -> tuple[bytes, bytes]:
    """One answer's head and body."""
    head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head, body


def test_the_answer_says_what_to_do_and_the_connection_stays(full: str) -> None:
    before = refusals(full)
    with connect(full) as connection:
        for _ in range(3):
            connection.sendall(WHOLE)
            head, body = read(connection)
            assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
            assert b"\r\nRetry-After: 1\r\n" in head
            problem = json.loads(body)
            assert (problem["type"], problem["status"]) == ("urn:logpx:problem:queue-full", 429)
            assert problem["detail"] == "1 requests are being answered; try again in 1 s"
            assert b"\r\nX-Request-ID: %s\r\n" % problem["request_id"].encode() in head
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: here\r\n\r\n")
        assert read(connection)[0].startswith(b"HTTP/1.1 200 ")
    assert refusals(full) == [count + 3 for count in before]


def test_a_body_in_pieces_is_answered_once_it_is_whole(full: str) -> None:
    with connect(full) as connection:
        for piece in (WHOLE[:60], WHOLE[60:200], WHOLE[200:-1], WHOLE[-1:] + WHOLE):  # the next one follows at once
            assert plain_http.get(f"{full}/livez").status_code == 200
            connection.sendall(piece)
        answers = b""
        while answers.count(b'"status":429') < 2:
            answers += connection.recv(65536)
    assert answers.count(b"HTTP/1.1 429 ") == 2


def test_who_waits_to_be_asked_for_the_body_is_told_at_once_and_hung_up_on(full: str) -> None:
    with connect(full) as connection:
        connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n")
        head, _ = read(connection)
        assert head.startswith(b"HTTP/1.1 429 ")
        assert b"\r\nConnection: close" in head
        assert connection.recv(1) == b""


def test_a_connection_that_is_to_be_closed_is_closed(full: str) -> None:
    with connect(full) as connection:
        connection.sendall(WHOLE.replace(b"Host: here\r\n", b"Host: here\r\nConnection: close\r\n"))
        assert b"\r\nConnection: close" in read(connection)[0]
        assert connection.recv(1) == b""


def test_a_body_that_nobody_reads_has_its_time(start: Start) -> None:
    url = address(start(max_queued_requests=1, header_seconds=0.5, decoders=0))
    with endless_job(url), connect(url) as connection:
        connection.sendall(WHOLE[:-1])
        assert read(connection)[0].startswith(b"HTTP/1.1 429 ")
        assert connection.recv(1) == b""


def test_bodies_that_are_still_coming_take_no_room(one_place: str) -> None:
    url = one_place
    slow = [connect(url) for _ in range(4)]
    for connection in slow:
        connection.sendall(WHOLE[:-1])
    assert_let_in(url)
    for connection in slow[:2]:
        connection.close()
    for connection in slow[2:]:
        connection.sendall(WHOLE[-1:])
        assert read(connection)[0].startswith(b"HTTP/1.1 200 ")
        connection.close()
    assert_let_in(url)  # those that went away are not counted for ever
    with endless_job(url):
        assert plain_http.post(f"{url}/v1/encode", content=BODY, headers=NPY).status_code == 429


def test_what_is_no_request_takes_no_room(one_place: str) -> None:
    for path, host, status in ((b"a" * 66_000, b"Host: here\r\n", b"414"), (b"models", b"", b"400")):
        for _ in range(3):
            with connect(one_place) as connection:
                connection.sendall(b"GET /v1/" + path + b" HTTP/1.1\r\n" + host + b"\r\n")
                assert connection.recv(12) == b"HTTP/1.1 " + status
    assert_let_in(one_place)


def test_a_client_that_does_not_read_takes_no_room(one_place: str) -> None:
    host, port = one_place.removeprefix("http://").split(":")
    with ExitStack() as stack:
        for _ in range(2):
            silent = stack.enter_context(socket.socket())
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            silent.connect((host, int(port)))
            silent.sendall(b"GET /v1/samples?n=3000 HTTP/1.1\r\nHost: here\r\nAccept: application/x-npy\r\n\r\n")
            assert silent.recv(12) == b"HTTP/1.1 200"
            assert_let_in(one_place)


def test_under_another_spelling_a_path_is_the_same(full: str) -> None:
    for target in (b"/%761/models", b"http://here/v1/models", b"/logpx/v1/models"):
        with connect(full) as connection:
            connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: here\r\n\r\n")
            assert read(connection)[0].startswith(b"HTTP/1.1 429 ")


def test_inferences_are_counted_too_and_refused_in_the_form_of_their_protocol(full: str) -> None:
    for path in ("/v2/models/digits.encode/infer", "/logpx/v2/models/digits.encode/infer"):
        refused = plain_http.post(f"{full}{path}", content=BODY)
        assert (refused.status_code, refused.headers["content-type"]) == (429, "application/json")
        assert refused.json()["error"] == refused.json()["detail"]
    assert plain_http.get(f"{full}/v2/health/ready").json() == {"ready": True}
    assert plain_http.post(f"{full}/v2/repository/index", content=b"").status_code == 200


def test_an_answer_to_head_has_no_body_and_a_preflight_comes_in(full: str) -> None:
    with connect(full) as connection:
        connection.sendall(b"HEAD /v1/models HTTP/1.1\r\nHost: here\r\n\r\n")
        received = connection.recv(65536)
        assert received.startswith(b"HTTP/1.1 429 ")
        assert received.endswith(b"\r\n\r\n")
        connection.sendall(b"OPTIONS /v1/encode HTTP/1.1\r\nHost: here\r\n\r\n")
        assert read(connection)[0].startswith(b"HTTP/1.1 405 ")
