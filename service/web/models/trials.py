"""Try versions out in child processes, which are killed if they take too long; see service/engine/trial.py."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from typing import Any, NamedTuple

import structlog

from model_store import InvalidArtifactError, ModelNotFoundError
from service.cores import usable_cores
from service.engine.trial import Request
from service.web.models.refusals import Key, Stamp
from service.web.models.trial_process import PROGRAM, EndedError, TrialProcess
from service.web.operations.settings import Settings
from service.web.problems import NotReadyError

_log = structlog.get_logger()
_IDLE_SECONDS = 1.0
"""An idle child process is ended after so many seconds."""
_MOST_THREADS = 4
_RENEWALS, _ASKED = 2, 3
"""Most trials at a time, of new versions in the store, and of versions that requests ask for by number."""
_REMEMBERED = 1000


class Passed(NamedTuple):
    """A version that passed: the SHA-256 of its manifest, and the size of each graph in bytes by file name."""

    digest: str
    graph_bytes: Mapping[str, int]


class Trials:
    """Tries versions out, a few at a time. A child process is used again if its version passed.

    Trials for requests and for reloads have separate places. A version that hangs occupies one place until its time is
    over, and other trials go on. A version that has passed is not tried again while its files stay the same.

    Args:
        program: the program of the child processes; tests use another.
    """

    def __init__(self, settings: Settings, program: Sequence[str] = PROGRAM) -> None:
        self._settings = settings
        self._program = program
        self._renewals, self._asked = asyncio.Semaphore(_RENEWALS), asyncio.Semaphore(_ASKED)
        self._passed: dict[Key, tuple[Stamp, Passed]] = {}  # in the order in which they passed
        # A child ends with the thread that started it, so these threads live as long as the service.
        self._threads = ThreadPoolExecutor(_RENEWALS + _ASKED + 1, thread_name_prefix="trial")
        self._lock = threading.Lock()  # protects the attributes below
        self._children: set[TrialProcess] = set()
        self._idle: list[TrialProcess] = []
        self._closed = False
        self._dismissal: asyncio.TimerHandle | None = None

    def warm(self) -> None:
        """Start a child process in the background for a trial that will come soon."""
        self._threads.submit(self._start_idle)

    async def passed(self, key: Key, stamp: Stamp, *, asked: bool) -> Passed:
        """Try a version out, unless it has passed already; `asked`: whether for a request.

        Raises:
            InvalidArtifactError: it is refused, took too long, or ended the child process.
            ModelNotFoundError: the store no longer has it.
            NotReadyError: no child process can be started, or the service is shutting down.
        """
        known = self._passed.get(key)
        if known is not None and known[0] == stamp:
            return known[1]
        async with self._asked if asked else self._renewals:
            try:
                passed = await asyncio.get_running_loop().run_in_executor(self._threads, self._try_out, key)
            finally:
                self._dismiss_later()
        self._passed.pop(key, None)
        self._passed[key] = stamp, passed
        if len(self._passed) > _REMEMBERED:
            del self._passed[next(iter(self._passed))]
        return passed

    def close(self) -> None:
        """Kill all child processes, which ends all trials."""
        with self._lock:
            self._closed = True
            children = list(self._children)
        for child in children:
            child.kill()  # the thread that waits for its report then releases it
        if self._dismissal is not None:
            self._dismissal.cancel()
        self._dismiss()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # ── In the event loop

    def _dismiss_later(self) -> None:
        if self._dismissal is not None:
            self._dismissal.cancel()
        self._dismissal = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._threads.submit, self._dismiss)

    # ── In one of the threads

    def _dismiss(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            self._end(child)

    def _try_out(self, key: Key) -> Passed:
        settings = self._settings
        folder = settings.model_store / key[0] / str(key[1])
        request = Request(
            root=str(settings.model_store.absolute()),
            name=key[0],
            version=key[1],
            seconds=settings.trial_seconds,
            memory_bytes=settings.trial_memory_bytes,
            num_threads=min(settings.num_threads or usable_cores(), _MOST_THREADS),
            chunk_rows=settings.chunk_rows,
            max_steps=settings.max_steps,
            max_num_samples=settings.max_num_samples,
        )
        try:
            report = self._report_or_again(request)
        except EndedError as error:
            if self._closed:
                raise NotReadyError("the service is shutting down") from None
            raise InvalidArtifactError(folder / error.file, error.problem) from None
        if "missing" in report:
            raise ModelNotFoundError(str(report["missing"]))
        if "refused" in report:
            raise InvalidArtifactError(folder / str(report.get("file", "")), str(report["refused"]))
        return Passed(report["passed"], report["graph_bytes"])

    def _report_or_again(self, request: Request) -> dict[str, Any]:
        """Retry once if something else killed the child process: other programs may have used up the memory.

        Only once, because the version itself may be the one that uses the memory.
        """
        try:
            return self.report(request)
        except EndedError as error:
            if not error.killed_by_others:
                raise
            _log.warning("a trial was killed and begins again", model=request.name, version=request.version)
            return self.report(request)

    def report(self, request: Request) -> dict[str, Any]:
        """Have a child process try a version out.

        Raises:
            EndedError: it did not report in time, or has ended.
            NotReadyError: no child process can be started.
        """
        child = self._take()
        passed = False
        try:
            report = child.ask(asdict(request), request.seconds)
            passed = "passed" in report
        finally:
            self._let_go(child, again=passed)
        return report

    def _let_go(self, child: TrialProcess, *, again: bool) -> None:
        """Keep a child process for another version, or end it if its version was refused and may have affected it."""
        with self._lock:
            kept = again and not self._closed
            if kept:
                self._idle.append(child)
        if not kept:
            self._end(child)

    def _take(self) -> TrialProcess:
        """An idle child process, or a new one, that is ready."""
        while True:
            child = self._idle_or_new()
            try:
                child.wait_until_ready()
            except EndedError as error:
                self._end(child)
                if child.was_ready:  # it has ended since: take another
                    continue
                raise NotReadyError(f"the process that tries versions out does not start: {error.problem}") from None
            return child

    def _idle_or_new(self) -> TrialProcess:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            return self._start()

    def _start_idle(self) -> None:
        with self._lock, suppress(NotReadyError):  # the next trial reports it
            self._idle.append(self._start())

    def _start(self) -> TrialProcess:
        """Start a child process, without waiting until it is ready. The caller holds the lock."""
        if self._closed:
            raise NotReadyError("the service is shutting down")
        try:
            child = TrialProcess(self._program)
        except OSError as error:
            raise NotReadyError(f"no process can be started to try a version out: {error}") from error
        self._children.add(child)
        return child

    def _end(self, child: TrialProcess) -> None:
        child.close()
        with self._lock:
            self._children.discard(child)
