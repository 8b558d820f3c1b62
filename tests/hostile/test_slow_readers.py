"""Clients that do not read, against the real process: their connections are closed, and what they held is freed."""

import json
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import wire
from tests.hostile.harness import ChildService, watched

MIB = 2**20
LARGE = b"GET /v1/samples?n=8000&seed=1 HTTP/1.1\r\nHost: here\r\nAccept: application/x-npy\r\n"  # 24 MiB
BYTES = 8000 * 28 * 28 * 4


@pytest.fixture(scope="module")
def service(store: Path) -> Iterator[ChildService]:
    """A service that waits for no client longer than two seconds, and not for four large answers at once."""
    with ChildService(store, model="digits", decoders=0, write_seconds=2, max_unsent_bytes=90 * MIB) as started:
        yield started


def connect(service: ChildService, stack: ExitStack) -> socket.socket:
    """A client whose system takes little that the client does not."""
    connection = stack.enter_context(socket.socket())
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", service.port))
    return connection


NOT_READ = "stalled", "slow"
"""Why a client that reads nothing is closed: its system may take a last few kilobytes late, and then it is slow."""


def wait_for(service: ChildService, reasons: Sequence[str], more_than: float) -> None:
    """Until so many connections have been closed for one of those reasons."""
    end = time.monotonic() + 60
    while closed(service, *reasons) <= more_than:
        assert time.monotonic() < end, service.log_tail()
        time.sleep(0.05)


def closed(service: ChildService, *reasons: str) -> float:
    return sum(service.metric("logpx_closed_connections_total", reason=reason) for reason in reasons)


def told(service: ChildService) -> list[dict[str, Any]]:
    return [line for line in service.log_lines() if line["event"] == "slow reader closed"]


ASK: dict[str, bytes] = {
    "npy": LARGE + b"\r\n",
    "JSON": b"GET /v1/samples?n=1000&as=array HTTP/1.1\r\nHost: here\r\n\r\n",
    "PNG": b"GET /v1/samples?n=12000 HTTP/1.1\r\nHost: here\r\nAccept: image/png\r\n\r\n",
    "close": LARGE + b"Connection: close\r\n\r\n",
    "HTTP/1.0": LARGE.replace(b"1.1", b"1.0") + b"\r\n",
    "offer": LARGE + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    "large ones in a row": (LARGE + b"\r\n") * 3,
    "small ones in a row": b"GET /v1/models HTTP/1.1\r\nHost: here\r\n\r\n" * 9_000,
    "refusals in a row": b"GET /nowhere HTTP/1.1\r\nHost: here\r\n\r\n" * 9_000,
}


@pytest.mark.parametrize("name", ASK)
def test_a_client_that_reads_nothing_is_closed(service: ChildService, name: str) -> None:
    before, lines = closed(service, *NOT_READ), len(told(service))
    with watched(service), ExitStack() as stack:
        connection = connect(service, stack)
        request = ASK[name]
        connection.setblocking(False)
        while request and select.select([], [connection], [], 1)[1]:
            request = request[connection.send(request) :]
        wait_for(service, NOT_READ, before)
    while len(told(service)) == lines:
        pass
    line = told(service)[-1]
    assert line["reason"] in NOT_READ
    assert (line["client"], line["level"]) == ("127.0.0.1", "warning")
    assert line["unsent"] > 0
    assert service.metric("logpx_queued_requests") == 0


def test_a_client_that_closes_its_side_and_reads_nothing_is_closed(service: ChildService) -> None:
    before = closed(service, *NOT_READ)
    with ExitStack() as stack:
        connection = connect(service, stack)
        connection.sendall(LARGE + b"\r\n")
        connection.shutdown(socket.SHUT_WR)
        wait_for(service, NOT_READ, before)


def test_a_client_that_sips_is_closed(service: ChildService) -> None:
    before, slow = closed(service, *NOT_READ), closed(service, "slow")
    longest = 0.0
    with watched(service), ExitStack() as stack:
        connection = connect(service, stack)
        connection.sendall(LARGE + b"\r\n")
        last, end = time.monotonic(), time.monotonic() + 60
        taken = 0
        while closed(service, *NOT_READ) == before:
            assert time.monotonic() < end
            with suppress(ConnectionError):  # it has just been closed
                taken += len(connection.recv(65536))  # some KiB, all that is there: for less no more would be sent
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
            time.sleep(0.6)
        assert taken < MIB
    # On a machine so busy that this client did not come to read for a second, it may be taken for one that does not.
    assert closed(service, "slow") > slow or longest > 1


def test_a_client_that_reads_slowly_and_steadily_gets_all(service: ChildService) -> None:
    before = {reason: closed(service, reason) for reason in ("stalled", "slow", "memory")}
    with ExitStack() as stack:
        connection = connect(service, stack)
        connection.sendall(
            b"GET /v1/samples?n=2000 HTTP/1.1\r\nHost: here\r\nAccept: application/x-npy\r\nConnection: close\r\n\r\n"
        )
        received, started = b"", time.monotonic()
        while piece := connection.recv(2**16):
            received += piece
            if time.monotonic() < started + 5:  # then it has been slow for long enough
                time.sleep(0.1)
    (answer,) = wire.answers(received)
    assert len(answer.body) > 2000 * 28 * 28 * 4
    assert {reason: closed(service, reason) for reason in before} == before


@pytest.mark.parametrize("behind", [b"", b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n"], ids=["alone", "pipelined"])
def test_too_much_that_waits_goes_by_the_slowest_and_a_client_that_reads_is_served(
    service: ChildService, behind: bytes
) -> None:
    before = closed(service, "memory")
    with watched(service) as watch, ExitStack() as stack:
        for _ in range(6):
            connect(service, stack).sendall(LARGE + b"\r\n" + behind)
        answer = service.ask("GET", "/v1/samples?n=8000&seed=1", headers={"Accept": "application/x-npy"})
        assert len(answer.body) >= BYTES
        wait_for(service, ["memory"], before)
    end = time.monotonic() + 60
    while service.resident() > watch.started_with + 64 * MIB:  # of the 150 that they asked for
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_log_names_the_answer_that_is_not_read(service: ChildService) -> None:
    before = closed(service, *NOT_READ)
    with ExitStack() as stack:
        behind = b"GET /livez HTTP/1.1\r\nHost: here\r\nX-Request-ID: behind\r\n\r\n"
        connect(service, stack).sendall(LARGE + b"X-Request-ID: unread\r\n\r\n" + behind)
        wait_for(service, NOT_READ, before)
    assert ("/v1/samples", "unread") in [(line["path"], line["request_id"]) for line in told(service)]


def test_resets_while_answers_wait_leave_nothing(service: ChildService) -> None:
    with watched(service):
        for _ in range(10):
            with ExitStack() as stack:
                connection = connect(service, stack)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.sendall(LARGE + b"\r\n")
                assert connection.recv(12) == b"HTTP/1.1 200"
    end = time.monotonic() + 60
    while len([file for file in service.open_files() if file.startswith("socket:")]) > 3:
        assert time.monotonic() < end, service.open_files()


def test_nothing_of_this_is_an_error(service: ChildService) -> None:
    assert [line for line in service.log_lines() if line["level"] in ("error", "critical")] == []


@pytest.mark.parametrize("sends", [True, False], ids=["reads not", "sends not"])
def test_sigterm_waits_for_nobody_longer_than_the_drain(store: Path, sends: bool) -> None:
    with ChildService(store, model="digits", drain_seconds=1) as service, ExitStack() as stack:
        connection = connect(service, stack)
        if sends:
            connection.sendall(LARGE + b"\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
        else:
            head = b"POST /v1/encode HTTP/1.1\r\nHost: here\r\nContent-Type: application/x-npy\r\n"
            connection.sendall(head + b"Expect: 100-continue\r\nContent-Length: 900\r\n\r\n")
            assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        started = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - started < 20  # else it would be 30 for the answer, or 60 for the body
    lines = [json.loads(line) for line in service.log().splitlines()]
    assert [line for line in lines if line["level"] not in ("info", "warning")] == []
