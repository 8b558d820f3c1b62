"""Where images are read: `Decoding`. In threads of this process here; in worker processes in process_pool.py."""

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
    """Pixels [B, C, H, W], and the seconds from asking for them."""

    pixels: NDArray[np.float32]
    seconds: float


class Prepared(NamedTuple):
    """A job as far as it can be made in any thread: its cost, and the message that a worker gets.

    `share` is what its request holds, for whoever reads on when that is over.
    """

    reading: DecodeRequest
    cost: int
    pieces: Sequence[bytes | memoryview]
    share: Share | None = None


class Decoding(Protocol):
    """Where images are read."""

    @property
    def jobs(self) -> int:
        """Waiting or being read."""

    async def start(self) -> None:
        """Return once images can be read."""

    def prepare(self, reading: DecodeRequest) -> Prepared:
        """Make a job of it, in any thread."""

    def submit(self, prepared: Prepared, timeout_seconds: float) -> "asyncio.Future[Read]":
        """Have images read. Whoever settles or cancels the answer drops the job.

        The answer may raise DeadlineError, StoppedError, QueueFullError, and any ImageError.

        Raises:
            QueueFullError: there is no room.
        """

    async def close(self) -> None:
        """Read nothing more; return once nothing runs."""


class InProcess:
    """Reads in threads of this process: for tests, and for whoever has the app within a program of their own.

    An answer comes by its deadline here, too, but what is read by then is read on, and its memory counts until then.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def jobs(self) -> int:
        """Being read."""
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
    """Let the answer be a DeadlineError, unless it comes before so many seconds."""
    expiry = asyncio.get_running_loop().call_later(timeout_seconds, _expire, answer, timeout_seconds)
    answer.add_done_callback(lambda _: expiry.cancel())


def settle(answer: "asyncio.Future[Read]", outcome: Read | Exception) -> None:
    """Give an answer, unless there is one, or nobody waits for it."""
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


def _expire(answer: "asyncio.Future[Read]", timeout_seconds: float) -> None:
    settle(answer, DeadlineError(f"its images were not read within {timeout_seconds:g} s"))
