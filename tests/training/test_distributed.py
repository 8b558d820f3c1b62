"""Several real processes under torchrun train what one does: in float64, where rounding is too small to matter."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.training.in_float64 import drift, in_float64, run
from tests.training.test_parquet import png, structs, write
from training.configuration import Configuration
from training.data.image_sets import Reading
from training.data.sources import Source, StreamedSource, open_source, read_source
from training.data.splits import split
from training.fit.devices import Acceleration, Precision, choose_acceleration, device_name
from training.fit.run import CHECKPOINT, METRICS, create_run, describe_run
from training.fit.trainer import EpochFigures, fit
from training.networks.vae import Vae

ROOT = Path(__file__).parents[2]
RECIPE = Configuration(
    epochs=3,
    width=24,
    latent_dim=3,
    num_samples=3,
    batch_size=53,  # shares of 27 and 26 images; the last batch has one, so the other process none
    num_validation=20,
    num_calibration=20,
    patience=2,
    max_gradient_norm=50.0,
    finish_epochs=2,
)


@dataclass(frozen=True)
class Finished:
    """What torchrun ended with, and what its two processes said."""

    status: int
    output: str
    errors: str


def options(digits: Path, folder: Path, *more: str) -> list[str]:
    given = {name: value for name, value in vars(RECIPE).items() if value != getattr(Configuration(), name)}
    recipe = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    return ["fit", f"--data={digits}", f"--out={folder}", "--device=cpu", *recipe, *more]


def torchrun(*arguments: str) -> Finished:
    module = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.training.in_float64"]
    process = subprocess.run(  # noqa: S603 (our own command)
        [sys.executable, *module, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return Finished(process.returncode, process.stdout, process.stderr)


def fit_in_two(digits: Path, folder: Path, *more: str) -> Finished:
    """As by `torchrun`, whose command is a front of this; these processes need not import PyTorch anew, which takes
    longer than what they do here.
    """
    logs = folder.with_name(f"{folder.name}-logs-{uuid.uuid4().hex}")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(str(logs), redirects=Std.ALL),
    )
    multiprocessing.get_context("forkserver").set_forkserver_preload([run.__module__])
    try:
        handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        try:
            elastic_launch(config, run)(options(digits, folder, *more))
        finally:  # it leaves its own behind
            for number, handler in handlers.items():
                if handler is not None and signal.getsignal(number) is not handler:
                    signal.signal(number, handler)
        status = 0
    except ChildFailedError:
        status = 1
    said = ["".join(file.read_text() for file in logs.rglob(name)) for name in ("stdout.log", "stderr.log")]
    return Finished(status, *said)


def fit_in_one(
    source: Source | StreamedSource, folder: Path, *, epochs: int = RECIPE.epochs, stop_after: int | None = None
) -> None:
    recipe = replace(RECIPE, epochs=epochs)
    splits = split(source, recipe)

    def on_epoch(figures: EpochFigures, _: Vae) -> None:
        if figures.epoch == stop_after:
            raise KeyboardInterrupt

    begun = create_run(folder, describe_run(recipe, splits, source="here"))
    with in_float64(), pytest.raises(KeyboardInterrupt) if stop_after else contextlib.nullcontext():
        fit(begun, splits, device=torch.device("cpu"), on_epoch=on_epoch)


def bounds(folder: Path) -> list[list[float]]:
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [[line["epoch"], line["train_bound"], line["validation_bound"], line["validation_elbo"]] for line in lines]


def assert_same(found: Path, expected: Path, epochs: int = RECIPE.epochs + 2) -> None:
    """The same weights and bounds, within rounding of 5 epochs of 4 steps at most, 2 of them of the encoder alone."""
    tolerance = drift(20, RECIPE.learning_rate, num_images=160, num_pixels=784)
    states = [torch.load(folder / CHECKPOINT, weights_only=True) for folder in (found, expected)]
    assert [state["epoch"] for state in states] == [epochs, epochs]
    for part in ("model", "averaged"):
        for name, value in states[1][part].items():
            assert value.dtype == torch.float64
            assert torch.allclose(states[0][part][name], value, rtol=0, atol=tolerance), name
    # A bound moves by its derivative, of the order of 1 for each of some thousand weights that matter to an image.
    assert bounds(found) == [pytest.approx(line, rel=0, abs=1000 * tolerance) for line in bounds(expected)]


def test_two_processes_train_what_one_does_from_the_start_or_from_where_it_stopped(
    digits: Path, tmp_path: Path
) -> None:
    alone, together, resumed = (tmp_path / name for name in ("alone", "together", "resumed"))
    fit_in_one(read_source(digits), alone)
    fit_in_one(read_source(digits), resumed, stop_after=1)
    assert len(bounds(resumed)) == 1
    for process in (fit_in_two(digits, together), fit_in_two(digits, resumed, "--resume")):
        assert process.status == 0, process.errors
        assert process.output.count("epoch 2/3: train") == 1  # one process prints
    for folder in (together, resumed):
        assert_same(folder, alone)


def test_two_processes_train_on_a_stream_what_one_does(digits: Path, tmp_path: Path) -> None:
    with np.load(digits) as arrays:
        contents = [png(image) for image in arrays["train"]]
    contents[7] = contents[7][:45]
    write(tmp_path / "digits" / "train.parquet", {"image": structs(contents)}, row_group_size=30)
    alone, together = tmp_path / "alone", tmp_path / "together"
    source = open_source(tmp_path / "digits", Reading(max_memory=0, skip_corrupt=True))
    assert isinstance(source, StreamedSource)
    fit_in_one(source, alone, epochs=2)
    streaming = ["--max-memory=0", "--skip-corrupt", "--workers=1", "--epochs=2"]
    process = torchrun(*options(tmp_path / "digits", together, *streaming))
    assert process.status == 0, process.errors
    assert process.output.count("training images stream") == 1
    assert process.errors.count("warning: 1 images cannot be read") == 1
    assert_same(together, alone, epochs=2 + 2)


def test_what_is_wrong_is_told_once(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    process = fit_in_two(digits, tmp_path)
    assert process.status == 1
    assert process.errors.count("is not empty: continue it with --resume") == 1


def test_two_processes_step_back_together_and_end(digits: Path, tmp_path: Path) -> None:
    process = fit_in_two(digits, tmp_path / "run", "--learning-rate=1e36", "--warm-up-epochs=0")
    assert process.status == 1
    assert process.errors.count("back to the weights of epoch 0") == 2  # one process tells of each
    assert "training has diverged at each of the learning rates 1e+36, 2.5e+35, 6.3e+34" in process.errors
    checkpoint = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)
    assert (checkpoint["epoch"], checkpoint["setbacks"]) == (0, 3)
    assert all(value.isfinite().all() for part in ("model", "averaged") for value in checkpoint[part].values())


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


def test_a_run_that_goes_on_is_computed_as_it_was() -> None:
    before = Acceleration("bfloat16", compiled=True)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_acceleration(cuda, "auto", "auto", before=before, device_before="cuda") == before
    assert choose_acceleration(cuda, "float32", "off", before=before, device_before="cuda") == Acceleration()
    assert choose_acceleration(cpu, "auto", "auto", before=before, device_before="cuda") == Acceleration("bfloat16")
    before = Acceleration("float32", compiled=True)
    assert choose_acceleration(cpu, "auto", "auto", before=before, device_before="cpu") == before
    moved = choose_acceleration(cuda, "auto", "auto", before=before, device_before="cpu")
    assert moved == Acceleration("float32", compiled=True)


def test_devices_are_named_without_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"H{device.index}00")
    assert device_name(torch.device("cuda", 1)) == "cuda (H100)"
    assert device_name(torch.device("cpu")) == f"cpu ({torch.backends.cpu.get_cpu_capability()})"
