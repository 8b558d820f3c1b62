"""`logpx score` as it is typed: what it prints, and its exit codes."""

import socket
import sys
import types
from pathlib import Path

import pytest

from service.__main__ import main
from tests.scoring.crew import InProcess


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--model=none"], "error: the store has no model 'none'"),
        (["--version=7"], "error: model 'toy' has no version 7; it has 1, 2"),
        (["--proposal=laplace", "--num-samples=3"], "error: num_samples is 3; the proposal laplace takes at least 4"),
        (["--images=nowhere"], "error: nowhere: does not exist"),
        (["--store=nowhere"], "error: nowhere: the model store is not a folder"),
        (["--out=/dev/null"], "error: /dev/null: cannot be written (File exists)"),
        (["--ray"], "error: --ray needs ray, which is not installed: pip install 'logpx[service,cpu,score,ray]'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    store: Path,
    folder: Path,
    tmp_path: Path,
    options: list[str],
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    given = ["score", f"--images={folder}", "--model=toy", f"--store={store}", f"--out={tmp_path / 'out'}", *options]
    assert main(given) == 2
    assert capsys.readouterr().err == f"{problem}\n"


def test_the_command_scores_and_says_what_it_did(
    store: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "00.png").write_bytes(b"")
    crews: list[InProcess] = []

    def processes(num_workers: int | None) -> InProcess:
        assert num_workers == 2
        crews.append(InProcess(0 if not crews else None))
        return crews[-1]

    monkeypatch.setattr("service.scoring.crew.Processes", processes)
    monkeypatch.setenv("LOGPX_MODEL_STORE", str(store))
    given = ["score", "--images", str(folder), "--model=toy", f"--out={tmp_path / 'out'}", "--workers=2", "--fdr=0.1"]
    given += ["--proposal=encoder", "--num-samples=200"]
    assert main(given) == 130
    assert capsys.readouterr().err.startswith("\ninterrupted; the parts that are done are kept")
    assert main(given) == 0
    told = capsys.readouterr()
    assert told.out == (
        "11 images in 1 part; toy version 2, log P(x) by encoder, 200 samples, seed 0\n"
        f"{tmp_path / 'out'}: 10 of 11 images scored, 8 anomalies\n"
    )
    assert told.err.startswith("warning: 1 image has no results; the column `error` says why:\n  ")
    assert main(given) == 0
    assert "; 11 images done already\n" in capsys.readouterr().out


def test_without_pyarrow_it_says_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [
        name for name in sys.modules if name.startswith("service.scoring.") or name == "service.images.parquet"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["score", f"--images={folder}", "--model=toy", f"--out={tmp_path / 'out'}"]) == 2
    told = "score needs pyarrow, which is not installed: pip install 'logpx[service,cpu,score]'"
    assert capsys.readouterr().err == f"error: {told}\n"


def test_a_ray_cluster_that_does_not_answer_is_one_sentence(
    store: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(is_initialized=lambda: False))
        given = ["score", f"--images={folder}", "--model=toy", f"--store={store}", f"--out={tmp_path / 'out'}"]
        assert main([*given, f"--ray={address}"]) == 2
    told = capsys.readouterr().err
    assert told == f"error: the Ray cluster at {address} cannot be reached ([Errno 111] Connection refused)\n"
