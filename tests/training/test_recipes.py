from typing import Any

import numpy as np
import pytest

from training.configuration import Configuration
from training.errors import ConfigurationError
from training.fit.recipes import complete_configuration

GREY = np.random.default_rng(3).integers(0, 256, (30, 1, 4, 4)).astype(np.uint8)
DIGITS = np.where(GREY < 230, GREY // 128 * 255, GREY).astype(np.uint8)  # of ten pixels, at most one is grey
BINARY = (GREY // 128 * 255).astype(np.uint8)
FLOATS = (GREY / 255).astype(np.float32)


@pytest.mark.parametrize(
    ("pixels", "options", "likelihood", "binarisation"),
    [
        (GREY, {}, "discretised_logistic", "none"),
        (DIGITS, {}, "bernoulli", "dynamic"),
        (BINARY, {}, "bernoulli", "dynamic"),
        (FLOATS, {}, "bernoulli", "dynamic"),
        (GREY, {"binarisation": "none"}, "discretised_logistic", "none"),
        (GREY, {"binarisation": "threshold"}, "bernoulli", "threshold"),
        (GREY, {"likelihood": "bernoulli"}, "bernoulli", "dynamic"),
        (DIGITS, {"likelihood": "discretised_logistic"}, "discretised_logistic", "none"),
        (FLOATS, {"likelihood": "gaussian", "gaussian_scale": 0.1}, "gaussian", "none"),
    ],
)
def test_the_pixels_decide_where_the_user_does_not(
    pixels: Any, options: dict[str, Any], likelihood: str, binarisation: str
) -> None:
    configuration = complete_configuration(options, pixels)
    assert (configuration.likelihood, configuration.binarisation) == (likelihood, binarisation)


@pytest.mark.parametrize(
    ("shape", "options", "likelihood", "width", "latent_dim"),
    [
        ((1, 28, 28), {}, "discretised_logistic", 512, 50),
        ((1, 28, 29), {}, "discretised_logistic_neighbours", 256, 32),
        ((3, 32, 32), {}, "discretised_logistic_neighbours", 256, 32),
        ((3, 32, 32), {"likelihood": "discretised_logistic_interlaced"}, "discretised_logistic_interlaced", 256, 32),
        ((3, 48, 64), {}, "discretised_logistic_neighbours", 16, 32),
        ((1, 64, 64), {"width": 99}, "discretised_logistic_neighbours", 99, 32),
        ((1, 64, 64), {"likelihood": "discretised_logistic"}, "discretised_logistic", 512, 50),
        ((1, 64, 64), {"binarisation": "threshold"}, "bernoulli", 512, 50),
        ((1, 28, 28), {"likelihood": "discretised_logistic_neighbours"}, "discretised_logistic_neighbours", 512, 50),
    ],
)
def test_pixels_of_photographs_are_predicted_from_their_neighbours(
    shape: tuple[int, int, int], options: dict[str, Any], likelihood: str, width: int, latent_dim: int
) -> None:
    found = complete_configuration(options, np.broadcast_to(np.uint8(99), (30, *shape)))
    assert (found.likelihood, found.width, found.latent_dim) == (likelihood, width, latent_dim)


def test_a_preset_has_its_recipe_and_the_user_the_last_word() -> None:
    many = np.repeat(BINARY, 500, axis=0)
    assert complete_configuration({}, many) == complete_configuration({"preset": "mlp"}, many) == Configuration()
    assert complete_configuration({"preset": "resnet"}, BINARY).width == 32
    assert complete_configuration({"preset": "resnet", "width": 5}, BINARY).width == 5


def test_options_that_cannot_work_together_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="binarisation must be none"):
        complete_configuration({"likelihood": "gaussian", "binarisation": "dynamic"}, GREY)
    with pytest.raises(ConfigurationError, match="gaussian_scale belongs to the likelihood gaussian"):
        complete_configuration({"gaussian_scale": 0.1}, GREY)


@pytest.mark.parametrize(
    ("shape", "preset", "width", "num_samples", "batch_size"),
    [
        ((1, 16, 16), "mlp", 512, 8, 128),
        ((1, 28, 28), "mlp", 512, 8, 128),
        ((1, 28, 29), "mlp", 512, 1, 50),
        ((3, 32, 32), "mlp", 512, 1, 50),
        ((1, 64, 64), "mlp", 512, 1, 50),
        ((1, 64, 65), "resnet", 16, 1, 32),
        ((3, 48, 64), "resnet", 16, 1, 32),
        ((3, 512, 512), "resnet", 16, 1, 32),
    ],
)
def test_the_size_of_the_images_decides_the_networks(
    shape: tuple[int, int, int], preset: str, width: int, num_samples: int, batch_size: int
) -> None:
    for options in ({}, {"preset": "auto"}):
        found = complete_configuration(options, np.broadcast_to(np.uint8(0), (5000, *shape)))
        assert (found.preset, found.width, found.num_samples, found.batch_size) == (
            preset,
            width,
            num_samples,
            batch_size,
        )
        assert found.learning_rate == {"mlp": 2e-3, "resnet": 1e-3}[preset]
    assert complete_configuration({"preset": "mlp"}, np.zeros((1, *shape), np.uint8)).preset == "mlp"
    assert (
        complete_configuration({"preset": "resnet", "num_samples": 5}, np.zeros((1, *shape), np.uint8)).num_samples == 5
    )


@pytest.mark.parametrize(
    ("num_images", "options", "batch_size", "warm_up"),
    [
        (1, {}, 8, 12),
        (150, {}, 8, 6),  # 19 steps an epoch
        (801, {}, 9, 2),
        (3100, {}, 31, 1),
        (3101, {}, 32, 2),  # 97 steps
        (70_000, {}, 32, 1),
        (150, {"batch_size": 32}, 32, 12),
        (150, {"preset": "mlp"}, 32, 12),
        (12_700, {"preset": "mlp"}, 127, 1),
        (70_000, {"preset": "mlp"}, 128, 1),
        (70_000, {"preset": "mlp", "epochs": 2}, 128, 0.2),  # 547 steps an epoch
        (150, {"preset": "mlp", "batch_size": 7}, 7, 5),
    ],
)
def test_few_large_images_come_in_small_batches(
    num_images: int, options: dict[str, Any], batch_size: int, warm_up: float
) -> None:
    found = complete_configuration(options, np.broadcast_to(np.uint8(0), (num_images, 3, 48, 64)))
    assert (found.batch_size, found.warm_up_epochs) == (batch_size, warm_up)


@pytest.mark.parametrize(
    ("num_images", "options", "epochs"),
    [
        (60_000, {}, 1),  # 469 steps an epoch
        (12_800, {}, 1),  # 100
        (12_672, {}, 2),  # 99
        (2_000, {}, 7),  # 16 steps an epoch: 112 steps
        (300, {}, 12),  # 3 steps an epoch: a tenth of 120 epochs
        (300, {"epochs": 2}, 1),
        (300, {"batch_size": 3}, 1),
        (300, {"warm_up_epochs": 0.0}, 0),
        (300, {"warm_up_epochs": 0.5}, 0.5),
    ],
)
def test_the_warm_up_has_a_hundred_steps_also_where_an_epoch_is_short(
    num_images: int, options: dict[str, Any], epochs: float
) -> None:
    pixels = np.zeros((num_images, 1, 2, 2), np.uint8)
    assert complete_configuration(options, pixels).warm_up_epochs == epochs
