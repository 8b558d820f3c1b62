from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from training.configuration import Configuration
from training.data.sources import Source, read_source
from training.data.splits import PARTS, DataSplits, binarise, split
from training.errors import ConfigurationError, DataError

NUMBERED = np.arange(1, 101, dtype=np.uint8).reshape(100, 1, 1, 1) * np.ones((1, 1, 2, 3), np.uint8)


def numbers(splits: DataSplits) -> dict[str, set[int]]:
    return {part: set(getattr(splits, part)[:, 0, 0, 0].tolist()) for part in PARTS}


def test_the_parts_share_no_image_and_lose_none() -> None:
    found = numbers(split(Source("n", "0" * 64, NUMBERED), Configuration(num_validation=7, num_calibration=11)))
    assert {part: len(images) for part, images in found.items()} == {
        "train": 72,
        "validation": 7,
        "calibration": 11,
        "test": 10,
    }
    assert set.union(*found.values()) == set(range(1, 101))


@pytest.mark.parametrize("scale", [1, 255], ids=["levels", "floats"])
def test_a_pixels_spread_is_its_own_as_far_as_the_images_are_many(scale: int) -> None:
    """Ten images' worth of the mean variance: of one image nothing is known, of a thousand its own spread."""

    def spread(images: Any) -> Any:
        pixels = np.asarray(images, np.uint8).reshape(-1, 1, 1, 2)
        train = pixels if scale == 1 else (pixels / np.float32(255)).astype(np.float32)
        return DataSplits("n", "0" * 64, train, *[train[:1]] * 3).pixel_spread().flatten() * 255

    mean = 10 * 50**2 / 2  # of the variances 2500 and 0, ten times
    expected = [(40 * 50**2 + mean) / 50, mean / 50]
    assert_allclose(spread([[50, 7], [150, 7]] * 20), np.sqrt(expected), rtol=1e-5)
    assert_allclose(spread([[0, 255]]), 0, atol=1e-4)
    many = spread([[50, 7], [150, 7]] * 500)  # 256 of which are looked at, evenly spaced
    assert 47 < many[0] < 51
    assert many[1] < 8


def test_the_seed_decides_the_parts() -> None:
    source = Source("n", "0" * 64, NUMBERED)
    first, again, other = (numbers(split(source, Configuration(seed=seed))) for seed in (3, 3, 4))
    assert first == again != other


def test_own_parts_are_kept_whole() -> None:
    source = Source("n", "0" * 64, NUMBERED[:80], validation=NUMBERED[80:85], test=NUMBERED[85:])
    found = numbers(split(source, Configuration()))
    assert found["validation"] == set(range(81, 86))
    assert found["test"] == set(range(86, 101))
    assert found["train"] | found["calibration"] == set(range(1, 81))
    assert len(found["calibration"]) == 8


def test_the_bundled_recipe_holds_out_2000_and_3000() -> None:
    source = Source("n", "0" * 64, np.ones((60_000, 1, 1, 1), np.uint8), test=np.ones((10_000, 1, 1, 1), np.uint8))
    splits = split(source, Configuration())
    assert [len(getattr(splits, part)) for part in PARTS] == [55_000, 2000, 3000, 10_000]


@pytest.mark.parametrize("images", [NUMBERED[:9], NUMBERED[:1]])
def test_too_few_images(images: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> None:
    with pytest.raises(DataError, match="images cannot be divided with num_validation = 0"):
        split(Source("few", "0" * 64, images), Configuration())


def test_more_held_out_than_there_are() -> None:
    with pytest.raises(DataError, match="100 images cannot be divided with num_validation = 60, num_calibration = 40"):
        split(Source("n", "0" * 64, NUMBERED), Configuration(num_validation=60, num_calibration=40))


def test_the_real_sample(digits: Path) -> None:
    splits = split(read_source(digits), Configuration())
    assert splits.image_shape == (1, 28, 28)
    assert [len(getattr(splits, part)) for part in PARTS] == [160, 20, 20, 100]


def test_dynamic_binarisation_keeps_the_mean_and_changes_each_time() -> None:
    pixels = torch.tensor([0.0, 0.1, 0.7, 1.0]).repeat(20_000, 1)
    generator = torch.Generator().manual_seed(1)
    first, second = (binarise(pixels, "dynamic", generator=generator) for _ in range(2))
    assert set(first.flatten().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, second)
    chances = torch.tensor([0.0, 0.1, 0.7, 1.0])
    assert ((first.mean(0) - chances).abs() <= 5 * (chances * (1 - chances) / 20_000).sqrt()).all()  # standard errors
    assert (first[:, 0] == 0).all()
    assert (first[:, 3] == 1).all()
    assert torch.equal(binarise(pixels, "none", generator=generator), pixels)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 0),
        ("num_samples", 0),
        ("num_validation", 0),
        ("seed", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("warm_up_epochs", -0.5),
        ("ema_decay", -0.1),
        ("max_memory", -1.0),
        ("max_memory", float("inf")),
        ("preset", "cnn"),
        ("likelihood", "poisson"),
        ("depth", 0),
        ("gaussian_scale", 0.0),
        ("patience", -1),
        ("max_gradient_norm", float("inf")),
        ("objective", "vae"),
        ("binarisation", "static"),
    ],
)
def test_a_configuration_that_cannot_work(field: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"^{field} must be"):
        Configuration(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"likelihood": "gaussian"}, "binarisation must be none with the likelihood gaussian"),
        ({"first_samples": 9, "num_samples": 8}, "first_samples must be at most num_samples"),
        ({"first_samples": 4, "patience": 3}, "patience would end a run before first_samples"),
        ({"gaussian_scale": 0.1}, "gaussian_scale belongs to the likelihood gaussian, not to bernoulli"),
        ({"free_bits": 0.1}, "free_bits belongs to the objective elbo, not to iwae"),
        ({"kl_warm_up_epochs": 1.0}, "kl_warm_up_epochs belongs to the objective elbo"),
    ],
)
def test_options_that_cannot_work_together(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        Configuration(**options)
