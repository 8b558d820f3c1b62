"""More connections than may be open, against the real process: idle ones make room, and probes always come in."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.hostile import wire
from tests.hostile.attacks.attack import ENCODE, IMAGE, NPY, SAMPLES, whole
from tests.hostile.attacks.crowds import close, sockets
from tests.hostile.harness import ChildService

MOST = 20
TRICKLE = b"POST /v1/encode HTTP/1.1\r\nHost: here\r\nContent-Type: application/x-npy\r\nContent-Length: 912\r\n\r\n"
COUNTED = """
import gc, json, os, signal, sys
from service.__main__ import main
from service.web.connections.protocol import HttpConnection
gc.disable()  # what is only let go of by a collection, which stops all requests, is counted
def count(*_):
    number = sum(isinstance(one, HttpConnection) for one in gc.get_objects())
    os.write(1, (json.dumps({"level": "info", "event": "connections", "number": number}) + "\\n").encode())
signal.signal(signal.SIGUSR1, count)
sys.exit(main())
"""
FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (90, 90))
from service.__main__ import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def service(store: Path) -> Iterator[ChildService]:
    with ChildService(store, model="digits", max_connections=MOST, header_seconds=60) as started:
        yield started


def open_connections(service: ChildService, stack: ExitStack, number: int, sent: bytes = b"") -> list[socket.socket]:
    connections = [stack.enter_context(service.connect()) for _ in range(number)]
    for connection in connections:
        if sent:
            connection.sendall(sent)
    return connections


@pytest.mark.parametrize(
    "sent", [b"", b"GET /v1/mod", b"\r\n", b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n"], ids=ascii
)
def test_idle_connections_make_room(service: ChildService, sent: bytes) -> None:
    before = service.metric("logpx_closed_connections_total", reason="idle")
    with ExitStack() as stack:
        for _ in range(5):
            connections = open_connections(service, stack, MOST, sent)
            for connection in connections if sent.endswith(b"\r\n\r\n") else ():
                with suppress(OSError):
                    connection.recv(12)  # an answer, or the end: then it is idle
        while service.ask("GET", "/v1/models").status == 503:
            pass  # others are being answered still
        for _ in range(3):
            assert service.ask("GET", "/v1/models").status == 200
            assert service.ask("GET", "/livez").status == 200
    assert service.metric("logpx_closed_connections_total", reason="idle") > before + MOST


def test_where_none_is_idle_only_probes_are_answered(service: ChildService) -> None:
    with ExitStack() as stack:
        busy = open_connections(service, stack, MOST, TRICKLE)
        while (answer := service.ask("GET", "/v1/models")).status == 200:
            pass  # what was sent is not read yet
        assert (answer.status, answer.problem) == (503, "too-many-connections")
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["connection"] == "close"
        for _ in range(MOST * 3):
            assert service.ask("GET", "/livez").status == 200
        assert service.ask("GET", "/readyz").status == 200
        with service.connect() as connection:  # without `Connection: close`
            found = wire.answers(wire.send_and_read(connection, [b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n"]))
            assert [(answer.status, answer.headers["connection"]) for answer in found] == [(200, "close")]
        open_connections(service, stack, MOST * 3)  # of which some are idle, and some find no room at all
        assert service.ask("GET", "/livez").status == 200
        for connection in busy:
            connection.close()
        while service.ask("GET", "/v1/models").status == 503:
            pass


def probe(service: ChildService, path: str) -> bool:
    """As an orchestrator does, which restarts what does not answer three times in a row.

    More than all connections that may be open can come between a probe's connection and its request.
    """
    request = wire.request("GET", path)
    return any(service.raw(request).startswith(b"HTTP/1.1 200 ") for _ in range(3))


def test_in_a_flood_of_connections_probes_are_answered(service: ChildService) -> None:
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            with ExitStack() as stack:
                open_connections(service, stack, MOST * 5)

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        answered = [probe(service, path) for path in ("/livez", "/readyz") * 20]
    finally:
        stop.set()
        flooding.join()
    assert answered == [True] * 40
    assert service.ask("GET", "/v1/models").status == 200


def test_a_process_that_may_open_few_files_takes_fewer_connections_and_says_so(store: Path) -> None:
    with ChildService(store, model="digits", arguments=("-c", FEW_FILES)) as service, ExitStack() as stack:
        (line,) = [line for line in service.log_lines() if line["level"] == "warning"]
        assert line["event"].startswith("fewer connections than set")
        assert line["connections"] == 22
        open_connections(service, stack, 300)
        for _ in range(3):
            assert service.ask("GET", "/v1/models").status == 200
        assert len(service.open_files()) < 90


def test_nothing_is_left_of_a_connection_that_is_closed(store: Path) -> None:
    """Else what thousands leave is looked for, and found, by a collection that stops every request for 0.3 s."""
    with ChildService(store, model="digits", arguments=("-c", COUNTED)) as service:
        encode = whole("POST", ENCODE, IMAGE, NPY)
        for sent in (
            *(b"", b"\r\n", b"GET /v1/mod", b"nonsense\r\n\r\n", encode, encode[:-1], encode * 20),
            *(whole("GET", "/nowhere"), whole("GET", "/docs"), whole("GET", "/" + "a" * 9000)),
            *(whole("GET", "/livez", headers={"X": "x" * 40_000}), whole("POST", ENCODE, b"?", NPY)),
            *(whole("POST", "/nowhere", bytes(2**20)), whole("POST", ENCODE, IMAGE, {**NPY, "Expect": "100-continue"})),
            *(whole("GET", f"{SAMPLES}?n=5000"), whole("GET", "/livez").replace(b"1.1", b"1.0")),
            whole("POST", ENCODE, IMAGE, {**NPY, "Upgrade": "h2c", "Connection": "Upgrade, HTTP2-Settings"}),
        ):
            for reset in (False, True):
                connections = sockets(service, 5, sent)
                connections[0].recv(100) if b"HTTP" in sent and sent != encode[:-1] else None
                close(connections, reset=reset)
        end = time.monotonic() + 60
        while (left := counted(service)) and time.monotonic() < end:
            time.sleep(0.1)
        assert left == 0


def counted(service: ChildService) -> int:
    """Connections that there are in the process, open or not."""
    before = len(service.log_lines())
    os.kill(service.pid, signal.SIGUSR1)
    while True:
        found = [line["number"] for line in service.log_lines()[before:] if line["event"] == "connections"]
        if found:
            return int(found[0])
        time.sleep(0.01)
