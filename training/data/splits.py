"""Divide images into training, validation, calibration and test parts, and convert pixels for a model."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.configuration import Binarisation, Configuration
from training.data.image_files import Pixels
from training.data.sources import Source, StreamedSource
from training.data.streams import ImageStream, in_batches
from training.data.things import COLUMN, Division, divide_things, numbered
from training.errors import DataError

Images = Pixels | ImageStream

PARTS = ("train", "validation", "calibration", "test")
_LOOKED_AT, _NUMBERS_LOOKED_AT = 256, 2**26
"""Images whose pixels' spread is measured, and their pixels in all."""
_MOST_EXAMPLES = 2**20  # numbers
_SHRINKAGE = 10  # images
_DEFAULT_HELD_OUT = {"num_validation": 2000, "num_calibration": 3000, "num_test": 10_000}


@dataclass(frozen=True)
class DataSplits:
    """Four parts of a data set without common images; each [N, C, H, W], uint8 in 0..255 or float32 in [0, 1].

    Training is monitored on `validation`, p-values are computed from the scores of `calibration`, and `test` is used
    for nothing before the final evaluation. If the data set streams, `train` is a stream and the rest is in memory.
    """

    name: str
    sha256: str
    train: Images
    validation: Pixels
    calibration: Pixels
    test: Pixels
    division: Division | None = field(default=None, kw_only=True)
    """By things, where it is known which images show the same."""

    @property
    def things(self) -> dict[str, str | int] | None:
        """What is recorded of a division by things; None where there is none."""
        return None if self.division is None else self.division.record

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H and W."""
        _, channels, height, width = self.train.shape
        return channels, height, width

    def pixel_mean(self) -> Tensor:
        """Mean of the training pixels, [C, H, W], in [0, 1]."""
        train = self.train
        mean = train.mean() if isinstance(train, ImageStream) else train.mean(axis=0, dtype=np.float64)
        return torch.from_numpy(mean / (255 if train.dtype == np.uint8 else 1)).float()

    def examples(self) -> Tensor:
        """Up to 256 evenly spaced training images, fewer where they are large: [n, C, H, W], in [0, 1]."""
        most = max(2, min(_LOOKED_AT, _MOST_EXAMPLES // math.prod(self.image_shape)))
        images = torch.from_numpy(evenly_spaced(self.train, most))
        return images.float() / (255 if self.train.dtype == np.uint8 else 1)

    def pixel_spread(self) -> Tensor:
        """Standard deviation of each training pixel, [C, H, W], in [0, 1], of up to 256 evenly spaced images.

        Each pixel's variance is averaged with that of all pixels as if ten more images had that one: a few images say
        little of a pixel, and one that is the same in all of them need not be so in others.
        """
        channels, height, width = self.image_shape
        most = max(2, min(_LOOKED_AT, _NUMBERS_LOOKED_AT // (channels * height * width)))
        images = evenly_spaced(self.train, most)
        mean = images.mean(axis=0, dtype=np.float64)
        squares = np.zeros_like(mean)
        for image in images:  # one after another, for the memory's sake
            squares += np.square(image - mean)
        variance = (squares + _SHRINKAGE * squares.mean() / len(images)) / (len(images) + _SHRINKAGE)
        return torch.from_numpy(np.sqrt(variance) / (255 if images.dtype == np.uint8 else 1)).float()


def split(source: Source | StreamedSource, configuration: Configuration) -> DataSplits:
    """Divide a data set by the configured numbers: at random, but the same way for the same seed.

    If the source has a test or validation part of its own, that part is used, whole. The other parts are taken from
    the training images. If the data set streams, at most the configured numbers are taken from its own parts or, if
    none are configured, 2000 for validation and 10 000 for testing. Which images are held out is decided by a
    permutation from the seed, not by the order on disk. Where it is known which images show the same thing, whole
    things are held out, and the numbers are met as nearly as that allows.

    Raises:
        DataError: the held-out parts leave no image to train on; or see `Things.named` and `divide_things`.
    """
    available = len(source.train)
    own: dict[str, Images | None] = {"num_validation": source.validation, "num_test": source.test}
    held_out = {
        name: getattr(configuration, name) or min(default, available // 10)
        for name, default in _DEFAULT_HELD_OUT.items()
        if own.get(name) is None
    }
    if sum(held_out.values()) >= available or min(held_out.values()) < 1:
        wanted = ", ".join(f"{name} = {count}" for name, count in held_out.items())
        few = "; there must be at least 10, or these numbers given" if available < 10 else ""
        raise DataError(source.name, f"{available} images cannot be divided with {wanted}{few}")
    division = None
    named = source.things.named(configuration.group, source.name)
    if named is None:
        order = np.random.default_rng(configuration.seed).permutation(available)
        places = [np.sort(part) for part in np.split(order, np.cumsum(list(held_out.values())))]
    else:
        places = divide_things(named["train"], held_out, seed=configuration.seed, name=source.name)
        division = _division(named, dict(zip([*held_out, "train"], places, strict=True)), configuration.group)
    train: Images
    if isinstance(source, StreamedSource):
        train, taken = source.train.hold_out(places[:-1])
    else:
        train, taken = source.train[places[-1]], [source.train[part] for part in places[:-1]]
    parts = dict(zip(held_out, taken, strict=True))
    for name, images in own.items():
        if isinstance(images, ImageStream):
            count = getattr(configuration, name) or _DEFAULT_HELD_OUT[name]
            permutation = np.random.default_rng(configuration.seed).permutation(len(images))
            parts[name] = images.read(np.sort(permutation[:count]))
        elif images is not None:
            parts[name] = images
    return DataSplits(
        name=source.name,
        sha256=source.sha256,
        train=train,
        validation=parts["num_validation"],
        calibration=parts["num_calibration"],
        test=parts["num_test"],
        division=division,
    )


def _division(named: Mapping[str, Sequence[str]], places: Mapping[str, NDArray[np.int64]], by: str | None) -> Division:
    """What is told of a division by things: `places` are those of the training images, by part or its option."""
    own = {part: list(things) for part, things in named.items() if part != "train"}
    divided = own | {part.removeprefix("num_"): [named["train"][k] for k in found] for part, found in places.items()}
    return Division(
        by=by or COLUMN,
        num_things={part: len(set(divided[part])) for part in PARTS},
        of_calibration=numbered(divided["calibration"])[1],
    )


def evenly_spaced(images: Images, most: int) -> Pixels:
    """At most `count` of the images, evenly spaced, in memory: [n, C, H, W].

    >>> evenly_spaced(np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1), 3).ravel().tolist()
    [0, 3, 6]
    """
    return take(images, np.linspace(0, len(images) - 1, min(most, len(images))).astype(np.int64))


def take(images: Images, places: NDArray[np.int64]) -> Pixels:
    """The images at these places, in memory: [n, C, H, W]."""
    return images.read(places) if isinstance(images, ImageStream) else images[places]


class TrainingImages(Protocol):
    """The interface of training images, in memory or streamed."""

    device: torch.device

    def __len__(self) -> int: ...

    def epoch(self, batch_size: int, *, generator: torch.Generator) -> Iterator[Tensor]:
        """Batches [B, C, H, W] of all images, in an order that is drawn from the generator before the first batch.

        uint8 in 0..255 or float32 in [0, 1], on the trainer's device.
        """
        ...


class LoadedImages:
    """Images [N, C, H, W] that are all in the device's memory."""

    def __init__(self, pixels: Pixels, device: torch.device) -> None:
        self.device = device
        self._pixels = torch.from_numpy(pixels).to(device)

    def __len__(self) -> int:
        return len(self._pixels)

    def epoch(self, batch_size: int, *, generator: torch.Generator) -> Iterator[Tensor]:
        """See `TrainingImages`."""
        order = torch.randperm(len(self), generator=generator, device=generator.device)
        for batch in torch.split(order, batch_size):
            yield self._pixels[batch]


class StreamedImages:
    """Images that are copied to the device batch by batch."""

    def __init__(self, stream: ImageStream, device: torch.device) -> None:
        self.device = device
        self._stream = stream

    def __len__(self) -> int:
        return len(self._stream)

    def epoch(self, batch_size: int, *, generator: torch.Generator) -> Iterator[Tensor]:
        """See `TrainingImages`; the order is `ImageStream.shuffled`."""
        order = in_batches(self._stream.shuffled(generator), batch_size)
        for batch in self._stream.batches(order):
            yield torch.from_numpy(batch).to(self.device)


def on_device(images: Images, device: torch.device) -> TrainingImages:
    """The images as the trainer takes them: in the device's memory, or streamed to it."""
    return StreamedImages(images, device) if isinstance(images, ImageStream) else LoadedImages(images, device)


def unit_pixels(pixels: Tensor) -> Tensor:
    """Convert pixels to float32 in [0, 1], from uint8 in 0..255 or from floats in [0, 1].

    >>> unit_pixels(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist()
    [0.0, 0.20000000298023224, 1.0]
    """
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()


def binarise(pixels: Tensor, binarisation: Binarisation, *, generator: torch.Generator) -> Tensor:
    """Convert pixels in [0, 1] to the values that the model is trained on.

    `dynamic` sets a pixel to 1 with a probability equal to its value, drawn anew in each call (Salakhutdinov and Murray
    2008). `threshold` sets it to 1 if it is above 0.5. `none` leaves it unchanged.

    >>> binarise(torch.tensor([0.2, 0.5, 0.7]), "threshold", generator=torch.Generator()).tolist()
    [0.0, 0.0, 1.0]
    """
    if binarisation == "dynamic":
        return (torch.rand(pixels.shape, generator=generator, device=pixels.device) < pixels).float()
    return (pixels > 0.5).float() if binarisation == "threshold" else pixels


def to_levels(pixels: Tensor, levels: int) -> Tensor:
    """Round pixels in [0, 1] to the nearest of the levels k / (levels - 1), as the service does.

    >>> to_levels(torch.tensor([0.1, 0.13, 0.95]), 5).tolist()
    [0.0, 0.25, 1.0]
    """
    return torch.round(pixels * (levels - 1)) / (levels - 1)


def derive_seed(seed: int, *stream: int) -> int:
    """Derive a seed for one purpose from the run's seed and numbers for the purpose (such as phase and epoch).

    >>> derive_seed(0, 1, 7) == derive_seed(0, 1, 7) != derive_seed(0, 7, 1)
    True
    """
    state = np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)
    return int(state[0]) >> 1
