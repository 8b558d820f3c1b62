"""Which requests are let into the queue: a limit on the rows that all of them are expected to run, and on how many."""

import math
import time
from typing import Any

from service.web.outcome import QueueFullError
from service.web.rate import Expectation, Rate
from service.web.serving.batch_queue import Computation, Job


class Admission:
    """The requests waiting or running, and what computing has taken so far. Used on the event loop.

    Args:
        max_rows: most rows of all requests; if there is no other, a request is always let in.
        max_rows_each: most rows that one request counts for, unless it asks for more, so that it cannot block others.
        max_jobs: most requests.
    """

    def __init__(self, max_rows: int, max_rows_each: int, max_jobs: int) -> None:
        self._max_rows = max_rows
        self._max_rows_each = max_rows_each
        self._max_jobs = max_jobs
        self._jobs: set[Job] = set()
        self.queued_rows = 0
        """Expected rows of all requests."""
        self.rate, self.expectation = Rate(), Expectation()  # the inference thread adds to them

    def __len__(self) -> int:
        return len(self._jobs)

    def expected(self, computation: Computation[Any, Any], rows: int) -> int:
        """The rows that a request is expected to run if it asks for so many."""
        return rows if computation.meter is None else self.expectation.rows(computation.meter.key, rows)

    def room(self, expected: int, asked: int) -> int:
        """The part of a request's expected rows that counts."""
        return min(expected, max(asked, self._max_rows_each))

    def check(self, rows: int) -> None:
        """Refuse a request for which there is no room.

        Raises:
            QueueFullError: a request of so many rows does not fit into the queue.
        """
        if self._jobs and (self.queued_rows + rows > self._max_rows or len(self._jobs) >= self._max_jobs):
            seconds = self.retry_seconds()
            waiting = f"{len(self._jobs)} requests with {self.queued_rows} rows are waiting or running"
            raise QueueFullError(f"{waiting}; try again in {seconds} s", seconds)

    def add(self, job: Job) -> None:
        """Count a request that was let in."""
        self._jobs.add(job)
        self.queued_rows += job.room

    def expect(self, job: Job, rows: int) -> None:
        """Update the expected rows of a job that runs more than expected."""
        if job in self._jobs:
            room = self.room(rows, job.rows)
            self.queued_rows += room - job.room
            job.expected, job.room = rows, room

    def remove(self, job: Job) -> None:
        """No longer count a request: it has its outcome, or nobody waits for it."""
        self._jobs.remove(job)
        self.queued_rows -= job.room

    def retry_seconds(self) -> int:
        """Seconds in which everything that is queued should be done; at least 1."""
        return max(1, math.ceil(self.seconds_left()))

    def seconds_left(self) -> float:
        """Seconds until everything queued should be done, by rows still to be run or the last deadline."""
        jobs = list(self._jobs)  # a copy in one step, because this may be called on another thread
        rows = sum(job.rows_left for job in jobs)
        deadline = max((job.deadline for job in jobs), default=0) - time.monotonic()
        return min(rows / self.rate.rows_per_second, deadline)
