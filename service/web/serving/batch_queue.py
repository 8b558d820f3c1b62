"""The queue of the inference thread: which requests are computed together, and in which order."""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from service.web.memory_budget import Share
from service.web.rate import Meter

_BY_ITSELF_SECONDS = 1.0
"""Of computing, for which a batch is the only one of its computation. With as many batches beside one another as arrive
between two chunks, 32 clients' estimates by `auto` were computed in batches of two, by a fifth more processor time,
and the slowest hundredth took ten times as long as the median instead of three times."""
P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Computation(Generic[P, R]):
    """A computation that can answer several requests together: those with an equal `key`, unless it is None."""

    key: Hashable | None
    compute: Callable[[Sequence[P]], Generator[Mapping[int, R] | None, None, Sequence[R]]]
    """Computes, in chunks: the requests' payloads → their results, in the same order.

    It may yield the results of requests that are finished before the others, by index."""
    meter: Meter | None = None
    """Counts the rows that requests really run; without it, the rows that they ask for count."""
    max_rows: int | None = None
    """Most rows of requests that are computed together, where it is not the queue's own limit."""


def alone(chunks: Generator[None, None, R], meter: Meter | None = None) -> Computation[None, R]:
    """A computation for one request alone."""

    def compute(_: Sequence[None]) -> Generator[None, None, Sequence[R]]:
        return [(yield from chunks)]

    return Computation(None, compute, meter)


@dataclass(eq=False)
class Job:
    """One request: its payload, and the answer that waits for the result."""

    payload: Any
    rows: int
    """Rows that it asks for."""
    expected: int
    """Rows that it is expected to run. Used on the event loop, like `room`."""
    expected_at_first: int
    reported: float
    """The number of rows that the event loop has been told to expect. Used on the inference thread."""
    room: int
    """The part of these that counts against the limit on all rows."""
    deadline: float
    answer: "asyncio.Future[Any]"
    memory: int = 0
    """Most bytes that computing takes, besides its payload and its result."""
    share: Share | None = None
    """The request's memory, lent to the job until it is settled, because the payload is kept that long."""
    queued: float = field(default_factory=time.monotonic)
    expiry: asyncio.TimerHandle | None = None
    """Its deadline on the event loop."""
    settled: bool = False
    """Whether it has its outcome. Used on the inference thread, like the next attribute."""
    rows_run: float = 0.0
    """Rows run so far."""

    @property
    def rows_left(self) -> float:
        """Rows still to be run. A job that has run more than expected is expected to run as many again."""
        return self.rows_run if self.expected_at_first < self.rows_run else self.expected - self.rows_run


@dataclass(eq=False)
class Batch:
    """Jobs that are computed together. Others cannot join once it has begun."""

    computation: Computation[Any, Any]
    jobs: list[Job]
    chunks: Generator[Mapping[int, Any] | None, None, Sequence[Any]] | None = None
    compute_seconds: float = 0.0
    memory_held: int = 0
    """Bytes reserved for it while it is computed."""

    @property
    def rows(self) -> int:
        """The sum of rows that its jobs ask for."""
        return sum(job.rows for job in self.jobs)

    @property
    def waiting(self) -> list[Job]:
        """The jobs that have no outcome yet."""
        return [job for job in self.jobs if not job.settled]

    @property
    def memory(self) -> int:
        """Most bytes that it takes once it has begun."""
        return sum(job.memory for job in self.jobs)

    @property
    def is_dropped(self) -> bool:
        """Whether nobody waits for any of its jobs."""
        return all(job.answer.done() for job in self.jobs)

    def advance(self) -> tuple[Mapping[int, Any], bool]:
        """Run the next chunk: results by index of the job, and whether all that waited have theirs."""
        if self.chunks is None:
            self.chunks = self.computation.compute([job.payload for job in self.jobs])
        try:
            early = next(self.chunks) or {}
        except StopIteration as stop:
            return {index: result for index, result in enumerate(stop.value) if not self.jobs[index].settled}, True
        ended = len(early) == len(self.waiting)
        if ended:
            self.chunks.close()
        return early, ended

    def count(self, rows: int, seconds: float) -> list[Job]:
        """Add a chunk; returns the jobs that have run more rows than the event loop was told to expect."""
        self.compute_seconds += seconds
        jobs = self.waiting
        asked = sum(job.rows for job in jobs)
        for job in jobs:
            job.rows_run += rows * job.rows / max(1, asked)
        beyond = [job for job in jobs if job.rows_run > job.reported]
        for job in beyond:
            job.reported = 2 * job.rows_run
        return beyond

    def taken(self) -> dict[str, Any]:
        """Rows asked for and rows run, as arguments of `Expectation`."""
        return {"asked": self.rows, "run": sum(job.rows_run for job in self.jobs), "seconds": self.compute_seconds}

    def metered(self) -> int:
        """The current value of its meter; 0 without one."""
        return self.computation.meter.rows_run() if self.computation.meter else 0


class BatchMemory:
    """Limits the memory of batches that have begun.

    An additional eighth is reserved for small batches, so that they need not wait for large ones. A large batch that
    needs more than the limit begins when it is the only one.

    Args:
        limit: most bytes of all large batches together.

    >>> memory_held = BatchMemory(800)
    >>> memory_held.add(700)
    >>> memory_held.fits(200), memory_held.fits(10)
    (False, True)
    """

    def __init__(self, limit: float) -> None:
        self._limits = {False: limit, True: limit / 8}
        self._taken = {False: 0, True: 0}
        self._small = limit / 64

    def is_small(self, num_bytes: int) -> bool:
        """Whether a batch with this many bytes is small."""
        return num_bytes <= self._small

    def has_room(self, num_bytes: int) -> bool:
        """Whether several batches of so many bytes could run beside one another."""
        return num_bytes <= self._limits[False] / 4

    def fits(self, num_bytes: int) -> bool:
        """Whether a batch with this many bytes may begin now."""
        small = self.is_small(num_bytes)
        return not self._taken[small] or self._taken[small] + num_bytes <= self._limits[small]

    def add(self, num_bytes: int) -> None:
        """Add the bytes of a batch that begins, or subtract (negative) those of one that ends."""
        self._taken[self.is_small(abs(num_bytes))] += num_bytes


class BatchQueue:
    """Batches that wait for their turn. New batches and those that have begun alternate, each in order of arrival.

    A new batch waits while another of its computation has begun and has not computed for long, and others may join it
    meanwhile. Those of other computations begin at once, and nothing waits for a request that is too large for a batch
    with others. A new batch for which there is not enough memory waits until earlier ones have ended; only small ones
    may overtake it. One thread calls `take` and `end`; any thread may call `put`.

    Args:
        batch_rows: most rows of jobs that are put into one batch.
        max_memory: see `BatchMemory`.
    """

    def __init__(self, batch_rows: int, max_memory: float = math.inf) -> None:
        self.batch_rows = batch_rows
        self._batch_memory = BatchMemory(max_memory)
        self._lock = threading.RLock()  # acquiring it directly is faster than through the condition
        self._changed = threading.Condition(self._lock)
        self._new: deque[Batch] = deque()
        self._begun: deque[Batch] = deque()
        self._open: dict[Hashable, tuple[Batch, int]] = {}
        """By key of the computation: the new batches that other jobs may still join, with their rows."""
        self._begun_is_next = False
        self.closed = False

    def put(self, computation: Computation[Any, Any], job: Job) -> bool:
        """Add a job, to a batch of its computation if possible. Returns False if the queue is closed."""
        with self._lock:
            if self.closed:
                return False
            batch, rows = self._open.get(computation.key, (None, 0))
            fits = batch is not None and rows + job.rows <= self._most_rows(computation)
            if batch is None or not fits or (job.memory and not self._batch_memory.has_room(batch.memory + job.memory)):
                batch, rows = Batch(computation, []), 0
                self._new.append(batch)
            batch.jobs.append(job)
            if computation.key is not None:
                self._open[computation.key] = batch, rows + job.rows
            return True

    def wake(self) -> None:
        """Wake the thread in `take`. `put` does not, so that jobs that arrive together are taken together."""
        with self._lock:
            self._changed.notify()

    def take(self) -> Batch | None:
        """Wait for the next batch; None if the queue is closed."""
        with self._changed:
            while not self._new and not self._begun and not self.closed:
                self._changed.wait()
            if self.closed:
                return None
            new = None if self._begun and self._begun_is_next else self._next_new()
            self._begun_is_next = new is not None
            if new is None:
                return self._begun.popleft()
            batch = new
            self._new.remove(batch)
            batch.memory_held = batch.memory
            self._batch_memory.add(batch.memory_held)
            if self._open.get(batch.computation.key, (None, 0))[0] is batch:
                del self._open[batch.computation.key]
            return batch

    def _next_new(self) -> Batch | None:
        """The first new batch for which there is enough memory. If no batch has begun, the first always has enough."""
        large_waits = False
        held = {batch.computation.key for batch in self._begun if self._holds(batch)}
        for batch in self._new:
            memory = batch.memory
            if batch.is_dropped:
                return batch
            if batch.computation.key in held:
                continue
            if not memory:
                return batch
            small = self._batch_memory.is_small(memory)
            if (small or not large_waits) and self._batch_memory.fits(memory):
                return batch
            large_waits |= not small
        return None

    def _holds(self, batch: Batch) -> bool:
        """Whether no other of its computation begins beside it."""
        young = batch.compute_seconds < _BY_ITSELF_SECONDS
        return young and batch.computation.key is not None and batch.rows <= self._most_rows(batch.computation)

    def _most_rows(self, computation: Computation[Any, Any]) -> int:
        return self.batch_rows if computation.max_rows is None else computation.max_rows

    def end(self, batch: Batch) -> None:
        """End a batch that was taken."""
        with self._changed:
            self._batch_memory.add(-batch.memory_held)

    def put_back(self, batch: Batch) -> None:
        """Put back a batch that has begun, for its next chunk."""
        with self._changed:
            self._begun.append(batch)

    def put_halves(self, batch: Batch) -> None:
        """Put both halves of a batch's waiting jobs back, to be computed from the beginning before all others."""
        jobs = batch.waiting
        middle = len(jobs) // 2
        with self._changed:
            self._new.extendleft([Batch(batch.computation, jobs[middle:]), Batch(batch.computation, jobs[:middle])])

    def close(self) -> list[Batch]:
        """Close the queue; returns the remaining batches."""
        with self._changed:
            self.closed = True
            left = [*self._begun, *self._new]
            self._begun.clear()
            self._new.clear()
            self._changed.notify()
            return left
