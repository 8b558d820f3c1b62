"""The threads that compute on a CPU: several runs of one computation at once, each on one thread.

The threads of ONNX Runtime itself share out every operator of a run, and wait for one another after each. Runs beside
one another wait once. Which thread makes a run changes no number.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from numpy.typing import NDArray
from onnxruntime import OrtValue

from service.engine.chunks import Chunks

Inputs = Mapping[str, "NDArray[Any] | OrtValue"]
Outputs = dict[str, NDArray[Any]]
Note = Callable[[], object]
P = TypeVar("P")
R = TypeVar("R")


class Team:
    """The thread that calls, and others that help it; they start when they are first needed.

    Any thread may call, also while another does: the helpers then take turns.

    Args:
        size: runs that are made at once, at least 1.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._helpers = ThreadPoolExecutor(size - 1, "inference-helper") if size > 1 else None
        self._thread = threading.local()

    @property
    def size(self) -> int:
        """Runs that are made at once for the thread that asks."""
        return max(1, self._size // getattr(self._thread, "sharing", 1))

    def each(
        self,
        run: Callable[[Inputs], Outputs],
        pieces: Iterable[P],
        inputs: Callable[[P], Inputs],
        keep: Callable[[P, Outputs], None],
    ) -> Chunks[None]:
        """Run on each of the pieces, `size` of them in a chunk; `inputs` and `keep` are called by the calling thread.

        Raises:
            Whatever `run` does; those of the other runs of the chunk that have begun have then ended too.
        """
        left = iter(pieces)
        while some := [*islice(left, self.size)]:
            runs = [partial(run, inputs(piece)) for piece in some]
            for piece, outputs in zip(some, self._at_once(runs), strict=True):
                keep(piece, outputs)
            yield

    @contextmanager
    def shared(self, by: int, notes: "deque[Note] | None" = None) -> Iterator[None]:
        """What the calling thread computes in here, it computes with its share of the threads: one of so many.

        With `notes`, it does so for another thread, which is to do what `note` was given.
        """
        self._thread.sharing, self._thread.notes = by, notes
        try:
            yield
        finally:
            self._thread.sharing, self._thread.notes = 1, None

    def note(self, note: Note) -> None:
        """Call this now, or where a helper computes, when the thread that it helps asks how far it has come."""
        notes: deque[Note] | None = getattr(self._thread, "notes", None)
        if notes is None:
            note()
        else:
            notes.append(note)

    def help(self, task: Callable[[], R]) -> "Future[R]":
        """Have a helper do a task, as soon as one has time for it.

        Raises:
            RuntimeError: the team has one thread.
        """
        if self._helpers is None:
            raise RuntimeError("a team of one thread has no helpers")
        return self._helpers.submit(_done, [task])

    def _at_once(self, tasks: Sequence[Callable[[], R]]) -> list[R]:
        """The caller does the first task, and then those that no helper has begun: these may have no core of theirs."""
        waiting = [[task] for task in tasks[1:]]
        futures: list[Future[R]] = []
        if self._helpers is not None:
            futures = [self._helpers.submit(_done, one) for one in waiting]
        own: dict[int, R] = {}
        try:
            own[0] = tasks[0]()
            for index in range(len(futures), 0, -1):
                if futures[index - 1].cancel():
                    own[index] = _done(waiting[index - 1])
        finally:
            for future, one in zip(futures, waiting, strict=True):
                if future.cancel():
                    one.clear()
                else:
                    future.exception()  # waits
        return [own[index] if index in own else futures[index - 1].result() for index in range(len(tasks))]


def _done(waiting: list[Callable[[], R]]) -> R:
    """What the one task gives. Taken out, so that a helper's thread, which keeps its argument, keeps no session."""
    return waiting.pop()()
