"""Image files, nested numbers and arrays to pixels [B, C, H, W] float32 in [0, 1]."""

import base64
import binascii
import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from model_store import ImageShape
from service.web.errors import InvalidBodyError, InvalidImageError, LimitError
from service.web.png import PlainPng

_FILE_FORMATS = ("PNG", "JPEG", "WEBP")
_SMALL_BYTES = 2**13
_SMALL_PIXELS = 2**16
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in JPEG
# Pillow's decoders and its EXIF reader let many kinds of error out when bytes are wrong.
_DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, OverflowError),
    *(struct.error, zlib.error),
    UserWarning,  # Pillow's, of corrupt EXIF data, where warnings are errors
)

Array = NDArray[Any]


def is_small_png(body: bytes) -> bool:
    """Whether reading this file takes well under a millisecond, going by its length and the size in its header.

    The bound on its length also bounds what its text chunks and its one header may unpack to.
    """
    if len(body) > _SMALL_BYTES or body[:8] != b"\x89PNG\r\n\x1a\n" or body.count(b"IHDR") != 1:
        return False
    return int.from_bytes(body[16:20], "big") * int.from_bytes(body[20:24], "big") <= _SMALL_PIXELS


class ImageReader:
    """Reads images for one model.

    Args:
        shape: what the model takes.
        resize: whether another height or width is resampled (area-averaging bilinear) instead of refused.
        max_pixels: width × height, over all images of the request, counted from the headers, before any is decoded.
    """

    def __init__(self, shape: ImageShape, *, resize: bool, max_pixels: int) -> None:
        self._shape = shape
        self._resize = resize
        self._max_pixels = max_pixels

    def is_brief(self, array: Array) -> bool:
        """Whether `read_array` takes well under a millisecond: it has nothing to resize, and little to check."""
        return array.shape[-2:] == (self._shape.height, self._shape.width) and array.size <= _SMALL_PIXELS

    def read_items(self, items: Sequence[Any]) -> NDArray[np.float32]:
        """Files as bytes or base64 text, or nested numbers in [0, 1], [H][W] or [C][H][W] → [B, C, H, W]."""
        if not items:
            raise InvalidBodyError("the body holds no image")
        self._count_pixels(len(items) * self._shape.height * self._shape.width)
        pixels = np.empty((len(items), *self._shape.chw), np.float32)
        budget = self._max_pixels
        for index, item in enumerate(items):
            if isinstance(item, str):
                item = _from_base64(item, index)
            if isinstance(item, bytes):
                file = _open(item, index)
                budget -= file.width * file.height
                self._count_pixels(self._max_pixels - budget)
                if (file.width, file.height) != self._size:  # EXIF may turn it
                    self._check_size((file.height, file.width), index)
                array = _decode(file, index)
            else:
                array = _from_numbers(item, index)
            pixels[index] = self._fit(array, index)
        return pixels

    def read_array(self, array: Array) -> NDArray[np.float32]:
        """Float32 in [0, 1] or uint8, [B, H, W] or [B, C, H, W] → [B, C, H, W]."""
        if array.ndim not in (3, 4):
            raise InvalidBodyError(f"the array has shape {list(array.shape)}; accepted: [B, H, W] or [B, C, H, W]")
        if array.ndim == 3:
            array = array[:, None]  # [B, 1, H, W]
        self._count_pixels(len(array) * max(array.shape[2] * array.shape[3], self._shape.height * self._shape.width))
        if array.dtype == np.uint8:
            array = array.astype(np.float32) / np.float32(255)
        else:
            check_range(array)
        if array.shape[1:] == self._shape.chw:
            return array
        return np.stack([self._fit(image, index) for index, image in enumerate(array)])

    def _count_pixels(self, pixels: int) -> None:
        if pixels > self._max_pixels:
            raise LimitError(f"the images have {pixels} pixels or more; at most {self._max_pixels} are accepted")

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
    inside = (pixels >= 0) & (pixels <= 1)
    index = int(np.argmin(inside.reshape(len(pixels), -1).all(axis=1)))
    raise _out_of_range(pixels[index], index)


def _out_of_range(image: Array, index: int) -> InvalidImageError:
    if np.isnan(image).any():
        return InvalidImageError("a pixel is NaN; pixels must lie in [0, 1]", index)
    low, high = float(image.min()), float(image.max())
    found = f"pixels range from {low:g} to {high:g}; they must lie in [0, 1]"
    advice = "; divide 8-bit values by 255, or send them as uint8 npy" if 1 < high <= 255 and low >= 0 else ""
    return InvalidImageError(found + advice, index)


def _from_base64(text: str, index: int) -> bytes:
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidImageError(f"the text is not base64: {error}", index) from None


def _from_numbers(item: Any, index: int) -> Array:
    try:
        array = np.asarray(item)
    except ValueError:
        raise InvalidImageError("the nested numbers are ragged; accepted: [H][W] or [C][H][W]", index) from None
    if array.dtype.kind not in "iuf" or array.ndim not in (2, 3) or array.size == 0:
        kind = f"{array.dtype} of shape {list(array.shape)}" if array.dtype.kind in "iuf" else type(item).__name__
        accepted = "a base64 image file, or nested numbers [H][W] or [C][H][W]"
        raise InvalidImageError(f"the item is {kind}; accepted: {accepted}", index)
    if not ((array >= 0) & (array <= 1)).all():
        raise _out_of_range(array, index)
    image = array.astype(np.float32)
    return image[None] if image.ndim == 2 else image


def _open(content: bytes, index: int) -> "PlainPng | Image.Image":
    """Read a file's header only."""
    return PlainPng.of(content) or _open_any(content, index)


def _open_any(content: bytes, index: int) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=_FILE_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise LimitError(f"image {index}: {error}") from None
    except _DECODER_ERRORS as error:
        problem = "it is empty" if not content else "it is none of PNG, JPEG, WebP, or its header is broken"
        raise InvalidImageError(f"the file cannot be read: {problem}", index) from error


def _decode(file: "PlainPng | Image.Image", index: int) -> Array:
    """Pixels [1 or 3, h, w] in [0, 1]; the first frame, turned as its EXIF says, transparent parts black."""
    if isinstance(file, Image.Image):
        return _decode_any(file, index)
    levels = file.read()
    if levels is None:  # Pillow says what is wrong, or reads it all the same
        return _decode_any(_open_any(file.content, index), index)
    return levels.transpose(2, 0, 1) / np.float32(255)


def _decode_any(image: Image.Image, index: int) -> Array:
    try:
        image.load()
        if image.info:  # only there can an orientation or a transparent colour be told
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16") or image.mode == "I":
            return np.asarray(image, np.float32)[None] / np.float32(65535)
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("RGB")
        if image.mode not in ("L", "RGB"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        levels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)  # [h, w, 1 or 3]
        return levels.transpose(2, 0, 1) / np.float32(255)
    except _DECODER_ERRORS as error:
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
