"""What the benchmarks of the running service share, no benchmark itself: a process, and a client that costs little."""

import asyncio
import io
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).parents[1]


def digits() -> NDArray[np.uint8]:
    """A hundred test digits, [100, 28, 28]."""
    with np.load(ROOT / "tests" / "data" / "digits.npz", allow_pickle=False) as archive:
        found: NDArray[np.uint8] = archive["test"]
    return found


def png(image: NDArray[np.uint8]) -> bytes:
    """An image file."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def npy(array: NDArray[np.uint8] | NDArray[np.float32]) -> bytes:
    """An npy file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def post(path: str, body: bytes, content_type: str, accept: str = "*/*") -> bytes:
    """A whole request, as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nAccept: {accept}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def served(*arguments: str, **settings: object) -> Iterator[int]:
    """The port of `python -m service` with these settings, or of Python with other arguments, once it answers."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "LOGPX_PORT": "0", "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
    environment |= {f"LOGPX_{name.upper()}": str(value) for name, value in settings.items()}
    process = subprocess.Popen(
        [sys.executable, *(arguments or ("-m", "service"))],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        port = _port(process)
        assert process.stdout is not None
        threading.Thread(target=process.stdout.read, daemon=True).start()
        if not arguments:
            asyncio.run(ready(port))
        yield port
    finally:
        process.terminate()
        process.wait()


def _port(process: "subprocess.Popen[str]") -> int:
    """The port that a server's first lines name."""
    said = []
    for line in process.stdout or ():
        if found := re.search(r"http://[\d.]+:(\d+)", line):
            return int(found[1])
        said.append(line)
    raise RuntimeError(f"the server ended with status {process.wait()}: {''.join(said)[-2000:]}")


async def ready(port: int) -> None:
    """Wait until a new connection finds the service ready."""
    while True:
        with suppress(ConnectionRefusedError):
            if await (await connect(port)).ask(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n") == 200:
                return
        await asyncio.sleep(0.05)  # a refusal closes its connection


@dataclass
class Answers:
    """The statuses of some requests, and the seconds that those answered with 200 took."""

    seconds: float
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers with 200 a second."""
        return self.statuses[200] / self.seconds

    def milliseconds(self, share: float) -> float:
        """The quantile of the latencies."""
        return 1000 * float(np.quantile(self.latencies, share)) if self.latencies else float("nan")


class Connection(asyncio.Protocol):
    """One connection, kept open; one request at a time."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._answer: asyncio.Future[int] | None = None
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's does not inherit from it

    def ask(self, request: bytes) -> "asyncio.Future[int]":
        """Send a request; the future has its answer's status once all of it is there."""
        self._answer = asyncio.get_running_loop().create_future()
        if self.lost:
            self._answer.set_result(0)
        else:
            self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        """Wait for the whole answer."""
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", self._received[:head].lower()) if head > 0 else None
        if length is None or len(self._received) < head + 4 + int(length[1]):
            return
        status = int(self._received[9:12])
        self._received.clear()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)

    def connection_lost(self, _: Exception | None) -> None:
        """A request that is not answered yet never will be: status 0."""
        self.lost = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(0)


async def connect(port: int) -> Connection:
    """A new connection."""
    return (await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port))[1]


async def _ask(connection: Connection, request: bytes, answers: Answers) -> None:
    started = time.perf_counter()
    status = await connection.ask(request)
    answers.statuses[status] += 1
    if status == 200:
        answers.latencies.append(time.perf_counter() - started)


async def closed_loop(port: int, requests: Sequence[bytes], *, connections: int, seconds: float) -> Answers:
    """Each connection sends its next request when it has the answer to the last."""
    answers = Answers(seconds)
    started = time.perf_counter()
    end = started + seconds

    async def work(first: int) -> None:
        connection, sent = await connect(port), first
        while time.perf_counter() < end:
            await _ask(connection, requests[sent % len(requests)], answers)
            sent += 1

    await asyncio.gather(*(work(first) for first in range(connections)))
    answers.seconds = time.perf_counter() - started  # the last answers come after the end
    return answers


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)
