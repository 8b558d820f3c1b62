"""Images of every form as what is sent: the bytes of files, and arrays."""

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from logpx.errors import ImageError

AnyArray: TypeAlias = NDArray[Any]
ImagesLike: TypeAlias = Any
"""Images as the client takes them: a path, the bytes of a file, a PIL image, an array or anything that NumPy makes an
array of, or an iterable of them."""
_ACCEPTED = "accepted: paths, bytes of image files, PIL images, arrays, and iterables of them"
_CHANNELS = (1, 3)


@dataclass(frozen=True)
class ImageFile:
    """A file to send: its bytes, or its path, which is read only when it is sent.

    Attributes:
        content: the bytes, or the path.
        index: of the image, counted from 0 over all given.
        size: how many bytes it has.
    """

    content: bytes | Path
    index: int
    size: int

    def read(self) -> bytes:
        """The bytes.

        Raises:
            ImageError: the file cannot be read.
        """
        if isinstance(self.content, bytes):
            return self.content
        try:
            return self.content.read_bytes()
        except OSError as error:
            raise ImageError(f"{self.content} cannot be read: {error.strerror}", self.index) from error


Item: TypeAlias = ImageFile | AnyArray
"""One image to send: a file, or an array [H, W] or [C, H, W]."""


def items_of(images: ImagesLike) -> Iterator[Item]:
    """The images one by one, in their order, each made only when it is asked for.

    An array by itself is [H, W] or a batch: [B, H, W], [B, C, H, W] or [B, H, W, C]. Within an iterable, an array is
    [H, W], [C, H, W], [H, W, C], or a batch of one of the last two.

    Raises:
        ImageError: an image cannot be read, or has no form that can be sent.
        TypeError: these are no images.
        ValueError: an array by itself has a shape that could mean two things.
    """
    if _is_file(images) or _is_pil(images):
        yield _item(images, 0)
    elif (array := array_of(images)) is not None:
        yield from _batch(array)
    elif isinstance(images, Iterable):
        index = 0
        for image in images:
            for item in _items(image, index):
                yield item
                index += 1
    else:
        raise TypeError(f"{type(images).__name__} is no image; {_ACCEPTED}")


def count_of(images: ImagesLike) -> int | None:
    """How many images there are, if that can be known beforehand."""
    if _is_file(images) or _is_pil(images):
        return 1
    if (array := array_of(images)) is not None:
        return 1 if array.ndim == 2 else len(array)
    if not isinstance(images, list | tuple):
        return None
    shapes = [getattr(image, "shape", ()) for image in images]
    return None if any(len(shape) == 4 for shape in shapes) else len(images)


def sendable(array: AnyArray, index: int) -> AnyArray:
    """The array as uint8 or float32, which the service takes.

    Raises:
        ImageError: its numbers could mean several things.
    """
    if array.dtype == np.uint8 or array.dtype == np.float32:
        return array
    if array.dtype == np.bool_ or array.dtype.kind == "f":
        return array.astype(np.float32)
    raise ImageError(f"the array holds {array.dtype}; give uint8, or floats in [0, 1]", index)


def _items(image: Any, index: int) -> Iterator[Item]:
    """What one member of an iterable stands for: usually one image."""
    array = None if _is_file(image) or _is_pil(image) else array_of(image)
    if array is None or array.ndim != 4:
        yield _item(image if array is None else array, index)
    else:
        for number, member in enumerate(array):
            yield _item(member, index + number)


def _item(image: Any, index: int) -> Item:
    if isinstance(image, bytes | bytearray | memoryview):
        content = bytes(image)
        return ImageFile(content, index, len(content))
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        try:
            return ImageFile(path, index, path.stat().st_size)
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {error.strerror}", index) from error
    if _is_pil(image):
        content = _png(image, index)
        return ImageFile(content, index, len(content))
    array = array_of(image)
    if array is None:
        raise ImageError(f"{type(image).__name__} is no image; {_ACCEPTED}", index)
    return _channels_first(sendable(array, index), index).copy()  # a generator may fill the same array again


def _batch(array: AnyArray) -> Iterator[Item]:
    """The images of an array by itself."""
    if array.ndim not in (2, 3, 4):
        raise ValueError(f"the array has shape {list(array.shape)}; give [H, W], [B, H, W] or [B, C, H, W]")
    if array.ndim == 3 and array.shape[-1] in (*_CHANNELS, 4):
        raise ValueError(
            f"the array has shape {list(array.shape)}: give one image [H, W, C] in a list, and images that are "
            f"{array.shape[-1]} wide as [B, 1, H, W]"
        )
    for index, image in enumerate(array if array.ndim > 2 else array[None]):
        yield _channels_first(sendable(image, index), index)


def _channels_first(array: AnyArray, index: int) -> AnyArray:
    """[H, W] or [C, H, W], of these or [H, W, C]."""
    if array.ndim == 2 or (array.ndim == 3 and array.shape[0] in _CHANNELS):
        return array
    if array.ndim == 3 and array.shape[-1] in _CHANNELS:
        return np.moveaxis(array, -1, 0)
    raise ImageError(
        f"the array has shape {list(array.shape)}; one image is [H, W], [C, H, W] or [H, W, C] with 1 or 3 channels, "
        "several are [B, C, H, W]",
        index,
    )


def _is_file(image: Any) -> bool:
    return isinstance(image, bytes | bytearray | memoryview | str | os.PathLike)


def _is_pil(image: Any) -> bool:
    """Whether it is a PIL image; Pillow itself is imported only where there is one."""
    return any(kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(image).__mro__)


def array_of(image: Any) -> AnyArray | None:
    """What is or makes an array; None of everything else. Of a tensor with a gradient or on a GPU, its numbers."""
    if not hasattr(image, "__array__"):
        return None
    if hasattr(image, "detach"):
        image = image.detach().cpu()
    return np.asarray(image)


def _png(image: Any, index: int) -> bytes:
    """A PIL image as PNG, without loss, turned as its EXIF data says, as the service turns a file."""
    from PIL import ImageOps

    stream = io.BytesIO()
    try:
        ImageOps.exif_transpose(image).save(stream, "PNG", compress_level=1)
    except (OSError, ValueError) as error:
        raise ImageError(f"the PIL image of mode {image.mode} cannot be made a PNG: {error}", index) from error
    return stream.getvalue()
