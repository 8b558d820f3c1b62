"""Measure how many rows are computed per second, and how many rows requests really take.

A request computes more than it asks for (images × samples): finding an image's posterior mode takes decoder rows too,
few for a familiar image and many times the samples for a strange one, and so does annealing. So rows are counted as
they are run, and a new request is expected to take as many as recent requests of its kind.
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass

_MEMORY_SECONDS = 10.0
_FIRST_GUESS = 10_000.0
_MAX_KEYS = 256


class Rate:
    """Rows computed per second of the device's time, averaged over about its last ten seconds of work.

    >>> rate = Rate()
    >>> rate.add(rows=60_000, seconds=60)
    >>> round(rate.rows_per_second, -1)
    1000.0

    Args:
        first_guess: rows per second before anything has been measured.
    """

    def __init__(self, first_guess: float = _FIRST_GUESS) -> None:
        self._rows = first_guess
        self._seconds = 1.0

    @property
    def rows_per_second(self) -> float:
        """The current rate."""
        return self._rows / self._seconds

    def add(self, rows: int, seconds: float) -> None:
        """Add work that was done; idle time does not count."""
        kept = math.exp(-seconds / _MEMORY_SECONDS)
        self._rows = kept * self._rows + rows
        self._seconds = kept * self._seconds + seconds


@dataclass(frozen=True)
class Meter:
    """Counts the rows that requests really take."""

    key: Hashable
    """Equal for requests that are expected to take the same number of rows for each row they ask for."""
    rows_run: Callable[[], int]
    """Rows run so far, for all requests. Called on the inference thread, before and after each chunk."""


class Expectation:
    """Rows that requests really take per row that they ask for, by kind, over about ten seconds of work of each kind.

    >>> expectation = Expectation()
    >>> expectation.rows("strange", asked=10)
    10
    >>> expectation.add("strange", asked=400, run=8000, seconds=1)
    >>> expectation.rows("strange", asked=10)
    200
    """

    def __init__(self) -> None:
        self._sums: dict[Hashable, tuple[float, float]] = {}  # rows asked for, rows run

    def rows(self, key: Hashable, asked: int) -> int:
        """The rows that a request is expected to run if it asks for `asked`."""
        sums = self._sums.get(key)
        return asked if sums is None else math.ceil(asked * sums[1] / sums[0])

    def add(self, key: Hashable, *, asked: int, run: float, seconds: float) -> None:
        """Add a request that was computed."""
        kept = math.exp(-seconds / _MEMORY_SECONDS)
        asked_before, run_before = self._sums.pop(key, (0.0, 0.0))
        self._sums[key] = kept * asked_before + max(1, asked), kept * run_before + run
        if len(self._sums) > _MAX_KEYS:
            del self._sums[next(iter(self._sums))]

    def add_unfinished(self, key: Hashable, *, asked: int, run: float, seconds: float) -> None:
        """Add a request that was dropped; it would have taken at least this many rows."""
        if run > self.rows(key, asked):
            self.add(key, asked=asked, run=run, seconds=seconds)
