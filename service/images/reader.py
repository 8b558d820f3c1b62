"""Convert image files, nested numbers and arrays to the pixels that a model takes: [B, C, H, W] float32 in [0, 1]."""

import base64
import binascii
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.images.arrays import AnyArray
from service.images.errors import InvalidArrayError, InvalidImageError, PixelLimitError, UnreadableImageError
from service.images.file import ImageFile, in_unit_interval
from service.images.fitting import EXACT, Fitting
from service.images.numbers import NotNumbersError, array_of
from service.images.png_batch import batch_header, batch_levels
from service.images.resampling import resample

_BRIEF_PIXELS = 2**16
_BRIEF_RESAMPLED = 4
_PIXELS_AT_ONCE = 2**20
_BATCH_IMAGES, _BATCH_BYTES = 2**10, 2**18  # so that reading many files takes little more memory than reading one
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in JPEG
_ACCEPTED_ITEMS = "accepted: a base64 image file, or nested numbers [H][W] or [C][H][W]"
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")


class Shape(Protocol):
    """The image shape that a model takes, like `model_store.ImageShape`, which worker processes do not import."""

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""

    @property
    def height(self) -> int:
        """In pixels."""

    @property
    def width(self) -> int:
        """In pixels."""

    @property
    def chw(self) -> tuple[int, int, int]:
        """Channels, height and width."""


class ImageReader:
    """Reads images for one model.

    Args:
        shape: the image shape that the model takes.
        resize: for an `exact` model, whether images of another height or width are resampled (area-averaging bilinear)
            instead of refused.
        max_pixels: limit on the sum of width × height of all images, which is read from headers before decoding.
        fitting: how images become the model's. Unless it is exact, they may have any size, and their pixels are rounded
            to 8-bit levels.
    """

    def __init__(self, shape: Shape, *, resize: bool, max_pixels: int, fitting: Fitting = EXACT) -> None:
        self._shape = shape
        self._chw = shape.channels, shape.height, shape.width
        self._size = self._chw[1:]
        self._fitting = fitting
        self._max_pixels = max_pixels
        self._is_plain = fitting.fit == "exact" and not fitting.invert
        self.takes_any_size = resize or fitting.fit != "exact"
        """Whether images of another size are resampled, not refused."""

    def is_brief(self, array: AnyArray) -> bool:
        """Whether `read_array` takes at most a millisecond: there is little to check and very little to resample."""
        if not self.resamples(array):
            return array.size <= _BRIEF_PIXELS
        return len(array) <= _BRIEF_RESAMPLED and array.size + len(array) * math.prod(self._chw) <= _BRIEF_PIXELS

    def resamples(self, array: AnyArray) -> bool:
        """Whether images of this shape (height and width last) have to be resampled."""
        return array.ndim in (3, 4) and array.shape[-2:] != self._size

    def is_dear(self, items: Sequence[bytes | AnyArray] | AnyArray) -> bool:
        """Whether reading needs more than copying: a file has to be decoded, or pixels have to be resampled."""
        if isinstance(items, np.ndarray):
            return self.resamples(items)
        return any(isinstance(item, bytes) or self.resamples(item) for item in items)

    def read_items(self, items: Sequence[Any]) -> NDArray[np.float32]:
        """Read files as bytes or base64 text, or nested numbers in [0, 1], [H][W] or [C][H][W] → [B, C, H, W].

        The results of `unpacked` are accepted as items, too.
        """
        if not items:
            raise InvalidArrayError("the body holds no image")
        self._count_pixels(len(items) * self._shape.height * self._shape.width)
        pixels = np.empty((len(items), *self._chw), np.float32)
        budget = self._max_pixels
        index = 0
        while index < len(items):
            images, count = self._next_images(items, index, budget)
            budget -= count
            if images.shape[1:] == self._chw:
                pixels[index : index + len(images)] = images
            else:
                for offset, image in enumerate(images):
                    pixels[index + offset] = self._fit(image, index + offset)
            index += len(images)
        return pixels

    def _next_images(self, items: Sequence[Any], index: int, budget: int) -> tuple[AnyArray, int]:
        """Pixels [n, c, h, w] of the item at `index`, or of several from there, and their count against the budget."""
        if index + 1 < len(items) and (levels := self._decoded_batch(items, index, budget)) is not None:
            return self._as_model_pixels(levels, index), len(levels) * levels.shape[2] * levels.shape[3]
        if not isinstance(item := items[index], bytes):
            item = unpacked(item, index)
        if not isinstance(item, bytes):
            return self._as_model_pixels(item[None], index), 0
        levels, count = self._decoded(item, index, budget)
        return self._as_model_pixels(levels[None], index), count

    def _decoded_batch(self, items: Sequence[Any], index: int, budget: int) -> AnyArray | None:
        """Levels [n, c, h, w] of the small PNG files from `index` on that can be decoded together; None if none can.

        No error is raised: the batch ends before the first file that is refused.
        """
        header = batch_header(items, index)
        if header is None or ((header.height, header.width) != self._size and not self.takes_any_size):
            return None
        each = max(header.unpacked_bytes, math.prod(self._chw))
        most = min(_BATCH_IMAGES, _BATCH_BYTES // each, budget // (header.width * header.height))
        return batch_levels(items, index, header, most) if most > 1 else None

    def _decoded(self, content: bytes, index: int, budget: int) -> tuple[AnyArray, int]:
        """A file's levels [c, h, w], and how many pixels count against the budget."""
        try:
            file = ImageFile(content, max_pixels=budget)
        except UnreadableImageError as error:
            raise InvalidImageError(f"the file cannot be read: {error}", index) from error
        except PixelLimitError as error:
            raise PixelLimitError(f"image {index}: {error}") from None
        height, width = file.header.height, file.header.width
        if width * height > budget:
            self._count_pixels(self._max_pixels - budget + width * height)
        if (height, width) != self._size and (width, height) != self._size:  # EXIF may rotate it
            self._check_size((height, width), index)
        try:
            levels = file.levels()
        except UnreadableImageError as error:
            raise InvalidImageError(f"the file cannot be decoded: {error}", index) from error
        return levels, width * height

    def _as_model_pixels(self, images: AnyArray, index: int) -> AnyArray:
        """Levels or floats [n, c, h, w] in [0, 1]: for an exact model inverted if need be, else [n, C, H, W].

        `index` is the first image's.
        """
        if self._is_plain:
            return _as_floats(images)
        if self._fitting.is_exact:
            return _as_floats(self._fitting.inverted(images))
        _check_channels(images.shape[1], self._chw[0], index)
        return in_unit_interval(self._fitting.levels(images, self._chw))

    def read_array(self, array: AnyArray) -> NDArray[np.float32]:
        """Read an array, float32 in [0, 1] or uint8, [B, H, W] or [B, C, H, W] → [B, C, H, W]."""
        if array.ndim not in (3, 4):
            raise InvalidArrayError(f"the array has shape {list(array.shape)}; accepted: [B, H, W] or [B, C, H, W]")
        if array.ndim == 3:
            array = array[:, None]  # [B, 1, H, W]
        each = max(array.shape[2] * array.shape[3], self._shape.height * self._shape.width)
        self._count_pixels(len(array) * each, each)
        if array.dtype != np.uint8:
            check_range(array)
        if self._fitting.is_exact and array.shape[1:] == self._chw:
            return _as_floats(self._fitting.inverted(array))
        _check_channels(array.shape[1], self._chw[0], 0)
        self._check_size((array.shape[2], array.shape[3]), 0)
        fitted = np.empty((len(array), *self._chw), np.float32)
        step = max(1, _PIXELS_AT_ONCE // max(math.prod(array.shape[1:]), math.prod(self._chw)))
        for start in range(0, len(array), step):
            images = array[start : start + step]
            if self._fitting.is_exact:
                fitted[start : start + step] = self._resampled(_as_floats(self._fitting.inverted(images)))
            else:
                fitted[start : start + step] = in_unit_interval(self._fitting.levels(images, self._chw))
        return fitted

    def _resampled(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images [B, c, h, w] of one size in the model's channels and size."""
        images = np.stack([_to_channels(image, self._chw[0], index) for index, image in enumerate(images)])
        if images.shape[2:] == self._size:
            return images
        bands = images.reshape(-1, *images.shape[2:])
        return resample(bands, *self._size).reshape(len(images), *self._chw).clip(0, 1)

    def _count_pixels(self, pixels: int, each: int | None = None) -> None:
        if pixels > self._max_pixels:
            fewer = "" if each is None else f": {self._max_pixels // each} images of this size"
            problem = f"the images have {pixels} pixels or more; at most {self._max_pixels} are accepted"
            raise PixelLimitError(problem + fewer)

    def _fit(self, image: AnyArray, index: int) -> AnyArray:
        """Convert [c, h, w] to the model's channels, height and width."""
        image = _to_channels(image, self._shape.channels, index)
        if image.shape[1:] == self._size:
            return image
        self._check_size((image.shape[1], image.shape[2]), index)
        bands = [Image.fromarray(band).resize(self._size[::-1], Image.Resampling.BILINEAR) for band in image]
        resized: AnyArray = np.clip(np.stack([np.asarray(band) for band in bands]), 0, 1)
        return resized

    def _check_size(self, found: tuple[int, int], index: int) -> None:
        if found != self._size and not self.takes_any_size:
            sizes = f"{found[0]}×{found[1]} (height × width), the model takes {self._size[0]}×{self._size[1]}"
            raise InvalidImageError(f"the image is {sizes}; add ?resize=true to have it resampled", index)


def unpacked(item: Any, index: int) -> bytes | AnyArray:
    """Convert an item of a JSON body: base64 text to a file's bytes, nested numbers to float32 pixels [c, h, w].

    Bytes and arrays are returned unchanged.

    Raises:
        InvalidImageError: the item is none of these.
    """
    if isinstance(item, bytes | np.ndarray):
        return item
    return _from_base64(item, index) if isinstance(item, str) else _from_numbers(item, index)


def _as_floats(array: AnyArray) -> NDArray[np.float32]:
    return array if array.dtype == np.float32 else in_unit_interval(array)


def check_range(pixels: AnyArray) -> None:
    """Refuse pixels [B, ...] outside [0, 1], and NaN.

    Raises:
        InvalidImageError: with the index of the first such image.
    """
    if pixels.min() >= 0 and pixels.max() <= 1:  # if there is a NaN, min and max are NaN
        return
    for index, image in enumerate(pixels):  # one at a time, because comparing all at once takes a byte for each pixel
        if not (image.min() >= 0 and image.max() <= 1):
            raise _out_of_range(image, index)


def _out_of_range(image: AnyArray, index: int) -> InvalidImageError:
    if np.isnan(image).any():
        return InvalidImageError("a pixel is NaN; pixels must lie in [0, 1]", index)
    low, high = float(image.min()), float(image.max())
    found = f"pixels range from {low:g} to {high:g}; they must lie in [0, 1]"
    advice = "; divide 8-bit values by 255, or send them as uint8 npy" if 1 < high <= 255 and low >= 0 else ""
    return InvalidImageError(found + advice, index)


def _from_base64(text: str, index: int) -> bytes:
    """Decode base64 with or without lines, padding or a data URL, in either alphabet (RFC 4648, 4 and 5)."""
    if text[:5].lower() == "data:":
        kind, _, text = text.partition(",")
        if not kind.lower().endswith(";base64"):
            raise InvalidImageError("the text is a data URL of another coding than base64", index)
    try:
        encoded = text.encode("ascii").translate(_STANDARD_ALPHABET, b" \t\r\n\f\v")
        padding = b"" if encoded.endswith(b"=") else b"=" * (-len(encoded) % 4)
        return base64.b64decode(encoded + padding, validate=True)
    except (binascii.Error, ValueError) as error:
        problem = "it has characters beyond ASCII" if isinstance(error, UnicodeError) else str(error)
        raise InvalidImageError(f"the text is not base64: {problem}", index) from None


def _from_numbers(item: Any, index: int) -> AnyArray:
    try:
        array = array_of(item, max_dimensions=3)
    except NotNumbersError as error:
        raise InvalidImageError(f"the item is no image: {error}; {_ACCEPTED_ITEMS}", index) from None
    if array.ndim < 2 or array.size == 0:
        raise InvalidImageError(f"the item has shape {list(array.shape)}; {_ACCEPTED_ITEMS}", index)
    if not (array.min() >= 0 and array.max() <= 1):
        raise _out_of_range(array, index)
    image = array.astype(np.float32)
    return image[None] if image.ndim == 2 else image


def _check_channels(found: int, channels: int, index: int) -> None:
    """Refuse images of a number of channels that is not the model's and cannot be converted to it."""
    if found not in (channels, 1) and (found, channels) != (3, 1):
        raise InvalidImageError(f"the image has {found} channels, the model takes {channels}", index)


def _to_channels(image: AnyArray, channels: int, index: int) -> AnyArray:
    """Convert grey to equal channels, or colour to grey by its luma; other numbers of channels must already fit."""
    _check_channels(len(image), channels, index)
    if len(image) == channels:
        return image
    if len(image) == 1:
        return np.repeat(image, channels, axis=0)
    return np.asarray(np.einsum("chw,c->hw", image, _LUMA))[None]
