"""Resample many small images at once. Each gets the same bits as from Pillow alone."""

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_NUMBERS_AT_ONCE = 2**20
_COMPARED_NUMBERS = 2**10
_FEW = 4
_SMALL_NUMBERS = 2**14  # of an image; resampling a larger one takes longer than the call itself

Bands = NDArray[np.float32]


def resample(images: Bands, height: int, width: int) -> Bands:
    """Area-averaging bilinear, in float32: [N, h, w] → [N, height, width].

    A call of Pillow takes far longer than resampling the few pixels of a small image. Each row is resampled
    independently, and so is each column. So the rows of many images can be resampled as if they were one image, and so
    can the columns. Whether Pillow resamples rows or columns first changes the last bit; `_order` finds out which.

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
    """How images of this size can be resampled together, found by trying random images with Pillow."""
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
    """Resample rows: all images are put below one another, as one image."""
    count, rows, columns = images.shape
    return _resized(images.reshape(count * rows, columns), count * rows, width).reshape(count, rows, width)


def _with_columns(images: Bands, height: int) -> Bands:
    """Resample columns: all images are put side by side, as one image."""
    count, rows, columns = images.shape
    side_by_side = images.transpose(1, 0, 2).reshape(rows, count * columns)
    return _resized(side_by_side, height, count * columns).reshape(height, count, columns).transpose(1, 0, 2)


def _resized(image: Bands, height: int, width: int) -> Bands:
    if image.shape == (height, width):
        return image
    resized = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)
