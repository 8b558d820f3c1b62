"""A real service in a child process under a memory limit, and a watch over it while it is attacked.

    with ChildService(store, max_rows=1000) as service, watched(service):
        assert service.ask("POST", "/v1/encode", b"?", {"Content-Type": "image/png"}).status == 422

`watched` fails with a sentence where the service died, stopped answering `/livez`, took too much memory, or answers an
honest request differently afterwards. What the child wrote stands in its log, which a test that fails shows.
"""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from tests.hostile import processes, wire
from tests.hostile.wire import Answer, Headers
from tests.web.forms import npy

ROOT = Path(__file__).parents[2]
GIBIBYTE = 2**30
MEMORY_LIMIT = 4 * GIBIBYTE
"""Of each process: far more than any request may take, far less than the machine has."""
START_SECONDS = 120
STOP_SECONDS = 60
SHOWN_LINES = 40
running: "list[ChildService]" = []


class ChildService:
    """`python -m service` on a free port of this machine, ready; ended at the end of its `with`, with all it started.

    Settings are keywords (`max_rows=10` is `LOGPX_MAX_ROWS=10`); no other `LOGPX_` variable reaches the child. Without
    a store it serves the bundled models. `memory_limit` bounds the writable memory of each process, in bytes: an attack
    that succeeds kills the child, not the machine. `arguments` replace `-m service`; `environment` adds variables.
    """

    def __init__(
        self,
        store: Path | None = None,
        *,
        memory_limit: int = MEMORY_LIMIT,
        arguments: Sequence[str] = ("-m", "service"),
        environment: dict[str, str] | None = None,
        cwd: Path = ROOT,
        **settings: Any,
    ) -> None:
        settings = {"port": 0, **({} if store is None else {"model_store": store}), **settings}
        variables = {name: value for name, value in os.environ.items() if not name.startswith("LOGPX_")}
        variables |= {f"LOGPX_{name.upper()}": str(value) for name, value in settings.items()}
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(cwd), os.environ.get("PYTHONPATH")]))
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the service has ended)
        self._last_words = b""
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, *arguments],
            env=variables | (environment or {}),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that all it starts can be ended with it
        )
        running.append(self)
        self._prober: Prober | None = None
        self.port = 0
        self.pid = self.process.pid
        try:
            resource.prlimit(self.pid, resource.RLIMIT_DATA, (memory_limit, memory_limit))
            self.port = self._wait_for_port()
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            error.add_note(self.log_tail())
        self.stop()

    def _wait_for_port(self) -> int:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if found := re.search(r"running on http://[\w.]+:(\d+)", self.log()):
                return int(found[1])
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"the service did not start\n{self.log_tail()}")

    def _wait_until_ready(self) -> None:
        """It answers, and what has tried its versions out is gone: its memory is not the service's."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(ConnectionError):  # it may be about to end
                ready = self.raw(wire.request("GET", "/readyz")).startswith(b"HTTP/1.1 200 ")
                if ready and not any(processes.runs(pid, "service.engine.trial") for pid in self.children()):
                    return
            time.sleep(0.02)
        raise AssertionError(f"the service never became ready\n{self.log_tail()}")

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM, and SIGKILL to whatever is left after that long; the exit status, −9 where it had to be killed."""
        if self in running:
            try:
                self.process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(seconds)
            finally:
                self.kill()
        assert self.process.returncode is not None
        return self.process.returncode

    def kill(self) -> None:
        """SIGKILL to the process and all that it started; returns once none of them is left."""
        end = time.monotonic() + STOP_SECONDS
        while left := processes.family(self.pid):
            for pid in left:
                with suppress(ProcessLookupError):  # it ended by itself
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
            assert time.monotonic() < end, f"SIGKILL did not end {left}"
            time.sleep(0.005)
        self.process.wait()
        if self._prober is not None:
            self._prober.end()
        if self in running:
            running.remove(self)
            self._last_words = self._written()
            self._log.close()

    # ── Talking to it

    def connect(self, timeout: float = 60) -> socket.socket:
        """A socket for a conversation by hand."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def ask(self, method: str, path: str, body: bytes = b"", headers: Headers = (), *, timeout: float = 120) -> Answer:
        """One request on a connection of its own, and its answer.

        Raises:
            AssertionError: no answer came within so many seconds of silence, or not exactly one, or one that is not
                well-formed HTTP.
        """
        started = time.monotonic()
        received = self.raw(wire.request(method, path, body, headers), read_seconds=timeout)
        found = wire.answers(received, methods=[method])
        assert len(found) == 1, f"{method} {path[:200]}: {len(found)} answers instead of one: {received[:500]!r}"
        return Answer(found[0].status, found[0].headers, found[0].body, time.monotonic() - started)

    def raw(self, *pieces: bytes, pause: float = 0, read_seconds: float = 30) -> bytes:
        """Send these bytes, with a pause before each piece but the first; all that came back.

        It ends when the service hangs up, or nothing has come for `read_seconds`.
        """
        with self.connect() as connection:
            return wire.send_and_read(connection, pieces, pause=pause, read_seconds=read_seconds)

    # ── Looking at it

    def prober(self) -> "Prober":
        """What watches it: started with the first watch, ended with the service."""
        if self._prober is None or not self._prober.alive:
            self._prober = Prober(self.port, self.pid)
        return self._prober

    def resident(self) -> int:
        """Bytes of memory that the process and its children have now."""
        return sum(processes.memory(pid, "VmRSS") for pid in processes.family(self.pid))

    def peak(self) -> int:
        """The most that the process had since it started, or since `reset_peak`; of each child too, added up."""
        return sum(processes.memory(pid, "VmHWM") for pid in processes.family(self.pid))

    def reset_peak(self) -> None:
        """Begin `peak` anew."""
        for pid in processes.family(self.pid):
            processes.reset_peak(pid)

    def children(self) -> list[int]:
        """Processes that it started and that still run."""
        return [pid for pid in processes.family(self.pid) if pid != self.pid]

    def open_files(self) -> list[str]:
        """What each of the process's own descriptors is."""
        return processes.open_files(self.pid)

    def log(self) -> str:
        """All that it wrote so far."""
        return self._written().decode("utf-8", "backslashreplace")

    def _written(self) -> bytes:
        if self._log.closed:
            return self._last_words
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0)

    def log_tail(self) -> str:
        """The last lines, for whoever reads why a test failed."""
        status = self.process.poll()
        state = "runs" if status is None else f"ended with status {status}"
        lines = self.log().splitlines()[-SHOWN_LINES:]
        return "\n".join([f"the service {state}; the end of its log:", *(line[:1000] for line in lines)])

    def log_lines(self) -> list[dict[str, Any]]:
        """Its lines as JSON objects; a line that is none is an error, for with `log_format=json` there is none."""
        whole = self.log().rpartition("\n")[0]  # a line may still be on its way
        return [json.loads(line) for line in whole.split("\n") if line]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels among theirs; 0 where there is none.

        The name is as it stands in `/metrics`, like `logpx_requests_total`.
        """
        text = self.ask("GET", "/metrics").body.decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return sum(
            sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()
        )


# ── Watching it


class Prober:
    """The process that watches a service (see prober.py), as often as wanted."""

    def __init__(self, port: int, pid: int) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "tests.hostile.prober", str(port), str(pid)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def alive(self) -> bool:
        """Whether it can still watch."""
        return self._process.poll() is None

    def start(self, patience: float) -> None:
        """Watch from now on; a `/livez` that is not answered in `patience` seconds is given up."""
        assert self._say(f"start {patience}") == "watching\n"

    def stop(self) -> dict[str, Any]:
        """Watch no longer; what was seen since `start`."""
        seen: dict[str, Any] = json.loads(self._say("stop"))
        return seen

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _say(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


@dataclass
class Watch:
    """What was seen; all but `started_with` is there once the watch has ended."""

    started_with: int
    """Bytes that were resident at its start."""
    slowest: float = 0.0
    """Seconds of the slowest `/livez`."""
    overran: float = 0.0
    """Seconds by which the prober's own sleeps overran at most: how long it waited for a processor."""
    peak: int = 0
    """The most bytes that were resident, children included."""


def reference_request() -> tuple[str, str, bytes, Headers]:
    """An honest request: one digit-sized image, whose codes do not depend on chance."""
    image = (np.arange(28 * 28) % 251).astype(np.uint8).reshape(1, 28, 28)
    return "POST", "/v1/encode", npy(image), {"Content-Type": "application/x-npy"}


@contextmanager
def watched(
    service: ChildService,
    *,
    memory: int | None = None,
    seconds: float = 5,
    reference: tuple[str, str, bytes, Headers] | None = None,
) -> Iterator[Watch]:
    """Watch over the service while the block runs, and fail with a sentence for each thing that went wrong.

    `memory` bounds the bytes that the process and its children ever had together; None leaves them alone. `seconds`
    bounds the slowest `/livez`: here it catches what hangs; a benchmark sets it to what is promised.

    Raises:
        AssertionError: the service died; a `/livez` took longer, or was not answered; there was more memory; `/readyz`
            is not 200 afterwards; or the reference request has another answer than before.
    """
    asked = reference or reference_request()
    before = service.ask(*asked)
    assert before.status == 200, f"the reference request was answered with {before.status}: {before.body[:300]!r}"
    service.reset_peak()
    watch = Watch(service.resident())
    prober = service.prober()
    prober.start(seconds)
    try:
        yield watch
    except BaseException as error:
        if service.process.poll() is not None:
            error.add_note(f"the service ended with status {service.process.returncode}")
        prober.end()  # the next watch has another
        raise
    seen = prober.stop()
    watch.slowest, watch.overran = seen["slowest"], seen["overran"]
    watch.peak = max(seen["memory"], service.peak())
    failings = [*_failings(watch, seen, memory, seconds), *_difference(service, asked, before)]
    assert not failings, "\n".join([*failings, service.log_tail()])


def _failings(watch: Watch, seen: dict[str, Any], memory: int | None, seconds: float) -> list[str]:
    """What was wrong while the block ran."""
    failings: list[str] = seen["wrong"]
    if not seen["num_answers"]:
        failings.append("/livez was never answered")
    if watch.slowest > seconds:
        failings.append(f"the slowest /livez took {watch.slowest:.2f} s, more than {seconds:g}")
    if memory is not None and watch.peak > memory:
        failings.append(f"{watch.peak / 2**20:.0f} MiB were resident at most, more than {memory / 2**20:.0f}")
    return failings


def _difference(service: ChildService, asked: tuple[str, str, bytes, Headers], before: Answer) -> list[str]:
    """Whether the service is there, ready, and answers as before."""
    if (status := service.process.poll()) is not None:
        return [f"the service ended with status {status}"]
    try:
        ready = service.ask("GET", "/readyz")
    except OSError as error:  # a process that dies closes its sockets before it has a status
        with suppress(subprocess.TimeoutExpired):
            return [f"the service ended with status {service.process.wait(10)}"]
        return [f"/readyz was not answered: {error}"]
    failings = [] if ready.status == 200 else [f"/readyz answered {ready.status}: {ready.body[:300]!r}"]
    after = service.ask(*asked)
    if (after.status, after.body) != (before.status, before.body):
        failings.append(f"the reference request was answered {after.status} {after.body[:300]!r}, not as before")
    return failings
