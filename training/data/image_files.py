"""Read the image files of a data set with the service's reader, so that training gets the pixels that are served."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from model_store import CHANNELS
from service.images.errors import ImageError
from service.images.file import ImageFile, ImageHeader, in_unit_interval
from service.images.fitting import EXACT, Fitting
from service.images.folder import list_files
from training.configuration import Size
from training.data.preparation import Preparation
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

    @property
    def paths(self) -> Sequence[str] | None:
        """Each image's path below the data set, with `/`; None of images that have none."""
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
        self._folder = folder
        self.paths = list_files(folder).files if files is None else files

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The file's path."""
        return f"{self._folder}/{self.paths[index]}"

    def open(self, index: int) -> BinaryIO:
        """Open the file."""
        try:
            return Path(self.name(index)).open("rb")
        except OSError as error:
            raise CorruptImageError(self.name(index), f"cannot be read ({error.strerror})") from error


@dataclass(frozen=True)
class PixelFormat:
    """The format to which all images of a data set are decoded.

    Attributes:
        channels: 1 for grey, 3 for colour.
        deep: whether any image has 16 bits a sample; then pixels are float32 in [0, 1] instead of 8-bit.
        fitting: how images become the model's.
        size: the model's height and width, to which images of any size are brought, in 8 bits; None takes images of
            one size as they are.
    """

    channels: int
    deep: bool
    fitting: Fitting = EXACT
    size: Size | None = None

    @staticmethod
    def of(headers: Iterable[ImageHeader], preparation: Preparation) -> "PixelFormat":
        """The format in which images with these headers are trained on.

        If it is not asked for, it is grey only if all images are. It loses nothing of images that are not resampled.
        """
        formats = {(header.channels, header.bits) for header in headers}
        channels = max((channels for channels, _ in formats), default=1)
        if preparation.colour is not None:
            channels = CHANNELS[preparation.colour]
        size = preparation.fixed_size
        deep = size is None and any(bits == 16 for _, bits in formats)
        return PixelFormat(channels, deep, preparation.fitting, size)

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
    """Decode an image to pixels [C, H, W] as the service does; see `service.images.reader.ImageReader`.

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
    if pixel_format.size is not None:
        fitted: Pixels = pixel_format.fitting.levels(levels[None], (pixel_format.channels, *pixel_format.size))[0]
        return fitted
    if len(levels) > pixel_format.channels or (levels.dtype != np.uint8 and not pixel_format.deep):
        raise CorruptImageError(images.name(index), "has changed: it has more channels or bits than its header had")
    turned = pixel_format.fitting.inverted(levels)
    pixels: Pixels = in_unit_interval(turned) if pixel_format.deep else turned.astype(np.uint8, copy=False)
    return np.concatenate([pixels] * (pixel_format.channels // len(pixels)))


def check_size(shape: Sequence[int], expected: Sequence[int], name: str, first: str) -> None:
    """Refuse an image [C, H, W] whose height or width differs from the first image's.

    Raises:
        DataError: the sizes differ; the message names both images, and what to do.
    """
    if tuple(shape) != tuple(expected):
        found = f"is {shape[1]}×{shape[2]} (height × width), but {first} is {expected[1]}×{expected[2]}"
        raise DataError(
            name, f"{found}: for images of several sizes there is fit --size auto, or for example --size 64"
        )
