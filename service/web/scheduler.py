"""One inference thread, and the queue before it. Knows no models: its jobs are generators that yield between chunks.

    QueueFullError      no room now; `retry_after` seconds may change that
    DeadlineError       not computed in time
    StoppedError        the inference thread has ended

Jobs take turns, a chunk each, so a short one never waits for all of a long one. What nobody waits for any more is
dropped before its next chunk. The event loop only ever queues and awaits.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")


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
class Done(Generic[T]):
    """A job's result, and the seconds it waited and computed."""

    result: T
    queue_seconds: float
    compute_seconds: float


@dataclass
class _Job:
    chunks: Generator[None, None, Any]
    rows: int
    deadline: float
    loop: asyncio.AbstractEventLoop
    answer: "asyncio.Future[Done[Any]]"
    queued: float = field(default_factory=time.monotonic)
    compute_seconds: float = 0.0


class Scheduler:
    """Runs generators on one thread, fairly and within bounds.

    Args:
        max_rows: rows of all jobs waiting or running; a job is always let in when there is no other.
        max_jobs: jobs waiting or running.
    """

    def __init__(self, *, max_rows: int, max_jobs: int) -> None:
        self._max_rows = max_rows
        self._max_jobs = max_jobs
        self._jobs: deque[_Job] = deque()
        self._running: _Job | None = None
        self._changed = threading.Condition()
        self._queued_rows = 0
        self._queued_jobs = 0
        self._rows_per_second = 10_000.0
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name="inference", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the inference thread still takes jobs."""
        return self._thread.is_alive()

    @property
    def queued_rows(self) -> int:
        """Rows of all jobs waiting or running."""
        return self._queued_rows

    @property
    def queued_jobs(self) -> int:
        """Jobs waiting or running."""
        return self._queued_jobs

    async def run(self, chunks: Generator[None, None, T], *, rows: int, timeout_seconds: float) -> Done[T]:
        """Queue a job and await its result.

        Raises:
            QueueFullError: at once, when there is no room.
            DeadlineError: when it is not done in time.
            StoppedError: the thread ended, before or meanwhile.
        """
        loop = asyncio.get_running_loop()
        job = _Job(chunks, rows, time.monotonic() + timeout_seconds, loop, loop.create_future())
        self._admit(job)
        try:
            async with asyncio.timeout(timeout_seconds):
                done: Done[T] = await job.answer
                return done
        except TimeoutError:
            raise DeadlineError(f"not computed within {timeout_seconds:g} s") from None

    def stop(self) -> None:
        """End the thread after the chunk it is in; jobs not done by then get a StoppedError."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _admit(self, job: _Job) -> None:
        with self._changed:
            if self._stopping:
                raise StoppedError("the inference thread has ended")
            if self._queued_jobs and (
                self._queued_rows + job.rows > self._max_rows or self._queued_jobs >= self._max_jobs
            ):
                seconds = max(1, math.ceil(self._queued_rows / self._rows_per_second))
                waiting = f"{self._queued_jobs} requests with {self._queued_rows} rows are waiting or running"
                raise QueueFullError(f"{waiting}; try again in {seconds} s", seconds)
            self._queued_rows += job.rows
            self._queued_jobs += 1
            self._jobs.append(job)
            self._changed.notify()

    def _serve(self) -> None:
        try:
            self._work()
        finally:
            with self._changed:
                self._stopping = True
                left = [*self._jobs, *([self._running] if self._running else [])]
                self._jobs.clear()
            for job in left:
                self._finish(job, StoppedError("the inference thread has ended"))

    def _work(self) -> None:
        while (job := self._next()) is not None:
            started = time.monotonic()
            try:
                if job.answer.done() or started > job.deadline:
                    job.chunks.close()
                    self._finish(job)
                    continue
                next(job.chunks)
            except StopIteration as stop:
                job.compute_seconds += time.monotonic() - started
                wait = time.monotonic() - job.queued - job.compute_seconds
                self._finish(job, Done(stop.value, wait, job.compute_seconds))
            except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the one who waits for this job
                self._finish(job, error)
            else:
                job.compute_seconds += time.monotonic() - started
                with self._changed:
                    self._jobs.append(job)
                    self._running = None
            finally:
                del job  # nor its result, while the thread waits for the next

    def _next(self) -> _Job | None:
        with self._changed:
            while not self._jobs and not self._stopping:
                self._changed.wait()
            self._running = None if self._stopping else self._jobs.popleft()
            return self._running

    def _finish(self, job: _Job, outcome: Done[Any] | Exception | None = None) -> None:
        with self._changed:
            self._running = None
            self._queued_rows -= job.rows
            self._queued_jobs -= 1
            if isinstance(outcome, Done) and outcome.compute_seconds > 0:
                rate = job.rows / outcome.compute_seconds
                self._rows_per_second += 0.1 * (rate - self._rows_per_second)
        if outcome is not None and not job.loop.is_closed():
            job.loop.call_soon_threadsafe(_settle, job.answer, outcome)


def _settle(answer: "asyncio.Future[Done[Any]]", outcome: Done[Any] | Exception) -> None:
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
