"""The queue before the inference thread: what is computed together, and in which order."""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from service.web.memory_budget import Share
from service.web.rate import Meter

P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Computation(Generic[P, R]):
    """Requests that one computation may answer together: all those with an equal `key`, unless that is None."""

    key: Hashable | None
    compute: Callable[[Sequence[P]], Generator[None, None, Sequence[R]]]
    """What the requests carry, in chunks → their results, in the same order."""
    meter: Meter | None = None
    """Counts the rows that they really take; without it, those that they ask for."""


def alone(chunks: Generator[None, None, R], meter: Meter | None = None) -> Computation[None, R]:
    """One computation by itself, which nothing joins."""

    def compute(_: Sequence[None]) -> Generator[None, None, Sequence[R]]:
        return [(yield from chunks)]

    return Computation(None, compute, meter)


@dataclass(eq=False)
class Job:
    """One request: what it carries, and who waits for the answer."""

    payload: Any
    rows: int
    """Asked for."""
    expected: int
    """Really to be run, as far as is known. Belongs to the event loop, as does the next."""
    room: int
    """Of that, what counts against the bound on all rows."""
    deadline: float
    answer: "asyncio.Future[Any]"
    memory: int = 0
    """Bytes that computing it may take from its first chunk to its last, beside what it carries and what it gives."""
    share: Share | None = None
    """Lent to it until it is settled: what it carries is held that long, whoever still waits."""
    queued: float = field(default_factory=time.monotonic)
    rows_run: float = 0.0
    """Really run by now. Belongs to the inference thread, as does the next."""
    reported: float = field(init=False)
    """The event loop has been told to expect so many."""
    expected_at_first: int = field(init=False)

    @property
    def rows_left(self) -> float:
        """Still to be run; one that has run more than was expected at first is expected to run as many again."""
        return self.rows_run if self.expected_at_first < self.rows_run else self.expected - self.rows_run

    def __post_init__(self) -> None:
        """What is expected is what the event loop has been told."""
        self.reported = self.expected_at_first = self.expected


@dataclass(eq=False)
class Batch:
    """Jobs that are computed together; closed to others once it has begun."""

    computation: Computation[Any, Any]
    jobs: list[Job]
    chunks: Generator[None, None, Sequence[Any]] | None = None
    compute_seconds: float = 0.0
    memory_held: int = 0
    """Bytes that are kept for it while it goes on."""

    @property
    def rows(self) -> int:
        """Rows that all its jobs ask for."""
        return sum(job.rows for job in self.jobs)

    @property
    def memory(self) -> int:
        """Bytes that it may take once it has begun."""
        return sum(job.memory for job in self.jobs)

    @property
    def is_dropped(self) -> bool:
        """Whether nobody waits for it any more."""
        return all(job.answer.done() for job in self.jobs)

    def taken(self) -> dict[str, Any]:
        """What it asked for and what it took, as `Expectation` wants it."""
        return {"asked": self.rows, "run": sum(job.rows_run for job in self.jobs), "seconds": self.compute_seconds}

    def metered(self) -> int:
        """What its meter shows now; 0 where there is none."""
        return self.computation.meter.rows_run() if self.computation.meter else 0


class BatchMemory:
    """The memory of batches that have begun.

    Small ones have an eighth as much again for themselves, so that they need not wait for large ones; a large one that
    needs more than there is begins when it is the only one.

    Args:
        limit: bytes that large batches may take together.

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
        """Whether a batch that takes so much is a small one."""
        return num_bytes <= self._small

    def fits(self, num_bytes: int) -> bool:
        """Whether a batch that takes so much may begin now."""
        small = self.is_small(num_bytes)
        return not self._taken[small] or self._taken[small] + num_bytes <= self._limits[small]

    def add(self, num_bytes: int) -> None:
        """A batch begins, or, where it is less than nothing, ends."""
        self._taken[self.is_small(abs(num_bytes))] += num_bytes


class BatchQueue:
    """Batches waiting for their turn. New ones and those that have begun take turns alternately, each first come first.

    A new one that has no room waits until those before it have ended, and only small ones pass it. One thread takes and
    ends; any may put.

    Args:
        batch_rows: rows of jobs that become one batch.
        max_memory: see `BatchMemory`.
    """

    def __init__(self, batch_rows: int, max_memory: float = math.inf) -> None:
        self.batch_rows = batch_rows
        self._batch_memory = BatchMemory(max_memory)
        self._lock = threading.RLock()  # taken by itself where nothing is notified: a condition's way to it is longer
        self._changed = threading.Condition(self._lock)
        self._new: deque[Batch] = deque()
        self._begun: deque[Batch] = deque()
        self._open: dict[Hashable, tuple[Batch, int]] = {}
        """The new batches that jobs of the same computation may still join, with their rows, by its key."""
        self._begun_is_next = False
        self.closed = False

    def put(self, computation: Computation[Any, Any], job: Job) -> bool:
        """Queue a job, in a batch of its computation where there is room. False: the queue is closed."""
        with self._lock:
            if self.closed:
                return False
            batch, rows = self._open.get(computation.key, (None, 0))
            if batch is None or rows + job.rows > self.batch_rows:
                batch, rows = Batch(computation, []), 0
                self._new.append(batch)
            batch.jobs.append(job)
            if computation.key is not None:
                self._open[computation.key] = batch, rows + job.rows
            return True

    def wake(self) -> None:
        """Let the thread that waits in `take` look. `put` does not: what arrives together should be taken together."""
        with self._lock:
            self._changed.notify()

    def take(self) -> Batch | None:
        """Wait for the batch whose turn it is; None once the queue is closed."""
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
        """The first for which there is room. Where no batch has begun there is one, if any is new."""
        large_waits = False
        for batch in self._new:
            memory = batch.memory
            if batch.is_dropped or not memory:
                return batch
            small = self._batch_memory.is_small(memory)
            if (small or not large_waits) and self._batch_memory.fits(memory):
                return batch
            large_waits |= not small
        return None

    def end(self, batch: Batch) -> None:
        """A batch that was taken will not go on."""
        with self._changed:
            self._batch_memory.add(-batch.memory_held)

    def put_back(self, batch: Batch) -> None:
        """Queue a batch that has begun, for its next chunk."""
        with self._changed:
            self._begun.append(batch)

    def put_halves(self, batch: Batch) -> None:
        """Queue each half of a batch to be computed from its beginning, before all others."""
        middle = len(batch.jobs) // 2
        with self._changed:
            self._new.extendleft(
                [Batch(batch.computation, batch.jobs[middle:]), Batch(batch.computation, batch.jobs[:middle])]
            )

    def close(self) -> list[Batch]:
        """Take nothing more, neither in nor out; returns what was left."""
        with self._changed:
            self.closed = True
            left = [*self._begun, *self._new]
            self._begun.clear()
            self._new.clear()
            self._changed.notify()
            return left
