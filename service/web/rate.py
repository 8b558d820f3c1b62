"""How fast rows are computed."""

import math

_MEMORY_SECONDS = 10.0
_FIRST_GUESS = 10_000.0


class Rate:
    """Rows computed in a second of the device's time, whatever they were, over about its last ten seconds of work.

    >>> rate = Rate()
    >>> rate.add(rows=60_000, seconds=60)
    >>> round(rate.rows_per_second, -1)
    1000.0
    """

    def __init__(self) -> None:
        self._rows = _FIRST_GUESS  # until something has been measured
        self._seconds = 1.0

    @property
    def rows_per_second(self) -> float:
        """The present rate."""
        return self._rows / self._seconds

    def add(self, rows: int, seconds: float) -> None:
        """Count work done; idle time does not count."""
        kept = math.exp(-seconds / _MEMORY_SECONDS)
        self._rows = kept * self._rows + rows
        self._seconds = kept * self._seconds + seconds
