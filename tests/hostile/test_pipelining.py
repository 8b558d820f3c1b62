"""Clients that send much before they read an answer, in requests or headers: each takes little, and no other waits."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hostile import wire
from tests.hostile.harness import ChildService, watched
from tests.web.forms import npy

MIB = 2**20
LITTLE = 24 * MIB
REQUEST = b"GET /v1/none HTTP/1.1\r\nHost: here\r\n\r\n"
PROBE = b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n"
BODY = npy(np.zeros((50, 28, 28), np.uint8))
LONG = (
    b"POST /v1/log-likelihood?proposal=prior&num_samples=100000 HTTP/1.1\r\nHost: here\r\n"
    b"Content-Type: application/x-npy\r\nX-Request-ID: %b\r\nX-Request-Timeout-Ms: %d\r\nContent-Length: %d\r\n\r\n"
)


@pytest.fixture(scope="module")
def service(store: Path) -> Iterator[ChildService]:
    """A service that lets one request in at a time, which may take as long as it likes."""
    settings: dict[str, Any] = {"decoders": 0, "max_queued_requests": 1, "timeout_seconds": 600, "write_seconds": 60}
    with ChildService(store, model="digits", **settings) as started:
        yield started


def send_what_is_taken(connection: socket.socket, data: bytes) -> int:
    """Send until nothing is taken for a second, reading nothing; how much was taken."""
    connection.settimeout(1)
    taken = 0
    try:
        while taken < len(data):
            taken += connection.send(data[taken : taken + 2**16])
    except TimeoutError:
        pass
    return taken


def long_request(
    service: ChildService, stack: ExitStack, name: str, behind: bytes = b"", *, seconds: int = 600
) -> socket.socket:
    """One that is being computed, for as long as it may."""
    connection = stack.enter_context(service.connect())
    connection.sendall(LONG % (name.encode(), 1000 * seconds, len(BODY)) + BODY + behind)
    end = time.monotonic() + 60
    while not service.metric("logpx_queued_requests"):
        assert time.monotonic() < end
        time.sleep(0.01)
    return connection


def wait_for_end(service: ChildService, name: str, status: int = 499) -> None:
    """Its client has gone, and the service has noticed; or its time is over."""
    end = time.monotonic() + 60
    while not [line for line in service.log_lines() if line.get("request_id") == name and line.get("status") == status]:
        assert time.monotonic() < end, service.log_tail()
        time.sleep(0.02)


def test_requests_behind_a_long_one_wait_unparsed(service: ChildService) -> None:
    with watched(service) as watch:
        with ExitStack() as stack:
            connection = long_request(service, stack, "long", seconds=5)
            assert send_what_is_taken(connection, PROBE * 800_000) < 800_000 * len(PROBE)
            assert service.resident() < watch.started_with + LITTLE
        wait_for_end(service, "long", 504)  # that its client has gone stands behind what is not read


def test_requests_that_are_answered_at_once_are_no_burden_either(service: ChildService) -> None:
    with watched(service) as watch, service.connect() as connection:
        taken = send_what_is_taken(connection, PROBE * 200_000)
        assert service.resident() < watch.started_with + LITTLE
        assert taken > 2000 * len(PROBE)


def test_refusals_that_nobody_reads_do_not_pile_up(service: ChildService) -> None:
    with watched(service) as watch:
        with ExitStack() as stack:
            long_request(service, stack, "full")
            connection = stack.enter_context(service.connect())
            assert send_what_is_taken(connection, REQUEST * 400_000) < 400_000 * len(REQUEST)
            assert service.resident() < watch.started_with + LITTLE
        wait_for_end(service, "full")


def test_all_that_waited_is_answered_in_order(service: ChildService) -> None:
    asked = [
        b"GET /%d HTTP/1.1\r\nHost: here\r\n%b\r\n" % (number, b"X: y\r\n" * (number % 5)) for number in range(3000)
    ]
    bodies = [
        b"POST /%d HTTP/1.1\r\nHost: here\r\nContent-Length: 30000\r\n\r\n%b" % (3000 + n, bytes(30000))
        for n in range(60)
    ]
    found = wire.answers(service.raw(b"".join(asked + bodies) + wire.request("GET", "/last"), read_seconds=60))
    details = [answer.json()["detail"].split(":")[0] for answer in found]
    assert details == [f"GET /{n}" for n in range(3000)] + [f"POST /{3000 + n}" for n in range(60)] + ["GET /last"]


@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
def test_a_client_that_is_gone_takes_its_work_with_it_though_more_was_asked_for(
    service: ChildService, late: bool
) -> None:
    with ExitStack() as stack:
        connection = long_request(service, stack, f"gone-{late}", b"" if late else PROBE)
        if late:
            time.sleep(0.1)
            connection.sendall(PROBE)
            time.sleep(0.1)
    wait_for_end(service, f"gone-{late}")


def test_nothing_is_begun_once_the_connection_is_closed(service: ChildService) -> None:
    head = b"POST /v1/encode HTTP/1.1\r\nHost: here\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc"
    with ExitStack() as stack:
        long_request(service, stack, "ahead")
        (answer,) = wire.answers(service.raw(head + b"GET /after-the-end HTTP/1.1\r\nHost: here\r\n\r\n"))
        assert (answer.status, answer.headers["connection"]) == (429, "close")
        assert service.ask("GET", "/livez").status == 200
        assert "/after-the-end" not in service.log()
    wait_for_end(service, "ahead")


def test_a_head_of_many_headers_takes_no_more_than_it_may_have(service: ChildService) -> None:
    head = b"GET /livez HTTP/1.1\r\nHost: here\r\n" + b"a:\r\n" * 50_000 + b"\r\n"
    before = service.resident()
    with ExitStack() as stack:
        connections = [stack.enter_context(service.connect()) for _ in range(60)]
        for connection in connections:
            connection.sendall(head)
        assert {connection.recv(12) for connection in connections} == {b"HTTP/1.1 431"}
        assert service.resident() < before + LITTLE


def test_nothing_of_this_is_an_error(service: ChildService) -> None:
    assert [line for line in service.log_lines() if line["level"] in ("error", "critical")] == []
