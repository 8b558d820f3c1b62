"""The queue before the inference thread: what is computed together, and whose turn it is."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Kind(Generic[P, R]):
    """Requests that one computation may answer together: all those with an equal `key`, unless that is None."""

    key: Hashable | None
    compute: Callable[[Sequence[P]], Generator[None, None, Sequence[R]]]
    """What the requests carry, in chunks → their results, in the same order."""


@dataclass(eq=False)
class Job:
    """One request: what it carries, and who waits for the answer."""

    payload: Any
    rows: int
    deadline: float
    answer: "asyncio.Future[Any]"
    queued: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class Batch:
    """Jobs that are computed together; closed to others once it has begun."""

    kind: Kind[Any, Any]
    jobs: list[Job]
    chunks: Generator[None, None, Sequence[Any]] | None = None
    compute_seconds: float = 0.0

    @property
    def rows(self) -> int:
        """Rows of all its jobs."""
        return sum(job.rows for job in self.jobs)


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
