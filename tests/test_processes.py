"""Several services on one port: who is started, started anew and ended, with small children in place of services."""

import argparse
import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.__main__ import main
from service.processes import Child, Start, Supervisor, add_options, open_shared, reserve, shares_of

WAITS = "signal.signal(15, lambda *_: sys.exit(0)); told('up'); time.sleep(60)"
STUBBORN = "signal.signal(15, lambda *_: (signal.signal(15, lambda *_: sys.exit(5)), told('once'))); told('up'); "
STUBBORN += "[time.sleep(1) for _ in range(60)]"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.processes._PAUSES", (0.01, 0.02))


class Scene:
    """Children that run a line of Python, and what they told in files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.starts: list[tuple[str, bool]] = []

    def child(self, name: str, *codes: str) -> Callable[..., Start]:
        """A child that runs the first line, and after each end the next; the last one again and again."""

        def start(*, again: bool) -> Start:
            number = sum(found == name for found, _ in self.starts)
            self.starts.append((name, again))
            head = f"import os, pathlib, signal, sys, time; folder = pathlib.Path({str(self.folder)!r})\n"
            head += f"def told(what): (folder / f'{name}-{number}-{{what}}').write_text(str(os.getpid()))\n"
            return Start([sys.executable, "-S", "-c", head + codes[min(number, len(codes) - 1)]], dict(os.environ))

        return start

    async def until(self, *files: str) -> None:
        """Wait for what children tell."""
        end = time.monotonic() + 60
        while not all((self.folder / file).exists() for file in files):
            assert time.monotonic() < end, sorted(path.name for path in self.folder.iterdir())
            await asyncio.sleep(0.01)

    def run(self, *children: Callable[..., Start], signals: tuple[tuple[str, ...], ...] = ()) -> int:
        """The exit status; a signal comes when the files of each group are there."""

        async def supervise() -> int:
            running = asyncio.create_task(Supervisor(children).run())
            for files in signals:
                await self.until(*files)
                os.kill(os.getpid(), signal.SIGTERM)
            return await running

        return asyncio.run(supervise())


def test_a_signal_ends_all_and_each_may_finish(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    names = ("a", "b", "c")
    assert scene.run(*(scene.child(name, WAITS) for name in names), signals=(("a-0-up", "b-0-up", "c-0-up"),)) == 0
    assert scene.starts == [(name, False) for name in names]


def test_a_second_signal_reaches_who_has_not_ended(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    ends, stays = scene.child("a", WAITS), scene.child("b", STUBBORN)
    assert scene.run(ends, stays, signals=(("a-0-up", "b-0-up"), ("b-0-once",))) == 1


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "sys.exit(1)", "sys.exit(0)"])
def test_one_that_ends_is_started_anew_and_the_others_go_on(tmp_path: Path, end: str) -> None:
    scene = Scene(tmp_path)
    assert scene.run(scene.child("a", end, WAITS), scene.child("b", WAITS), signals=(("a-1-up", "b-0-up"),)) == 0
    assert sorted(scene.starts) == [("a", False), ("a", True), ("b", False)]


@pytest.mark.parametrize(("status", "starts", "expected"), [(2, 1, 2), (3, 1, 3), (1, 3, 1), (0, 3, 1)])
def test_one_that_cannot_be_kept_ends_all(tmp_path: Path, status: int, starts: int, expected: int) -> None:
    scene = Scene(tmp_path)
    assert scene.run(scene.child("a", f"sys.exit({status})"), scene.child("b", WAITS)) == expected
    assert [name for name, _ in scene.starts].count("a") == starts
    if (tmp_path / "b-0-up").exists():
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "b-0-up").read_text()), 0)


@pytest.mark.parametrize(("cores", "processes"), [(8, 3), (64, 8), (2, 2), (5, 1), (2, 5)])
def test_cores_are_shared_out_evenly(cores: int, processes: int) -> None:
    shares = shares_of(range(cores), processes)
    sizes = [len(share) for share in shares]
    assert (len(shares), max(sizes) - min(sizes) <= 1, min(sizes) >= 1) == (processes, True, True)
    assert {core for share in shares for core in share} == set(range(cores))
    assert sum(sizes) == max(cores, processes)


def test_a_port_is_kept_from_others_and_shared_among_us() -> None:
    with reserve("127.0.0.1", 0) as reserved:
        port = reserved.getsockname()[1]
        with open_shared("127.0.0.1", port) as first, open_shared("127.0.0.1", port) as second:
            first.listen()
            second.listen()
            for _ in range(64):
                socket.create_connection(("127.0.0.1", port), timeout=10).close()
            for listener in (first, second):
                listener.settimeout(10)
                listener.accept()[0].close()  # neither gets all of 64 connections
            with pytest.raises(OSError, match="in use"):
                reserve("127.0.0.1", port)  # although we would share it
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))


def test_a_process_of_a_device_uses_it_or_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOGPX_EXECUTION_PROVIDER", raising=False)
    started = Child(own_port=8002, port=8000, cores=[4, 5], device=1).start(again=True)
    assert started.environment["LOGPX_DEVICE_ID"] == "1"
    assert started.environment["LOGPX_EXECUTION_PROVIDER"] == "cuda"
    assert list(started.command[-4:]) == ["8000", "8002", "4,5", "ready"]
    monkeypatch.setenv("LOGPX_EXECUTION_PROVIDER", "auto")
    assert Child(0, 8000, [], 0).start(again=False).environment["LOGPX_EXECUTION_PROVIDER"] == "auto"
    assert "LOGPX_DEVICE_ID" not in Child(0, 8000, [], None).start(again=False).environment


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--processes 0", "1 to 1024"),
        ("--processes two", "1 to 1024"),
        ("--devices 0,0", "each once"),
        ("--devices gpu", "each once"),
        ("--devices ,", "each once"),
        ("--processes 2 --devices 0", "not allowed"),
    ],
)
def test_wrong_options_are_refused_in_a_line(options: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", *options.split()])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_ports_that_do_not_exist_and_wrong_settings_start_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("service.processes.configure_logging", lambda _: None)
    for port, told in (("65534", "no 2 ports after 65534"), ("many", "LOGPX_PORT")):
        monkeypatch.setenv("LOGPX_PORT", port)
        assert main(["serve", "--processes", "2"]) == 2
        assert told in capfd.readouterr().err


def test_devices_and_processes_are_read() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    assert parser.parse_args(["--devices", "0,3"]).devices == [0, 3]
    assert parser.parse_args(["--processes", "4"]).processes == 4
