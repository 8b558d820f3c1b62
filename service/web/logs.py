"""What log lines look like, and how they are written: one an event, on standard output."""

import asyncio
import atexit
import logging
import sys
import threading
from typing import Any, TextIO

import orjson
import structlog

from service.web.settings import Settings


class Output:
    """Writes what comes in one turn of the event loop at once: a system call a line would be a fifth of an encode.

    What comes from another thread is written at once, after what came before it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._waiting: list[str] = []
        self._lock = threading.Lock()
        atexit.register(self._write_waiting)

    def write(self, text: str) -> None:
        """Write this soon, or now where no event loop runs."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        with self._lock:
            first = not self._waiting
            self._waiting.append(text)
        if loop is None:
            self._write_waiting()
        elif first:
            loop.call_soon(self._write_waiting)

    def flush(self) -> None:
        """Nothing: `write` sees to it."""

    def _write_waiting(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
            if waiting:
                self._stream.write("".join(waiting))
                self._stream.flush()


def configure_logging(settings: Settings) -> None:
    """One line an event on standard output, from our own code and from the libraries alike."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(_dumps) if settings.log_format == "json" else structlog.dev.ConsoleRenderer()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    output: Any = Output(sys.stdout)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(output),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=level)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of what we answer with 422


def _dumps(event: Any, **named: Any) -> str:
    return orjson.dumps(event, default=named["default"]).decode()
