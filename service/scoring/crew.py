"""Who scores shards: worker processes on this machine, here, or a cluster's, in cluster.py."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from queue import Queue
from typing import Any, Protocol

from service.cores import usable_cores
from service.scoring.supervisor import ClosedError, Part, Supervisor

_PATIENCE_SECONDS = 10.0

Shard = tuple[int, Mapping[str, Any]]
"""A part's number, and the shard as worker.py takes it."""


class Tell(Protocol):
    """What runs shards tells of them."""

    def scored(self, worker: int, images: int) -> None:
        """So many images of the shard that a worker has are scored."""

    def done(self, worker: int, number: int, part: Part) -> None:
        """A part is there."""


class Crew(Protocol):
    """Scores shards, several at a time; it is used once."""

    def run(self, start: Mapping[str, Any], shards: Iterator[Shard], tell: Tell) -> None:
        """Score all shards, in any order; `start` is the first message to each worker process.

        Raises:
            ScoringError: a shard cannot be scored. KeyboardInterrupt: Ctrl-C. All processes have then been ended.
        """


class Processes:
    """Worker processes on this machine.

    Args:
        num_workers: at most so many; by default one for each core.
    """

    def __init__(self, num_workers: int | None = None) -> None:
        self._num_workers = num_workers or usable_cores()
        self.supervisors: Sequence[Supervisor] = ()
        """One for each process, while they run."""

    def run(self, start: Mapping[str, Any], shards: Iterator[Shard], tell: Tell) -> None:
        """See `Crew`."""
        first = [*islice(shards, self._num_workers)]
        self.supervisors = [Supervisor(start) for _ in first]
        events: Queue[tuple[int, Any]] = Queue()
        todo: list[Queue[Shard | None]] = [Queue() for _ in first]
        threads = [
            threading.Thread(target=_work, args=(index, self.supervisors[index], todo[index], events), daemon=True)
            for index in range(len(first))
        ]
        for thread, queue, shard in zip(threads, todo, first, strict=True):
            queue.put(shard)
            thread.start()
        working = len(first)
        try:
            while working:
                worker, event = events.get()
                if isinstance(event, BaseException):
                    raise event
                if isinstance(event, int):
                    tell.scored(worker, event)
                    continue
                tell.done(worker, *event)
                following = next(shards, None)
                todo[worker].put(following)
                working -= following is None
        finally:
            for supervisor, queue in zip(self.supervisors, todo, strict=True):
                supervisor.close()
                queue.put(None)
            for thread in threads:
                thread.join(_PATIENCE_SECONDS)


def _work(worker: int, supervisor: Supervisor, todo: "Queue[Shard | None]", events: "Queue[tuple[int, Any]]") -> None:
    """Score shards until there is None; the thread of one process, which ends with it."""
    try:
        while (shard := todo.get()) is not None:
            number, message = shard
            events.put((worker, (number, supervisor.score(message, lambda images: events.put((worker, images))))))
    except ClosedError:
        pass
    except BaseException as error:  # noqa: BLE001 (raised again by the main thread)
        events.put((worker, error))
    finally:
        supervisor.end()
