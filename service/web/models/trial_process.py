"""Start, use and end a child process in which versions are tried out; it runs service/engine/trial.py."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, cast

from service.child_process import ROOT, environment_of_child

PROGRAM = ("-m", "service.engine.trial")
"""Python's arguments."""
_START_SECONDS = 60.0
_END_SECONDS = 1.0
_REPORT_BYTES = 2**20
_MAX_LAST_OUTPUT = 1000
_PASSED_ON = ("HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "PATH", "TEMP", "TMP", "TMPDIR", "TZ", "VIRTUAL_ENV")
_OF_ITS_OWN = {"CUDA_VISIBLE_DEVICES": "", "MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}
_PASSED_ON_BEGINNINGS = ("LC_", "PYTHON", "ORT_")


class EndedError(Exception):
    """The child process has ended, or will not report any more.

    Attributes:
        file: the file that it was checking, if that is known.
        killed_by_others: it was killed, and not by `TrialProcess`; perhaps by the kernel for want of memory.
    """

    def __init__(self, file: str, problem: str, *, killed_by_others: bool = False) -> None:
        super().__init__(problem)
        self.file = file
        self.problem = problem
        self.killed_by_others = killed_by_others


class TrialProcess:
    """One child process. It is used by one thread at a time, but any thread may kill it."""

    def __init__(self, program: Sequence[str] = PROGRAM) -> None:
        self.was_ready = False
        self._was_killed = False
        self._file = ""
        self._unread = b""
        self._last_output = b""
        self._killing = threading.Lock()
        self._process = subprocess.Popen(  # noqa: S603 (our own program)
            [sys.executable, *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=environment_of_child(os.environ, kept=_PASSED_ON, beginnings=_PASSED_ON_BEGINNINGS, added=_OF_ITS_OWN),
            start_new_session=True,  # no signal to the service's group is for it; it is killed with all it starts
        )
        streams = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._stdin, self._stdout, self._stderr = cast(tuple[IO[bytes], ...], streams)

    def wait_until_ready(self) -> None:
        """Wait until it accepts requests.

        Raises:
            EndedError: it has ended, or took too long to start.
        """
        if self.was_ready:
            if self._has_ended():
                raise self._ended()
            return
        self._read_until({"ready"}, time.monotonic() + _START_SECONDS, f"is not ready within {_START_SECONDS:g} s")
        self.was_ready = True

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Send a request, and wait for the final report.

        Raises:
            EndedError: there was no report in time, or the process has ended; it is then killed.
        """
        deadline = time.monotonic() + seconds
        self._file = ""
        with suppress(OSError):  # its last report tells why
            self._stdin.write(json.dumps(request).encode() + b"\n")
            self._stdin.flush()
        late = f"was not tried out within {seconds:g} s (LOGPX_TRIAL_SECONDS)"
        return self._read_until({"passed", "refused", "missing"}, deadline, late)

    def kill(self) -> None:
        """Send SIGKILL to it and its children. Whoever waits for its report gets an EndedError."""
        with self._killing:
            if self._process.returncode is None:
                self._was_killed = self._was_killed or not self._has_ended()
                with suppress(ProcessLookupError, PermissionError):  # some systems raise the latter if it has ended
                    os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill it, and release everything that belongs to it."""
        self.kill()
        with self._killing:
            self._process.wait()
        for stream in (self._stdin, self._stdout, self._stderr):
            with suppress(OSError):  # bytes that it has not read
                stream.close()

    def _read_until(self, wanted: set[str], deadline: float, late: str) -> dict[str, Any]:
        received = 0
        while True:
            while b"\n" in self._unread:
                line, _, self._unread = self._unread.partition(b"\n")
                report = _parse(line)
                if not wanted.isdisjoint(report):
                    return report
                self._file = str(report.get("file", self._file))
            more = self._receive(deadline - time.monotonic())
            received += len(more or b"")
            if more is None or received > _REPORT_BYTES:
                self.kill()
                raise EndedError(self._file, late if more is None else "the process that tried it out wrote too much")
            if not more:
                raise self._ended()
            self._unread += more

    def _receive(self, seconds: float) -> bytes | None:
        """The next bytes that it wrote; empty if it has ended, None if they take too long."""
        out, err = self._stdout.fileno(), self._stderr.fileno()
        end = time.monotonic() + seconds
        open_errors = True
        while (left := end - time.monotonic()) > 0:
            poll = select.poll()
            poll.register(out, select.POLLIN)
            if open_errors:
                poll.register(err, select.POLLIN)
            ready = {descriptor for descriptor, _ in poll.poll(1000 * left)}
            if err in ready:
                words = os.read(err, 65536)
                open_errors = bool(words)
                self._last_output = (self._last_output + words)[-_MAX_LAST_OUTPUT:]
            if out in ready:
                return os.read(out, 65536)
        return None

    def _has_ended(self) -> bool:
        """Whether it has ended. Its status is not read yet, so that its process id cannot be reused."""
        if not hasattr(os, "waitid"):  # not available on some systems
            return self._process.poll() is not None
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _ended(self) -> EndedError:
        """Why it ended; kills it if it has only closed its output."""
        end = time.monotonic() + _END_SECONDS
        while not self._has_ended() and time.monotonic() < end:
            time.sleep(0.005)
        self.kill()
        with self._killing:
            status = self._process.wait()
        if status >= 0:
            words = self._last_output.decode("utf-8", "replace").strip().splitlines()[-1:] or ["it said nothing"]
            return EndedError(self._file, f"the process that tried it out ended with status {status}: {words[0]}")
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        by_others = -status in (signal.SIGKILL, signal.SIGTERM) and not self._was_killed
        problem = f"the process that tried it out was ended by {name}"
        return EndedError(self._file, problem, killed_by_others=by_others)


def _parse(line: bytes) -> dict[str, Any]:
    """Parse a report; anything invalid is ignored, because the process may be compromised."""
    try:
        report = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return report if isinstance(report, dict) else {}
