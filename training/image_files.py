"""Encoded images and their decoding: to training, a file's pixels are what the service reads of it."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from service.images.folder import list_files
from training.errors import CorruptImageError, DataError

Pixels = NDArray[np.uint8] | NDArray[np.float32]

_FORMATS = ("PNG", "JPEG", "WEBP")  # those of the service, whatever a file is called
_GREY_MODES = {"1", "L", "LA"}
_COLOUR_MODES = {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
# Pillow's decoders and its EXIF reader let many kinds of error out when bytes are wrong.
_DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


class EncodedImages(Protocol):
    """Images as PNG, JPEG or WebP, numbered from 0 in an order that no run changes."""

    @property
    def blocks(self) -> NDArray[np.int64] | None:
        """The number of the block that each image is read with; None where each is read alone."""
        ...

    @property
    def block_bytes(self) -> NDArray[np.int64]:
        """Bytes that each block takes in memory."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call an image in a message."""
        ...

    def open(self, index: int) -> BinaryIO:
        """The encoded bytes.

        Raises:
            CorruptImageError: there are none.
        """
        ...


class ImageFiles:
    """Image files under a folder, in the order given; by default all that `list_files` finds there."""

    blocks = None
    block_bytes: NDArray[np.int64] = np.zeros(0, np.int64)

    def __init__(self, folder: Path, files: Sequence[str] | None = None) -> None:
        self._files = [f"{folder}/{file}" for file in (list_files(folder).files if files is None else files)]

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        """The file's path."""
        return self._files[index]

    def open(self, index: int) -> BinaryIO:
        """The file."""
        try:
            return Path(self._files[index]).open("rb")
        except OSError as error:
            raise CorruptImageError(self._files[index], f"cannot be read ({error.strerror})") from error


@dataclass(frozen=True)
class PixelFormat:
    """How all images of a set are decoded.

    Attributes:
        mode: Pillow's; L gives 1 channel, RGB 3.
        deep: whether an image of the set has 16 bits a pixel: then pixels are float32 in [0, 1] instead of 8-bit.
    """

    mode: Literal["L", "RGB"]
    deep: bool

    @staticmethod
    def of(modes: set[str]) -> "PixelFormat":
        """The format that loses nothing of images of these modes: grey where all are grey."""
        grey = all(mode in _GREY_MODES or _is_deep(mode) for mode in modes)
        return PixelFormat("L" if grey else "RGB", any(map(_is_deep, modes)))

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.float32]:
        """Of a decoded image."""
        return np.dtype(np.float32) if self.deep else np.dtype(np.uint8)


def read_mode(images: EncodedImages, index: int) -> str:
    """Pillow's mode of an image, from its header.

    Raises:
        CorruptImageError: it is no image, or its header is broken.
        DataError: pixels of a mode that the service does not take.
    """
    name = images.name(index)
    with images.open(index) as stream:
        try:
            with Image.open(stream, formats=_FORMATS) as image:
                mode = image.mode
        except _DECODER_ERRORS as error:
            raise CorruptImageError(name, f"not a readable image ({_without_address(error)})") from error
    if mode not in _GREY_MODES | _COLOUR_MODES and not _is_deep(mode):
        raise DataError(name, f"pixels of Pillow's mode {mode}; images must have 8 bits a channel, or 16 bits of grey")
    return mode


def decode(images: EncodedImages, index: int, pixel_format: PixelFormat) -> Pixels:
    """Pixels [C, H, W]: the first frame, turned as its EXIF says, transparent parts black.

    Raises:
        CorruptImageError: the bytes are broken.
    """
    with images.open(index) as stream:
        try:
            with Image.open(stream, formats=_FORMATS) as opened:
                image = ImageOps.exif_transpose(opened)
                if _is_deep(image.mode):
                    grey = np.asarray(image, np.float32)[None] / np.float32(65535)  # [1, H, W]
                    return grey if pixel_format.mode == "L" else np.repeat(grey, 3, axis=0)
                if image.has_transparency_data:
                    rgba = image.convert("RGBA")
                    image = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("RGB")
                pixels = np.asarray(image.convert(pixel_format.mode), np.uint8)  # [H, W] or [H, W, 3]
        except _DECODER_ERRORS as error:
            problem = f"truncated or broken image ({_without_address(error)})"
            raise CorruptImageError(images.name(index), problem) from error
    pixels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)  # [C, H, W]
    return pixels.astype(np.float32) / np.float32(255) if pixel_format.deep else pixels


def check_size(shape: Sequence[int], expected: Sequence[int], name: str, first: str) -> None:
    """Refuse an image [C, H, W] of another height or width than the first.

    Raises:
        DataError: naming both.
    """
    if tuple(shape) != tuple(expected):
        raise DataError(name, f"{shape[2]}x{shape[1]} pixels, but {first} is {expected[2]}x{expected[1]}")


def _is_deep(mode: str) -> bool:
    return mode.startswith("I;16") or mode == "I"  # as in service/web/images.py


def _without_address(error: Exception) -> str:
    """The error's text; Pillow prints objects of ours with their address in memory, which tells nobody anything."""
    text = str(error)
    return "cannot identify image file" if "object at 0x" in text or "cannot identify" in text else text
