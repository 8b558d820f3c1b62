"""The queue before the inference thread: what is computed together, and whose turn it is."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from service.web.rate import Meter

P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Kind(Generic[P, R]):
    """Requests that one computation may answer together: all those with an equal `key`, unless that is None."""

    key: Hashable | None
    compute: Callable[[Sequence[P]], Generator[None, None, Sequence[R]]]
    """What the requests carry, in chunks → their results, in the same order."""
    meter: Meter | None = None
    """Counts the rows that they really take; without it, those that they ask for."""


@dataclass(eq=False)
class Job:
    """One request: what it carries, and who waits for the answer."""

    payload: Any
    rows: int
    """Asked for."""
    expected: int
    """Really to be run, as far as is known. Belongs to the event loop."""
    deadline: float
    answer: "asyncio.Future[Any]"
    queued: float = field(default_factory=time.monotonic)
    rows_run: float = 0.0
    """Really run by now. Belongs to the inference thread, as does the next."""
    told: float = field(init=False)
    """The event loop has been told to expect so many."""
    expected_at_first: int = field(init=False)

    @property
    def rows_left(self) -> float:
        """Still to be run; one that has run more than was expected at first is expected to run as many again."""
        return self.rows_run if self.expected_at_first < self.rows_run else self.expected - self.rows_run

    def __post_init__(self) -> None:
        """What is expected is what the event loop has been told."""
        self.told = self.expected_at_first = self.expected


@dataclass(eq=False)
class Batch:
    """Jobs that are computed together; closed to others once it has begun."""

    kind: Kind[Any, Any]
    jobs: list[Job]
    chunks: Generator[None, None, Sequence[Any]] | None = None
    compute_seconds: float = 0.0

    @property
    def rows(self) -> int:
        """Rows that all its jobs ask for."""
        return sum(job.rows for job in self.jobs)

    def metered(self) -> int:
        """What its meter shows now; 0 where there is none."""
        return self.kind.meter.rows_run() if self.kind.meter else 0


class Turns:
    """Batches waiting for their turn. New ones and those that have begun take turns alternately, each first come first.

    One thread takes; any may put.

    Args:
        batch_rows: rows of jobs that become one batch.
    """

    def __init__(self, batch_rows: int) -> None:
        self.batch_rows = batch_rows
        self._changed = threading.Condition()
        self._new: deque[Batch] = deque()
        self._begun: deque[Batch] = deque()
        self._open: dict[Hashable, tuple[Batch, int]] = {}
        """The new batches that jobs of the same kind may still join, with their rows, by the kind's key."""
        self._turn_of_begun = False
        self.closed = False

    def put(self, kind: Kind[Any, Any], job: Job) -> bool:
        """Queue a job, in a batch of its kind where there is room. False: the queue is closed."""
        with self._changed:
            if self.closed:
                return False
            batch, rows = self._open.get(kind.key, (None, 0))
            if batch is None or rows + job.rows > self.batch_rows:
                batch, rows = Batch(kind, []), 0
                self._new.append(batch)
            batch.jobs.append(job)
            if kind.key is not None:
                self._open[kind.key] = batch, rows + job.rows
            return True

    def wake(self) -> None:
        """Let the thread that waits in `take` look. `put` does not: what arrives together should be taken together."""
        with self._changed:
            self._changed.notify()

    def take(self) -> Batch | None:
        """Wait for the batch whose turn it is; None once the queue is closed."""
        with self._changed:
            while not self._new and not self._begun and not self.closed:
                self._changed.wait()
            if self.closed:
                return None
            from_begun = self._begun and (self._turn_of_begun or not self._new)
            batch = (self._begun if from_begun else self._new).popleft()
            self._turn_of_begun = not from_begun
            if self._open.get(batch.kind.key, (None, 0))[0] is batch:
                del self._open[batch.kind.key]
            return batch

    def put_back(self, batch: Batch) -> None:
        """Queue a batch that has begun, for its next chunk."""
        with self._changed:
            self._begun.append(batch)

    def put_halves(self, batch: Batch) -> None:
        """Queue each half of a batch to be computed from its beginning, before all others."""
        middle = len(batch.jobs) // 2
        with self._changed:
            self._new.extendleft([Batch(batch.kind, batch.jobs[middle:]), Batch(batch.kind, batch.jobs[:middle])])

    def close(self) -> list[Batch]:
        """Take nothing more, neither in nor out; returns what was left."""
        with self._changed:
            self.closed = True
            left = [*self._begun, *self._new]
            self._begun.clear()
            self._new.clear()
            self._changed.notify()
            return left
