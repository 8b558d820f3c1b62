"""The log: whole lines in order where it can be written; where not, nobody waits, and the lost lines are counted."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import httpx2
import pytest
from prometheus_client import CollectorRegistry, Counter

from service.web.operations.logs import Output
from tests.web import plain_http
from tests.web.test_process import Start, start

__all__ = ["start"]  # the fixture
SECONDS = 60.0


def describe_dropped(lines: int) -> str:
    return f"dropped {lines}\n"


class Pipe:
    """A pipe whose reader may wait before it reads."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.read = b""

    def read_all(self) -> str:
        """Everything, until all write ends are closed."""
        while piece := os.read(self.read_end, 65536):
            self.read += piece
        return self.read.decode()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    for descriptor in (made.read_end, made.write_end):
        with suppress(OSError):
            os.close(descriptor)


def counted(output: Output) -> Callable[[], float]:
    """The metric of what this one drops."""
    registry = CollectorRegistry()
    output.count_dropped(Counter("dropped", "lines", registry=registry))
    return lambda: registry.get_sample_value("dropped_total") or 0.0


@pytest.mark.parametrize("blocking", [True, False])
def test_lines_are_written_whole_and_in_order_and_none_is_lost(pipe: Pipe, blocking: bool) -> None:
    os.set_blocking(pipe.write_end, blocking)
    output = Output(pipe.write_end, describe_dropped)
    dropped = counted(output)
    lines = [f"{number} {'ä' * (number % 500)}\n" for number in range(3000)]  # 1.5 MB: far more than a pipe holds
    texts: list[str] = []
    reader = threading.Thread(target=lambda: texts.append(pipe.read_all()))
    reader.start()
    for first in range(0, len(lines), 100):
        for line in lines[first : first + 100]:
            output.write(line)
        output.finish(SECONDS)
    assert os.get_blocking(pipe.write_end) is blocking  # whoever shares it is not surprised
    os.close(pipe.write_end)
    reader.join()
    assert texts == ["".join(lines)]
    assert dropped() == 0


def test_a_pipe_that_nobody_reads_holds_nobody_up_and_the_dropped_are_told_in_their_place(pipe: Pipe) -> None:
    output = Output(pipe.write_end, describe_dropped, max_waiting=10_000)
    dropped = counted(output)
    room = fcntl.fcntl(pipe.write_end, fcntl.F_GETPIPE_SZ)
    output.write("0" * (room + 1) + "\n")  # alone it is taken, however long
    while output._waiting:  # the thread has it, and cannot write it all
        pass
    for number in range(1, 2001):
        output.write(f"{number:09}\n")
    assert dropped() == 1000
    output.finish(0.01)  # returns
    first = b""
    while not first.endswith(b"\n"):
        first += os.read(pipe.read_end, 1)
    output.finish(SECONDS)
    output.write("last\n")
    output.finish(SECONDS)
    assert first.decode() == "0" * (room + 1) + "\n"
    os.close(pipe.write_end)
    assert pipe.read_all().splitlines() == [*(f"{number:09}" for number in range(1, 1001)), "dropped 1000", "last"]
    assert dropped() == 1000


def test_a_full_disk_costs_the_lines_that_do_not_fit_and_no_more(tmp_path: Path) -> None:
    full, file = os.open("/dev/full", os.O_WRONLY), os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    output = Output(full, describe_dropped)
    dropped = counted(output)
    for number in range(3):
        output.write(f"{number}\n")
        output.finish(SECONDS)
    assert dropped() == 3
    os.dup2(file, full)  # there is room again
    assert (tmp_path / "log").read_text() == ""
    output.write("after\n")
    output.write("more\n")
    output.finish(SECONDS)
    assert (tmp_path / "log").read_text() == "dropped 3\nafter\nmore\n"
    assert dropped() == 3
    os.close(full)
    os.close(file)


@pytest.mark.parametrize("room", range(24))
def test_a_line_that_fits_in_part_is_ended_when_there_is_room(
    tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the disk is full: every line that was not written whole is counted, and no other."""
    file = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    left = [room]
    write = os.write

    def write_what_fits(descriptor: int, data: Any) -> int:
        if descriptor != file:
            return write(descriptor, data)
        if not left[0]:
            raise OSError(errno.ENOSPC, "no space")
        written = write(descriptor, data[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", write_what_fits)
    output = Output(file, describe_dropped)
    dropped = counted(output)
    first = ["first\n", "second\n", "third\n", "4\n"]
    with output._lock:  # so that they are written together
        for line in first:
            output.write(line)
    output.finish(SECONDS)
    whole = sum(len("".join(first[: number + 1])) <= room for number in range(4))
    assert dropped() == 4 - whole
    left[0] = 1000
    output.write("after\n")
    output.finish(SECONDS)
    fragment = "".join(first)[len("".join(first[:whole])) : room]
    told = [f"dropped {4 - whole}"] if whole < 4 else []
    expected = [*"".join(first[:whole]).splitlines(), *([fragment] if fragment else []), *told, "after"]
    assert (tmp_path / "log").read_text().splitlines() == expected
    os.close(file)


def test_without_a_descriptor_every_line_is_dropped_and_counted() -> None:
    output = Output(None, describe_dropped)
    output.write("before it is counted\n")
    dropped = counted(output)
    output.write("after\n")
    output.finish(SECONDS)
    assert dropped() == 2


def test_what_a_destructor_logs_while_a_line_is_queued_is_queued_too(pipe: Pipe) -> None:
    """The garbage collector may run anywhere, also within `write`, and what it destroys may log."""

    class Logging(str):
        def __len__(self) -> int:
            output.write("from within\n")
            return 10

    output = Output(pipe.write_end, describe_dropped)
    output.write(Logging("one\n"))
    output.write(Logging("two\n"))
    output.finish(SECONDS)
    os.close(pipe.write_end)
    assert {"one", "two", "from within"} <= set(pipe.read_all().splitlines())


EVERYTHING_TO_BE_LOGGED = """
import asyncio, logging, sys, threading, warnings
from service.web.operations.logs import configure_logging
from service.web.operations.settings import Settings

class Failing:
    def __del__(self):
        raise ValueError("in a destructor")

async def forget():
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0.001)

configure_logging(Settings())
warnings.warn("a warning", UserWarning)
logging.getLogger("uvicorn.error").info("from %s", "uvicorn")
thread = threading.Thread(target=lambda: [][0], name="lost")
thread.start()
thread.join()
Failing()
asyncio.run(forget())
raise RuntimeError("nobody caught it")
"""


def test_warnings_and_tracebacks_of_every_origin_are_lines_of_the_log() -> None:
    process = subprocess.run(  # noqa: S603
        [sys.executable, "-c", EVERYTHING_TO_BE_LOGGED], capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stderr) == (1, "")
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    told = [line["event"] + line.get("exception", "") for line in lines]
    words = ["a warning", "from uvicorn", "IndexError", "in a destructor", "ZeroDivisionError", "nobody caught it"]
    assert len(told) == len(words)
    for line, word in zip(told, words, strict=True):
        assert word in line


def listening_port(process_id: int) -> int | None:
    """Where a process takes connections; none yet, or none any more."""
    files = set()
    with suppress(OSError):  # it has ended
        for file in Path(f"/proc/{process_id}/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                files.add(str(file.readlink()))
        for line in Path(f"/proc/{process_id}/net/tcp").read_text().splitlines()[1:]:
            _, address, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in files:
                return int(address.partition(":")[2], 16)
    return None


class Silent:
    """A service whose log tells nobody its port."""

    def __init__(self, store: Path, redirections: str, **streams: IO[bytes] | int | None) -> None:
        command = ["sh", "-c", f'exec "$0" -m service {redirections}', sys.executable]
        settings = {"LOGPX_MODEL_STORE": str(store), "LOGPX_MODEL": "digits", "LOGPX_PORT": "0"}
        self.process = subprocess.Popen(command, env={**os.environ, **settings}, **streams)  # type: ignore[call-overload]  # noqa: S603
        self.url = ""
        while self.process.poll() is None and not self.ready():
            time.sleep(0.05)

    def ready(self) -> bool:
        if (port := listening_port(self.process.pid)) is None:
            return False
        self.url = f"http://127.0.0.1:{port}"
        return plain_http.get(f"{self.url}/readyz", timeout=60).status_code == 200

    def metric(self, name: str) -> float:
        text = plain_http.get(f"{self.url}/metrics", timeout=60).text
        (value,) = [line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")]
        return float(value)

    def ask(self, number: int) -> None:
        """Requests whose log lines are long: with as much of the path as is logged."""
        with httpx2.Client(base_url=self.url, timeout=60) as client:
            for one in range(number):
                answer = client.get(f"/{'x' * 200}", headers={"X-Request-ID": f"asked-{one}"})
                assert answer.status_code == 404


@pytest.mark.parametrize(
    ("redirections", "drops"),
    [
        (">/dev/full 2>&1", True),
        (">&-", True),
        (">&- 2>&- <&-", True),
        (">/dev/null 2>/dev/full", False),
    ],
)
def test_a_log_that_cannot_be_written_disturbs_nothing(digits_store: Path, redirections: str, drops: bool) -> None:
    service = Silent(digits_store, redirections, stderr=subprocess.PIPE)
    with service.process as process:
        try:
            service.ask(3)
            before = service.metric("process_cpu_seconds_total")
            assert service.ready()
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
            spent = service.metric("process_cpu_seconds_total") - before
            assert spent < 0.5  # it would be what it can get
            assert (service.metric("logpx_dropped_log_lines_total") >= 3) is drops
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
            assert process.stderr is not None
            assert process.stderr.read() == b""
        finally:
            process.kill()


def test_a_pipe_whose_reader_is_gone_disturbs_nothing(digits_store: Path, pipe: Pipe) -> None:
    service = Silent(digits_store, "", stdout=pipe.write_end)
    with service.process as process:
        try:
            assert service.metric("logpx_dropped_log_lines_total") == 0
            os.close(pipe.read_end)
            service.ask(3)
            while service.metric("logpx_dropped_log_lines_total") < 3:
                pass
            assert service.ready()
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()


def test_a_pipe_that_nobody_reads_disturbs_nothing_and_the_log_goes_on_when_somebody_does(
    digits_store: Path, pipe: Pipe
) -> None:
    service = Silent(digits_store, "", stdout=pipe.write_end)
    with service.process as process:
        try:
            service.ask(3000)  # more than a pipe and the queue before it hold
            dropped = service.metric("logpx_dropped_log_lines_total")
            assert 0 < dropped < 3000
            assert service.ready()
            os.close(pipe.write_end)
            reader = threading.Thread(target=pipe.read_all)
            reader.start()
            while b"could not be written" not in pipe.read:
                assert reader.is_alive()
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
            reader.join()
            lines = [json.loads(line) for line in pipe.read.splitlines()]
            asked = [line["request_id"] for line in lines if line["event"] == "request"]
            assert asked == [f"asked-{number}" for number in range(3000 - int(dropped))]
            told = [line["lines"] for line in lines if line["event"] == "log lines could not be written"]
            assert told == [dropped]
            assert any("Finished server process" in line["event"] for line in lines)
        finally:
            process.kill()


def test_a_pipe_that_nobody_ever_reads_does_not_hold_up_the_end(digits_store: Path, pipe: Pipe) -> None:
    service = Silent(digits_store, "2>&1", stdout=pipe.write_end)
    with service.process as process:
        try:
            service.ask(5)
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()


def test_no_line_is_lost_at_an_end_under_load(start: Start) -> None:
    process = start()
    url = address_without_reading_on(process)
    with httpx2.Client(base_url=url) as client:
        for number in range(100):
            client.get("/v1/nowhere", headers={"X-Request-ID": f"asked-{number}"})
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=SECONDS)
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["request_id"] for line in lines if line["event"] == "request"] == [f"asked-{n}" for n in range(100)]
    assert lines[-1]["event"].startswith("Finished server process")


def address_without_reading_on(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    while "running on http" not in (line := process.stdout.readline()):
        assert line
    return line[line.index("http://") :].split(" ")[0]
