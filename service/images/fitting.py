"""Bring images of any size and colour to a model's, in whole 8-bit levels. Training and the service use this same code.

Everything here is arithmetic of whole numbers, also Pillow's resampling of 8-bit levels. So an image's bits depend on
neither the processor nor the images beside it, and not on whether it came as a file or as numbers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.images.arrays import AnyArray

Fit = Literal["exact", "crop", "pad", "stretch"]
Levels = NDArray[np.uint8]

_NUMBERS_AT_ONCE = 2**20
_RED, _GREEN, _BLUE = 19595, 38470, 7471  # 0.299, 0.587 and 0.114 (ITU-R BT.601) of 2¹⁶, as in Pillow


@dataclass(frozen=True)
class Fitting:
    """How an image becomes an image of the model's size: `fit` and `invert` of the manifest's preparation.

    Attributes:
        fit: `crop` resamples the largest centred part that has the model's aspect ratio; `pad` resamples the whole
            image and puts it into the centre, on black; `stretch` resamples the whole image, whatever its aspect
            ratio. `exact` does not resample: images of another size are not taken.
        invert: whether black and white are exchanged, before anything else.
    """

    fit: Fit = "exact"
    invert: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether only images of the model's size are taken."""
        return self.fit == "exact"

    def inverted(self, pixels: AnyArray) -> AnyArray:
        """White minus the pixels, if `invert`: uint8 or uint16 levels, or floats in [0, 1]."""
        if not self.invert:
            return pixels
        white = pixels.dtype.type(1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max)
        return np.asarray(white - pixels)

    def levels(self, images: AnyArray, chw: tuple[int, int, int]) -> Levels:
        """Images [N, c, h, w] as 8-bit levels [N, C, H, W] of the model's shape.

        The steps are, in this order: round to 8-bit levels; invert; colour to grey, or grey to equal channels; resample
        with an antialiased triangle filter, rows and then columns, each rounded to a level; pad with black. Columns
        come first if rows would make the image larger than it was and than it will be.

        Args:
            images: uint8 or uint16 levels, or floats in [0, 1], of 1 or C channels, or of 3 if C is 1.
            chw: C, H and W of the model.

        >>> wide = np.array([[[[0, 100, 200, 255]] * 2]], np.uint8)  # two rows of four pixels
        >>> Fitting("crop").levels(wide, (1, 2, 2)).tolist()
        [[[[100, 200], [100, 200]]]]
        >>> Fitting("pad", invert=True).levels(wide, (1, 4, 4))[0, 0, :, 0].tolist()
        [0, 255, 255, 0]
        """
        channels, height, width = chw
        fitted = np.zeros((len(images), *chw), np.uint8)
        step = max(1, _NUMBERS_AT_ONCE // max(images[0].size, fitted[0].size))
        plan = _planned(self.fit, images.shape[2:], (height, width))
        top, left = plan.offset
        inside = (slice(top, top + plan.size[0]), slice(left, left + plan.size[1]))
        for start in range(0, len(images), step):
            some = self.inverted(eight_bits(images[start : start + step]))
            if channels == 1 and some.shape[1] == 3:
                some = _grey(some)
            found = _resampled(some.reshape(-1, *some.shape[2:]), plan).reshape(*some.shape[:2], *plan.size)
            fitted[(slice(start, start + step), slice(None), *inside)] = found  # one channel fills all
        return fitted


EXACT = Fitting()
FITTINGS: Mapping[tuple[Fit, bool], Fitting] = {
    (fit, invert): Fitting(fit, invert) for fit in get_args(Fit) for invert in (False, True)
}
"""By `fit` and `invert`, for each request to find its model's."""


def eight_bits(pixels: AnyArray) -> Levels:
    """The nearest 8-bit levels of pixels [..., h, w]: of levels of 8 or 16 bits, or of floats in [0, 1].

    >>> eight_bits(np.array([[0, 128, 129, 65535]], np.uint16)).tolist(), eight_bits(np.array([[0.1, 0.9]])).tolist()
    ([[0, 0, 1, 255]], [[26, 230]])
    """
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:  # a level of 8 bits is 257 of 16 bits
        return _in_pieces(pixels, pixels.shape, lambda some: (some.astype(np.uint32) + 128) // 257)
    return _in_pieces(pixels, pixels.shape, lambda some: np.rint(some * pixels.dtype.type(255)))


def _grey(levels: Levels) -> Levels:
    """The luma of levels [N, 3, h, w], rounded: [N, 1, h, w]."""

    def luma(some: Levels) -> NDArray[Any]:
        red, green, blue = (some[:, index].astype(np.uint32) for index in range(3))
        return np.asarray((_RED * red + _GREEN * green + _BLUE * blue + 2**15) >> 16)[:, None]

    return _in_pieces(levels, (len(levels), 1, *levels.shape[2:]), luma)


def _in_pieces(pixels: AnyArray, shape: tuple[int, ...], function: Callable[[AnyArray], AnyArray]) -> Levels:
    """The results of a function of pixels [..., h, w], some rows at a time: its intermediate results are larger."""
    made = np.empty(shape, np.uint8)
    rows = max(1, _NUMBERS_AT_ONCE * pixels.shape[-2] // pixels.size)
    for start in range(0, pixels.shape[-2], rows):
        part = slice(start, start + rows)
        made[..., part, :] = function(pixels[..., part, :])
    return made


class _Plan(NamedTuple):
    """What is resampled and to where."""

    box: tuple[float, float, float, float]
    """The part of the image: left, top, right and bottom, in pixels."""
    size: tuple[int, int]
    """Height and width to which that part is resampled."""
    offset: tuple[int, int]
    """Rows above and columns left of it."""


def _planned(fit: Fit, found: tuple[int, ...], wanted: tuple[int, int]) -> _Plan:
    """How images of one height and width become images of another.

    >>> _planned("crop", (300, 200), (64, 64))
    _Plan(box=(0.0, 50.0, 200.0, 250.0), size=(64, 64), offset=(0, 0))
    >>> _planned("pad", (300, 200), (64, 64))
    _Plan(box=(0.0, 0.0, 200.0, 300.0), size=(64, 43), offset=(0, 10))
    """
    (rows, columns), (height, width) = found, wanted
    whole = (0.0, 0.0, float(columns), float(rows))
    is_tall = rows * width > columns * height  # taller, for its width, than what is wanted
    match fit:
        case "crop":
            part = (columns * height / width, float(columns)) if is_tall else (float(rows), rows * width / height)
            top, left = (rows - part[0]) / 2, (columns - part[1]) / 2
            return _Plan((left, top, left + part[1], top + part[0]), wanted, (0, 0))
        case "pad":
            inner = height, max(1, (2 * columns * height + rows) // (2 * rows))
            if not is_tall:
                inner = max(1, (2 * rows * width + columns) // (2 * columns)), width
            return _Plan(whole, inner, ((height - inner[0]) // 2, (width - inner[1]) // 2))
        case "stretch":
            return _Plan(whole, wanted, (0, 0))
    if tuple(found) != wanted:
        raise ValueError(f"images of {rows}×{columns} pixels are not {height}×{width}")
    return _Plan(whole, wanted, (0, 0))


def _resampled(bands: Levels, plan: _Plan) -> Levels:
    """Levels [N, h, w] → [N, *plan.size]."""
    _, rows, columns = bands.shape
    height, width = plan.size
    passes = (_rows_resampled, _columns_resampled)
    if width > columns and height < rows:
        passes = (_columns_resampled, _rows_resampled)
    resampled = np.empty((len(bands), height, width), np.uint8)
    step = max(1, _NUMBERS_AT_ONCE // max(rows * columns, height * width))
    for start in range(0, len(bands), step):
        part = slice(start, start + step)
        resampled[part] = passes[1](passes[0](bands[part], plan), plan)
    return resampled


def _rows_resampled(bands: Levels, plan: _Plan) -> Levels:
    """Resample each row: [N, h, w] → [N, h, width]. All images are put below one another, as one image."""
    count, rows, columns = bands.shape
    left, _, right, _ = plan.box
    width = plan.size[1]
    if (left, right, width) == (0, columns, columns):
        return bands
    below = bands.reshape(count * rows, columns)
    return _resized(below, (width, count * rows), (left, 0, right, count * rows)).reshape(count, rows, width)


def _columns_resampled(bands: Levels, plan: _Plan) -> Levels:
    """Resample each column: [N, h, w] → [N, height, w]. All images are put side by side, as one image."""
    count, rows, columns = bands.shape
    _, top, _, bottom = plan.box
    height = plan.size[0]
    if (top, bottom, height) == (0, rows, rows):
        return bands
    beside = bands.transpose(1, 0, 2).reshape(rows, count * columns)
    resized = _resized(beside, (count * columns, height), (0, top, count * columns, bottom))
    return resized.reshape(height, count, columns).transpose(1, 0, 2)


def _resized(levels: Levels, size: tuple[int, int], box: tuple[float, float, float, float]) -> Levels:
    image = Image.fromarray(np.ascontiguousarray(levels))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box))
