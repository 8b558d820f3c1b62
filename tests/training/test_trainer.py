import json
import math
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from model_store import ImageShape, PixelPreparation
from service.engine.preparation import Preparation
from tests.rounding import gamma
from tests.training.in_float64 import drift, in_float64
from training.configuration import Configuration
from training.data.splits import DataSplits, unit_pixels
from training.errors import ConfigurationError, DivergenceError
from training.fit.devices import PLAIN, Acceleration, choose_device
from training.fit.distributed import ALONE
from training.fit.loaded_model import load_model
from training.fit.loop import prepare
from training.fit.run import METRICS, Run, create_run, describe_run
from training.fit.schedule import learning_rate, num_samples
from training.fit.state import build_state
from training.fit.trainer import EpochFigures, fit, validate
from training.networks.vae import Vae, build_vae
from training.report.figures import CURVES, RECONSTRUCTIONS, SAMPLES, draw_figures, draw_grid

CPU = torch.device("cpu")
SHORT = Configuration(
    width=24, latent_dim=3, num_samples=3, epochs=4, batch_size=48, ema_decay=0.9, finish_encoder=False
)


class Interrupted(Exception):  # noqa: N818 (stands for a signal)
    pass


def train(run: Run, splits: DataSplits, *, stop_after: int | None = None) -> tuple[Vae | None, list[EpochFigures]]:
    told: list[EpochFigures] = []

    def on_epoch(figures: EpochFigures, model: Vae) -> None:
        told.append(figures)
        if figures.epoch == stop_after:
            raise Interrupted

    try:
        return fit(run, splits, device=CPU, on_epoch=on_epoch), told
    except Interrupted:
        return None, told


def new_run(folder: Path, splits: DataSplits, configuration: Configuration) -> Run:
    return create_run(folder, describe_run(configuration, splits, source="here"))


def weights(run: Run) -> dict[str, torch.Tensor]:
    checkpoint = run.load_checkpoint(CPU)
    assert checkpoint is not None
    found = {f"model {name}": value for name, value in checkpoint["model"].items()}
    found |= {f"averaged {name}": value for name, value in checkpoint["averaged"].items()}
    best = checkpoint["best"]
    return found | ({f"best {name}": value for name, value in best["weights"].items()} if best else {})


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_training_learns_digits(finished_run: Run, splits: DataSplits) -> None:
    metrics = finished_run.read_metrics(1000)
    metrics = [line for line in metrics if not line["encoder_epoch"]]  # of what follows: test_encoder_phase.py
    assert [line["epoch"] for line in metrics] == list(range(1, 26))
    assert metrics[-1]["step"] == 25 * 10
    assert metrics[-1]["validation_bound"] > metrics[0]["validation_bound"] + 15
    assert metrics[-1]["validation_bound"] > metrics[-1]["validation_elbo"]
    assert all(math.isfinite(value) for line in metrics for value in line.values())
    assert set(metrics[0]) == set(EpochFigures.__dataclass_fields__)
    validation = torch.from_numpy(splits.validation)
    loaded = load_model(finished_run)
    assert loaded.finished_encoder
    kept = finished_run.read_metrics()[25 + loaded.finished_encoder.kept_epoch - 1]
    elbo, bound = validate(loaded.vae, validation, finished_run.description.configuration)
    assert (elbo, bound) == (kept["validation_elbo"], kept["validation_bound"])  # to the bit


@pytest.mark.parametrize(
    "options",
    [
        {"num_samples": 4, "first_samples": 2},
        {"objective": "elbo", "ema_decay": 0.0},
        {"objective": "elbo", "kl_warm_up_epochs": 2.5, "free_bits": 0.1, "max_gradient_norm": 3.0, "patience": 3},
        {"preset": "resnet", "width": 2, "depth": 1, "likelihood": "discretised_logistic", "binarisation": "none"},
    ],
    ids=["iwae", "elbo", "everything", "resnet"],
)
def test_a_resumed_run_equals_one_never_interrupted(
    tmp_path: Path, splits: DataSplits, options: dict[str, Any]
) -> None:
    recipe = Configuration(**{**vars(SHORT), **options})
    whole, broken = (new_run(tmp_path / name, splits, recipe) for name in ("whole", "broken"))
    train(whole, splits)
    assert train(broken, splits, stop_after=2)[0] is None
    assert not equal(weights(whole), weights(broken))
    train(broken, splits)
    assert equal(weights(whole), weights(broken))
    assert [line["epoch"] for line in broken.read_metrics(9)] == [1, 2, 3, 4]
    timeless = [{**line, "seconds": 0, "images_per_second": 0} for line in whole.read_metrics(9)]
    assert timeless == [{**line, "seconds": 0, "images_per_second": 0} for line in broken.read_metrics(9)]


def test_each_session_is_recorded(tmp_path: Path, splits: DataSplits) -> None:
    run = new_run(tmp_path, splits, SHORT)
    train(run, splits, stop_after=2)
    fit(
        run,
        splits,
        device=CPU,
        on_epoch=lambda figures, model: None,
        processes=ALONE,
        acceleration=Acceleration("bfloat16"),
    )
    train(run, splits)  # at its end already: no session
    first, second = run.read_sessions()
    assert (first.first_epoch, second.first_epoch) == (1, 3)
    assert (first.precision, second.precision) == ("float32", "bfloat16")
    assert first.device == f"cpu ({torch.backends.cpu.get_cpu_capability()})"
    assert (first.compiled, first.num_threads, first.num_processes) == (False, torch.get_num_threads(), 1)
    assert first.library_versions["torch"] == torch.__version__
    assert first.library_versions["pillow"] == PIL.__version__


def test_resuming_a_finished_run_does_nothing(tmp_path: Path, splits: DataSplits) -> None:
    run = new_run(tmp_path, splits, replace(SHORT, epochs=1))
    train(run, splits)
    before = weights(run)
    model, told = train(run, splits)
    assert told == []
    assert model is not None
    assert equal(before, weights(run))


def test_the_seed_decides_the_weights(tmp_path: Path, splits: DataSplits) -> None:
    runs = [
        new_run(tmp_path / str(index), splits, replace(SHORT, epochs=1, seed=seed))
        for index, seed in enumerate((0, 0, 1))
    ]
    for run in runs:
        train(run, splits)
    first, again, other = map(weights, runs)
    assert equal(first, again)
    assert not equal(first, other)


def test_the_average_follows_the_weights(tmp_path: Path, splits: DataSplits) -> None:
    averaging, plain = (replace(SHORT, epochs=2, ema_decay=decay) for decay in (0.99, 0.0))
    for name, recipe in {"averaging": averaging, "plain": plain}.items():
        train(new_run(tmp_path / name, splits, recipe), splits)
    averaged = weights(Run(tmp_path / "averaging", describe_run(averaging, splits, source="")))
    unaveraged = weights(Run(tmp_path / "plain", describe_run(plain, splits, source="")))
    for name in (name.removeprefix("model ") for name in averaged if name.startswith("model ")):
        assert torch.equal(averaged[f"model {name}"], unaveraged[f"model {name}"])
        assert torch.equal(unaveraged[f"averaged {name}"], unaveraged[f"model {name}"])
    assert not torch.equal(
        averaged["averaged decoder.body.pixels.weight"], averaged["model decoder.body.pixels.weight"]
    )


def test_the_number_of_samples_doubles_on_the_way(tmp_path: Path, splits: DataSplits) -> None:
    def bounds(name: str, **samples: Any) -> list[float]:
        run = new_run(tmp_path / name, splits, replace(SHORT, epochs=2, **samples))
        train(run, splits)
        return [line["train_bound"] for line in run.read_metrics(9)]

    rising, few, many = bounds("rising", first_samples=2, num_samples=4), bounds("few", num_samples=2), bounds("many")
    assert rising[0] == few[0] != many[0]
    assert rising[1] != few[1]


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path: Path, splits: DataSplits) -> None:
    recipe = replace(SHORT, binarisation="none", batch_size=20)
    assert isinstance(splits.train, np.ndarray)
    clean_images = splits.train.astype(np.float32) / np.float32(255)
    clean, poisoned_images = replace(splits, train=clean_images), clean_images.copy()
    poisoned_images[7, 0, 3, 4] = np.nan
    run = new_run(tmp_path, splits, recipe)
    train(run, clean, stop_after=2)
    before = weights(run)
    with pytest.raises(DivergenceError, match=r"the loss is nan at step (1[7-9]|2[0-4]) \(epoch 3\)") as caught:
        train(run, replace(clean, train=poisoned_images))
    assert "the weights of epoch 2 are kept" in str(caught.value)
    assert equal(before, weights(run))
    assert [line["epoch"] for line in run.read_metrics(9)] == [1, 2]


def test_weights_broken_by_the_last_step_are_not_kept(tmp_path: Path, splits: DataSplits) -> None:
    recipe = replace(SHORT, epochs=1, batch_size=1000, learning_rate=1e38, ema_decay=0.0, warm_up_epochs=0.0)
    run = new_run(tmp_path, splits, recipe)
    with pytest.raises(
        DivergenceError,
        match=r"the training images' bound by the weights after epoch 1, step 1, (is|has fallen to) (nan|-)",
    ):
        train(run, splits)
    assert all(value.isfinite().all() for value in weights(run).values())
    assert run.read_metrics(9) == []


def test_training_stops_when_it_no_longer_helps_and_keeps_the_best_epoch(tmp_path: Path, splits: DataSplits) -> None:
    recipe = replace(SHORT, epochs=40, patience=2, learning_rate=0.05, ema_decay=0.0)  # overfits 160 images at once
    run = new_run(tmp_path, splits, recipe)
    model, told = train(run, splits)
    bounds = [figures.validation_bound for figures in told]
    best = int(np.argmax(bounds))
    assert len(bounds) == best + 1 + 2 < 40
    assert model is not None
    validation = torch.from_numpy(splits.validation)
    found = load_model(run)
    assert (found.epoch, found.finished) == (len(bounds), True)
    assert validate(found.vae, validation, recipe)[1] == bounds[best]
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), found.vae.parameters(), strict=True))
    assert train(run, splits)[1] == []


def test_long_gradients_are_shortened(tmp_path: Path, splits: DataSplits) -> None:
    """Adam does not mind how long a gradient is; how much of each step's is left is told by its second moments."""
    moments = []
    for norm in (0.0, 1e-3):
        recipe = replace(SHORT, epochs=1, batch_size=1000, max_gradient_norm=norm)
        run = new_run(tmp_path / str(norm), splits, recipe)
        train(run, splits)
        checkpoint = run.load_checkpoint(CPU)
        assert checkpoint is not None
        states = checkpoint["optimiser"]["state"].values()
        moments.append(sum(state["exp_avg_sq"].double().sum().item() for state in states))
    assert moments[0] > 1e-3 * 0.1**2
    # (1 - β₂)·norm², where PyTorch adds 1e-6 to the norm that it divides by; the norm is of less than 50 000 numbers.
    assert moments[1] == pytest.approx(1e-3 * 1e-3**2, rel=2 * 1e-6 / 0.1 + gamma(50_000))


def test_the_reported_bound_knows_no_warm_up_and_no_free_bits(tmp_path: Path, splits: DataSplits) -> None:
    plain = replace(SHORT, objective="elbo", epochs=1, batch_size=1000)  # one step: the bound is of the same weights
    eased = replace(plain, kl_warm_up_epochs=10.0, free_bits=2.0)
    bounds = [
        train(new_run(tmp_path / name, splits, recipe), splits)[1][0].train_bound
        for name, recipe in {"plain": plain, "eased": eased}.items()
    ]
    assert bounds[0] == bounds[1]


@pytest.mark.parametrize(
    "options",
    [
        {"likelihood": "discretised_logistic"},
        {"likelihood": "gaussian"},
        {"likelihood": "gaussian", "gaussian_scale": 0.2},
        {"preset": "resnet", "width": 8, "depth": 1, "binarisation": "dynamic", "learning_rate": 1e-2},
    ],
)
def test_every_kind_of_model_learns(tmp_path: Path, splits: DataSplits, options: dict[str, Any]) -> None:
    recipe = Configuration(
        **{**vars(SHORT), "binarisation": "none", "num_samples": 2, "batch_size": 16, "epochs": 5, **options}
    )
    told = train(new_run(tmp_path, splits, recipe), splits)[1]
    gain = told[-1].validation_bound - told[0].validation_bound
    assert gain > 5, [figures.validation_bound for figures in told]


def test_grey_floats_are_moved_to_the_levels_that_the_service_knows() -> None:
    recipe = Configuration(width=4, latent_dim=2, likelihood="discretised_logistic", binarisation="none")
    vae = build_vae(recipe, torch.full((1, 2, 2), 0.5))
    pixels = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    found = prepare(pixels, recipe, vae, generator=torch.Generator())
    expected = Preparation(PixelPreparation(), ImageShape(channels=1, height=2, width=2), 256).prepare(pixels.numpy())
    assert np.array_equal(found.numpy(), expected)
    grey = torch.arange(256, dtype=torch.uint8).reshape(64, 1, 2, 2)
    unit = grey.numpy().astype(np.float32) / np.float32(255)
    assert np.array_equal(
        prepare(grey, recipe, vae, generator=torch.Generator()).numpy(),
        Preparation(PixelPreparation(), ImageShape(channels=1, height=2, width=2), 256).prepare(unit),
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # dynamo looks
def test_compiled_networks_take_the_same_steps(
    tmp_path: Path, splits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated ahead of time as on a GPU; only the last translation, to machine code, is left out.

    In float64: see tests/training/in_float64.py. In the last epoch the encoder alone is trained.
    """
    monkeypatch.setattr("training.fit.devices.COMPILER", "aot_eager")
    recipe = replace(SHORT, epochs=2, finish_encoder=True, finish_epochs=1)
    runs = [new_run(tmp_path / name, splits, recipe) for name in ("eager", "compiled")]
    for run, acceleration in zip(runs, (PLAIN, Acceleration(compiled=True)), strict=True):
        with in_float64():
            fit(run, splits, device=CPU, on_epoch=lambda figures, model: None, acceleration=acceleration)
    eager, compiled = map(weights, runs)
    assert eager.keys() == compiled.keys()
    tolerance = drift(12, recipe.learning_rate, num_images=160, num_pixels=784)
    assert all(torch.allclose(eager[name], compiled[name], rtol=0, atol=tolerance) for name in eager)
    assert load_model(runs[1]).finished


def test_in_bfloat16_the_gradient_is_nearly_the_same(tmp_path: Path, splits: DataSplits) -> None:
    gradients = []
    for acceleration in (PLAIN, Acceleration(precision="bfloat16")):
        run = new_run(tmp_path / acceleration.precision, splits, replace(SHORT, epochs=1, batch_size=1000))  # one step
        fit(run, splits, device=CPU, on_epoch=lambda figures, model: None, acceleration=acceleration)
        assert all(value.dtype == torch.float32 for value in weights(run).values())
        checkpoint = run.load_checkpoint(CPU)
        assert checkpoint is not None
        states = checkpoint["optimiser"]["state"].values()
        gradients.append(torch.cat([state["exp_avg"].flatten() for state in states]))  # 1 − β₁ times the gradient
    exact, rough = gradients
    # Each layer, and each on the way back, rounds its operands by 2^-9 of them at most: some ten times in all.
    assert 0 < (rough - exact).norm() < 10 * 2**-9 * exact.norm()


def test_the_schedule_never_jumps() -> None:
    recipe = replace(SHORT, epochs=10, warm_up_epochs=0.5)
    rates = [learning_rate(step, 7, recipe) for step in range(70)]
    assert max(rates) == recipe.learning_rate
    assert rates.index(max(rates)) in (3, 4)
    assert all(later <= earlier for earlier, later in pairwise(rates[4:]))
    assert 0 < rates[-1] < 0.01 * max(rates)
    assert learning_rate(0, 7, replace(recipe, warm_up_epochs=0.0)) == recipe.learning_rate
    assert learning_rate(69, 7, replace(recipe, warm_up_epochs=100.0)) == recipe.learning_rate


def test_each_number_of_samples_has_as_many_decoder_rows() -> None:
    recipe = replace(SHORT, first_samples=8, num_samples=60, epochs=10_000)
    counts = Counter(num_samples(epoch, recipe) for epoch in range(1, recipe.epochs + 1))
    assert list(counts) == [8, 16, 32, 60]
    rows = [samples * epochs for samples, epochs in counts.items()]
    assert max(rows) < 1.01 * min(rows)
    assert num_samples(1, replace(recipe, epochs=1)) == 60


def test_the_bar_shows_nats_and_images_a_second(
    tmp_path: Path, splits: DataSplits, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path, splits, replace(SHORT, epochs=1, batch_size=4))
    fit(run, splits, device=CPU, on_epoch=lambda figures, model: None, progress=True)
    last = capsys.readouterr().err.split("\r")[-1]
    assert re.search(r"epoch 1/1: 100%.* 160/160 .*image/s, -\d+\.\d\d nats\]", last), last


def test_a_state_starts_as_its_own_average() -> None:
    state = build_state(SHORT, torch.full((1, 4, 3), 0.2), CPU)
    for average, parameter in zip(state.averaged.parameters(), state.model.parameters(), strict=True):
        assert torch.equal(average, parameter)
        assert average is not parameter
        assert not average.requires_grad


def test_cuda_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="finds no usable CUDA device"):
        choose_device("cuda")
    assert choose_device("auto") == CPU


def test_pictures(finished_run: Run, splits: DataSplits) -> None:
    draw_figures(finished_run, load_model(finished_run)[0], splits.validation)
    sizes = {}
    for name in (CURVES, RECONSTRUCTIONS, SAMPLES):
        with Image.open(finished_run.folder / name) as image:
            sizes[name] = image.size
            assert np.asarray(image.convert("L")).std() > 5
    assert sizes[RECONSTRUCTIONS] == (16 * 28, 4 * 28)
    assert sizes[SAMPLES] == (16 * 28, 8 * 28)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB")])
def test_a_grid_of_any_channels(tmp_path: Path, channels: int, mode: str) -> None:
    rows = [torch.rand(4, channels, 5, 3), torch.rand(2, channels, 5, 3)]
    draw_grid(tmp_path / "grid.png", rows)
    with Image.open(tmp_path / "grid.png") as image:
        assert (image.mode, image.size) == (mode, (12, 10))
        last = np.asarray(image)[5:, 3:6].reshape(5, 3, -1)[:, :, 0]
    assert np.abs(last - rows[1][1, 0].numpy() * 255).max() <= 0.51


def test_metrics_are_lines_of_json(finished_run: Run) -> None:
    text = (finished_run.folder / METRICS).read_text()
    assert text.endswith("\n")
    epochs = [json.loads(line)["epoch"] for line in text.splitlines()]
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(epochs) > 25


def test_unit_pixels_of_both_kinds() -> None:
    grey = torch.arange(0, 256, 5, dtype=torch.uint8)
    assert (unit_pixels(grey) * 255).round().int().tolist() == list(range(0, 256, 5))
    assert unit_pixels(torch.tensor([0.25], dtype=torch.float64)).dtype == torch.float32
