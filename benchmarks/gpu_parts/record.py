"""What a case found: JSON lines and a table to read, each written as soon as it is known."""

import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

JSON_LINES, TABLES, LOG = "results.jsonl", "results.txt", "log.txt"


@dataclass(frozen=True)
class Options:
    """What all parts are told.

    Attributes:
        device: `cuda` or `cpu`, which the engine runs on.
        quick: small sizes and few repeats, to try the parts themselves.
        out: the folder of the results; what is there is kept, and added to.
        models: exported models (see models.py), or None to export them when they are needed.
    """

    device: str
    quick: bool
    out: Path
    models: Path | None = None

    def size(self, full: int, quick: int) -> int:
        """A size or a number of repeats."""
        return quick if self.quick else full


class Record:
    """The results of one case."""

    def __init__(self, options: Options, part: str, case: str) -> None:
        options.out.mkdir(parents=True, exist_ok=True)
        self._folder = options.out
        self._about = {"part": part, "case": case, "device": options.device}
        self._columns: tuple[str, ...] = ()
        self._started = time.perf_counter()
        self.failures = 0
        self._print(f"\n== {part}: {case} ({options.device}{', quick' if options.quick else ''})")

    def row(self, table: str, **values: Any) -> None:
        """One line of a table; a new head where its columns are not those of the line before."""
        self._write(table, values)
        columns = (table, *values)
        if columns != self._columns:
            self._columns = columns
            self._print(f"-- {table}\n" + "".join(map(_cell, values)))
        self._print("".join(_cell(value) for value in values.values()))

    def text(self, title: str, content: str) -> None:
        """A piece of text as it is."""
        self._write(title, {"text": content})
        self._columns = ()
        self._print(f"-- {title}\n{content.rstrip()}")

    def expect(self, what: str, holds: bool, **values: Any) -> None:
        """A check; one that does not hold is a failure, and is printed."""
        self._write("check", {"check": what, "holds": bool(holds), **values})
        if not holds:
            self.failures += 1
            self._columns = ()
            self._print(
                f"FAILED {what}: {', '.join(f'{name} {_short(value)[:300]}' for name, value in values.items())}"
            )

    def fail(self, what: str, reason: str) -> None:
        """Something could not be done."""
        self.failures += 1
        self._write("failure", {"check": what, "holds": False, "reason": reason})
        self._columns = ()
        self._print(f"FAILED {what}\n{reason.rstrip()}")

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Go on after an exception, which is recorded with its traceback."""
        try:
            yield
        except Exception:  # noqa: BLE001 — whatever it is, it is a result
            self.fail(what, traceback.format_exc())

    def finish(self) -> None:
        """The case's last line."""
        seconds = round(time.perf_counter() - self._started, 1)
        self._write("case", {"seconds": seconds, "failures": self.failures})
        self._print(f"{seconds} s, {self.failures} failures")

    def _write(self, table: str, values: dict[str, Any]) -> None:
        line = json.dumps({**self._about, "table": table, **values}, default=_plain)
        with (self._folder / JSON_LINES).open("a") as file:
            file.write(line + "\n")

    def _print(self, text: str) -> None:
        print(text, flush=True)
        with (self._folder / TABLES).open("a") as file:
            file.write(text + "\n")


Case = Callable[[Record, Options], None]


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """The quartiles of some measurements, the median first."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {"median": float(middle), "q1": float(low), "q3": float(high)}


def repeated(run: Callable[[], object], *, repeats: int, seconds: float, warm_up: int = 1) -> list[float]:
    """Seconds of each of some runs, fewer where they would take longer than so many seconds in all; at least one."""
    began = time.perf_counter()
    for _ in range(warm_up):
        run()
    taken: list[float] = []
    while len(taken) < repeats and (not taken or time.perf_counter() - began < seconds):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return taken


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def _cell(value: Any) -> str:
    text = _short(value)
    return f"{text:<26}" if isinstance(value, str) and len(text) > 11 else f"{text:<13}"


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
