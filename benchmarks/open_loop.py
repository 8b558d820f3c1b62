"""A client that asks on a schedule, whether or not earlier requests are answered; no benchmark itself.

When each request is due is fixed beforehand, and its latency counts from then: a service that stops for a second is
charged for every request that was due in it, also for those that a client could not send (coordinated omission). A
thread keeps the schedule, since timers of an event loop are exact to a millisecond only. How late requests were sent is
told, too: where the client itself has no processor to run on, that is a part of the latency, and not the service's.
"""

import asyncio
import gc
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from load import Connection, connect
from numpy.typing import NDArray

MAX_CONNECTIONS = 1000
"""Fewer than `LOGPX_MAX_CONNECTIONS`; with all of them busy, a request waits in the client, and its latency goes on."""
_OPENED_FIRST = 32
_IDLE_SECONDS = 4.0  # the service closes what is idle for five


def poisson(rate: float, seconds: float, seed: int = 0) -> NDArray[np.float64]:
    """When requests are due, in seconds from the start: a Poisson process of `rate` a second."""
    count = round(rate * seconds)
    due: NDArray[np.float64] = np.random.default_rng(seed).exponential(1 / rate, size=count).cumsum()
    return due


def constant(rate: float, seconds: float) -> NDArray[np.float64]:
    """When requests are due, in seconds from the start: `rate` a second at equal distances."""
    return np.arange(1, 1 + round(rate * seconds)) / rate


@dataclass
class Record:
    """What became of the requests of one schedule.

    Attributes:
        offered: requests a second by the schedule.
        seconds: from the start to the last answer.
        latencies: seconds from when a request was due to its answer's last byte, by status; 0 is no answer.
        late: seconds from when requests were due to when they were sent.
    """

    offered: float
    seconds: float = 0.0
    latencies: dict[int, list[float]] = field(default_factory=dict)
    late: list[float] = field(default_factory=list)

    @property
    def statuses(self) -> Counter[int]:
        """How many answers of each status; 0 is no answer."""
        return Counter({status: len(found) for status, found in self.latencies.items()})

    @property
    def rate(self) -> float:
        """Answers with 200 a second."""
        return self.statuses[200] / self.seconds

    def milliseconds(self, share: float) -> float:
        """The quantile of the latencies of answers with 200; NaN where none of them is beyond it."""
        found = self.latencies.get(200, [])
        return 1000 * float(np.quantile(found, share)) if len(found) * (1 - share) >= 1 else float("nan")

    @property
    def late_milliseconds(self) -> float:
        """The 99th percentile of how late requests were sent."""
        return 1000 * float(np.quantile(self.late, 0.99))


class Client:
    """Sends requests when they are due, each on a connection that has none under way."""

    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        self._port = port
        self._requests = requests
        self._idle: list[tuple[Connection, float]] = []
        self._open = 0
        self._waiting: deque[tuple[bytes, float]] = deque()

    async def run(self, due: NDArray[np.float64]) -> Record:
        """Follow a schedule to the end of its last answer."""
        while self._open < _OPENED_FIRST:
            self._idle.append((await self._connect(), time.perf_counter()))
        loop, self._left = asyncio.get_running_loop(), len(due)
        self._record = Record(len(due) / float(due[-1]))
        self._done = loop.create_future()
        gc.collect()
        gc.disable()  # a pause of the client would be the service's fault
        started = time.perf_counter() + 0.05
        thread = threading.Thread(target=self._keep, args=(loop, started, due.tolist()))
        thread.start()
        try:
            await self._done
        finally:
            gc.enable()
        thread.join()
        self._record.seconds = time.perf_counter() - started
        return self._record

    def _keep(self, loop: asyncio.AbstractEventLoop, started: float, due: Sequence[float]) -> None:
        """The thread that keeps the schedule."""
        for number, after in enumerate(due):
            if (left := started + after - time.perf_counter()) > 0:
                time.sleep(left)
            loop.call_soon_threadsafe(self._begin, self._requests[number % len(self._requests)], started + after)

    async def _connect(self) -> Connection:
        self._open += 1
        return await connect(self._port)

    def _begin(self, request: bytes, due: float) -> None:
        """Send a request, on a new connection if none is idle."""
        now = time.perf_counter()
        while self._idle:
            connection, since = self._idle.pop()
            if not connection.lost and now - since < _IDLE_SECONDS:
                self._send(connection, request, due)
                return
            self._open -= 1
        if self._open >= MAX_CONNECTIONS:
            self._waiting.append((request, due))
            return
        opening = asyncio.ensure_future(self._connect())
        opening.add_done_callback(partial(self._opened, request, due))

    def _opened(self, request: bytes, due: float, opening: "asyncio.Future[Connection]") -> None:
        if opening.exception() is None:
            self._send(opening.result(), request, due)
        else:
            self._open -= 1
            self._end(0, due)

    def _send(self, connection: Connection, request: bytes, due: float) -> None:
        self._record.late.append(time.perf_counter() - due)
        connection.ask(request).add_done_callback(partial(self._answered, connection, due))

    def _answered(self, connection: Connection, due: float, answer: "asyncio.Future[int]") -> None:
        now = time.perf_counter()
        self._end(answer.result(), due)
        if connection.lost:
            self._open -= 1
        else:
            self._idle.append((connection, now))
        if self._waiting:
            self._begin(*self._waiting.popleft())

    def _end(self, status: int, due: float) -> None:
        self._record.latencies.setdefault(status, []).append(time.perf_counter() - due)
        self._left -= 1
        if not self._left:
            self._done.set_result(None)
