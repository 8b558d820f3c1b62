"""Children that try versions out, and what becomes of those that do not do as they should."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_store import GRAPHS, InvalidArtifactError, ModelNotFoundError, open_version
from service.engine.trial import Request, try_out
from service.web.models.trial_process import EndedError, TrialProcess
from service.web.models.trials import Trials
from service.web.operations.settings import Settings
from service.web.problems import NotReadyError
from tests.toys import bernoulli_toy
from tests.web.conftest import COLOUR_SHAPE, put

READY = "import os, signal, subprocess, sys, time\nprint('{\"ready\": true}', flush=True)\nsys.stdin.readline()\n"
"""A child that is ready and has read a request."""
SOON = 0.3
LONG = 120.0


def ask(script: str, seconds: float = LONG) -> dict[str, Any]:
    child = TrialProcess(("-c", READY + script))
    try:
        child.wait_until_ready()
        return child.ask({}, seconds)
    finally:
        child.close()


def test_the_report_that_ends_a_request_is_given_back() -> None:
    assert ask('print(\'{"file": "a"}\\n{"passed": "b"}\')') == {"passed": "b"}


ENDINGS: dict[str, tuple[str, float, str]] = {
    "hangs": ("while True: pass", SOON, r"^was not tried out within 0\.3 s \(LOGPX_TRIAL_SECONDS\)$"),
    "hangs and hears no signal": (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); time.sleep(600)",
        SOON,
        "^was not tried out within",
    ),
    "says other things for ever": ('while True: print(\'{"file": "x"}\', flush=True)', LONG, "wrote too much$"),
    "writes a line without end": ("while True: sys.stdout.write('x' * 65536)", LONG, "wrote too much$"),
    "writes errors for ever": ("while True: sys.stderr.write('x' * 65536)", SOON, "^was not tried out within"),
    "leaves in order": ("sys.exit()", LONG, "ended with status 0: it said nothing$"),
    "leaves with a word": ("sys.exit('a reason')", LONG, "ended with status 1: a reason$"),
    "has a segmentation fault": ("os.kill(os.getpid(), signal.SIGSEGV)", LONG, "was ended by SIGSEGV$"),
    "aborts": ("os.abort()", LONG, "was ended by SIGABRT$"),
    "gets a signal without a name": ("os.kill(os.getpid(), 40)", LONG, "was ended by signal 40$"),
    "closes its output and lives": ("os.close(1); time.sleep(600)", LONG, "was ended by SIGKILL$"),
    "talks nonsense": (
        r"sys.stdout.buffer.write(b'[]\nnull\n' + b'[' * 5000 + b'\n\xff\n{}\n'); sys.exit('so')",
        LONG,
        "ended with status 1: so$",
    ),
}


@pytest.mark.parametrize(("script", "seconds", "problem"), ENDINGS.values(), ids=ENDINGS)
def test_a_child_that_reports_nothing_is_ended_and_it_is_told_how(script: str, seconds: float, problem: str) -> None:
    with pytest.raises(EndedError, match=problem) as caught:
        ask(f'print(\'{{"file": "decoder.onnx"}}\', flush=True)\n{script}', seconds)
    assert caught.value.file in ("decoder.onnx", "x")


def test_what_a_child_has_started_ends_with_it(tmp_path: Path) -> None:
    script = (
        "quiet = subprocess.DEVNULL\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], stdout=quiet, stderr=quiet)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(other.pid))\n"
    )
    with pytest.raises(EndedError):
        ask(script)
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not runs(pid))


def runs(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_child_gets_no_key_and_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "LOGPX_API_KEYS": "a",
        "OTEL_EXPORTER_OTLP_HEADERS": "b",
        "SECRET": "c",
        "PATH": "/bin",
        "PYTHONPATH": "/x:y",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C",
    }
    for name in os.environ:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code = "import json, os; print(json.dumps({'ready': dict(os.environ), 'in': os.getcwd()}))"
    child = TrialProcess(["-c", code])
    try:
        report = child._read_until({"ready"}, time.monotonic() + 60, "late")
    finally:
        child.close()
    root = Path(__file__).parents[2]
    assert report["in"] == str(root)
    assert report["ready"] == {
        "PATH": "/bin",
        "PYTHONPATH": f"{root}:/x:{Path.cwd() / 'y'}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C",
        "CUDA_VISIBLE_DEVICES": "",
        "MALLOC_ARENA_MAX": "2",
        "OPENBLAS_NUM_THREADS": "1",
    }


def test_what_a_version_says_of_itself_cannot_break_a_line_or_an_answer(tmp_path: Path) -> None:
    put(tmp_path, bernoulli_toy(COLOUR_SHAPE, name="odd"))
    file = tmp_path / "odd" / "1" / "manifest.json"
    fields = json.loads(file.read_text()) | {"a\nb\u202e\x9b\x00\ud800": 1} | {f"{index}": 1 for index in range(1000)}
    file.write_text(json.dumps(fields))
    request = Request(str(tmp_path), "odd", 1, 60, 2**30, 1, None, 100, 100_000)
    report = try_out(request, lambda _: None)
    assert report["file"] == "manifest.json"
    assert report["refused"].isprintable()
    assert len(report["refused"]) < 3000


def settings(store: Path, **changed: Any) -> Settings:
    return Settings(**{"model_store": store, **changed})


def test_a_trial_gives_the_digest_or_says_what_is_wrong(tmp_path: Path) -> None:
    """A real child, which passes one version, then refuses one."""
    for name in ("good", "bad"):
        put(tmp_path, bernoulli_toy(COLOUR_SHAPE, name=name))
    (tmp_path / "bad" / "1" / "encoder.onnx").write_bytes(b"")

    async def scenario() -> None:
        trials = Trials(settings(tmp_path))
        trials.warm()
        try:
            stamp = (("a", 1, 1, 1),)
            passed = await trials.passed(("good", 1), stamp, asked=False)
            stored = open_version(tmp_path, "good")
            assert passed.digest == stored.digest
            assert passed.graph_bytes == {
                file: (stored.path / file).stat().st_size for file in GRAPHS if file in stored.manifest.files
            }
            (child,) = trials._children
            with pytest.raises(InvalidArtifactError, match="SHA-256 is") as caught:
                await trials.passed(("bad", 1), stamp, asked=True)
            assert caught.value.file == tmp_path / "bad" / "1" / "encoder.onnx"
            assert not runs(child._process.pid)  # what a broken one leaves behind is gone
            with pytest.raises(ModelNotFoundError, match="no model 'absent'"):
                await trials.passed(("absent", 1), stamp, asked=True)
            (tmp_path / "good" / "1" / "encoder.onnx").write_bytes(b"")
            assert await trials.passed(("good", 1), stamp, asked=True) == passed  # the same files, as far as one sees
            with pytest.raises(InvalidArtifactError):
                await trials.passed(("good", 1), (("a", 1, 1, 2),), asked=True)
        finally:
            trials.close()
        with pytest.raises(NotReadyError):
            trials._take()

    asyncio.run(scenario())


PASSES = READY.replace(
    "sys.stdin.readline()\n", 'for line in sys.stdin: print(\'{"passed": "x", "graph_bytes": {}}\', flush=True)\n'
)
HANGS_IF = """
import json
for line in sys.stdin:
    if json.loads(line)["name"].startswith("slow"):
        time.sleep(600)
    print('{"passed": "x", "graph_bytes": {}}', flush=True)
"""


def test_those_that_hang_hold_up_neither_others_nor_the_end(tmp_path: Path) -> None:
    script = READY.replace("sys.stdin.readline()\n", HANGS_IF)

    async def scenario() -> None:
        trials = Trials(settings(tmp_path, trial_seconds=600), ("-c", script))
        hanging = [
            asyncio.create_task(trials.passed((f"slow-{index}", 1), (), asked=asked))
            for index, asked in enumerate((True, True, False))
        ]
        while len(trials._children) < 3:
            await asyncio.sleep(0.01)
        for asked in (True, False):
            assert (await trials.passed(("quick", 1), (("a", 1, 1, asked),), asked=asked)).digest == "x"
        pids = [child._process.pid for child in trials._children]
        trials.close()
        for answer in await asyncio.gather(*hanging, return_exceptions=True):
            assert isinstance(answer, NotReadyError)
        wait_until(lambda: not any(map(runs, pids)))

    asyncio.run(scenario())


def test_a_child_is_used_again_and_let_go_when_nothing_comes(tmp_path: Path) -> None:
    async def scenario() -> None:
        trials = Trials(settings(tmp_path), ("-c", PASSES))
        try:
            for version in range(1, 4):
                assert (await trials.passed(("a", version), (), asked=False)).digest == "x"
            (child,) = trials._children
            while trials._children:
                await asyncio.sleep(0.01)
            assert not runs(child._process.pid)
            assert (await trials.passed(("a", 4), (), asked=False)).digest == "x"
            (child,) = trials._children
            os.kill(child._process.pid, signal.SIGKILL)  # while it is idle
            wait_until(lambda: not runs(child._process.pid))
            assert (await trials.passed(("a", 5), (), asked=False)).digest == "x"
        finally:
            trials.close()

    asyncio.run(scenario())


KILLED = """
from pathlib import Path
name = Path({folder!r}) / "seen"
times = len(name.read_text()) if name.exists() else 0
name.write_text("x" * (times + 1))
if times < {times}:
    os.kill(os.getpid(), signal.{signal})
print('{{"passed": "x", "graph_bytes": {{}}}}', flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("name", "times", "refused"),
    [("SIGKILL", 1, ""), ("SIGTERM", 1, ""), ("SIGKILL", 2, "by SIGKILL"), ("SIGSEGV", 1, "by SIGSEGV")],
)
def test_a_trial_that_somebody_else_killed_begins_again_once(
    tmp_path: Path, name: str, times: int, refused: str
) -> None:
    """As the kernel does where others take the memory: a version would be refused for that until its files change."""
    script = READY + KILLED.format(folder=str(tmp_path), times=times, signal=name)

    async def scenario() -> None:
        trials = Trials(settings(tmp_path), ("-c", script))
        try:
            with pytest.raises(InvalidArtifactError, match=refused) if refused else contextlib.nullcontext():
                assert (await trials.passed(("a", 1), (), asked=False)).digest == "x"
        finally:
            trials.close()

    asyncio.run(scenario())
    assert (tmp_path / "seen").read_text() == "x" * (2 if name != "SIGSEGV" else 1)


def test_what_has_passed_is_not_remembered_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.web.models.trials._REMEMBERED", 3)

    async def scenario() -> None:
        trials = Trials(settings(tmp_path), ("-c", PASSES))
        try:
            for version in (1, 2, 3, 4, 2, 5):
                await trials.passed(("a", version), (("a", 1, 1, version),), asked=False)
            assert [key[1] for key in trials._passed] == [3, 4, 5]
        finally:
            trials.close()

    asyncio.run(scenario())


def test_letting_a_child_go_does_not_hold_up_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    close = TrialProcess.close

    def note(self: TrialProcess) -> None:
        threads.append(threading.current_thread())
        close(self)

    async def scenario() -> None:
        trials = Trials(settings(tmp_path), ("-c", PASSES))
        try:
            await trials.passed(("a", 1), (), asked=False)
            while trials._children:
                await asyncio.sleep(0.01)
        finally:
            trials.close()

    monkeypatch.setattr(TrialProcess, "close", note)
    asyncio.run(scenario())
    assert threads
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("script", ["raise SystemExit('no module')", "raise MemoryError"])
def test_a_child_that_does_not_start_is_not_the_versions_fault(tmp_path: Path, script: str) -> None:
    async def scenario() -> None:
        trials = Trials(settings(tmp_path), ("-c", script))
        trials.warm()
        try:
            with pytest.raises(NotReadyError, match=r"does not start: .* ended with status 1"):
                await trials.passed(("a", 1), (), asked=False)
        finally:
            trials.close()

    asyncio.run(scenario())


def test_no_process_to_be_had_is_not_the_versions_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", full)

    async def scenario() -> None:
        trials = Trials(settings(tmp_path))
        trials.warm()
        try:
            with pytest.raises(NotReadyError, match="no process can be started"):
                await trials.passed(("a", 1), (), asked=False)
        finally:
            trials.close()

    asyncio.run(scenario())


DIES = """
import os, sys, threading
from service.web.models.trial_process import TrialProcess
child = TrialProcess()
child.wait_until_ready()
print(child._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_child_ends_with_its_parent_however_that_ends() -> None:
    root = Path(__file__).parents[2]
    parent = subprocess.run([sys.executable, "-c", DIES], capture_output=True, text=True, check=False, cwd=root)  # noqa: S603
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    wait_until(lambda: not runs(int(parent.stdout)))
