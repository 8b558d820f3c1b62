"""Images divided into training, validation, calibration and test parts, and their pixels made ready for a model."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.configuration import Binarisation, Configuration
from training.errors import DataError
from training.sources import Pixels, Source

PARTS = ("train", "validation", "calibration", "test")
_DEFAULT_HELD_OUT = {"num_validation": 2000, "num_calibration": 3000, "num_test": 10_000}


@dataclass(frozen=True)
class DataSplits:
    """Four parts of a data set that share no image; each [N, C, H, W], uint8 in 0..255 or float32 in [0, 1].

    `validation` watches training, `calibration` gives the scores that p-values compare with, `test` is held out of
    everything.
    """

    name: str
    sha256: str
    train: Pixels
    validation: Pixels
    calibration: Pixels
    test: Pixels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H and W."""
        _, channels, height, width = self.train.shape
        return channels, height, width


def split(source: Source, configuration: Configuration) -> DataSplits:
    """Divide a data set by the configured numbers, at random but the same way for the same seed.

    A test part of the source's own is the test part, whole, and so is a validation part; everything else comes out of
    the training images.

    Raises:
        DataError: the held-out parts leave no image to train on.
    """
    available = len(source.train)
    own = {"num_validation": source.validation, "num_test": source.test}
    held_out = {
        name: getattr(configuration, name) or min(default, available // 10)
        for name, default in _DEFAULT_HELD_OUT.items()
        if own.get(name) is None
    }
    if sum(held_out.values()) >= available or min(held_out.values()) < 1:
        wanted = ", ".join(f"{name} = {count}" for name, count in held_out.items())
        raise DataError(source.name, f"{available} images cannot be divided with {wanted}")
    order = np.random.default_rng(configuration.seed).permutation(available)
    parts: dict[str, Pixels] = {}
    start = 0
    for name, count in held_out.items():
        parts[name] = source.train[np.sort(order[start : start + count])]
        start += count
    return DataSplits(
        name=source.name,
        sha256=source.sha256,
        train=source.train[np.sort(order[start:])],
        validation=parts["num_validation"] if source.validation is None else source.validation,
        calibration=parts["num_calibration"],
        test=parts["num_test"] if source.test is None else source.test,
    )


def unit_pixels(pixels: Tensor) -> Tensor:
    """Pixels as float32 in [0, 1], from uint8 in 0..255 or from what is in [0, 1] already.

    >>> unit_pixels(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist()
    [0.0, 0.20000000298023224, 1.0]
    """
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()


def binarise(pixels: Tensor, binarisation: Binarisation, *, generator: torch.Generator) -> Tensor:
    """Turn pixels in [0, 1] into what the model is trained on.

    `dynamic` sets a pixel to 1 with probability equal to its value, afresh at each call (Salakhutdinov and Murray
    2008); `threshold` sets it to 1 above 0.5; `none` leaves it.

    >>> binarise(torch.tensor([0.2, 0.5, 0.7]), "threshold", generator=torch.Generator()).tolist()
    [0.0, 0.0, 1.0]
    """
    if binarisation == "dynamic":
        return (torch.rand(pixels.shape, generator=generator, device=pixels.device) < pixels).float()
    return (pixels > 0.5).float() if binarisation == "threshold" else pixels


def to_levels(pixels: Tensor, levels: int) -> Tensor:
    """Pixels in [0, 1] moved to the nearest of the levels k / (levels - 1), as the service does.

    >>> to_levels(torch.tensor([0.1, 0.13, 0.95]), 5).tolist()
    [0.0, 0.25, 1.0]
    """
    return torch.round(pixels * (levels - 1)) / (levels - 1)


def derive_seed(seed: int, *stream: int) -> int:
    """A seed for one purpose, from the run's seed and a few numbers that name the purpose (say, phase and epoch).

    >>> derive_seed(0, 1, 7) == derive_seed(0, 1, 7) != derive_seed(0, 7, 1)
    True
    """
    state = np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)
    return int(state[0]) >> 1
