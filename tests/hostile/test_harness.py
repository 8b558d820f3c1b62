"""The harness itself: what it is there to catch is planted, and must be caught."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hostile import harness, processes
from tests.hostile.harness import MEMORY_LIMIT, ChildService, watched
from tests.hostile.wire import answers, request

PLANT = """
import os, subprocess, sys, time
import numpy as np
from fastapi import Request
from service.__main__ import main
from service.engine.model import Model
from service.web.problems import NotReadyError
from service.web.routes import probes_router

children = []

@probes_router.get("/plant/hang")
async def hang(seconds: float) -> str:
    print('{"event": "hangs"}', flush=True)
    time.sleep(seconds)
    return "hung"

@probes_router.get("/plant/memory")
async def memory(megabytes: int) -> str:
    return str(len(b"x" * (megabytes << 20)))

@probes_router.get("/plant/child")
async def child() -> str:
    children.append(subprocess.Popen(
        [sys.executable, "-c", "block = b'x' * (300 << 20); import time; time.sleep(600)"]
    ))
    return "started"

@probes_router.get("/plant/death")
async def death() -> None:
    os._exit(3)

@probes_router.get("/plant/change")
async def change() -> str:
    encode = Model.encode
    Model.encode = lambda self, pixels: encode(self, pixels * np.float32(0.5))
    return "changed"

@probes_router.get("/plant/unready")
async def unready(request: Request) -> str:
    backend = request.app.state.backend
    require_ready = type(backend).require_ready
    def refuse(self):
        raise NotReadyError("planted")
    type(backend).require_ready = refuse
    return "unready"

sys.exit(main())
"""


def plant(store: Path, *, memory_limit: int = MEMORY_LIMIT) -> ChildService:
    """A service with weaknesses."""
    return ChildService(store, model="digits", decoders=0, arguments=("-c", PLANT), memory_limit=memory_limit)


@pytest.fixture(scope="module")
def planted(store: Path) -> Iterator[ChildService]:
    """One for the weaknesses that pass."""
    with plant(store) as started:
        yield started


def ask(service: ChildService, path: str) -> None:
    assert service.ask("GET", path).status == 200


def test_a_service_that_behaves_passes(planted: ChildService) -> None:
    with watched(planted, memory=planted.resident() + 200 * 2**20) as watch:
        ask(planted, "/v1/models")
    assert 0 < watch.slowest < 5
    assert watch.peak >= watch.started_with > 50 * 2**20


def test_a_hang_is_caught(planted: ChildService) -> None:
    with pytest.raises(AssertionError, match=r"/livez was not answered within 0\.5 s"), watched(planted, seconds=0.5):
        ask(planted, "/plant/hang?seconds=2")


def test_a_hang_that_outlasts_the_attack_is_caught(planted: ChildService) -> None:
    late = pytest.raises(AssertionError, match="/livez was not answered")
    before = planted.log().count("hangs")
    with planted.connect() as connection, late, watched(planted, seconds=0.5):
        connection.sendall(request("GET", "/plant/hang?seconds=2"))
        wait_for(lambda: planted.log().count("hangs") > before)


def wait_for(condition: Callable[[], bool]) -> None:
    """Fails after a minute."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_moment_of_much_memory_is_caught(planted: ChildService) -> None:
    bound = planted.resident() + 150 * 2**20
    with pytest.raises(AssertionError, match="MiB were resident at most"), watched(planted, memory=bound):
        ask(planted, "/plant/memory?megabytes=300")
    with watched(planted, memory=bound):  # the peak of before does not count again
        ask(planted, "/plant/memory?megabytes=1")


def grow(service: ChildService, bound: int) -> None:
    """Have it start a child that takes more than this."""
    ask(service, "/plant/child")
    wait_for(lambda: service.resident() > bound)


def test_wrong_answers_and_death_are_caught_and_children_count_and_end_too(store: Path) -> None:
    with plant(store) as service:
        bound = service.resident() + 150 * 2**20
        with pytest.raises(AssertionError, match="MiB were resident at most"), watched(service, memory=bound):
            grow(service, bound)
        assert len(service.children()) == 1
        other = pytest.raises(AssertionError, match=r"the reference request was answered 200 .* not as before")
        with other, watched(service):
            ask(service, "/plant/change")
        with pytest.raises(AssertionError, match="/readyz answered 503"), watched(service):
            ask(service, "/plant/unready")
        pid = service.pid
    assert processes.family(pid) == []
    assert service not in harness.running


def test_death_and_the_limit_on_memory(store: Path) -> None:
    with plant(store, memory_limit=2**30) as service:
        ask(service, "/plant/memory?megabytes=300")
        with watched(service, memory=2**30):
            assert service.ask("GET", "/plant/memory?megabytes=1500").status == 500
        with pytest.raises(AssertionError, match="the service ended with status 3"), watched(service):
            service.raw(request("GET", "/plant/death"))
        assert "the service ended with status 3; the end of its log" in service.log_tail()


def test_only_the_settings_named_reach_the_child_and_one_that_ignores_sigterm_is_killed(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGPX_MAX_ROWS", "nonsense")
    service = ChildService(store, model="digits", max_header_bytes=1000)
    try:
        assert service.ask("GET", "/livez", headers={"X-Long": "x" * 2000}).status == 431
        os.kill(service.pid, signal.SIGSTOP)  # it does not even hear of SIGTERM
    finally:
        assert service.stop(0.1) == -signal.SIGKILL


def test_one_that_does_not_start_says_why(tmp_path: Path) -> None:
    before = list(harness.running)
    with pytest.raises(AssertionError, match=r"(?s)(did not start|never became ready).*holds no model"):
        ChildService(tmp_path)
    assert harness.running == before


def test_what_the_service_tells_of_itself_can_be_read(planted: ChildService) -> None:
    before = planted.metric("logpx_requests_total", route="/v1/models", status="200")
    ask(planted, "/v1/models")
    assert planted.metric("logpx_requests_total", route="/v1/models", status="200") == before + 1
    assert planted.metric("logpx_nothing") == 0
    assert any(line["event"] == "models loaded" for line in planted.log_lines())
    with planted.connect() as connection:
        sockets = sum(name.startswith("socket:") for name in planted.open_files())
        connection.sendall(request("HEAD", "/livez", close=False))
        assert connection.recv(12) == b"HTTP/1.1 200"
        assert sum(name.startswith("socket:") for name in planted.open_files()) >= sockets
    assert planted.ask("HEAD", "/livez").body == b""
    first, last = answers(planted.raw(request("GET", "/livez", close=False), request("GET", "/readyz"), pause=0.01))
    assert (first.json(), last.json()) == ({"status": "alive"}, {"status": "ready"})


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("received", "words"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n", "not a status line"),
        (b"nonsense\r\n\r\n", "not a status line"),
        (OK, "a head without end"),
        (OK + b"\r\n", "content-length None"),
        (OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", "content-length 2"),
        (OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nab", "is there twice"),
        (OK + b"Content-Length: +2\r\n\r\nab", "content-length"),
        (OK + b"Content-Length: 3\r\n\r\nab", "2 bytes of a body of 3"),
        (OK + b"Content-Length: 1\r\n\r\nab", "a head without end"),
        (OK + b"X-A: b\nX-B: c\r\nContent-Length: 0\r\n\r\n", "not a header"),
        (OK + b"X A: b\r\nContent-Length: 0\r\n\r\n", "not a header"),
        (OK + b"X-A: \x1b[2J\r\nContent-Length: 0\r\n\r\n", "not a header"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", "not a chunk's size"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n", "a chunk of 2 bytes"),
    ],
)
def test_answers_that_are_not_http_are_caught(received: bytes, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        answers(received)


def test_answers_are_taken_apart() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    chunked = OK + b"Transfer-Encoding: chunked\r\nX-A:\r\n\r\n2\r\nab\r\nA\r\n0123456789\r\n0\r\n\r\n"
    head, nothing = OK + b"Content-Length: 7\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"
    found = answers(interim + chunked + head + nothing, methods=["POST", "HEAD", "OPTIONS"])
    assert [answer.body for answer in found] == [b"ab0123456789", b"", b""]
    assert found[0].headers["x-a"] == ""
    assert answers(b"") == []
