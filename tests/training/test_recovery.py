"""A run that diverges goes back to its last good epoch with a smaller step, twice, and then says what to change."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.test_trainer import CPU, SHORT, equal, new_run, train, weights
from training.data import DataSplits
from training.errors import DivergenceError
from training.gradients import drop_if_not_finite
from training.networks import Vae
from training.recovery import check_bound
from training.run import Run
from training.schedule import learning_rate
from training.trainer import EpochFigures, fit


@pytest.fixture
def diverging_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second epoch on, steps are absurdly large until the first setback."""

    def rate(step: int, steps_per_epoch: int, configuration: object) -> float:
        return learning_rate(step, steps_per_epoch, SHORT) * (1e36 if step >= steps_per_epoch else 1)

    monkeypatch.setattr("training.loop.learning_rate", rate)
    monkeypatch.setattr("training.loop.rate_factor", lambda setbacks: 0.25e-36 if setbacks else 1.0)


def fit_told(run: Run, splits: DataSplits, *, stop_after: int | None = None) -> list[str]:
    lines: list[str] = []

    def on_epoch(figures: EpochFigures, _: Vae) -> None:
        if figures.epoch == stop_after:
            raise KeyboardInterrupt

    try:
        fit(run, splits, device=CPU, on_epoch=on_epoch, on_setback=lines.append)
    except KeyboardInterrupt:
        assert stop_after
    return lines


@pytest.mark.usefixtures("diverging_once")
def test_a_run_goes_on_from_its_last_good_epoch_with_a_smaller_step(tmp_path: Path, splits: DataSplits) -> None:
    whole, broken = (new_run(tmp_path / name, splits, SHORT) for name in ("whole", "broken"))
    (line,) = fit_told(whole, splits)
    assert "back to the weights of epoch 1, and on with 0.25 times the learning rate" in line
    metrics = whole.read_metrics(9)
    assert [figures["epoch"] for figures in metrics] == [1, 2, 3, 4]
    assert [figures["setbacks"] for figures in metrics] == [0, 1, 1, 1]
    assert metrics[1]["learning_rate"] < 0.25 * SHORT.learning_rate
    assert all(math.isfinite(value) for figures in metrics for value in figures.values())
    # A resumed run remembers the setback.
    assert len(fit_told(broken, splits, stop_after=2)) == 1
    assert fit_told(broken, splits) == []
    assert equal(weights(whole), weights(broken))


def test_a_run_that_diverges_three_times_ends_and_says_what_to_change(tmp_path: Path, splits: DataSplits) -> None:
    recipe = replace(SHORT, learning_rate=1e36, warm_up_epochs=0.0)
    run = new_run(tmp_path, splits, recipe)
    lines: list[str] = []
    with pytest.raises(DivergenceError, match=r"Begin another run with --learning-rate 1\.6e\+34") as caught:
        fit(run, splits, device=CPU, on_epoch=lambda figures, model: None, on_setback=lines.append)
    assert len(lines) == 2
    assert "1e+36, 2.5e+35, 6.3e+34 (the last time, the" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(value.isfinite().all() for value in weights(run).values())
    # It does not walk into the same again.
    told: list[str] = []
    with pytest.raises(DivergenceError, match="Begin another run"):
        fit(run, splits, device=CPU, on_epoch=lambda figures, model: None, on_setback=told.append)
    assert told == []


def test_a_single_broken_step_is_left_out(tmp_path: Path, splits: DataSplits) -> None:
    recipe = replace(SHORT, binarisation="none", batch_size=1, epochs=2)  # 160 steps an epoch: one may break
    assert isinstance(splits.train, np.ndarray)
    clean = splits.train.astype(np.float32) / np.float32(255)
    poisoned = clean.copy()
    poisoned[7, 0, 3, 4] = np.nan
    run = new_run(tmp_path, splits, recipe)
    train(run, replace(splits, train=clean), stop_after=1)
    train(run, replace(splits, train=poisoned))
    metrics = run.read_metrics(9)
    assert [line["skipped_steps"] for line in metrics] == [0, 1]
    assert [line["setbacks"] for line in metrics] == [0, 0]
    assert all(value.isfinite().all() for value in weights(run).values())
    assert metrics[1]["train_bound"] > metrics[0]["train_bound"]


def test_gradients_that_are_not_finite_are_dropped_and_others_left_alone() -> None:
    for poison in (0.0, math.inf, -math.inf, math.nan):
        some, other, without = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))
        some.grad, other.grad = torch.tensor([1e-30, -2.0, poison]), torch.full((3,), 0.1)
        before = other.grad.clone()
        norm = torch.nn.utils.get_total_norm([some.grad, other.grad])
        assert bool(drop_if_not_finite([some, other, without], norm)) == math.isfinite(poison)
        assert some.grad is not None
        if math.isfinite(poison):
            assert some.grad.tolist() == torch.tensor([1e-30, -2.0, 0.0]).tolist()
            assert torch.equal(other.grad, before)
        else:
            assert not some.grad.any()
            assert not other.grad.any()


@pytest.mark.parametrize(
    ("bound", "best", "broken"),
    [
        (-206.0, -90.0, False),
        (-3000.0, 900.0, False),  # an overfitted density
        (-355_326_185.0, -91_000.0, True),  # of 128×128 pixels: what the first epoch once came to
        (-math.inf, -90.0, True),
        (math.nan, -90.0, True),
        (math.inf, -90.0, True),
    ],
)
def test_bounds_that_are_absurd_are_told_from_bad_ones(bound: float, best: float, broken: bool) -> None:
    if not broken:
        check_bound(bound, best, 784, "the bound")
        return
    with pytest.raises(DivergenceError, match=r"the bound (is|has fallen to) "):
        check_bound(bound, best, 128 * 128, "the bound")


def test_a_checkpoint_that_knows_of_no_setbacks_is_read(tmp_path: Path, splits: DataSplits) -> None:
    run = new_run(tmp_path, splits, SHORT)
    train(run, splits, stop_after=1)
    checkpoint = run.load_checkpoint(CPU)
    assert checkpoint is not None
    del checkpoint["setbacks"], checkpoint["reached"]
    for group in checkpoint["optimiser"]["param_groups"]:
        del group["rate_scale"]
    run.save_checkpoint(checkpoint)
    train(run, splits)
    assert [line["setbacks"] for line in run.read_metrics(9)] == [0, 0, 0, 0]
