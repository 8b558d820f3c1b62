"""Read the image files of a data set with the service's reader, so that training gets the pixels that are served."""

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
    """Images encoded as PNG, JPEG or WebP, numbered from 0 in an order that is the same in every run."""

    @property
    def blocks(self) -> NDArray[np.int64] | None:
        """For each image, the number of the block in which it is read; None if each is read alone."""
        ...

    @property
    def block_bytes(self) -> NDArray[np.int64]:
        """Bytes of memory for each block."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The name of an image in messages."""
        ...

    def open(self, index: int) -> BinaryIO:
        """Open the encoded bytes of an image.

        Raises:
            CorruptImageError: they cannot be read.
        """
        ...


class ImageFiles:
    """Image files under a folder, in the order of `files`, or all that `list_files` finds."""

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
        """Open the file."""
        try:
            return Path(self._files[index]).open("rb")
        except OSError as error:
            raise CorruptImageError(self._files[index], f"cannot be read ({error.strerror})") from error


@dataclass(frozen=True)
class PixelFormat:
    """The format to which all images of a data set are decoded.

    Attributes:
        channels: 1 for grey, 3 for colour.
        deep: whether any image has 16 bits a sample; then pixels are float32 in [0, 1] instead of 8-bit.
    """

    channels: int
    deep: bool

    @staticmethod
    def of(headers: Iterable[ImageHeader]) -> "PixelFormat":
        """The format that loses nothing from images with these headers: grey or 8-bit only if all images are."""
        formats = {(header.channels, header.bits) for header in headers}
        channels = max((channels for channels, _ in formats), default=1)
        return PixelFormat(channels, any(bits == 16 for _, bits in formats))

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.float32]:
        """The type of decoded images."""
        return np.dtype(np.float32) if self.deep else np.dtype(np.uint8)


def read_header(images: EncodedImages, index: int) -> ImageHeader:
    """Size, channels and bits of an image.

    Raises:
        CorruptImageError: it is not an image, or its header is broken.
    """
    with images.open(index) as stream:
        try:
            return ImageHeader.read(stream)
        except ImageError as error:
            raise CorruptImageError(images.name(index), f"not a readable image ({error})") from error
        except OSError as error:
            raise CorruptImageError(images.name(index), f"cannot be read ({error.strerror})") from error


def decode(images: EncodedImages, index: int, pixel_format: PixelFormat) -> Pixels:
    """Decode an image to pixels [C, H, W] as the service does; see `service.images.file.ImageFile.levels`.

    Raises:
        CorruptImageError: the file is broken or cut off, or has changed since its header was read.
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
    """Refuse an image [C, H, W] whose height or width differs from the first image's.

    Raises:
        DataError: the sizes differ; the message names both images.
    """
    if tuple(shape) != tuple(expected):
        raise DataError(name, f"{shape[2]}x{shape[1]} pixels, but {first} is {expected[2]}x{expected[1]}")
