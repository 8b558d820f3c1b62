"""One inference thread. Knows no models: it is handed computations in chunks, as generators.

An idle thread takes what is queued at once; there is no timer. Requests that may be answered together (`Computation`)
and wait at the same time become one batch, which one computation answers. Batches take turns, a chunk each, the new
ones and those begun alternately, so a short request waits for one chunk of a long one. What nobody waits for any more
is dropped before its next chunk. The event loop only ever queues and awaits.

Room is counted in the rows that requests really take, see rate.py; one that has run more than was expected of it is
expected to run as many again.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from service.web.memory_budget import Share
from service.web.outcome import DeadlineError, Done, QueueFullError, StoppedError
from service.web.rate import Expectation, Meter, Rate
from service.web.serving.batch_queue import Batch, BatchQueue, Computation, Job, alone

P = TypeVar("P")
R = TypeVar("R")
_Outcome = tuple[Job, Done[Any] | Exception | None]


class Scheduler:
    """Runs computations on one thread, fairly and within bounds. Belongs to the event loop it is made in.

    Args:
        max_rows: rows of all requests waiting or running; a request is always let in when there is no other.
        max_rows_each: what one request counts for at most, unless it asks for more: one shall not shut out all others.
        max_jobs: requests waiting or running.
        batch_rows: rows of requests computed together.
        max_memory: bytes that computations that have begun may take together, see batch_queue.py.
        fatal: an error after which nothing can be computed: it ends the thread.
        on_death: called in the event loop when the thread ends other than by `stop`.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        max_jobs: int,
        batch_rows: int,
        max_memory: float = math.inf,
        max_rows_each: int | None = None,
        fatal: type[Exception] | tuple[type[Exception], ...] = (),
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        self._max_rows = max_rows
        self._max_rows_each = max_rows if max_rows_each is None else max_rows_each
        self._max_jobs = max_jobs
        self._on_death = on_death
        self._fatal = fatal
        self.fatal_error: Exception | None = None
        """What ended the thread, where it was a fatal error."""
        self._loop = asyncio.get_running_loop()
        self._queue = BatchQueue(batch_rows, max_memory)
        self._running: Batch | None = None
        self._waking = False
        self._jobs: set[Job] = set()
        self._queued_rows = 0
        self._rate = Rate()
        self._expectation = Expectation()
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name="inference", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the inference thread still takes requests."""
        return not self._queue.closed

    @property
    def batch_rows(self) -> int:
        """Rows of requests computed together."""
        return self._queue.batch_rows

    @batch_rows.setter
    def batch_rows(self, rows: int) -> None:
        self._queue.batch_rows = rows

    @property
    def queued_rows(self) -> int:
        """Rows of all requests waiting or running, as expected."""
        return self._queued_rows

    @property
    def queued_jobs(self) -> int:
        """Requests waiting or running."""
        return len(self._jobs)

    def submit(
        self,
        computation: Computation[P, R],
        payload: P,
        *,
        rows: int,
        timeout_seconds: float,
        memory: int = 0,
        share: Share | None = None,
    ) -> "asyncio.Future[Done[R]]":
        """Queue a request (a `Job`) that others of its kind may join. Whoever settles or cancels the answer drops it.

        The answer may raise DeadlineError, StoppedError, or what the computation raised for this request alone.

        Raises:
            QueueFullError: there is no room.
            StoppedError: the thread has ended.
        """
        expected = rows if computation.meter is None else self._expectation.rows(computation.meter.key, rows)
        room = min(expected, max(rows, self._max_rows_each))
        self.check_capacity(room)
        deadline = time.monotonic() + timeout_seconds
        job = Job(payload, rows, expected, room, deadline, self._loop.create_future(), memory, share)
        if not self._queue.put(computation, job):
            raise StoppedError("the inference thread has ended")
        if share is not None:
            share.lend()
        self._jobs.add(job)
        self._queued_rows += room
        if not self._waking:  # once the loop has come to what else has arrived: that may join
            self._waking = True
            self._loop.call_soon(self._wake)
        expiry = self._loop.call_later(timeout_seconds, _expire, job.answer, timeout_seconds)
        job.answer.add_done_callback(lambda _: expiry.cancel())
        return job.answer

    def submit_alone(
        self, chunks: Generator[None, None, R], *, rows: int, meter: Meter | None = None, **named: Any
    ) -> "asyncio.Future[Done[R]]":
        """Queue a computation of its own; otherwise like `submit`, with its other arguments."""
        return self.submit(alone(chunks, meter), None, rows=rows, **named)

    def check_capacity(self, rows: int = 1) -> None:
        """Refuse what `submit` would refuse: worth asking before a body is read.

        Raises:
            QueueFullError: there is no room for a request of so many rows.
        """
        if self._jobs and (self._queued_rows + rows > self._max_rows or len(self._jobs) >= self._max_jobs):
            seconds = self.retry_seconds()
            waiting = f"{len(self._jobs)} requests with {self._queued_rows} rows are waiting or running"
            raise QueueFullError(f"{waiting}; try again in {seconds} s", seconds)

    def retry_seconds(self) -> int:
        """In how many seconds all that is queued should be done; at least one."""
        return max(1, math.ceil(self._seconds_left()))

    def _seconds_left(self) -> float:
        """When all that is queued should be done: by the rows still to be run, or because the last deadline passes."""
        jobs = list(self._jobs)  # in one step, for this may be asked on another thread
        rows = sum(job.rows_left for job in jobs)
        deadline = max((job.deadline for job in jobs), default=0) - time.monotonic()
        return min(rows / self._rate.rows_per_second, deadline)

    def stop(self) -> None:
        """End the thread after the chunk it is in; requests not done by then get a StoppedError."""
        self._stopping = True
        self._give_up(self._queue.close())
        self._thread.join()

    def fail(self, error: Exception) -> None:
        """End the thread as after a fatal error, which was met elsewhere."""
        self.fatal_error = error
        self._give_up(self._queue.close())

    def _wake(self) -> None:
        self._waking = False
        self._queue.wake()

    def _serve(self) -> None:
        try:
            self._work()
        finally:
            left = self._queue.close()
            self._give_up([self._running, *left] if self._running else left)
            if not self._stopping and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._on_death)

    def _work(self) -> None:
        while (batch := self._queue.take()) is not None:
            self._running = batch
            started, rows_before = time.monotonic(), batch.metered()
            try:
                if not self._wanted(batch, started):
                    self._queue.end(batch)
                    self._running = None
                    del batch
                    continue
                if batch.chunks is None:
                    batch.chunks = batch.computation.compute([job.payload for job in batch.jobs])
                next(batch.chunks)
            except StopIteration as stop:
                self._count(batch, rows_before, started)
                self._queue.end(batch)
                self._answer(batch, stop.value)
            except self._fatal as error:
                self.fatal_error = error
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait for this
                self._queue.end(batch)
                self._fail(batch, error)
            else:
                self._count(batch, rows_before, started)
                self._queue.put_back(batch)
                self._running = None
            del batch  # nor its results, while the thread waits for the next

    def _count(self, batch: Batch, rows_before: int, started: float) -> None:
        """Add a chunk to what its batch has taken, and to the rate where its rows are known."""
        seconds = time.monotonic() - started
        batch.compute_seconds += seconds
        rows, asked = batch.metered() - rows_before, batch.rows
        if batch.computation.meter is not None:
            self._rate.add(rows, seconds)
        for job in batch.jobs:
            job.rows_run += rows * job.rows / max(1, asked)
            if job.rows_run > job.reported:
                job.reported = 2 * job.rows_run
                self._call(self._expect, job, math.ceil(job.reported))

    def _expect(self, job: Job, rows: int) -> None:
        """In the event loop: a job runs more rows than were expected of it."""
        if job in self._jobs:
            room = min(rows, max(job.rows, self._max_rows_each))
            self._queued_rows += room - job.room
            job.expected, job.room = rows, room

    def _wanted(self, batch: Batch, now: float) -> bool:
        """Drop the jobs that nobody waits for. A batch that has begun goes on as it is while anybody does."""
        waiting = [not job.answer.done() and now <= job.deadline for job in batch.jobs]
        if all(waiting) or (batch.chunks is not None and any(waiting)):
            return True
        if batch.chunks is not None:
            batch.chunks.close()
            if batch.computation.meter is not None:
                self._expectation.add_unfinished(batch.computation.meter.key, **batch.taken())
        gone = [job for job, waits in zip(batch.jobs, waiting, strict=True) if not waits]
        batch.jobs = [job for job, waits in zip(batch.jobs, waiting, strict=True) if waits]
        self._settle([(job, None) for job in gone])
        return bool(batch.jobs)

    def _answer(self, batch: Batch, results: Sequence[Any]) -> None:
        now, seconds = time.monotonic(), batch.compute_seconds
        outcomes = [
            (job, Done(result, now - job.queued - seconds, seconds, round(job.rows_run)))
            for job, result in zip(batch.jobs, results, strict=True)
        ]
        if batch.computation.meter is None:
            self._rate.add(batch.rows, seconds)
        else:
            self._expectation.add(batch.computation.meter.key, **batch.taken())
        self._running = None
        self._settle(outcomes)

    def _fail(self, batch: Batch, error: Exception) -> None:
        """Tell the one who waits. Where several do, one request may be to blame: each half tries again by itself."""
        if len(batch.jobs) > 1:
            self._queue.put_halves(batch)
        else:
            self._settle([(job, error) for job in batch.jobs])
        self._running = None

    def _give_up(self, batches: Sequence[Batch]) -> None:
        error = StoppedError("the inference thread has ended")
        self._settle([(job, error) for batch in batches for job in batch.jobs])

    def _settle(self, outcomes: Sequence[_Outcome]) -> None:
        """Answer jobs, or drop those without an outcome: one call into the event loop for all of them."""
        self._call(self._deliver, outcomes)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have the event loop call this, if it still runs."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _deliver(self, outcomes: Sequence[_Outcome]) -> None:
        """In the event loop: room is given back only here, so that answers it has not come to yet count as work."""
        for job, outcome in outcomes:
            self._jobs.remove(job)
            if job.share is not None:
                job.share.end()
            self._queued_rows -= job.room
            if job.answer.done() or outcome is None:
                continue
            if isinstance(outcome, Exception):
                job.answer.set_exception(outcome)
            else:
                job.answer.set_result(outcome)


def _expire(answer: "asyncio.Future[Done[Any]]", timeout_seconds: float) -> None:
    if not answer.done():
        answer.set_exception(DeadlineError(f"not computed within {timeout_seconds:g} s"))
