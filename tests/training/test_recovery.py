"""A run that diverges goes back to its last good epoch with a smaller step, twice, and then says what to change."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.training.photographs import photographs
from tests.training.test_trainer import CPU, SHORT, equal, new_run, train, weights
from training.data.splits import DataSplits, LoadedImages
from training.errors import DivergenceError
from training.fit.devices import PLAIN
from training.fit.distributed import ALONE
from training.fit.gradients import accumulate_gradients
from training.fit.loop import Loop
from training.fit.recovery import check_bound
from training.fit.run import Run
from training.fit.schedule import learning_rate
from training.fit.start import start_of
from training.fit.state import TrainingState, build_state
from training.fit.trainer import EpochFigures, fit
from training.networks.vae import Vae


@pytest.fixture
def diverging_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second epoch on, steps are absurdly large until the first setback."""

    def rate(step: int, steps_per_epoch: int, configuration: object) -> float:
        return learning_rate(step, steps_per_epoch, SHORT) * (1e36 if step >= steps_per_epoch else 1)

    monkeypatch.setattr("training.fit.loop.learning_rate", rate)
    monkeypatch.setattr("training.fit.loop.rate_factor", lambda setbacks: 0.25e-36 if setbacks else 1.0)


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
    assert "back to the weights of epoch 1, continuing with 0.25 times the learning rate" in line
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
    with pytest.raises(DivergenceError, match=r"run, in another folder, with --learning-rate 1\.6e\+34") as caught:
        fit(run, splits, device=CPU, on_epoch=lambda figures, model: None, on_setback=lines.append)
    assert len(lines) == 2
    assert "at each of the learning rates 1e+36, 2.5e+35, 6.3e+34, the last time in epoch 1 (the " in str(caught.value)
    assert "--start-from" not in str(caught.value)  # nothing has been learned
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


def test_what_was_learned_before_can_be_the_start_of_another_run(
    tmp_path: Path, splits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "training.fit.loop.learning_rate",
        lambda step, steps_per_epoch, configuration: 2e-3 if step < 2 * steps_per_epoch else 1e36,
    )
    run = new_run(tmp_path, splits, SHORT)
    with pytest.raises(
        DivergenceError, match=r"the last time in epoch 3 \(.*epoch 2 are kept, for --start-from\. Begin"
    ):
        fit_told(run, splits)
    assert [figures["epoch"] for figures in run.read_metrics(9)] == [1, 2]
    assert all(value.isfinite().all() for value in start_of(run).weights.values())


def test_an_odd_validation_image_is_no_divergence(tmp_path: Path) -> None:
    """An inverted image beside images that hardly vary once ended a healthy run, after three setbacks."""
    rng = np.random.default_rng(1)
    images = np.zeros((96, 1, 20, 20), np.uint8)
    images[:, :, 6:14, 6:14] = rng.integers(100, 140, (96, 1, 8, 8))
    validation = images[80:].copy()
    validation[0] = 255 - validation[0]
    splits = DataSplits("odd", "0" * 64, images[:80], validation, images[80:], images[80:])
    recipe = replace(SHORT, likelihood="gaussian", binarisation="none", batch_size=8, epochs=8)
    run = new_run(tmp_path, splits, recipe)
    assert fit_told(run, splits) == []
    metrics = run.read_metrics(9)
    assert metrics[-1]["train_bound"] > metrics[0]["train_bound"] + 100
    assert metrics[-1]["validation_bound"] < -10 * (metrics[-1]["train_bound"] + 400)


@pytest.mark.parametrize("decay", [0.9, 0.999999])
def test_a_last_step_that_ruins_the_weights_is_taken_back(
    decay: float, tmp_path: Path, splits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No loss of that epoch shows it, and hardly the average: the checkpoint would be of ruined weights."""
    setbacks: list[int] = []

    def factor(count: int) -> float:
        setbacks.append(count)
        return 1e5 if len(setbacks) == 8 else 0.25**count  # the last step of epoch 2

    monkeypatch.setattr("training.fit.loop.rate_factor", factor)
    recipe = replace(SHORT, ema_decay=decay)
    run = new_run(tmp_path, splits, recipe)
    (line,) = fit_told(run, splits)
    assert "the training images' bound by the weights after epoch 2, step 8, has fallen to " in line
    assert "back to the weights of epoch 1" in line
    assert [figures["setbacks"] for figures in run.read_metrics(9)] == [0, 1, 1, 1]


def everything(state: TrainingState) -> dict[str, torch.Tensor]:
    """Copies of all tensors that a step may change: weights, average, and Adam's moments and count of steps."""
    checkpoint = state.as_checkpoint(0)
    moments = checkpoint["optimiser"]["state"]
    parts = {"model": checkpoint["model"], "averaged": checkpoint["averaged"], **moments}
    return {f"{part} {name}": value.clone() for part, values in parts.items() for name, value in values.items()}


@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_step_that_is_not_finite_changes_no_bit(poison: float, decay: float) -> None:
    clean = photographs(4, 30, 30, seed=1).astype(np.float32) / np.float32(255)
    poisoned = clean.copy()
    poisoned[2, 0, 3, 4] = poison
    configuration = replace(SHORT, binarisation="none", batch_size=4, ema_decay=decay)  # one step an epoch
    without, with_it = (build_state(configuration, torch.full((1, 30, 30), 0.5), CPU) for _ in range(2))

    def epoch(number: int, images: NDArray[np.float32], state: TrainingState) -> None:
        loop = Loop(configuration, state, LoadedImages(images, CPU), ALONE, PLAIN, progress=False)
        state.reached = loop.train_epoch(number).reached

    # Moments are not zero then: they would have moved the weights, gradient or not.
    for state in (without, with_it):
        epoch(1, clean, state)
        assert state.model.rate_scales()  # two groups of parameters
    before = everything(with_it)
    assert {name.split()[1] for name in before} >= {"step", "exp_avg", "exp_avg_sq"}
    with pytest.raises(DivergenceError, match="at step 2"):
        epoch(2, poisoned, with_it)
    after = everything(with_it)
    assert equal(after, before)
    # Nor does it change the steps that follow.
    for state in (without, with_it):
        epoch(3, clean, state)
    assert equal(everything(with_it), everything(without))
    assert not equal(everything(with_it), before)


@pytest.mark.parametrize("poison", [1e9, math.inf, -math.inf, math.nan])
def test_one_gradient_that_is_not_finite_is_enough(poison: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss may be finite beside it."""
    state = build_state(replace(SHORT, batch_size=4), torch.full((1, 5, 5), 0.5), CPU)
    images = LoadedImages(np.full((4, 1, 5, 5), 255, np.uint8), CPU)
    loop = Loop(replace(SHORT, batch_size=4), state, images, ALONE, PLAIN, progress=False)
    state.reached = loop.train_epoch(1).reached
    before = everything(state)

    def poisoned(*arguments: Any, **options: Any) -> torch.Tensor:
        loss = accumulate_gradients(*arguments, **options)
        bias = state.model.encoder.mean.bias
        assert bias.grad is not None
        bias.grad[1] += poison
        return loss

    monkeypatch.setattr("training.fit.loop.accumulate_gradients", poisoned)
    if math.isfinite(poison):
        loop.train_epoch(2)
    else:
        with pytest.raises(DivergenceError, match="the gradient is not finite at step 2"):
            loop.train_epoch(2)
    assert equal(everything(state), before) == (not math.isfinite(poison))


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
