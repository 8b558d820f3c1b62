"""The queue of jobs for the worker processes that read images: their order, and separate places for cheap jobs."""

import asyncio
import heapq
import itertools
from dataclasses import dataclass, field

from service.web.decoding.decoder_process import Decoder
from service.web.decoding.interface import Prepared, Read

QUICK_COST = 2**22
"""The highest cost of a cheap job: some tens of milliseconds."""
_WAIT_FOR_COST = 10.0


@dataclass(eq=False)
class DecodingJob:
    """Images to be read, and the answer that waits for them."""

    prepared: Prepared
    queued: float
    answer: "asyncio.Future[Read]"
    seconds: float
    """Seconds that it should take."""
    is_quick: bool
    is_waiting: bool = False
    decoder: Decoder | None = None
    """The worker that reads it, since `started`; None while it waits."""
    started: float = 0.0
    overran: bool = False
    lost_once: bool = False
    timers: list[asyncio.TimerHandle] = field(default_factory=list)

    @property
    def position(self) -> float:
        """Jobs with lower values come first: one second of a job's cost counts like ten seconds less of waiting."""
        return self.queued + _WAIT_FOR_COST * self.seconds

    def stop_timers(self) -> None:
        """Note that it is not being read any more."""
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()


_Entry = tuple[float, int, DecodingJob]


class JobQueue:
    """Two queues, of cheap jobs and of the others."""

    def __init__(self) -> None:
        self._sequence = itertools.count()
        self._rows: dict[bool, list[_Entry]] = {True: [], False: []}

    def put(self, job: DecodingJob) -> None:
        """Add a job."""
        job.is_waiting = True
        heapq.heappush(self._rows[job.is_quick], (job.position, next(self._sequence), job))

    def take(self, *, quick_only: bool) -> DecodingJob | None:
        """Take the next job; None if there is none."""
        rows = [row for row in (self._rows[True], *(() if quick_only else (self._rows[False],))) if row]
        if not rows:
            return None
        job: DecodingJob = heapq.heappop(min(rows, key=_first))[2]
        job.is_waiting = False
        return job

    def remove(self, job: DecodingJob) -> None:
        """Remove a job that nobody waits for any more."""
        if job.is_waiting:
            job.is_waiting = False
            row = self._rows[job.is_quick]
            row[:] = [item for item in row if item[2] is not job]
            heapq.heapify(row)

    def ahead(self, job: DecodingJob) -> list[DecodingJob]:
        """Jobs that would come before a job that is not in the queue yet."""
        return [other for position, _, other in self._rows[job.is_quick] if position <= job.position]


def _first(row: list[_Entry]) -> tuple[float, int]:
    return row[0][:2]
