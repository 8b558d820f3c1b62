"""Image files, nested numbers and arrays to the pixels that a model takes: [B, C, H, W] float32 in [0, 1]."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_store import ImageShape
from service.images.errors import InvalidArrayError, InvalidImageError, PixelLimitError, UnreadableImageError
from service.images.file import ImageFile, in_unit_interval
from service.images.numbers import NotNumbersError, array_of

_BRIEF_PIXELS = 2**16
_FLOAT32_BYTES = 4
_DECODING_BYTES = 40  # of one pixel: a file's coefficients, samples, levels of two decodings, and what resizing takes
_FITTING_BYTES = 16  # of one number: a float32 image, another with other channels, and what resizing takes
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in JPEG
_ACCEPTED_ITEMS = "accepted: a base64 image file, or nested numbers [H][W] or [C][H][W]"
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")

Array = NDArray[Any]


class ImageReader:
    """Reads images for one model.

    Args:
        shape: what the model takes.
        resize: whether another height or width is resampled (area-averaging bilinear) instead of refused.
        max_pixels: width × height, over all images of the request, counted from the headers, before any is decoded.
        reserve: told, before memory is taken, how many bytes there may be beside what is read; may refuse by an error.
    """

    def __init__(
        self,
        shape: ImageShape,
        *,
        resize: bool,
        max_pixels: int,
        reserve: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._shape = shape
        self._resize = resize
        self._max_pixels = max_pixels
        self._reserve = reserve

    def is_brief(self, array: Array) -> bool:
        """Whether `read_array` takes well under a millisecond: it has nothing to resize, and little to check."""
        return array.shape[-2:] == (self._shape.height, self._shape.width) and array.size <= _BRIEF_PIXELS

    def read_items(self, items: Sequence[Any]) -> NDArray[np.float32]:
        """Files as bytes or base64 text, or nested numbers in [0, 1], [H][W] or [C][H][W] → [B, C, H, W].

        A file may be a part of a larger body, as a `memoryview`.
        """
        if not items:
            raise InvalidArrayError("the body holds no image")
        self._count_pixels(len(items) * self._shape.height * self._shape.width)
        num_bytes = len(items) * self._shape.size * _FLOAT32_BYTES
        self._reserve(num_bytes)
        pixels = np.empty((len(items), *self._shape.chw), np.float32)
        budget = self._max_pixels
        for index, item in enumerate(items):
            if isinstance(item, str):
                item = _from_base64(item, index)
            if isinstance(item, bytes | memoryview):
                file = _open(bytes(item), index)
                height, width = file.header.height, file.header.width
                budget -= width * height
                self._count_pixels(self._max_pixels - budget)
                if (width, height) != self._size:  # EXIF may turn it
                    self._check_size((height, width), index)
                self._reserve(num_bytes + len(item) + width * height * _DECODING_BYTES)
                array = _decode(file, index)
            else:
                array = _from_numbers(item, index)
            pixels[index] = self._fit(array, index)
        return pixels

    def read_array(self, array: Array) -> NDArray[np.float32]:
        """Float32 in [0, 1] or uint8, [B, H, W] or [B, C, H, W] → [B, C, H, W]."""
        if array.ndim not in (3, 4):
            raise InvalidArrayError(f"the array has shape {list(array.shape)}; accepted: [B, H, W] or [B, C, H, W]")
        if array.ndim == 3:
            array = array[:, None]  # [B, 1, H, W]
        self._count_pixels(len(array) * max(array.shape[2] * array.shape[3], self._shape.height * self._shape.width))
        is_levels = array.dtype == np.uint8
        fits = array.shape[1:] == self._shape.chw
        if is_levels or not fits:
            self._reserve(len(array) * self._shape.size * _FLOAT32_BYTES + array[0].size * _FITTING_BYTES)
        if not is_levels:
            check_range(array)
        if fits:
            return in_unit_interval(array) if is_levels else array
        pixels = np.empty((len(array), *self._shape.chw), np.float32)
        for index, image in enumerate(array):
            pixels[index] = self._fit(in_unit_interval(image) if is_levels else image, index)
        return pixels

    def _count_pixels(self, pixels: int) -> None:
        if pixels > self._max_pixels:
            raise PixelLimitError(f"the images have {pixels} pixels or more; at most {self._max_pixels} are accepted")

    def _fit(self, image: Array, index: int) -> Array:
        """Convert [c, h, w] to the model's channels, height and width."""
        image = _to_channels(image, self._shape.channels, index)
        if image.shape[1:] == self._size:
            return image
        self._check_size((image.shape[1], image.shape[2]), index)
        bands = [Image.fromarray(band).resize(self._size[::-1], Image.Resampling.BILINEAR) for band in image]
        resized: Array = np.clip(np.stack([np.asarray(band) for band in bands]), 0, 1)
        return resized

    @property
    def _size(self) -> tuple[int, int]:
        return self._shape.height, self._shape.width

    def _check_size(self, found: tuple[int, int], index: int) -> None:
        if found != self._size and not self._resize:
            sizes = f"{found[0]}×{found[1]} (height × width), the model takes {self._size[0]}×{self._size[1]}"
            raise InvalidImageError(f"the image is {sizes}; add ?resize=true to have it resampled", index)


def check_range(pixels: Array) -> None:
    """Refuse pixels outside [0, 1], NaN among them: [B, ...].

    Raises:
        InvalidImageError: with the first such image's index.
    """
    if pixels.min() >= 0 and pixels.max() <= 1:  # a NaN is the least and the greatest
        return
    for index, image in enumerate(pixels):  # one at a time: comparing all would take as many bytes as there are pixels
        if not (image.min() >= 0 and image.max() <= 1):
            raise _out_of_range(image, index)


def _out_of_range(image: Array, index: int) -> InvalidImageError:
    if np.isnan(image).any():
        return InvalidImageError("a pixel is NaN; pixels must lie in [0, 1]", index)
    low, high = float(image.min()), float(image.max())
    found = f"pixels range from {low:g} to {high:g}; they must lie in [0, 1]"
    advice = "; divide 8-bit values by 255, or send them as uint8 npy" if 1 < high <= 255 and low >= 0 else ""
    return InvalidImageError(found + advice, index)


def _from_base64(text: str, index: int) -> bytes:
    """Base64 as programs write it: in lines, of either alphabet (RFC 4648, 4 and 5), padded or not, in a data URL."""
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


def _from_numbers(item: Any, index: int) -> Array:
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


def _open(content: bytes, index: int) -> ImageFile:
    try:
        return ImageFile(content)
    except UnreadableImageError as error:
        raise InvalidImageError(f"the file cannot be read: {error}", index) from error
    except PixelLimitError as error:
        raise PixelLimitError(f"image {index}: {error}") from None


def _decode(file: ImageFile, index: int) -> Array:
    try:
        return in_unit_interval(file.levels())
    except UnreadableImageError as error:
        raise InvalidImageError(f"the file cannot be decoded: {error}", index) from error


def _to_channels(image: Array, channels: int, index: int) -> Array:
    """Grey to any number of equal channels, colour to grey by its luma; anything else must already fit."""
    if len(image) == channels:
        return image
    if len(image) == 1:
        return np.repeat(image, channels, axis=0)
    if len(image) == 3 and channels == 1:
        return np.asarray(np.einsum("chw,c->hw", image, _LUMA))[None]
    raise InvalidImageError(f"the image has {len(image)} channels, the model takes {channels}", index)
