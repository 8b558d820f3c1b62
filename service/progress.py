"""How far something long has come: a line that moves on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from service.printing import unescaped

_SECONDS_AT_LEAST = 10.0  # between two lines of a log, and before the first
_SECONDS_AT_MOST = 30.0
_SHARE = 0.1  # of the whole, after which a line is worth while
_SECONDS_ON_TERMINAL = 0.2


class Progress:
    """Writes to standard error how much is done and how long the rest will take, if that goes on as it went so far.

    What takes less than ten seconds is not mentioned in a log, which then has a line at each tenth of the whole, but at
    least every 30 seconds and at most every 10; each is flushed.

    >>> now = 0.0
    >>> with Progress("scoring", 40, stream=sys.stdout, clock=lambda: now) as progress:
    ...     for now in (5.0, 25.0, 26.0):
    ...         progress.advance(10)
    scoring: 20 of 40 images (50 %), 25 s left
    scoring: 30 of 40 images in 26 s

    Args:
        what: is done, a word or two.
        total: how many there are.
        unit: of what.
        before: how many of them were done before this began, and so in no time.
        rate: whether to say how many are done in a second.
        shown: whether to write at all.
        stream: to write to, in place of standard error.
        clock: seconds from any beginning.
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        unit: str = "images",
        before: int = 0,
        rate: bool = False,
        shown: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._total, self._unit, self._shown, self._clock = what, total, unit, shown, clock
        self._stream = stream or unescaped(sys.stderr)
        self._is_terminal = self._stream.isatty()
        self._before, self._rate = before, rate
        self._done = self._written_done = before
        self._started = self._written_at = clock()
        self._written = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._written:
            self._write(f"in {duration(self._clock() - self._started)}", "\n")

    def advance(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        self.tick()

    def tick(self) -> None:
        """Something has happened, but nothing more is done: to be called often, so that there is a line in time."""
        if not self._shown:
            return
        now = self._clock()
        waited = now - self._written_at
        if self._is_terminal:
            due = waited >= _SECONDS_ON_TERMINAL
        else:
            much = self._done - self._written_done >= _SHARE * self._total
            due = waited >= _SECONDS_AT_MOST or (much and waited >= _SECONDS_AT_LEAST)
        if due:
            self._written, self._written_at, self._written_done = True, now, self._done
            elapsed = now - self._started
            done = self._done - self._before
            left = f"{duration(elapsed * (self._total - self._done) / done)} left" if done > 0 else ""
            share = f"({self._done / max(self._total, 1):.0%}), ".replace("%", " %")
            speed = f"{_rounded(done / elapsed)} {self._unit} a second, " if self._rate and done > 0 and elapsed else ""
            self._write(share + speed + (left or f"{duration(elapsed)} so far"), "" if self._is_terminal else "\n")

    def _write(self, when: str, end: str) -> None:
        begin = "\r\x1b[K" if self._is_terminal else ""
        self._stream.write(f"{begin}{self._what}: {self._done} of {self._total} {self._unit} {when}{end}")
        self._stream.flush()


def _rounded(number: float) -> str:
    """Two digits, or all that stand before the point.

    >>> _rounded(0.0523), _rounded(1234.5)
    ('0.052', '1234')
    """
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def duration(seconds: float) -> str:
    """Seconds as people say it.

    >>> duration(9.6), duration(200), duration(7500)
    ('10 s', '3 min 20 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
