"""Several computations at once, each on a thread of its own: its runs, and what NumPy does between them.

Where the runs of one computation are shared out, one thread computes in between. So a batch of images is cut in parts
that are computed side by side, and threads hardly wait for one another. Which thread computes changes no number.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from itertools import chain, islice
from typing import Generic, TypeVar

from service.engine.team import Note, Team

P = TypeVar("P")
Steps = Generator[P | None, None, None]
"""A computation in chunks, see chunks.py, that also yields results."""

_TURN = 0.001
"""Seconds for which helpers go on while nobody asks for the next chunk: others have their turn then."""


def side_by_side(team: Team, computations: Iterable[Steps[P]], at_once: int) -> Steps[P]:
    """Make so many computations at once, each with its share of the team's threads; yield what they yield, in no order.

    A chunk is one of the caller's; helpers go on with other computations meanwhile. The last one that is left has all
    threads for its runs.

    Raises:
        Whatever one of them does; the others are then closed.
    """
    waiting = iter(computations)
    own = next(waiting, None)
    others = [_Helped(one, team, at_once) for one in islice(waiting, at_once - 1)]
    try:
        while own is not None and others:
            for other in [*others]:
                found, ended = other.go_on()
                if found is not None:
                    _pause(others)
                    yield found
                if ended:
                    others.remove(other)
                    others += [_Helped(one, team, at_once) for one in islice(waiting, 1)]
            with team.shared(at_once):
                found, ended = _advance(own)
            if ended:
                own = next(waiting, None)
            _pause(others)
            yield found
            if own is None and others:
                found = others[0].stop()
                yield found
                own = others.pop(0).computation
        for one in waiting if own is None else chain([own], waiting):
            yield from one
    finally:
        for other in others:
            other.close()
        if own is not None:
            own.close()


def _pause(others: "Iterable[_Helped[P]]") -> None:
    """End their turns soon, unless the next chunk is asked for at once."""
    for other in others:
        other.until = time.perf_counter() + _TURN


def _advance(computation: Steps[P], until: Callable[[], float] = lambda: 0) -> tuple[P | None, bool]:
    """Go on with a computation by a chunk at least, until a time, a result or its end: the result, and if it ended."""
    for found in computation:
        if found is not None or time.perf_counter() >= until():
            return found, False
    return None, True


class _Helped(Generic[P]):
    """A computation that a helper makes while the caller makes another."""

    def __init__(self, computation: Steps[P], team: Team, at_once: int) -> None:
        self.computation = computation
        self._team, self._at_once = team, at_once
        self.until = 0.0
        self._turn: Future[tuple[P | None, bool]] | None = None
        self._notes = deque[Note]()

    def go_on(self) -> tuple[P | None, bool]:
        """Let it go on until it is paused: what it has found since it was asked last, and whether it has ended."""
        self.until = math.inf
        if self._turn is not None and not self._turn.done():
            self._read_notes()
            return None, False
        found, ended = (None, False) if self._turn is None else self._turn.result()
        self._read_notes()
        self._turn = None if ended else self._team.help(self._compute)
        return found, ended

    def stop(self) -> P | None:
        """Wait until nobody computes it: what it has found since it was asked last."""
        self.until = 0.0
        turn, self._turn = self._turn, None
        found = None if turn is None or turn.cancel() else turn.result()[0]
        self._read_notes()
        return found

    def close(self) -> None:
        """End it, however far it has come."""
        self.until = 0.0
        if self._turn is not None and not self._turn.cancel():
            self._turn.exception()  # waits
        self._read_notes()
        self.computation.close()

    def _read_notes(self) -> None:
        while self._notes:
            self._notes.popleft()()

    def _compute(self) -> tuple[P | None, bool]:
        with self._team.shared(self._at_once, self._notes):
            return _advance(self.computation, lambda: self.until)
