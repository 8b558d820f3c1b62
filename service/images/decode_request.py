"""One request's images to be read, here or in a worker process: `DecodeRequest`, its cost, and how it travels.

A message is four bytes that tell a length, so much JSON, and the bytes that the JSON announces: no pickle. The service
writes it; of what a worker answers it believes nothing but pixels of the shape it expects
(service/web/decoding/decoder_process.py).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.images.arrays import AnyArray
from service.images.cost import array_cost, file_cost, is_brief
from service.images.reader import ImageReader, Shape

MAX_HEADER_BYTES = 2**24  # a form of a million files has that many lengths
_LENGTH_BYTES = 4
_BRIEF_IMAGES, _BRIEF_NUMBERS, _BRIEF_COST = 128, 2**14, 2**20


class PlainShape(NamedTuple):
    """A `Shape` that needs no package but this one."""

    channels: int
    height: int
    width: int

    @property
    def chw(self) -> tuple[int, int, int]:
        """All three."""
        return self.channels, self.height, self.width


@dataclass(frozen=True)
class DecodeRequest:
    """What `ImageReader` needs to make [B, C, H, W] of one request.

    Attributes:
        shape: what the model takes.
        resize, max_pixels: see `ImageReader`.
        images: files, and [c, h, w] of float32; or one array as `ImageReader.read_array` takes it.
    """

    shape: Shape
    resize: bool
    max_pixels: int
    images: Sequence[bytes | AnyArray] | AnyArray

    @property
    def result_shape(self) -> tuple[int, int, int, int]:
        """[B, C, H, W]."""
        return len(self.images), *self.shape.chw

    def read(self) -> NDArray[np.float32]:
        """The pixels [B, C, H, W].

        Raises: as `ImageReader`.
        """
        reader = ImageReader(self.shape, resize=self.resize, max_pixels=self.max_pixels)
        return reader.read_array(self.images) if isinstance(self.images, np.ndarray) else reader.read_items(self.images)

    def cost(self) -> int:
        """In the unit of cost.py; of no more pixels than may be read, for the others are refused unread."""
        each = self.shape.height * self.shape.width
        if isinstance(self.images, np.ndarray):
            pixels = max(self.images.size, len(self.images) * each * self.shape.channels)
            return array_cost(len(self.images), pixels)
        files = sum(file_cost(item) if isinstance(item, bytes) else array_cost(1, item.size) for item in self.images)
        return files + len(self.images) * each

    @property
    def is_brief(self) -> bool:
        """Whether it takes ten milliseconds at most, of which no single image takes more than two."""
        if isinstance(self.images, np.ndarray):
            return False
        brief = (is_brief(item) if isinstance(item, bytes) else item.size <= _BRIEF_NUMBERS for item in self.images)
        return len(self.images) <= _BRIEF_IMAGES and all(brief) and self.cost() <= _BRIEF_COST

    def message(self) -> list[bytes | memoryview]:
        """The pieces of a message that `receive_request` reads, of which the images are not copied."""
        header: dict[str, Any] = {"shape": self.shape.chw, "resize": self.resize, "max_pixels": self.max_pixels}
        if isinstance(self.images, np.ndarray):
            in_fortran_order = not self.images.flags.c_contiguous and self.images.flags.f_contiguous
            flat = np.ascontiguousarray(self.images.T if in_fortran_order else self.images)
            header["array"] = {"dtype": flat.dtype.str, "shape": self.images.shape, "fortran": in_fortran_order}
            return [head(header), flat.reshape(-1).view(np.uint8).data]
        items = [item if isinstance(item, bytes) else np.ascontiguousarray(item, np.float32) for item in self.images]
        header["items"] = [len(item) if isinstance(item, bytes) else item.shape for item in items]
        parts = (item if isinstance(item, bytes) else item.reshape(-1).view(np.uint8).data for item in items)
        return [head(header), *parts]


def head(document: dict[str, Any]) -> bytes:
    """The beginning of a message."""
    text = json.dumps(document).encode()
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def receive_head(stream: BinaryIO) -> dict[str, Any] | None:
    """The beginning of the next message; None where the other side has closed.

    Raises:
        EOFError: it is cut off.
        ValueError: it is none.
    """
    if not (start := stream.read(_LENGTH_BYTES)):
        return None
    if (length := int.from_bytes(start, "little")) > MAX_HEADER_BYTES:
        raise ValueError(f"a message's head of {length} bytes")
    document: dict[str, Any] = json.loads(_exactly(stream, length))
    return document


def receive_request(stream: BinaryIO) -> DecodeRequest | None:
    """What `DecodeRequest.message` has written; None where the other side has closed.

    Raises: as `receive_head`.
    """
    header = receive_head(stream)
    if header is None:
        return None
    images: Sequence[bytes | AnyArray] | AnyArray
    if array := header.get("array"):
        images = _array(stream, np.dtype(array["dtype"]), array["shape"], "F" if array["fortran"] else "C")
    else:
        images = [
            _exactly(stream, item) if isinstance(item, int) else _array(stream, np.dtype("<f4"), item, "C")
            for item in header["items"]
        ]
    return DecodeRequest(PlainShape(*header["shape"]), header["resize"], header["max_pixels"], images)


def _array(stream: BinaryIO, dtype: np.dtype[Any], shape: Sequence[int], order: Any) -> AnyArray:
    length = dtype.itemsize
    for size in shape:
        length *= size
    flat: AnyArray = np.frombuffer(_exactly(stream, length), dtype)
    return flat.reshape(shape, order=order)


def _exactly(stream: BinaryIO, length: int) -> bytes:
    """So many bytes, in one object of that length.

    Raises:
        EOFError: there are fewer.
    """
    found = stream.read(length)
    if len(found) < length:
        raise EOFError("a message is cut off")
    return found
