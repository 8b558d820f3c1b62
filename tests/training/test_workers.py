"""Several real processes under torchrun train what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.run import CHECKPOINT, METRICS
from training.workers import Acceleration, Precision, choose_acceleration

ROOT = Path(__file__).parents[2]
RECIPE = {
    "epochs": 3,
    "width": 24,
    "latent-dim": 3,
    "num-samples": 3,
    "batch-size": 53,  # shares of 27 and 26 images; the last batch has one, so the other process none
    "num-validation": 20,
    "num-calibration": 20,
    "patience": 2,
    "max-gradient-norm": 50,
    "device": "cpu",
}


def fit(digits: Path, folder: Path, *more: str, processes: int = 1, code: int = 0, **recipe: int) -> str:
    options = [f"--{name}={value}" for name, value in (RECIPE | recipe).items()]
    module = ["training", "fit", f"--data={digits}", f"--out={folder}", *options, *more]
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"] if processes > 1 else []
    process = subprocess.run(  # noqa: S603 (our own command)
        [sys.executable, "-m", *launcher, *module],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == code, process.stderr
    return process.stdout if code == 0 else process.stderr


def bounds(folder: Path) -> list[list[float]]:
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [[line["epoch"], line["train_bound"], line["validation_bound"], line["validation_elbo"]] for line in lines]


def test_two_processes_train_what_one_does_and_go_on_where_they_stopped(digits: Path, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    fit(digits, alone)
    output = fit(digits, together, processes=2)
    assert output.count("epoch 2/3: train") == 1  # one process prints
    expected, found = (torch.load(folder / CHECKPOINT, weights_only=True) for folder in (alone, together))
    assert found["epoch"] == expected["epoch"] == 3
    for part in ("model", "averaged"):
        for name, value in expected[part].items():
            assert torch.allclose(found[part][name], value, atol=2e-5), name
    assert bounds(together) == [pytest.approx(line, abs=1e-3) for line in bounds(alone)]

    # A run that one process began, and that was cut short after an epoch, goes on in two.
    checkpoints = []
    for folder, processes in ((tmp_path / "resumed", 2), (tmp_path / "never stopped", 1)):
        fit(digits, folder, epochs=1)
        description = json.loads((folder / "run.json").read_text())
        description["configuration"]["epochs"] = 3
        (folder / "run.json").write_text(json.dumps(description))
        fit(digits, folder, "--resume", processes=processes)
        checkpoints.append(torch.load(folder / CHECKPOINT, weights_only=True))
    for name, value in checkpoints[1]["averaged"].items():
        assert torch.allclose(checkpoints[0]["averaged"][name], value, atol=2e-5), name


def test_what_is_wrong_is_told_once(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    errors = fit(digits, tmp_path, processes=2, code=1)
    assert errors.count("is not empty: continue it with --resume") == 1


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cpu", "auto", Acceleration("float32", compiled=False)),
        ("cuda", "auto", Acceleration("bfloat16", compiled=True)),
        ("cuda", "float32", Acceleration("float32", compiled=True)),
        ("cpu", "bfloat16", Acceleration("bfloat16", compiled=False)),
    ],
)
def test_only_a_gpu_is_accelerated_unasked(device: str, precision: Precision, expected: Acceleration) -> None:
    assert choose_acceleration(torch.device(device), precision, "auto") == expected
