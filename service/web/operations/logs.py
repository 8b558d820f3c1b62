"""What log lines look like, and how they are written: one an event, on standard output, by a thread that may wait.

Nothing else ever waits for whoever reads the log: what cannot be written is dropped, counted, and the count is logged.
"""

import atexit
import logging
import os
import re
import select
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from itertools import accumulate
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TextIO

import orjson
import structlog
from prometheus_client import Counter

from service.printing import escaped
from service.web.operations.settings import Settings

_MAX_WAITING = 2**20
_REST_SECONDS = 0.01
_EXIT_SECONDS = 2.0
_OF_MANY_LINES = ("exception", "stack")
_UNSEEN = re.compile(r"[^ -~]")
_CONSOLE = structlog.dev.ConsoleRenderer()
_log = structlog.get_logger()


class Output:
    """Log lines on their way to a descriptor. `write` never waits and never fails.

    A thread writes what waits, in order: the first line at once, and what comes in the next hundredth of a second
    together, for a system call a line would be a fifth of an encode. The descriptor's flags stay as they are: other
    processes may share them.

    Args:
        descriptor: where to; None drops every line.
        describe_dropped: makes the line that tells how many were dropped, for when writing works again.
        max_waiting: characters that may wait; a line that finds more is dropped.
    """

    def __init__(
        self, descriptor: int | None, describe_dropped: Callable[[int], str], *, max_waiting: int = _MAX_WAITING
    ) -> None:
        self._descriptor = descriptor
        self._describe_dropped = describe_dropped
        self._max_waiting = max_waiting
        self._lock = threading.RLock()  # reentrant: what the garbage collector destroys in here may log
        self._waiting: list[str] = []
        self._characters = 0
        self._refused = 0  # since the last line that waits
        self._failed = 0  # since the last line that was written; only the thread's
        self._torn = False  # the last thing written is a part of a line
        self._dropped = 0
        self._counter: Counter | None = None
        self._idle = True
        self._wake: SimpleQueue[None] = SimpleQueue()  # its put is reentrant, too
        self._resting = True
        if descriptor is not None:
            threading.Thread(target=self._run, args=(descriptor,), name="log", daemon=True).start()

    def write(self, text: str) -> None:
        """Write one line soon, in order, or drop it."""
        with self._lock:
            full = self._waiting and self._characters + len(text) > self._max_waiting
            if full or self._descriptor is None:
                self._refused += 1
                self._count(1)
                return
            self._waiting.append(text)
            self._characters += len(text)
            if self._idle:
                self._idle = False
                self._wake.put(None)

    def flush(self) -> None:
        """Nothing: `write` sees to it."""

    def finish(self, seconds: float) -> None:
        """Wait until all lines are written, or for so long."""
        self._resting = False
        deadline = time.monotonic() + seconds
        while not self._idle and time.monotonic() < deadline:
            time.sleep(0.001)

    def count_dropped(self, counter: Counter) -> None:
        """Count dropped lines here, too, and those that were dropped before."""
        with self._lock:
            self._counter = counter
            counter.inc(self._dropped)

    def _count(self, lines: int) -> None:
        with self._lock:
            self._dropped += lines
            if self._counter is not None:
                self._counter.inc(lines)

    def _run(self, descriptor: int) -> None:
        while True:
            self._wake.get()
            while taken := self._take():
                self._write_lines(descriptor, *taken)
                if self._resting:
                    time.sleep(_REST_SECONDS)

    def _take(self) -> tuple[list[str], int] | None:
        """The lines that wait, and how many were dropped after them."""
        with self._lock:
            if not self._waiting:
                self._idle = True
                return None
            lines, self._waiting = self._waiting, []
            refused, self._refused = self._refused, 0
            self._characters = 0
            return lines, refused

    def _write_lines(self, descriptor: int, lines: list[str], refused: int) -> None:
        before = [self._failed] if self._failed else []
        after = [refused] if refused else []
        texts = [*map(self._describe_dropped, before), *lines, *map(self._describe_dropped, after)]
        data = [text.encode("utf-8", "backslashreplace") for text in texts]
        mend = b"\n" if self._torn else b""
        written = _write(descriptor, mend + b"".join(data)) - len(mend)
        if written < 0:
            whole, self._torn = 0, True
        else:
            ends = list(accumulate(map(len, data), initial=0))
            whole = bisect_right(ends, written) - 1
            self._torn = written > ends[whole]
        self._failed = sum([*before, *(1 for _ in lines), *after][whole:])
        self._count(len(lines) - min(max(whole - len(before), 0), len(lines)))


def _write(descriptor: int, data: bytes) -> int:
    """Write it all, however long that takes; returns how many bytes were written before it failed."""
    view = memoryview(data)
    written = 0
    while written < len(data):
        try:
            written += os.write(descriptor, view[written:])
        except BlockingIOError:  # whoever shares it wants it so
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()
        except OSError:
            break
    return written


def configure_logging(settings: Settings) -> Output:
    """One line an event on standard output, from our own code, from the libraries and from Python alike."""
    as_json = settings.log_format == "json"
    renderer = structlog.processors.JSONRenderer(_dumps) if as_json else _render_for_people

    def describe_dropped(lines: int) -> str:
        event = {"event": "log lines could not be written", "lines": lines}
        line: Any = renderer(None, "warning", _complete(None, "warning", event))
        return f"{line}\n"

    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    output = Output(_descriptor(sys.stdout), describe_dropped)
    atexit.register(output.finish, _EXIT_SECONDS)
    stream: Any = output
    lines = _Lines(output)
    structlog.configure(
        processors=[_complete, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_complete],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=level)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of what we answer with 422
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable
    return output


def open_standard_descriptors() -> None:
    """Open the null device for each of 0, 1 and 2 that is closed, before a file or a socket gets that number.

    Else what a library prints would go to a client, and libuv ends the process when it closes such a socket.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


def write_to_stderr(text: str) -> None:
    """Say on standard error why the process ends, if that can be written."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode("utf-8", "backslashreplace"))


def _descriptor(stream: TextIO | None) -> int | None:
    """Of a standard stream; Python has none where it found the descriptor closed."""
    return None if stream is None else stream.fileno()


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    _log.critical("uncaught exception", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_type is not SystemExit:
        thread = arguments.thread.name if arguments.thread else None
        found = (arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
        _log.critical("uncaught exception", thread=thread, exc_info=found)


def _log_unraisable(found: "sys.UnraisableHookArgs") -> None:
    _log.error(
        found.err_msg or "exception ignored",
        where=repr(found.object),
        exc_info=(found.exc_type, found.exc_value, found.exc_traceback),
    )


class _Lines:
    """What structlog gives a finished line to, whatever its level."""

    def __init__(self, output: Output) -> None:
        def write(line: str) -> None:
            output.write(f"{line}\n")

        self.debug = self.info = self.warning = self.error = self.exception = self.critical = write


def _complete(_: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add what every event has: the request it is of, its level, the time, and its exception in words.

    As structlog's own processors of these names do, in one call: every request has a line.
    """
    event = structlog.contextvars.merge_contextvars(_, method, event)
    event["level"] = "error" if method == "exception" else method
    event["timestamp"] = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return structlog.processors.format_exc_info(_, method, event) if "exc_info" in event else event


def _dumps(event: Any, **named: Any) -> str:
    """JSON in which every character can be seen; what cannot is escaped, which JSON's readers undo."""
    text = orjson.dumps(event, default=named["default"]).decode()
    return text if text.isprintable() else _UNSEEN.sub(_json_escape, text)


def _json_escape(found: "re.Match[str]") -> str:
    character = found[0]
    if character.isprintable():
        return character
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def _render_for_people(logger: Any, method: str, event: structlog.typing.EventDict) -> Any:
    """A line with colours of ours, and no other control characters: clients choose paths."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = escaped(value.rstrip("\n"), keep="\n\t" if key in _OF_MANY_LINES else "")
    return _CONSOLE(logger, method, event)
