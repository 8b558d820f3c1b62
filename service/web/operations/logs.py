"""Format log lines, one for each event, and write them to standard output in a thread of their own.

Only that thread waits if the log is not read. Lines that cannot be written are dropped and counted, and the count is
logged.
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
from functools import lru_cache
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

    A thread writes the lines in order: the first at once, and those of the next hundredth of a second together, because
    a system call for each line would take a fifth of the time of an encode. The descriptor's flags are not changed,
    because other processes may share them.

    Args:
        descriptor: where lines are written; None drops every line.
        describe_dropped: makes the line with the number of dropped lines, for when writing works again.
        max_waiting: most characters that may wait to be written; further lines are dropped.
    """

    def __init__(
        self, descriptor: int | None, describe_dropped: Callable[[int], str], *, max_waiting: int = _MAX_WAITING
    ) -> None:
        self._descriptor = descriptor
        self._describe_dropped = describe_dropped
        self._max_waiting = max_waiting
        self._lock = threading.RLock()  # reentrant, because the garbage collector may run code that logs
        self._waiting: list[str] = []
        self._characters = 0
        self._refused = 0  # lines dropped since the last one that waits
        self._failed = 0  # lines not written since the last one that was; used only by the thread
        self._torn = False  # whether only a part of the last line was written
        self._dropped = 0
        self._counter: Counter | None = None
        self._idle = True
        self._wake: SimpleQueue[None] = SimpleQueue()  # put is reentrant, too
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
        """Does nothing, because `write` wakes the thread."""

    def finish(self, seconds: float) -> None:
        """Wait until all lines are written, at most this long."""
        self._resting = False
        deadline = time.monotonic() + seconds
        while not self._idle and time.monotonic() < deadline:
            time.sleep(0.001)

    def count_dropped(self, counter: Counter) -> None:
        """Also count dropped lines in this counter, including earlier ones."""
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
        """Take the lines that wait, and the number of lines dropped after them."""
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
    """Write all bytes, however long that takes; returns how many were written before an error."""
    view = memoryview(data)
    written = 0
    while written < len(data):
        try:
            written += os.write(descriptor, view[written:])
        except BlockingIOError:  # another process made the descriptor non-blocking
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()
        except OSError:
            break
    return written


def configure_logging(settings: Settings) -> Output:
    """Write one line for each event to standard output, from our code, libraries and Python alike."""
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
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns about requests that we answer with 422
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable
    return output


def open_standard_descriptors() -> None:
    """Open the null device for each of 0, 1 and 2 that is closed, before a file or a socket gets that number.

    Otherwise text that a library prints could be sent to a client, and libuv ends the process if it closes such a
    socket.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one


def write_to_stderr(text: str) -> None:
    """Write to standard error why the process ends, if possible."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode("utf-8", "backslashreplace"))


def _descriptor(stream: TextIO | None) -> int | None:
    """The descriptor of a standard stream, or None; Python has no stream if the descriptor was closed."""
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
    """The logger to which structlog gives finished lines of every level."""

    def __init__(self, output: Output) -> None:
        def write(line: str) -> None:
            output.write(f"{line}\n")

        self.debug = self.info = self.warning = self.error = self.exception = self.critical = write


def _complete(_: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add to an event its request, level, time, and exception as text.

    This does what structlog's processors of these names do, but in one call, because every request has a line.
    """
    event = structlog.contextvars.merge_contextvars(_, method, event)
    event["level"] = "error" if method == "exception" else method
    second, millionths = divmod(time.time_ns() // 1000, 10**6)
    event["timestamp"] = f"{_moment(second)}.{millionths:06}Z"
    return structlog.processors.format_exc_info(_, method, event) if "exc_info" in event else event


@lru_cache(maxsize=2)
def _moment(second: int) -> str:
    """A second since 1970, in UTC. Kept, because telling it takes a quarter of the time of a line.

    >>> _moment(1_000_000_000)
    '2001-09-09T01:46:40'
    """
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}"


def _dumps(event: Any, **named: Any) -> str:
    """JSON in which invisible characters are escaped; JSON readers restore them."""
    text = orjson.dumps(event, default=named["default"]).decode()
    return text if text.isprintable() else _UNSEEN.sub(_json_escape, text)


def _json_escape(found: "re.Match[str]") -> str:
    character = found[0]
    if character.isprintable():
        return character
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def _render_for_people(logger: Any, method: str, event: structlog.typing.EventDict) -> Any:
    """A line with our colours but no other control characters, because clients choose paths."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = escaped(value.rstrip("\n"), keep="\n\t" if key in _OF_MANY_LINES else "")
    return _CONSOLE(logger, method, event)
