"""How bright a model's training images were, by which images whose black and white are exchanged can be noticed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from service.images.arrays import AnyArray

BRIGHTNESS = "brightness"
"""The name in the manifest's `provenance.configuration`."""
_QUANTILES = 0.01, 0.99
_LEAST_MARGIN = 0.1
_LOOKED_AT, _NUMBERS_LOOKED_AT = 64, 2**16


@dataclass(frozen=True)
class Brightness:
    """The mean pixels of training images: all but one in a hundred lie above `lowest`, and likewise below `highest`."""

    lowest: float
    highest: float

    @classmethod
    def of(cls, batches: Sequence[NDArray[np.float64]]) -> Self:
        """From the mean pixels of all training images, batch by batch."""
        lowest, highest = np.quantile(np.concatenate(batches), _QUANTILES)
        return cls(round(float(lowest), 4), round(float(highest), 4))

    def as_json(self) -> dict[str, float]:
        """What `from_json` reads."""
        return {"lowest": self.lowest, "highest": self.highest}

    @classmethod
    def from_json(cls, fields: Any) -> Self | None:
        """The record that was written; None for anything else, since any program may write a manifest."""
        if not isinstance(fields, Mapping):
            return None
        found: list[Any] = [fields.get(name) for name in ("lowest", "highest")]
        if not all(type(value) in (int, float) and 0 <= value <= 1 for value in found):
            return None
        return cls(float(found[0]), float(found[1]))

    def warning(self, images: AnyArray) -> str | None:
        """A sentence about images [B, C, H, W] in [0, 1] whose mean pixel is far outside; None if none is.

        Far is half as much as the range is wide, and at least 0.1. At most 64 images are looked at, evenly spaced, and
        as many of their pixels as take no time.

        >>> Brightness(0.05, 0.3).warning(np.full((1, 1, 2, 2), 0.9, np.float32))
        'image 0 has a mean pixel of 0.90, the training images 0.05 to 0.30: are black and white exchanged?'
        """
        margin = max((self.highest - self.lowest) / 2, _LEAST_MARGIN)
        chosen = np.linspace(0, len(images) - 1, min(len(images), _LOOKED_AT)).astype(np.int64)
        pixels = images.reshape(len(images), -1)
        means = pixels[chosen, :: 1 + pixels.shape[1] * len(chosen) // _NUMBERS_LOOKED_AT].mean(axis=1)
        far = np.flatnonzero((means < self.lowest - margin) | (means > self.highest + margin))
        if not len(far):
            return None
        others = f" ({len(far)} of {len(chosen)} looked at are like this)" if len(far) > 1 else ""
        return (
            f"image {chosen[far[0]]} has a mean pixel of {means[far[0]]:.2f}, the training images {self.lowest:.2f} to "
            f"{self.highest:.2f}: are black and white exchanged?{others}"
        )


def mean_pixels(images: AnyArray) -> NDArray[np.float64]:
    """The mean pixel of each image of [B, C, H, W], in [0, 1]; uint8 levels or floats."""
    white = 255 if images.dtype == np.uint8 else 1
    means: NDArray[np.float64] = images.mean(axis=(1, 2, 3), dtype=np.float64) / white
    return means
