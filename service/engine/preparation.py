"""Pixels in [0, 1] to the graphs' input x and back, as the manifest says."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from model_store import ImageShape, PixelPreparation


class PreparedImages:
    """Images [B, C, H, W] as the graphs' input, prepared part by part: all at once would take as much again.

    Args:
        pixels: [B, C, H, W] in [0, 1].
        preparation: how.
    """

    def __init__(self, pixels: NDArray[np.float32], preparation: "Preparation") -> None:
        self._pixels = pixels
        self._preparation = preparation
        self.shape = pixels.shape

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, images: slice) -> NDArray[np.float32]:
        return self._preparation.prepare(self._pixels[images])

    def restored(self) -> Iterator[NDArray[np.float32]]:
        """Each image's expected pixels [C, H, W]."""
        return (self._preparation.restore(self[index : index + 1])[0] for index in range(len(self)))


class Preparation:
    """Binarises or moves pixels to the nearest of `levels` levels (8-bit likelihoods), then scales.

    Dynamic binarisation compares each pixel with one fixed field of uniform numbers u: x = 1 where pixel > u. An image
    is so prepared the same way every time, alone or in a batch, and P(x = 1) over fields is the pixel's value. The
    field is the store's contract (model_store/README.md): PCG64's raw 64-bit output, top 24 bits, divided by 2^24.

    >>> shape = ImageShape(channels=1, height=1, width=4)
    >>> dynamic = Preparation(PixelPreparation(binarisation="dynamic"), shape)
    >>> dynamic.prepare(np.array([[[[0.0, 0.1, 0.9, 1.0]]]], np.float32)).tolist()
    [[[[0.0, 0.0, 1.0, 1.0]]]]
    """

    def __init__(self, specification: PixelPreparation, shape: ImageShape, levels: int | None = None) -> None:
        self._top = None if levels is None else np.float32(levels - 1)
        self._scale = np.float32(specification.scale)
        self._scaled = specification.scale != 1
        self._threshold: NDArray[np.float32] | None = None
        match specification.binarisation:
            case "threshold":
                self._threshold = np.full(shape.chw, 0.5, np.float32)
            case "dynamic":
                bits = np.random.PCG64(specification.binarisation_seed).random_raw(shape.size)
                field = (bits >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
                self._threshold = field.reshape(shape.chw)

    def prepare(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pixels [B, C, H, W] in [0, 1] → x [B, C, H, W] float32."""
        if self._threshold is not None:
            pixels = (pixels > self._threshold).astype(np.float32)
        if self._top is not None:
            pixels = np.rint(pixels * self._top) / self._top
        if self._scaled:
            pixels = pixels * self._scale
        return np.ascontiguousarray(pixels, np.float32)

    def restore(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Expected x → pixels, clipped to [0, 1]: a Gaussian's mean may lie a little outside."""
        return np.asarray(np.clip(x / self._scale, 0, 1), np.float32)
