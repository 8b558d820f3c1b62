"""Real worker processes: what kills them costs no more than it must."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from model_store import open_version
from service.scoring.crew import Processes
from service.scoring.errors import ScoringError
from service.scoring.inputs import find_inputs
from service.scoring.run import Plan, score
from service.scoring.scorer import Options
from service.scoring.supervisor import ClosedError, Supervisor
from tests.scoring.crew import InProcess

ROOT = Path(__file__).parents[2]
DYING = str(Path(__file__).with_name("dying_worker.py"))
OPTIONS = Options("encoder", 50)


@pytest.fixture
def plan(store: Path, folder: Path, tmp_path: Path) -> Plan:
    return Plan(open_version(store, "toy"), OPTIONS, None, find_inputs([str(folder)], tmp_path / "out"), 6)


def parts(out: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(out.glob("*.parquet"))]


def test_a_worker_that_is_killed_costs_its_shard_and_an_image_that_kills_costs_itself(
    store: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker dies at `fatal` every time: once with its batch, once more, once alone, and then goes round it."""
    (folder / "05.png").rename(folder / "05-once.png")
    monkeypatch.setattr("service.scoring.supervisor.PROGRAM", (DYING, "at images"))
    plan = Plan(open_version(store, "toy"), OPTIONS, None, find_inputs([str(folder)], tmp_path / "out"), 6)
    score(plan, tmp_path / "straight", InProcess())
    crew = Processes(2)
    score(plan, tmp_path / "once", crew)
    assert (folder / "05-once.png.read").exists()
    assert parts(tmp_path / "once") == parts(tmp_path / "straight")
    assert [supervisor.pid for supervisor in crew.supervisors] == [None, None]

    (folder / "05-once.png").rename(folder / "05-fatal.png")
    plan = Plan(open_version(store, "toy"), OPTIONS, None, find_inputs([str(folder)], tmp_path / "out"), 11)
    score(plan, tmp_path / "fatal", Processes(1))
    rows = pq.read_table(tmp_path / "fatal").to_pylist()
    straight = pq.read_table(tmp_path / "straight").to_pylist()
    assert rows[5]["path"].endswith("05-fatal.png")
    assert rows[5]["error"] == "the process that read it was ended by SIGSEGV"
    assert rows[5]["p_value"] is None
    assert [row for row in rows if row is not rows[5]] == [*straight[:5], *straight[6:]]


def test_a_worker_that_dies_before_it_is_ready_ends_the_run(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.scoring.supervisor.PROGRAM", (DYING, "at once"))
    with pytest.raises(ScoringError, match=r"ended by SIGKILL while it loaded the model: is there enough memory\?"):
        score(plan, tmp_path / "out", Processes(2))
    assert parts(tmp_path / "out") == []


def test_a_model_that_has_changed_is_refused(plan: Plan) -> None:
    supervisor = Supervisor({**plan.start(), "digest": "0" * 64})
    with pytest.raises(ScoringError, match=r"manifest\.json: SHA-256 is .+: it has changed"):
        supervisor.score({})
    supervisor.end()


def test_what_is_closed_while_it_works_ends_at_once(plan: Plan, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.scoring.supervisor.PROGRAM", (DYING, "at images"))
    supervisor = Supervisor(plan.start())
    rows: Mapping[str, Any] = {"kind": "files", "paths": [f"{folder}/00.png", f"{folder}/slow.png"]}
    threading.Timer(1.5, supervisor.close).start()
    with pytest.raises(ClosedError):
        supervisor.score({"rows": [rows], "metadata": {}, "decided": True})
    assert supervisor.pid is None


def test_ctrl_c_keeps_what_is_done_and_a_kill_leaves_no_process(
    store: Path, plan: Plan, folder: Path, tmp_path: Path
) -> None:
    """Both of the command itself, in its own process group, as a terminal does it."""
    command = [sys.executable, "-m", "service", "score", f"--images={folder}", "--model=toy", f"--store={store}"]
    command += [f"--out={tmp_path / 'out'}", "--proposal=encoder", "--num-samples=50", "--shard-size=1", "--workers=1"]
    score(Plan(plan.stored, plan.options, None, plan.inputs, 1), tmp_path / "straight", InProcess())
    for sent, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = subprocess.Popen(  # noqa: S603 (our own)
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        with process:
            before = len(parts(tmp_path / "out"))
            while len(parts(tmp_path / "out")) == before:
                assert process.poll() is None
                time.sleep(0.005)
            if sent == signal.SIGINT:
                os.killpg(process.pid, sent)
            else:
                process.kill()
            told, _ = process.communicate(timeout=60)
            assert process.returncode == status, told
        assert ("interrupted; the parts that are done are kept" in told) == (sent == signal.SIGINT)
        assert before < len(parts(tmp_path / "out")) < 11
        deadline = time.monotonic() + 20
        while group_lives(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    score(Plan(plan.stored, plan.options, None, plan.inputs, 1), tmp_path / "out", InProcess())
    assert parts(tmp_path / "out") == parts(tmp_path / "straight")


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
