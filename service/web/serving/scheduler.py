"""Run computations on one inference thread. It knows nothing of models: computations are generators of chunks.

An idle thread starts at once with what is queued; there is no timer. Requests that can be answered together
(`Computation`) and wait at the same time become one batch, with one computation. Batches take turns, one chunk each,
alternately new ones and those that have begun, so a short request waits for at most one chunk of a long one. Work that
nobody waits for is dropped before its next chunk. The event loop only queues requests and waits for answers.

The queue is limited by the rows that requests really run, see rate.py. A request that has run more than expected is
expected to run as many again.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

from service.web.memory_budget import Share
from service.web.outcome import DeadlineError, Done, QueueFullError, StoppedError
from service.web.rate import Expectation, Meter, Rate
from service.web.serving.batch_queue import Batch, BatchQueue, Computation, Job, alone

P = TypeVar("P")
R = TypeVar("R")
_Outcome = tuple[Job, Done[Any] | Exception | None]


class Scheduler:
    """Runs computations on one thread, in fair order and within limits. Used on the event loop in which it is made.

    Args:
        max_rows: most rows of all requests waiting or running; if there is no other, a request is always accepted.
        max_rows_each: most rows that one request counts for, unless it asks for more, so that it cannot block others.
        max_jobs: most requests waiting or running.
        batch_rows: most rows of requests that are computed together.
        max_memory: most bytes of all running computations, see batch_queue.py.
        fatal: the type of errors after which nothing can be computed; they end the thread.
        on_death: called on the event loop if the thread ends other than by `stop`.
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
        """The fatal error that ended the thread, or None."""
        self._loop = asyncio.get_running_loop()
        self._queue = BatchQueue(batch_rows, max_memory)
        self._running: Batch | None = None
        self._waking = False
        self._jobs: set[Job] = set()
        self._queued_rows = 0
        self.rate, self.expectation = Rate(), Expectation()  # what computing has taken so far
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name="inference", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the inference thread accepts requests."""
        return not self._queue.closed

    @property
    def batch_rows(self) -> int:
        """Most rows of requests that are computed together."""
        return self._queue.batch_rows

    @batch_rows.setter
    def batch_rows(self, rows: int) -> None:
        self._queue.batch_rows = rows

    @property
    def queued_rows(self) -> int:
        """Expected rows of all requests waiting or running."""
        return self._queued_rows

    @property
    def queued_jobs(self) -> int:
        """Number of requests waiting or running."""
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
        """Queue a request (a `Job`) that can be computed with others. Cancelling or settling the answer drops it.

        The answer can raise DeadlineError, StoppedError, or what the computation raised for this request alone.

        Raises:
            QueueFullError: the queue is full.
            StoppedError: the thread has ended.
        """
        expected = rows if computation.meter is None else self.expectation.rows(computation.meter.key, rows)
        room = min(expected, max(rows, self._max_rows_each))
        self.check_capacity(room)
        deadline = time.monotonic() + timeout_seconds
        answer = self._loop.create_future()
        job = Job(payload, rows, expected, expected, expected, room, deadline, answer, memory, share)
        if not self._queue.put(computation, job):
            raise StoppedError("the inference thread has ended")
        if share is not None:
            share.lend()
        self._jobs.add(job)
        self._queued_rows += room
        if not self._waking:  # after the loop has handled everything that has arrived, which can join
            self._waking = True
            self._loop.call_soon(self._wake)
        job.expiry = self._loop.call_later(timeout_seconds, _expire, job.answer, timeout_seconds)
        return job.answer

    def submit_alone(
        self, chunks: Generator[None, None, R], *, rows: int, meter: Meter | None = None, **named: Any
    ) -> "asyncio.Future[Done[R]]":
        """Queue a computation for one request alone; otherwise like `submit`."""
        return self.submit(alone(chunks, meter), None, rows=rows, **named)

    def check_capacity(self, rows: int = 1) -> None:
        """Refuse a request that `submit` would refuse. Called before its body is read.

        Raises:
            QueueFullError: a request of so many rows does not fit into the queue.
        """
        if self._jobs and (self._queued_rows + rows > self._max_rows or len(self._jobs) >= self._max_jobs):
            seconds = self.retry_seconds()
            waiting = f"{len(self._jobs)} requests with {self._queued_rows} rows are waiting or running"
            raise QueueFullError(f"{waiting}; try again in {seconds} s", seconds)

    def retry_seconds(self) -> int:
        """Seconds in which everything that is queued should be done; at least 1."""
        return max(1, math.ceil(self._seconds_left()))

    def _seconds_left(self) -> float:
        """Seconds until everything queued should be done, by rows still to be run or the last deadline."""
        jobs = list(self._jobs)  # a copy in one step, because this may be called on another thread
        rows = sum(job.rows_left for job in jobs)
        deadline = max((job.deadline for job in jobs), default=0) - time.monotonic()
        return min(rows / self.rate.rows_per_second, deadline)

    def stop(self) -> None:
        """End the thread after its current chunk; unfinished requests fail with a StoppedError."""
        self._stopping = True
        self._give_up(self._queue.close())
        self._thread.join()

    def fail(self, error: Exception) -> None:
        """End the thread as after a fatal error, because one happened elsewhere."""
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
        while self.fatal_error is None and (batch := self._queue.take()) is not None:
            self._running = batch
            self._run_chunk(batch)
            del batch  # do not keep its results while the thread waits for the next batch

    def _run_chunk(self, batch: Batch) -> None:
        started, rows_before = time.monotonic(), batch.metered()
        try:
            if not self._wanted(batch, started):
                self._queue.end(batch)
                self._running = None
                return
            results, ended = batch.advance()
        except self._fatal as error:
            self.fatal_error = error
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait for this
            self._queue.end(batch)
            self._fail(batch, error)
        else:
            self._count(batch, rows_before, started)
            if ended:
                self._queue.end(batch)
                self._learn(batch)
            self._answer(batch, results)
            if not ended:
                self._queue.put_back(batch)
            self._running = None

    def _count(self, batch: Batch, rows_before: int, started: float) -> None:
        """Add a chunk to its batch, and to the rate if its rows are known."""
        seconds, rows = time.monotonic() - started, batch.metered() - rows_before
        if batch.computation.meter is not None:
            self.rate.add(rows, seconds)
        for job in batch.count(rows, seconds):
            self._call(self._expect, job, math.ceil(job.reported))

    def _expect(self, job: Job, rows: int) -> None:
        """On the event loop: update the expected rows of a job that runs more than expected."""
        if job in self._jobs:
            room = min(rows, max(job.rows, self._max_rows_each))
            self._queued_rows += room - job.room
            job.expected, job.room = rows, room

    def _wanted(self, batch: Batch, now: float) -> bool:
        """Drop the jobs that nobody waits for. A batch that has begun continues unchanged while anyone waits."""
        jobs = batch.waiting
        waiting = [not job.answer.done() and now <= job.deadline for job in jobs]
        if all(waiting) or (batch.chunks is not None and any(waiting)):
            return True
        if batch.chunks is not None:
            batch.chunks.close()
            if batch.computation.meter is not None:
                self.expectation.add_unfinished(batch.computation.meter.key, **batch.taken())
        gone = [job for job, waits in zip(jobs, waiting, strict=True) if not waits]
        batch.jobs = [job for job, waits in zip(jobs, waiting, strict=True) if waits]
        self._settle([(job, None) for job in gone])
        return bool(batch.jobs)

    def _answer(self, batch: Batch, results: Mapping[int, Any]) -> None:
        """Settle jobs by their results, which are by index."""
        now, seconds = time.monotonic(), batch.compute_seconds
        jobs = [(batch.jobs[index], result) for index, result in results.items()]
        self._settle(
            [(job, Done(result, now - job.queued - seconds, seconds, round(job.rows_run))) for job, result in jobs]
        )

    def _learn(self, batch: Batch) -> None:
        """Take note of what a batch that has ended took."""
        if batch.computation.meter is None:
            self.rate.add(batch.rows, batch.compute_seconds)
        else:
            self.expectation.add(batch.computation.meter.key, **batch.taken())

    def _fail(self, batch: Batch, error: Exception) -> None:
        """Fail a batch of one request. Of several, one may be the cause, so each half is tried again by itself."""
        jobs = batch.waiting
        if len(jobs) > 1:
            self._queue.put_halves(batch)
        else:
            self._settle([(job, error) for job in jobs])
        self._running = None

    def _give_up(self, batches: Sequence[Batch]) -> None:
        error = StoppedError("the inference thread has ended")
        self._settle([(job, error) for batch in batches for job in batch.waiting])

    def _settle(self, outcomes: Sequence[_Outcome]) -> None:
        """Settle jobs, or drop those without an outcome, with one call into the event loop for all."""
        for job, _ in outcomes:
            job.settled = True
        self._call(self._deliver, outcomes)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call this function on the event loop, if it is still running."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _deliver(self, outcomes: Sequence[_Outcome]) -> None:
        """On the event loop: remove jobs from the queue's count, so that answers not yet delivered still count."""
        for job, outcome in outcomes:
            self._jobs.remove(job)
            if job.expiry is not None and (outcome is not None or job.answer.done()):
                job.expiry.cancel()  # what is dropped at its deadline waits for its timer, which answers
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
