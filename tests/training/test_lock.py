import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import pytest
import torch

from training.__main__ import main
from training.errors import RunError
from training.files import remove_unfinished, write_atomically
from training.fit.lock import LOCK, lock_folder
from training.fit.run import CHECKPOINT, METRICS, RUN, Run

ROOT = Path(__file__).parents[2]


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    with lock_folder(folder) as problem:
        assert problem is None
        for _ in range(2):
            with (
                pytest.raises(RunError, match=rf"run is in use: process {os.getpid()} on .+ is training there"),
                lock_folder(folder),
            ):
                pass
        with lock_folder(tmp_path / "deep" / "other"):
            pass
    assert list(folder.iterdir()) == []
    with lock_folder(folder):
        pass


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    script = f"""
import time
from pathlib import Path
from typing import IO
from training.fit.lock import lock_folder
with lock_folder(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)  # noqa: S603
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"in use: process {process.pid} on"), lock_folder(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / LOCK).exists()
    with lock_folder(tmp_path) as problem:
        assert problem is None
    assert list(tmp_path.iterdir()) == []


def test_taking_turns_never_lets_two_in(tmp_path: Path) -> None:
    """The file is removed by each holder: one who had opened it before must not take that for the lock."""
    inside = threading.Lock()
    wrong: list[str] = []
    turns = 0

    def work() -> None:
        nonlocal turns
        for _ in range(150):
            try:
                with lock_folder(tmp_path):
                    if not inside.acquire(blocking=False):
                        wrong.append("two at once")
                        continue
                    turns += 1
                    inside.release()
            except RunError:
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert turns > 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock_folder(tmp_path) as problem:
        assert problem is not None
        assert f"cannot be locked ({os.strerror(number)}): make sure" in problem


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file: cannot be written \(File exists\)"), lock_folder(tmp_path / "file"):
        pass


def test_a_second_fit_in_the_folder_says_who_is_there(
    digits: Path, tmp_path: Path, finished_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (RUN, CHECKPOINT, METRICS):
        (tmp_path / name).write_bytes((finished_run.folder / name).read_bytes())
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    options = ["--width=48", "--latent-dim=6", "--num-samples=4", "--epochs=25", "--batch-size=16"]
    command = ["fit", f"--data={digits}", f"--out={tmp_path}", "--device=cpu", *options]
    command += ["--learning-rate=3e-3", "--ema-decay=0.9", "--likelihood=bernoulli", "--binarisation=dynamic"]
    with lock_folder(tmp_path):
        for more in ([], ["--resume"]):
            assert main([*command, *more]) == 2
            assert f"{tmp_path} is in use: process {os.getpid()} on" in capsys.readouterr().err
    assert main(command) == 2
    assert "is not empty: continue it with --resume" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert main([*command, "--resume"]) == 0
    assert not (tmp_path / LOCK).exists()


def test_two_writers_of_one_file_leave_one_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "report.html"

    def write_another(stream: object) -> None:
        write_atomically(file, lambda inner: inner.write(b"second" * 1000))

    def write(stream: object) -> None:
        stream.write(b"first")  # type: ignore[attr-defined]
        write_another(stream)
        stream.write(b" and last")  # type: ignore[attr-defined]

    write_atomically(file, write)
    assert file.read_bytes() == b"first and last"
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]


def test_a_write_that_fails_leaves_nothing_and_a_kills_rest_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b"old")

    def fail(stream: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, fail)
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]
    for name in (".a.json.12-ab.partial", ".b.json.12-ab.partial"):
        (tmp_path / name).write_bytes(b"half")
    remove_unfinished(file)
    assert sorted(found.name for found in tmp_path.iterdir()) == [".b.json.12-ab.partial", "a.json"]
    assert file.read_bytes() == b"old"


def test_what_is_written_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        write_atomically(tmp_path / "a", lambda stream: stream.write(b""))
    finally:
        os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_ctrl_c_in_the_middle_of_a_write_lets_it_finish(tmp_path: Path) -> None:
    """`torch.save` would turn the interrupt into a RuntimeError, and a run that was cut short into one that failed."""
    file = tmp_path / "checkpoint.pt"
    state = {"weights": torch.arange(1000)}

    def write(stream: IO[bytes]) -> None:
        signal.raise_signal(signal.SIGINT)
        torch.save(state, stream)

    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, write)
    assert torch.equal(torch.load(file, weights_only=True)["weights"], state["weights"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]


def test_another_thread_writes_as_well(tmp_path: Path) -> None:
    """Only the main thread may set what a signal does."""
    writer = threading.Thread(
        target=write_atomically, args=(tmp_path / "a", lambda stream: stream.write(b"written")), daemon=True
    )
    writer.start()
    writer.join(timeout=60)
    assert (tmp_path / "a").read_bytes() == b"written"
