"""How many epochs `fit` plans where the user says none."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.__main__ import main
from training.configuration import Configuration
from training.data.splits import DataSplits
from training.fit.devices import PLAIN
from training.fit.distributed import ALONE
from training.fit.plan import Pace, Plan, measure_pace, plan
from training.fit.run import open_run
from training.fit.schedule import num_samples

SMALL = ["--width=16", "--latent-dim=3", "--num-samples=2", "--batch-size=40", "--device=cpu"]


def splits_of(num_images: int, side: int = 2) -> DataSplits:
    train = np.broadcast_to(np.uint8(128), (num_images, 1, side, side))
    held_out = np.zeros((3, 1, side, side), np.uint8)
    return DataSplits("n", "0" * 64, train, held_out, held_out, held_out)


PACE = Pace(step=0.03, validation=0.5)


def planned(num_images: int, minutes: float, given: dict[str, Any] | None = None) -> Plan:
    return plan(given or {}, splits_of(num_images), minutes, PACE)


@pytest.mark.parametrize(
    ("num_images", "epochs"),
    [
        (1, 1000),
        (128 * 12, 1000),
        (128 * 40, 300),
        (128 * 100, 120),
        (100_000, 120),
    ],
)
def test_with_time_enough_a_run_has_so_many_steps(num_images: int, epochs: int) -> None:
    found = planned(num_images, math.inf)
    assert (found.configuration.epochs, found.wanted) == (epochs, epochs)
    assert found.configuration.patience == max(10, epochs // 10)
    (line,) = found.lines()
    assert line.startswith(f"plan: {epochs} epochs, or until {found.configuration.patience} epochs bring nothing; ")


@pytest.mark.parametrize("num_images", [1, 700, 5000, 100_000])
@pytest.mark.parametrize("minutes", [0.5, 12.0, 60.0])
@pytest.mark.parametrize("given", [{}, {"finish_encoder": False}, {"num_samples": 64, "first_samples": 8}])
def test_the_plan_fills_the_time_and_no_more(num_images: int, minutes: float, given: dict[str, Any]) -> None:
    found = planned(num_images, minutes, given)
    configuration, steps = found.configuration, math.ceil(num_images / 128)
    assert found.seconds == PACE.seconds(configuration, steps)
    if configuration.epochs > 1:
        assert found.seconds <= 60 * minutes
    if configuration.epochs < found.wanted:
        assert PACE.seconds(replace(configuration, epochs=configuration.epochs + 1), steps) > 60 * minutes
        assert any("more time may give a better model" in line for line in found.lines())
        again = planned(num_images, math.ceil(found.wanted_seconds / 60), given)
        assert again.configuration.epochs == found.wanted  # as the line says


def test_one_epoch_is_the_least_and_says_that_it_is_too_long() -> None:
    found = planned(100_000, 0.1)
    assert found.configuration.epochs == 1
    assert found.configuration.warm_up_epochs == 100 / 782  # 100 steps, so that the rate falls again
    assert found.lines()[0] == "plan: 1 epoch; at most about 37 seconds at this machine's present pace"
    assert "that is longer than --minutes 0.1: smaller images (--size) would be faster" in found.lines()


def test_the_user_has_the_last_word_and_growing_samples_are_not_cut_short() -> None:
    assert planned(700, math.inf, {"patience": 0}).configuration.patience == 0
    assert planned(700, math.inf, {"patience": 3, "width": 7}).configuration.patience == 3
    grown = planned(700, math.inf, {"num_samples": 64, "first_samples": 8})
    assert grown.configuration.patience == 0
    assert "until" not in grown.lines()[0]


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("one level", np.full((40, 1, 16, 16), 90, np.uint8)),
        ("one image unlike the others", np.repeat(np.array([90] * 39 + [255], np.uint8), 256).reshape(40, 1, 16, 16)),
        ("ten images of noise", np.random.default_rng(1).integers(0, 256, (10, 3, 16, 20)).astype(np.uint8)),
        ("one pixel", np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)),
        ("a strip", np.random.default_rng(2).integers(100, 140, (12, 1, 16, 260)).astype(np.uint8)),
    ],
)
def test_odd_images_end_in_a_model_by_the_defaults(name: str, images: NDArray[np.uint8], tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", images)
    options = ["--minutes=0.001", "--width=4", "--latent-dim=2", "--device=cpu"]
    assert main(["fit", f"--data={tmp_path / 'images.npy'}", f"--out={tmp_path / 'run'}", *options]) == 0, name
    metrics = open_run(tmp_path / "run").read_metrics()
    assert metrics
    assert all(math.isfinite(line["validation_bound"]) for line in metrics)


def test_too_few_images_say_how_many_are_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "images.npy", np.arange(9 * 4, dtype=np.uint8).reshape(9, 1, 2, 2))
    assert main(["fit", f"--data={tmp_path / 'images.npy'}", f"--out={tmp_path / 'run'}", "--device=cpu"]) == 2
    assert capsys.readouterr().err.endswith("; there must be at least 10, or these numbers given\n")


def test_samples_that_grow_cost_what_they_are() -> None:
    run = Configuration(num_samples=64, first_samples=8, epochs=30, finish_encoder=False)
    samples = [num_samples(epoch, run) for epoch in range(1, 31)]
    assert Pace(0.5, 0.0).seconds(run, 4) == pytest.approx(0.5 * 4 * sum(samples) / 8)
    assert max(samples) == 64


def test_what_is_timed_changes_nothing(splits: DataSplits) -> None:
    state, given = torch.get_rng_state(), Configuration(width=8, latent_dim=2, num_samples=2, batch_size=16)
    pace = measure_pace(given, splits, torch.device("cpu"), ALONE, PLAIN)
    assert all(0 < seconds < 60 for seconds in (pace.step, pace.validation))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_planned_run_is_that_of_as_many_epochs(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def arguments(out: str, *more: str) -> list[str]:
        return ["fit", f"--data={digits}", f"--out={tmp_path / out}", *SMALL, *more]

    assert main(arguments("planned", "--minutes=0.01")) == 0
    assert "\nplan: " in capsys.readouterr().out
    run = open_run(tmp_path / "planned")
    configuration = run.description.configuration
    said = [f"--epochs={configuration.epochs}", f"--patience={configuration.patience}"]
    assert main(arguments("said", *said)) == 0
    assert "\nplan: " not in capsys.readouterr().out
    runs = [run, open_run(tmp_path / "said")]
    assert runs[0].description.configuration == runs[1].description.configuration
    found = [each.load_checkpoint(torch.device("cpu")) for each in runs]
    assert found[0] is not None
    assert found[1] is not None
    for name, weights in found[0]["averaged"].items():
        assert torch.equal(weights, found[1]["averaged"][name]), name

    for one, other in itertools.product(["--minutes=1"], [["--epochs=2"], ["--resume"]]):
        assert main(arguments("planned", one, *other)) == 2
        assert "minutes plan the number of epochs, which this run has already" in capsys.readouterr().err
    assert main(arguments("planned", "--resume")) == 0
