"""The interface `Decoding` for reading images, and reading in threads. process_pool.py reads in worker processes."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from fastapi.concurrency import run_in_threadpool
from numpy.typing import NDArray

from service.images.decode_request import DecodeRequest
from service.web.memory_budget import Share
from service.web.outcome import DeadlineError


class Read(NamedTuple):
    """Pixels [B, C, H, W], and the seconds since they were requested."""

    pixels: NDArray[np.float32]
    seconds: float


class Prepared(NamedTuple):
    """A job as it can be prepared in any thread: its cost, and the message for a worker.

    `share` is the request's memory, which stays counted if reading continues after the request.
    """

    reading: DecodeRequest
    cost: int
    pieces: Sequence[bytes | memoryview]
    share: Share | None = None


class Decoding(Protocol):
    """Reads images."""

    @property
    def jobs(self) -> int:
        """Number of jobs that wait or are being read."""

    async def start(self) -> None:
        """Wait until images can be read."""

    def prepare(self, reading: DecodeRequest) -> Prepared:
        """Prepare a job; can be called in any thread."""

    def submit(self, prepared: Prepared, timeout_seconds: float) -> "asyncio.Future[Read]":
        """Read images. Cancelling or settling the answer drops the job.

        The answer can raise DeadlineError, StoppedError, QueueFullError, and any ImageError.

        Raises:
            QueueFullError: the queue is full.
        """

    async def close(self) -> None:
        """Stop reading; return when nothing is running."""


class InProcess:
    """Reads in threads of this process: for tests, and for programs that contain the app.

    An answer fails at its deadline here, too, but its thread reads on, and its memory stays counted until it ends.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def jobs(self) -> int:
        """Number of jobs being read."""
        return len(self._tasks)

    async def start(self) -> None:
        """Nothing to wait for."""

    def prepare(self, reading: DecodeRequest) -> Prepared:
        """See `Decoding`."""
        return Prepared(reading, 0, ())

    def submit(self, prepared: Prepared, timeout_seconds: float) -> "asyncio.Future[Read]":
        """See `Decoding`."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Read] = loop.create_future()
        started = loop.time()
        expire_after(answer, timeout_seconds)

        async def read() -> None:
            try:
                pixels = await run_in_threadpool(prepared.reading.read)
            except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to whoever waits
                settle(answer, error)
            else:
                settle(answer, Read(pixels, loop.time() - started))

        task = loop.create_task(read())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if (share := prepared.share) is not None:
            share.lend()
            task.add_done_callback(lambda _: share.end())
        return answer

    async def close(self) -> None:
        """Nothing to end."""


def expire_after(answer: "asyncio.Future[Read]", timeout_seconds: float) -> None:
    """Fail the answer with a DeadlineError after this many seconds."""
    expiry = asyncio.get_running_loop().call_later(timeout_seconds, _expire, answer, timeout_seconds)
    answer.add_done_callback(lambda _: expiry.cancel())


def settle(answer: "asyncio.Future[Read]", outcome: Read | Exception) -> None:
    """Settle the answer, unless it is settled or cancelled."""
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


def _expire(answer: "asyncio.Future[Read]", timeout_seconds: float) -> None:
    settle(answer, DeadlineError(f"its images were not read within {timeout_seconds:g} s"))
