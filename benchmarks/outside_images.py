"""The images that the anomaly benchmark holds a model's own against: another data set's, changed ones, and patterns."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Bytes = NDArray[np.uint8]
"""Grey images [N, H, W] of 8 bits."""

BLUR_RADIUS = 1.5
"""Standard deviation of the blur, pixels."""
NOISE = 0.2
"""Standard deviation of the noise that is added; a white pixel is 1."""
LARGEST_SQUARE = 8
"""Of a checkerboard, pixels."""


def outside_sets(
    originals: Bytes, other: Bytes, digits: NDArray[np.floating] | None, rng: np.random.Generator
) -> dict[str, Bytes]:
    """By name: another data set's images, the originals changed in some ways, patterns, and digits [N, 8, 8] in [0, 1].

    The rotation is a quarter turn; the patterns are as many as the originals.
    """
    count, height, width = originals.shape
    noisy = originals + rng.normal(0, 255 * NOISE, originals.shape)
    grey = rng.integers(0, 256, (count, 1, 1), dtype=np.uint8)
    sets = {
        "other data": other,
        "vertical flip": originals[:, ::-1],
        "horizontal flip": originals[:, :, ::-1],
        "inversion": 255 - originals,
        "rotation": np.rot90(originals, axes=(1, 2)),
        "blur": np.stack([_blur(image) for image in originals]),
        "noise": np.clip(np.rint(noisy), 0, 255).astype(np.uint8),
        "constant": np.broadcast_to(grey, originals.shape),
        "checkerboard": checkerboards(count, height, width, rng),
    }
    if digits is not None:
        sets["digits"] = np.stack([_enlarge(image, height, width) for image in digits])
    return {name: np.ascontiguousarray(images) for name, images in sets.items()}


def checkerboards(count: int, height: int, width: int, rng: np.random.Generator) -> Bytes:
    """Two grey levels each, in squares of 1 pixel or more that begin anywhere: [N, H, W]."""
    size = rng.integers(1, LARGEST_SQUARE + 1, (count, 1, 1))
    down, along = rng.integers(0, LARGEST_SQUARE, (2, count, 1, 1))
    row, column = (np.arange(height)[:, None] + down) // size, (np.arange(width) + along) // size
    levels = rng.integers(0, 256, (2, count, 1, 1), dtype=np.uint8)
    return np.asarray(np.where((row + column) % 2 == 0, levels[0], levels[1]), np.uint8)


def _blur(image: Bytes) -> Bytes:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(BLUR_RADIUS)))


def _enlarge(image: NDArray[np.floating], height: int, width: int) -> Bytes:
    eight_bit = Image.fromarray(np.rint(255 * image).astype(np.uint8))
    return np.asarray(eight_bit.resize((width, height), Image.Resampling.BILINEAR))
