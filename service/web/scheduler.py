"""One inference thread, and the queue before it. Knows no models: it is handed computations in chunks, as generators.

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
from collections import deque
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from service.web.rate import Rate

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
class Kind(Generic[P, R]):
    """Requests that one computation may answer together: all those with an equal `key`."""

    key: Hashable
    compute: Callable[[Sequence[P]], Generator[None, None, Sequence[R]]]
    """What the requests carry, in chunks → their results, in the same order."""


@dataclass(frozen=True)
class Done(Generic[R]):
    """A request's result, the seconds it waited, and those that its batch computed."""

    result: R
    queue_seconds: float
    compute_seconds: float


@dataclass(eq=False)
class _Job:
    """One request: what it carries, and who waits for the answer."""

    payload: Any
    rows: int
    deadline: float
    answer: "asyncio.Future[Done[Any]]"
    queued: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class _Batch:
    """Jobs that are computed together; closed to others once it has begun."""

    kind: Kind[Any, Any]
    jobs: list[_Job]
    rows: int
    chunks: Generator[None, None, Sequence[Any]] | None = None
    compute_seconds: float = 0.0


_Outcome = tuple[_Job, Done[Any] | Exception | None]


class Scheduler:
    """Runs computations on one thread, fairly and within bounds. Belongs to the event loop it is made in.

    Args:
        max_rows: rows of all requests waiting or running; a request is always let in when there is no other.
        max_jobs: requests waiting or running.
        batch_rows: rows of requests computed together.
        on_death: called in the event loop when the thread ends other than by `stop`.
    """

    def __init__(
        self, *, max_rows: int, max_jobs: int, batch_rows: int, on_death: Callable[[], None] = lambda: None
    ) -> None:
        self._max_rows = max_rows
        self._max_jobs = max_jobs
        self._batch_rows = batch_rows
        self._on_death = on_death
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._new: deque[_Batch] = deque()
        self._begun: deque[_Batch] = deque()
        self._open: dict[Hashable, _Batch] = {}
        """Those of `_new` that requests of the same kind may still join, by the kind's key."""
        self._running: _Batch | None = None
        self._turn_of_begun = False
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
        return self._thread.is_alive()

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
        return self._admit(kind, payload, rows=rows, timeout_seconds=timeout_seconds, joins=True)

    def submit_alone(
        self, chunks: Generator[None, None, R], *, rows: int, timeout_seconds: float
    ) -> "asyncio.Future[Done[R]]":
        """Queue a computation of its own; otherwise like `submit`."""
        kind: Kind[None, R] = Kind(None, lambda _: _only(chunks))
        return self._admit(kind, None, rows=rows, timeout_seconds=timeout_seconds, joins=False)

    def stop(self) -> None:
        """End the thread after the chunk it is in; requests not done by then get a StoppedError."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _admit(
        self, kind: Kind[Any, R], payload: Any, *, rows: int, timeout_seconds: float, joins: bool
    ) -> "asyncio.Future[Done[R]]":
        job = _Job(payload, rows, time.monotonic() + timeout_seconds, self._loop.create_future())
        with self._changed:
            if self._stopping:
                raise StoppedError("the inference thread has ended")
            if self._queued_jobs and (self._queued_rows + rows > self._max_rows or self._queued_jobs >= self._max_jobs):
                seconds = max(1, math.ceil(self._queued_rows / self._rate.rows_per_second))
                waiting = f"{self._queued_jobs} requests with {self._queued_rows} rows are waiting or running"
                raise QueueFullError(f"{waiting}; try again in {seconds} s", seconds)
            self._queued_rows += rows
            self._queued_jobs += 1
            batch = self._open.get(kind.key) if joins else None
            if batch is not None and batch.rows + rows <= self._batch_rows:
                batch.jobs.append(job)
                batch.rows += rows
            else:
                batch = _Batch(kind, [job], rows)
                self._new.append(batch)
                if joins:
                    self._open[kind.key] = batch
        if not self._waking:  # once the loop has read what else has arrived: that may join
            self._waking = True
            self._loop.call_soon(self._wake)
        expiry = self._loop.call_later(timeout_seconds, _expire, job.answer, timeout_seconds)
        job.answer.add_done_callback(lambda _: expiry.cancel())
        return job.answer

    def _wake(self) -> None:
        self._waking = False
        with self._changed:
            self._changed.notify()

    def _serve(self) -> None:
        try:
            self._work()
        finally:
            with self._changed:
                died, self._stopping = not self._stopping, True
                left = [*([self._running] if self._running else []), *self._begun, *self._new]
                self._new.clear()
                self._begun.clear()
                self._open.clear()
            error = StoppedError("the inference thread has ended")
            self._settle([(job, error) for batch in left for job in batch.jobs])
            if died and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._on_death)

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            started = time.monotonic()
            try:
                if not self._wanted(batch, started):
                    continue
                if batch.chunks is None:
                    batch.chunks = batch.kind.compute([job.payload for job in batch.jobs])
                next(batch.chunks)
            except StopIteration as stop:
                self._answer(batch, stop.value, started)
            except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the one who waits for this
                self._fail(batch, error)
            else:
                batch.compute_seconds += time.monotonic() - started
                with self._changed:
                    self._begun.append(batch)
                    self._running = None
            finally:
                del batch  # nor its results, while the thread waits for the next

    def _next(self) -> _Batch | None:
        """Wait for the batch whose turn it is; None at the end."""
        with self._changed:
            while not self._new and not self._begun and not self._stopping:
                self._changed.wait()
            if self._stopping:
                return None
            from_begun = self._begun and (self._turn_of_begun or not self._new)
            batch = (self._begun if from_begun else self._new).popleft()
            self._turn_of_begun = not from_begun
            if self._open.get(batch.kind.key) is batch:
                del self._open[batch.kind.key]
            self._running = batch
            return batch

    def _wanted(self, batch: _Batch, now: float) -> bool:
        """Drop the jobs that nobody waits for. A batch that has begun goes on as it is while anybody does."""
        waiting = [not job.answer.done() and now <= job.deadline for job in batch.jobs]
        if all(waiting) or (batch.chunks is not None and any(waiting)):
            return True
        if batch.chunks is not None:
            batch.chunks.close()
        gone = [job for job, waits in zip(batch.jobs, waiting, strict=True) if not waits]
        batch.jobs = [job for job, waits in zip(batch.jobs, waiting, strict=True) if waits]
        batch.rows -= sum(job.rows for job in gone)
        self._settle([(job, None) for job in gone])
        return bool(batch.jobs)

    def _answer(self, batch: _Batch, results: Sequence[Any], started: float) -> None:
        now = time.monotonic()
        seconds = batch.compute_seconds + now - started
        outcomes: list[_Outcome] = []
        for job, result in zip(batch.jobs, results, strict=True):
            outcomes.append((job, Done(result, now - job.queued - seconds, seconds)))
        self._rate.add(batch.rows, seconds)
        self._running = None
        self._settle(outcomes)

    def _fail(self, batch: _Batch, error: Exception) -> None:
        """Tell the one who waits. Where several do, one request may be to blame: each half tries again by itself."""
        self._running = None
        if len(batch.jobs) == 1:
            self._settle([(batch.jobs[0], error)])
            return
        middle = len(batch.jobs) // 2
        with self._changed:
            for jobs in (batch.jobs[middle:], batch.jobs[:middle]):
                self._new.appendleft(_Batch(batch.kind, jobs, sum(job.rows for job in jobs)))

    def _settle(self, outcomes: Sequence[_Outcome]) -> None:
        """Give back the jobs' room, and answer whoever still waits: one call into the event loop for all of them."""
        with self._changed:
            self._queued_rows -= sum(job.rows for job, _ in outcomes)
            self._queued_jobs -= len(outcomes)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_deliver, outcomes)


def _only(chunks: Generator[None, None, R]) -> Generator[None, None, Sequence[R]]:
    return [(yield from chunks)]


def _expire(answer: "asyncio.Future[Done[Any]]", timeout_seconds: float) -> None:
    if not answer.done():
        answer.set_exception(DeadlineError(f"not computed within {timeout_seconds:g} s"))


def _deliver(outcomes: Sequence[_Outcome]) -> None:
    for job, outcome in outcomes:
        if job.answer.done() or outcome is None:
            continue
        if isinstance(outcome, Exception):
            job.answer.set_exception(outcome)
        else:
            job.answer.set_result(outcome)
