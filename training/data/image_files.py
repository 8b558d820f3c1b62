"""Encoded images and their decoding: to training, a file's pixels are what the service reads of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from service.images.errors import ImageError
from service.images.file import ImageFile, ImageHeader, in_unit_interval
from service.images.folder import list_files
from training.errors import CorruptImageError, DataError

Pixels = NDArray[np.uint8] | NDArray[np.float32]


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
        channels: 1 for grey, 3 for colour.
        deep: whether an image of the set has 16 bits a sample: then pixels are float32 in [0, 1] instead of 8-bit.
    """

    channels: int
    deep: bool

    @staticmethod
    def of(headers: Iterable[ImageHeader]) -> "PixelFormat":
        """The format that loses nothing of images of these headers: grey where all are grey."""
        formats = {(header.channels, header.bits) for header in headers}
        channels = max((channels for channels, _ in formats), default=1)
        return PixelFormat(channels, any(bits == 16 for _, bits in formats))

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.float32]:
        """Of a decoded image."""
        return np.dtype(np.float32) if self.deep else np.dtype(np.uint8)


def read_header(images: EncodedImages, index: int) -> ImageHeader:
    """Size, channels and bits of an image.

    Raises:
        CorruptImageError: it is no image, or its header is broken.
    """
    with images.open(index) as stream:
        try:
            return ImageHeader.read(stream)
        except ImageError as error:
            raise CorruptImageError(images.name(index), f"not a readable image ({error})") from error
        except OSError as error:
            raise CorruptImageError(images.name(index), f"cannot be read ({error.strerror})") from error


def decode(images: EncodedImages, index: int, pixel_format: PixelFormat) -> Pixels:
    """Pixels [C, H, W] as the service reads them: see `service.images.file.ImageFile.levels`.

    Raises:
        CorruptImageError: the bytes are broken or cut off, or are no longer those of the header that was read.
    """
    try:
        with images.open(index) as stream:
            levels = ImageFile(stream.read()).levels()
    except OSError as error:
        raise CorruptImageError(images.name(index), f"cannot be read ({error.strerror})") from error
    except ImageError as error:
        raise CorruptImageError(images.name(index), f"cannot be decoded: {error}") from error
    if len(levels) > pixel_format.channels or (levels.dtype != np.uint8 and not pixel_format.deep):
        raise CorruptImageError(images.name(index), "has changed: it has more channels or bits than its header had")
    pixels: Pixels = in_unit_interval(levels) if pixel_format.deep else levels.astype(np.uint8, copy=False)
    return np.concatenate([pixels] * (pixel_format.channels // len(pixels)))


def check_size(shape: Sequence[int], expected: Sequence[int], name: str, first: str) -> None:
    """Refuse an image [C, H, W] of another height or width than the first.

    Raises:
        DataError: naming both.
    """
    if tuple(shape) != tuple(expected):
        raise DataError(name, f"{shape[2]}x{shape[1]} pixels, but {first} is {expected[2]}x{expected[1]}")
