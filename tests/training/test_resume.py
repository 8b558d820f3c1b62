"""Real processes, really killed: what they leave behind is continued by another, to the same weights, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from training.__main__ import main
from training.fit.run import CHECKPOINT, METRICS

EPOCHS, ENCODER_EPOCHS = 8, 3
ROOT = Path(__file__).parents[2]


def arguments(digits: Path, folder: Path, *more: str) -> list[str]:
    recipe = {"width": 96, "latent-dim": 8, "num-samples": 32, "batch-size": 4, "device": "cpu"}
    recipe |= {"epochs": EPOCHS, "finish-epochs": ENCODER_EPOCHS}
    return [
        "fit",
        f"--data={digits}",
        f"--out={folder}",
        *(f"--{name}={value}" for name, value in recipe.items()),
        *more,
    ]


def start(digits: Path, folder: Path) -> "subprocess.Popen[str]":
    # One thread: threads that wait for each other on a busy machine would make the test slow.
    return subprocess.Popen(  # noqa: S603 (our own command)
        [sys.executable, "-m", "training", *arguments(digits, folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes that are killed: another number of threads may add in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def epochs_in(folder: Path) -> list[int]:
    file = folder / METRICS
    return [json.loads(line)["epoch"] for line in file.read_text().splitlines()] if file.exists() else []


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder / CHECKPOINT, weights_only=True)
    assert checkpoint["epoch"] == EPOCHS + ENCODER_EPOCHS
    optimiser = {
        f"optimiser {index} {name}": value
        for index, state in checkpoint["optimiser"]["state"].items()
        for name, value in state.items()
    }
    parts = {"model": checkpoint["model"], "averaged": checkpoint["averaged"], "best": checkpoint["best"]["weights"]}
    return optimiser | {f"{part} {key}": value for part, found in parts.items() for key, value in found.items()}


@pytest.fixture(scope="module")
def uninterrupted(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main(arguments(digits, folder)) == 0
    return folder


@pytest.mark.parametrize(
    ("number", "code", "epochs"),
    [(signal.SIGKILL, -signal.SIGKILL, 2), (signal.SIGINT, 130, 2), (signal.SIGKILL, -signal.SIGKILL, EPOCHS + 1)],
    ids=["killed", "interrupted", "killed while the encoder alone is trained"],
)
def test_a_killed_run_ends_with_the_same_weights(
    digits: Path, tmp_path: Path, uninterrupted: Path, number: signal.Signals, code: int, epochs: int
) -> None:
    folder = tmp_path / "run"
    process = start(digits, folder)
    deadline = time.monotonic() + 300
    while len(epochs_in(folder)) < epochs:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.02)  # into the next epoch
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert epochs <= len(epochs_in(folder)) < EPOCHS + ENCODER_EPOCHS

    assert main(arguments(digits, folder, "--resume")) == 0
    assert epochs_in(folder) == epochs_in(uninterrupted) == list(range(1, EPOCHS + ENCODER_EPOCHS + 1))
    expected, found = weights(uninterrupted), weights(folder)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not [file.name for file in folder.iterdir() if file.name.endswith(".partial")]
