"""Many small images to another height and width at once: to each the bits that Pillow gives it by itself."""

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_NUMBERS_AT_ONCE = 2**20
_COMPARED_NUMBERS = 2**10
_FEW = 4
_SMALL_NUMBERS = 2**14  # of an image; a larger one takes longer than a call

Bands = NDArray[np.float32]


def resample(images: Bands, height: int, width: int) -> Bands:
    """Area-averaging bilinear, in float32: [N, h, w] → [N, height, width].

    A call of Pillow takes far longer than the few pixels of a small image. But each row is resampled by itself, and so
    is each column, so the rows of many images can be resampled as the rows of one, and so can their columns. Whether
    rows come before columns changes the last bit, and is Pillow's choice: `_order` finds it out.

    >>> images = np.random.default_rng(0).random((9, 5, 4), dtype=np.float32)
    >>> alone = Image.fromarray(images[8]).resize((7, 2), Image.Resampling.BILINEAR)
    >>> np.array_equal(resample(images, 2, 7)[8], alone)
    True
    """
    rows, columns = images.shape[1:]
    resampled = np.empty((len(images), height, width), np.float32)
    largest = max(rows, height) * max(columns, width)
    alone = len(images) <= _FEW or largest > _SMALL_NUMBERS
    together = _one_by_one if alone else _order(rows, columns, height, width)
    step = max(1, _NUMBERS_AT_ONCE // largest)
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        resampled[part] = together(images[part], height, width)
    return resampled


@lru_cache(maxsize=256)
def _order(rows: int, columns: int, height: int, width: int) -> Callable[[Bands, int, int], Bands]:
    """How images of this size are resampled together, found by what Pillow does with random ones."""
    count = _FEW + _COMPARED_NUMBERS // (height * width)
    images = np.random.default_rng(0).random((count, rows, columns), dtype=np.float32)
    expected = _one_by_one(images, height, width)
    for together in (partial(_together, rows_first=True), partial(_together, rows_first=False)):
        if np.array_equal(together(images, height, width), expected):
            return together
    return _one_by_one


def _one_by_one(images: Bands, height: int, width: int) -> Bands:
    return np.stack([_resized(image, height, width) for image in images])


def _together(images: Bands, height: int, width: int, *, rows_first: bool) -> Bands:
    if rows_first:
        return _with_columns(_with_rows(images, width), height)
    return _with_rows(_with_columns(images, height), width)


def _with_rows(images: Bands, width: int) -> Bands:
    """Rows resampled: below one another, they are those of one image."""
    count, rows, columns = images.shape
    return _resized(images.reshape(count * rows, columns), count * rows, width).reshape(count, rows, width)


def _with_columns(images: Bands, height: int) -> Bands:
    """Columns resampled: images side by side are one image."""
    count, rows, columns = images.shape
    side_by_side = images.transpose(1, 0, 2).reshape(rows, count * columns)
    return _resized(side_by_side, height, count * columns).reshape(height, count, columns).transpose(1, 0, 2)


def _resized(image: Bands, height: int, width: int) -> Bands:
    if image.shape == (height, width):
        return image
    resized = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)
