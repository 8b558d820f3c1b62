"""One inference thread. Knows no models: it is handed computations in chunks, as generators.

    QueueFullError      no room now; `retry_after` seconds may change that
    DeadlineError       not computed in time
    StoppedError        the inference thread has ended

An idle thread takes what is queued at once; there is no timer. Requests that may be answered together (`Kind`) and
wait at the same time become one batch, which one computation answers. Batches take turns, a chunk each, the new ones
and those begun alternately, so a short request waits for one chunk of a long one. What nobody waits for any more is
dropped before its next chunk. The event loop only ever queues and awaits.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from service.web.rate import Rate
from service.web.turns import Batch, Job, Kind, Turns

P = TypeVar("P")
R = TypeVar("R")


class QueueFullError(Exception):
    """No room in the queue."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(Exception):
    """Not computed in time."""


class StoppedError(Exception):
    """The inference thread has ended, by `stop` or by a fault."""


@dataclass(frozen=True)
class Done(Generic[R]):
    """A request's result, the seconds it waited, and those that its batch computed."""

    result: R
    queue_seconds: float
    compute_seconds: float


_Outcome = tuple[Job, Done[Any] | Exception | None]


class Scheduler:
    """Runs computations on one thread, fairly and within bounds. Belongs to the event loop it is made in.

    Args:
        max_rows: rows of all requests waiting or running; a request is always let in when there is no other.
        max_jobs: requests waiting or running.
        batch_rows: rows of requests computed together.
        fatal: an error after which nothing can be computed: it ends the thread.
        on_death: called in the event loop when the thread ends other than by `stop`.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        max_jobs: int,
        batch_rows: int,
        fatal: type[Exception] | tuple[type[Exception], ...] = (),
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        self._max_rows = max_rows
        self._max_jobs = max_jobs
        self._on_death = on_death
        self._fatal = fatal
        self.fatal_error: Exception | None = None
        """What ended the thread, where it was a fatal error."""
        self._loop = asyncio.get_running_loop()
        self._turns = Turns(batch_rows)
        self._running: Batch | None = None
        self._waking = False
        self._queued_rows = 0
        self._queued_jobs = 0
        self._rate = Rate()
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name="inference", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the inference thread still takes requests."""
        return not self._turns.closed

    @property
    def batch_rows(self) -> int:
        """Rows of requests computed together."""
        return self._turns.batch_rows

    @batch_rows.setter
    def batch_rows(self, rows: int) -> None:
        self._turns.batch_rows = rows

    @property
    def queued_rows(self) -> int:
        """Rows of all requests waiting or running."""
        return self._queued_rows

    @property
    def queued_jobs(self) -> int:
        """Requests waiting or running."""
        return self._queued_jobs

    def submit(self, kind: Kind[P, R], payload: P, *, rows: int, timeout_seconds: float) -> "asyncio.Future[Done[R]]":
        """Queue a request that others of its kind may join. Whoever settles or cancels the answer drops the request.

        The answer may raise DeadlineError, StoppedError, or what the computation raised for this request alone.

        Raises:
            QueueFullError: there is no room.
            StoppedError: the thread has ended.
        """
        self.check_room(rows)
        job = Job(payload, rows, time.monotonic() + timeout_seconds, self._loop.create_future())
        if not self._turns.put(kind, job):
            raise StoppedError("the inference thread has ended")
        self._queued_rows += rows
        self._queued_jobs += 1
        if not self._waking:  # once the loop has come to what else has arrived: that may join
            self._waking = True
            self._loop.call_soon(self._wake)
        expiry = self._loop.call_later(timeout_seconds, _expire, job.answer, timeout_seconds)
        job.answer.add_done_callback(lambda _: expiry.cancel())
        return job.answer

    def submit_alone(
        self, chunks: Generator[None, None, R], *, rows: int, timeout_seconds: float
    ) -> "asyncio.Future[Done[R]]":
        """Queue a computation of its own; otherwise like `submit`."""
        kind: Kind[None, R] = Kind(None, lambda _: _only(chunks))
        return self.submit(kind, None, rows=rows, timeout_seconds=timeout_seconds)

    def check_room(self, rows: int) -> None:
        """Refuse what `submit` would refuse: worth asking before a body is read.

        Raises:
            QueueFullError: there is no room for a request of so many rows.
        """
        if self._queued_jobs and (self._queued_rows + rows > self._max_rows or self._queued_jobs >= self._max_jobs):
            seconds = max(1, math.ceil(self._queued_rows / self._rate.rows_per_second))
            waiting = f"{self._queued_jobs} requests with {self._queued_rows} rows are waiting or running"
            raise QueueFullError(f"{waiting}; try again in {seconds} s", seconds)

    def stop(self) -> None:
        """End the thread after the chunk it is in; requests not done by then get a StoppedError."""
        self._stopping = True
        self._give_up(self._turns.close())
        self._thread.join()

    def _wake(self) -> None:
        self._waking = False
        self._turns.wake()

    def _serve(self) -> None:
        try:
            self._work()
        finally:
            left = self._turns.close()
            self._give_up([self._running, *left] if self._running else left)
            if not self._stopping and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._on_death)

    def _work(self) -> None:
        while (batch := self._turns.take()) is not None:
            self._running = batch
            started = time.monotonic()
            try:
                if not self._wanted(batch, started):
                    continue
                if batch.chunks is None:
                    batch.chunks = batch.kind.compute([job.payload for job in batch.jobs])
                next(batch.chunks)
            except StopIteration as stop:
                self._answer(batch, stop.value, started)
            except self._fatal as error:
                self.fatal_error = error
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait for this
                self._fail(batch, error)
            else:
                batch.compute_seconds += time.monotonic() - started
                self._turns.put_back(batch)
                self._running = None
            del batch  # nor its results, while the thread waits for the next

    def _wanted(self, batch: Batch, now: float) -> bool:
        """Drop the jobs that nobody waits for. A batch that has begun goes on as it is while anybody does."""
        waiting = [not job.answer.done() and now <= job.deadline for job in batch.jobs]
        if all(waiting) or (batch.chunks is not None and any(waiting)):
            return True
        if batch.chunks is not None:
            batch.chunks.close()
        gone = [job for job, waits in zip(batch.jobs, waiting, strict=True) if not waits]
        batch.jobs = [job for job, waits in zip(batch.jobs, waiting, strict=True) if waits]
        self._settle([(job, None) for job in gone])
        return bool(batch.jobs)

    def _answer(self, batch: Batch, results: Sequence[Any], started: float) -> None:
        now = time.monotonic()
        seconds = batch.compute_seconds + now - started
        outcomes: list[_Outcome] = []
        for job, result in zip(batch.jobs, results, strict=True):
            outcomes.append((job, Done(result, now - job.queued - seconds, seconds)))
        self._rate.add(batch.rows, seconds)
        self._running = None
        self._settle(outcomes)

    def _fail(self, batch: Batch, error: Exception) -> None:
        """Tell the one who waits. Where several do, one request may be to blame: each half tries again by itself."""
        if len(batch.jobs) > 1:
            self._turns.put_halves(batch)
        else:
            self._settle([(job, error) for job in batch.jobs])
        self._running = None

    def _give_up(self, batches: Sequence[Batch]) -> None:
        error = StoppedError("the inference thread has ended")
        self._settle([(job, error) for batch in batches for job in batch.jobs])

    def _settle(self, outcomes: Sequence[_Outcome]) -> None:
        """Answer jobs, or drop those without an outcome: one call into the event loop for all of them."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, outcomes)

    def _deliver(self, outcomes: Sequence[_Outcome]) -> None:
        """In the event loop: room is given back only here, so that answers it has not come to yet count as work."""
        for job, outcome in outcomes:
            self._queued_rows -= job.rows
            self._queued_jobs -= 1
            if job.answer.done() or outcome is None:
                continue
            if isinstance(outcome, Exception):
                job.answer.set_exception(outcome)
            else:
                job.answer.set_result(outcome)


def _only(chunks: Generator[None, None, R]) -> Generator[None, None, Sequence[R]]:
    return [(yield from chunks)]


def _expire(answer: "asyncio.Future[Done[Any]]", timeout_seconds: float) -> None:
    if not answer.done():
        answer.set_exception(DeadlineError(f"not computed within {timeout_seconds:g} s"))
