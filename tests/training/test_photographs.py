"""Photographs of any size train by the defaults, and by every likelihood and objective, without falling over."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.training.photographs import photographs
from training.__main__ import main
from training.configuration import Configuration
from training.data.splits import LoadedImages
from training.errors import ConfigurationError
from training.fit.devices import PLAIN
from training.fit.distributed import ALONE
from training.fit.limits import MOST_PIXEL_WEIGHTS, num_pixel_weights
from training.fit.loop import Loop
from training.fit.recipes import complete_configuration
from training.fit.run import open_run
from training.fit.state import TrainingState, build_state
from training.networks.resnet import LARGEST, patch_size
from training.networks.vae import HIGHEST_LOG_VAR, LOWEST_LOG_VAR, build_vae

CPU = torch.device("cpu")
LIKELIHOODS: list[dict[str, Any]] = [
    {"likelihood": "bernoulli"},
    {"likelihood": "discretised_logistic"},
    {"likelihood": "gaussian"},
    {"likelihood": "gaussian", "gaussian_scale": 0.1},
]
SIZES = [(1, 16, 16), (1, 28, 28), (3, 48, 64), (1, 64, 64), (1, 128, 128), (3, 200, 150), (3, 256, 256), (1, 300, 300)]


def loop_of(images: NDArray[np.uint8], **options: Any) -> tuple[Loop, TrainingState]:
    configuration = complete_configuration(options, images)
    mean = torch.from_numpy(images.mean(axis=0, dtype=np.float64) / 255).float()
    state = build_state(configuration, mean, CPU)
    return Loop(configuration, state, LoadedImages(images, CPU), ALONE, PLAIN, progress=False), state


def test_an_mlp_of_the_default_width_and_rate_stays_sane_at_128_pixels() -> None:
    """Two steps an epoch, so no warm-up: the first validation bound was once −3·10⁸ nats, and the next not a number."""
    loop, state = loop_of(
        photographs(8, 128, 128, seed=1),
        preset="mlp",
        likelihood="discretised_logistic",
        batch_size=4,
        num_samples=2,
        warm_up_epochs=1.0,
    )
    assert (loop.configuration.width, loop.configuration.learning_rate) == (512, 2e-3)
    for epoch in range(1, 4):
        trained = loop.train_epoch(epoch)
        assert -8 < trained.bound / loop.num_pixels < -4  # nats a pixel; 8 bits are 5.5
        state.reached = trained.reached


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=["bernoulli", "logistic", "scale", "fixed"])
@pytest.mark.parametrize("objective", ["iwae", "elbo"])
def test_an_mlp_of_the_default_rate_rises_steadily_at_128_pixels(likelihood: dict[str, Any], objective: str) -> None:
    images = photographs(32, 128, 128, seed=1)
    options = {"preset": "mlp", "width": 64, "num_samples": 2, "batch_size": 16, "warm_up_epochs": 0.0}
    loop, state = loop_of(images, objective=objective, **options, **likelihood)
    assert loop.configuration.learning_rate == 2e-3
    bounds = []
    for epoch in range(1, 7):
        trained = loop.train_epoch(epoch)
        state.reached = trained.reached
        bounds.append(trained.bound / loop.num_pixels)
    assert all(bound > bounds[0] - 0.05 for bound in bounds), bounds  # nats a pixel
    assert bounds[-1] > bounds[0], bounds


@pytest.mark.parametrize("shape", SIZES)
def test_defaults_train_every_size(shape: tuple[int, int, int]) -> None:
    channels, height, width = shape
    images = photographs(12, height, width, channels=channels, contrast=5.0, seed=2)  # mostly black or white
    images[0], images[1] = 0, 255  # a blank image of either kind
    loop, state = loop_of(images, width=4, depth=1, batch_size=4, epochs=4, likelihood="discretised_logistic")
    bounds = []
    for epoch in range(1, 5):
        trained = loop.train_epoch(epoch)
        assert trained.skipped_steps == 0
        state.reached = trained.reached
        bounds.append(trained.bound / loop.num_pixels)
    assert all(math.isfinite(bound) for bound in bounds)
    assert min(bounds) > bounds[0] - 0.3, bounds  # nats a pixel
    assert bounds[-1] > bounds[0], bounds


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 28, 28), (1, 64, 64), (1, 128, 128), (3, 128, 128), (1, 300, 300)])
@pytest.mark.parametrize("images", ["white", "photographs"])
def test_one_step_moves_no_unit_of_an_mlp_farther_on_a_large_image(shape: tuple[int, int, int], images: str) -> None:
    channels, height, width = shape
    pixels = (
        np.full((4, *shape), 255, np.uint8)
        if images == "white"
        else photographs(4, height, width, channels=channels, seed=3)
    )
    loop, state = loop_of(pixels, preset="mlp", width=8, latent_dim=4, warm_up_epochs=0.0, num_samples=1)
    x = torch.from_numpy(pixels).float().flatten(1) / 255
    layer: Any = state.model.encoder.body
    before = layer.hidden[0](x).detach()
    loop.train_epoch(1)  # one step
    moved = (layer.hidden[0](x) - before).abs().max().item()
    rate = loop.configuration.learning_rate
    assert 0 < moved <= 1.001 * rate * (784 + 1)  # the weights of as many bright pixels as MNIST has, and the bias


def test_at_28_pixels_every_weight_has_the_same_rate() -> None:
    for preset in ("mlp", "resnet"):
        configuration = complete_configuration({"preset": preset}, np.zeros((1, 1, 28, 28), np.uint8))
        state = build_state(configuration, torch.zeros(1, 28, 28), CPU)
        (group,) = state.optimiser.param_groups
        assert group["rate_scale"] == 1.0


@pytest.mark.parametrize(("height", "width"), [(41, 40), (64, 48), (100, 128), (300, 300), (512, 511), (16, 512)])
def test_patches_are_few_and_cover_the_image(height: int, width: int) -> None:
    patch = patch_size(height, width)
    assert patch > 1
    assert max(-(-height // patch), -(-width // patch)) <= LARGEST
    assert max(-(-height // (patch // 2)), -(-width // (patch // 2))) > LARGEST
    mean = torch.rand(1, height, width, generator=torch.Generator().manual_seed(1))
    vae = build_vae(Configuration(preset="resnet", width=2, depth=1, latent_dim=2), mean)
    x = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(2)).requires_grad_()
    assert vae.decoder(vae.encode(x)[0])[0].shape == (1, 1, height, width)
    vae.encode(x)[0].sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad[0, 0, -1].any()  # the last row and column are read
    assert x.grad[0, 0, :, -1].any()


def test_a_posterior_is_neither_narrower_nor_wider_than_float32_bears() -> None:
    vae = build_vae(Configuration(width=4, latent_dim=2), torch.full((1, 4, 3), 0.5))
    x = torch.rand(5, 1, 4, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        vae.encoder.log_var.weight.mul_(1e6)
        log_var = vae.encode(x)[1]
        assert log_var.min() >= LOWEST_LOG_VAR
        assert log_var.max() <= HIGHEST_LOG_VAR
        vae.encoder.log_var.weight.mul_(1e-6)
        assert torch.equal(vae.encode(x)[1], vae.encoder.log_var(vae.encoder.body(x)))


def test_an_mlp_that_no_machine_holds_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert num_pixel_weights(Configuration(), (1, 28, 28)) < MOST_PIXEL_WEIGHTS
    np.save(tmp_path / "large.npy", np.arange(10 * 3 * 512 * 512, dtype=np.uint8).reshape(10, 3, 512, 512))
    command = ["fit", f"--data={tmp_path / 'large.npy'}", f"--out={tmp_path / 'run'}", "--preset=mlp", "--device=cpu"]
    assert main(command) == 2
    assert "an mlp of width 256 for images of [3, 512, 512] has 604 million weights" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_preset_that_was_chosen_is_on_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "photographs.npy", photographs(20, 48, 64, channels=3))
    data, out = tmp_path / "photographs.npy", tmp_path / "run"
    sizes = ["--width=2", "--depth=1", "--epochs=2", "--device=cpu"]
    assert main(["fit", f"--data={data}", f"--out={out}", *sizes]) == 0
    assert "; resnet, discretised_logistic_neighbours, " in capsys.readouterr().out
    assert json.loads((out / "run.json").read_text())["configuration"]["preset"] == "resnet"
    assert main(["fit", f"--data={data}", f"--out={out}", *sizes, "--preset=auto", "--resume"]) == 0
    assert open_run(out).read_metrics(9)[-1]["setbacks"] == 0


def test_auto_is_no_preset_of_a_configuration() -> None:
    with pytest.raises(ConfigurationError, match="preset must be one of mlp, resnet, linear, not 'auto'"):
        Configuration(preset="auto")  # type: ignore[arg-type]
