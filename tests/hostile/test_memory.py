"""Many clients that each ask for as much memory as they may: together they get no more than the service says."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import pytest

from model_store import BUNDLED
from tests.hostile import processes
from tests.hostile.harness import ChildService, watched
from tests.web.forms import npy

MEBIBYTE = 2**20
NPY, JSON = {"Content-Type": "application/x-npy"}, {"Content-Type": "application/json"}
DOCUMENTED = {200, 408, 413, 422, 429, 503, 504}
RNG = np.random.default_rng(0)


SETTINGS: dict[str, Any] = {
    "max_memory_bytes": 2**27,
    "max_body_bytes": 2**24,
    "max_answer_bytes": 2**24,
    "max_pixels": 2**21,
    "max_connections": 250,
    "decoders": 1,
    "timeout_seconds": 30,
    "body_seconds": 30,
}
"""An eighth of the defaults, so that a storm is soon over."""


@pytest.fixture(scope="module")
def warm() -> Iterator[ChildService]:
    """The bundled models, after a request of every kind."""
    with ChildService(BUNDLED, **SETTINGS) as service:
        some = npy(RNG.integers(0, 256, (300, 28, 28), np.uint8))
        for path in ("encode", "log-likelihood?proposal=encoder&num_samples=4"):
            assert service.ask("POST", f"/v1/{path}", some, NPY).status == 200
        for path in ("log-likelihood", "anomaly-scores?explain=true"):
            assert service.ask("POST", f"/v1/{path}", npy(np.zeros((2, 28, 28), np.uint8)), NPY).status == 200
        for path in ("samples?n=300", "samples?n=300&as=array"):
            assert service.ask("GET", f"/v1/{path}").status == 200
        yield service


def said(service: ChildService) -> dict[str, int]:
    """What the log says of memory."""
    (line,) = [line for line in service.log_lines() if line["event"] == "memory"]
    return line


def held(service: ChildService) -> float:
    return service.metric("logpx_held_memory_bytes")


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def head(path: str, length: int, headers: dict[str, str]) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: here", f"Content-Length: {length}"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()


class Crowd:
    """Clients in threads, and the statuses that they got; 0 where the connection was closed."""

    def __init__(self, service: ChildService) -> None:
        self._service = service
        self._threads: list[threading.Thread] = []
        self.statuses: list[int] = []

    def ask(self, times: int, method: str, path: str, body: bytes = b"", headers: Any = ()) -> None:
        """So many clients ask the same at once."""
        for _ in range(times):
            self._threads.append(threading.Thread(target=self._ask, args=(method, path, body, dict(headers))))
            self._threads[-1].start()

    def _ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> None:
        first = b""
        with suppress(ConnectionError), self._service.connect(timeout=120) as connection:
            line = head(path, len(body), headers).replace(b"POST", method.encode(), 1)
            with suppress(ConnectionError):  # it may be refused before all is sent
                connection.sendall(line.replace(b"Host: here", b"Host: here\r\nConnection: close") + body)
            first = connection.recv(12)
            while connection.recv(MEBIBYTE):
                pass
        self.statuses.append(int(first[9:12] or 0))

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def form(file: bytes, count: int) -> tuple[bytes, dict[str, str]]:
    part = b'--x\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n\r\n' + file + b"\r\n"
    return part * count + b"--x--", {"Content-Type": "multipart/form-data; boundary=x"}


def test_the_worst_of_everything_at_once_stays_below_the_ceiling(warm: ChildService) -> None:
    levels = npy(RNG.integers(0, 256, (2600, 28, 28), np.uint8))
    floats = npy(RNG.random((2600, 28, 28), np.float32))
    strange = npy(RNG.integers(0, 256, (12, 28, 28), np.uint8))
    texts = b'{"images":[["a"%b]]}' % (b',"ab"' * 400_000)
    lists = b'{"images":[%b[]]}' % (b"[]," * 2600)
    numbers = b'{"latents":[[1%b]]}' % (b",300" * 500_000)
    files, as_form = form(bytes(6000), 2600)
    before = warm.resident()
    most = said(warm)["at_most"], said(warm)["decoders_at_most"]
    crowd = Crowd(warm)
    with watched(warm, memory=sum(most), seconds=20), ExitStack() as stack:
        crowd.ask(6, "POST", "/v1/encode", levels, NPY)
        crowd.ask(6, "POST", "/v1/encode?resize=true", levels, NPY)
        crowd.ask(12, "POST", "/v1/log-likelihood?proposal=encoder&num_samples=4", floats, NPY)
        crowd.ask(6, "POST", "/v1/log-likelihood?num_samples=4", strange, NPY)
        crowd.ask(24, "POST", "/v1/log-likelihood?num_samples=4&proposal=laplace", strange, NPY)
        crowd.ask(8, "POST", "/v1/encode", texts, JSON)
        crowd.ask(8, "POST", "/v1/encode?resize=true", lists, JSON)
        crowd.ask(8, "POST", "/v1/decode", numbers, JSON)
        crowd.ask(6, "POST", "/v1/encode", files, as_form)
        crowd.ask(4, "GET", "/v1/samples?n=2600", headers={"Accept": "image/png"})
        for path in ("samples?n=2600", "samples?n=1200&as=array", "samples?n=1000"):  # answers that nobody reads
            for _ in range(12):
                unread = stack.enter_context(warm.connect())
                unread.sendall(b"GET /v1/%b HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode())
        stay_unfinished(warm, stack, 60, bytes(SETTINGS["max_body_bytes"]))
        small = npy(np.zeros((1, 28, 28), np.uint8))
        for _ in range(20):
            assert warm.ask("POST", "/v1/encode", small, NPY).status == 200
        crowd.join()
        assert processes.memory(warm.pid, "VmHWM") < most[0]
        assert set(crowd.statuses) <= {0, *DOCUMENTED}
        assert crowd.statuses.count(0) < len(crowd.statuses) / 4
        assert 429 in crowd.statuses
    wait_until(lambda: held(warm) == 0, "memory is still held")
    wait_until(lambda: warm.resident() < 1.1 * before, f"{warm.resident()} bytes are resident; {before} were", 30)


def test_bodies_that_never_end_shut_out_no_body_that_comes_at_full_speed(warm: ChildService) -> None:
    levels = npy(np.zeros((2600, 28, 28), np.uint8))
    with ExitStack() as stack:
        stay_unfinished(warm, stack, 12, bytes(SETTINGS["max_body_bytes"]))
        wait_until(lambda: held(warm) > 24 * MEBIBYTE, "the bodies do not arrive")
        time.sleep(2.5)
        for _ in range(3):
            assert warm.ask("POST", "/v1/encode", levels, NPY).status == 200
    wait_until(lambda: held(warm) == 0, "memory is still held")


def stay_unfinished(service: ChildService, stack: ExitStack, count: int, body: bytes) -> None:
    """So many clients send all of a body but its end."""
    for _ in range(count):
        connection = stack.enter_context(service.connect())
        connection.sendall(head("/v1/encode", len(body), NPY))
        threading.Thread(target=send_most, args=(connection, body), daemon=True).start()


def send_most(connection: socket.socket, body: bytes) -> None:
    with suppress(OSError):
        connection.sendall(body[:-1])
