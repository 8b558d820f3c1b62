"""The images of one request: `DecodeRequest`, its cost, and its format as a message to a worker process.

A message has four bytes with a length, JSON of that length, and then the bytes that the JSON announces. Nothing is
pickled. The service writes messages. It does not trust a worker's answers: it accepts only pixels of the shape it
expects (service/web/decoding/decoder_process.py).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.images.arrays import AnyArray
from service.images.cost import array_cost, file_cost, is_brief
from service.images.fitting import EXACT, Fitting
from service.images.reader import ImageReader, Shape

MAX_HEADER_BYTES = 2**24  # room for the lengths of a million files in a form
_LENGTH_BYTES = 4
_BRIEF_IMAGES, _BRIEF_NUMBERS, _BRIEF_COST = 128, 2**14, 2**20


class PlainShape(NamedTuple):
    """A `Shape` that does not import other packages."""

    channels: int
    height: int
    width: int

    @property
    def chw(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, self.height, self.width


@dataclass(frozen=True)
class DecodeRequest:
    """What `ImageReader` needs to read the images of one request as [B, C, H, W].

    Attributes:
        shape: the image shape that the model takes.
        resize, max_pixels: see `ImageReader`.
        images: a list of files and of float32 arrays [c, h, w]; or one array as `ImageReader.read_array` takes it.
        fitting: see `ImageReader`.
    """

    shape: Shape
    resize: bool
    max_pixels: int
    images: Sequence[bytes | AnyArray] | AnyArray
    fitting: Fitting = EXACT

    @property
    def result_shape(self) -> tuple[int, int, int, int]:
        """B, C, H and W of the pixels."""
        return len(self.images), *self.shape.chw

    def read(self) -> NDArray[np.float32]:
        """The pixels [B, C, H, W].

        Raises: as `ImageReader`.
        """
        reader = ImageReader(self.shape, resize=self.resize, max_pixels=self.max_pixels, fitting=self.fitting)
        return reader.read_array(self.images) if isinstance(self.images, np.ndarray) else reader.read_items(self.images)

    def cost(self) -> int:
        """In the unit of cost.py. Pixels beyond `max_pixels` do not count: they are refused without being read."""
        each = self.shape.height * self.shape.width
        if isinstance(self.images, np.ndarray):
            pixels = max(self.images.size, len(self.images) * each * self.shape.channels)
            return array_cost(len(self.images), pixels)
        files = sum(file_cost(item) if isinstance(item, bytes) else array_cost(1, item.size) for item in self.images)
        return files + len(self.images) * each

    @property
    def is_brief(self) -> bool:
        """Whether reading takes at most ten milliseconds in all, and at most two for each image."""
        if isinstance(self.images, np.ndarray):
            return False
        brief = (is_brief(item) if isinstance(item, bytes) else item.size <= _BRIEF_NUMBERS for item in self.images)
        return len(self.images) <= _BRIEF_IMAGES and all(brief) and self.cost() <= _BRIEF_COST

    def message(self) -> list[bytes | memoryview]:
        """The pieces of a message that `receive_request` reads; the images are not copied."""
        header: dict[str, Any] = {"shape": self.shape.chw, "resize": self.resize, "max_pixels": self.max_pixels}
        header["fit"], header["invert"] = self.fitting.fit, self.fitting.invert
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
    """The beginning of a message: the length, and these fields as JSON."""
    text = json.dumps(document).encode()
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def receive_head(stream: BinaryIO) -> dict[str, Any] | None:
    """The JSON fields of the next message; None if the other side has closed the connection.

    Raises:
        EOFError: the message is cut off.
        ValueError: it is not a message.
    """
    if not (start := stream.read(_LENGTH_BYTES)):
        return None
    if (length := int.from_bytes(start, "little")) > MAX_HEADER_BYTES:
        raise ValueError(f"a message's head of {length} bytes")
    document: dict[str, Any] = json.loads(_exactly(stream, length))
    return document


def receive_request(stream: BinaryIO) -> DecodeRequest | None:
    """Read what `DecodeRequest.message` wrote; None if the other side has closed the connection.

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
    fitting = Fitting(header["fit"], header["invert"])
    return DecodeRequest(PlainShape(*header["shape"]), header["resize"], header["max_pixels"], images, fitting)


def _array(stream: BinaryIO, dtype: np.dtype[Any], shape: Sequence[int], order: Any) -> AnyArray:
    length = dtype.itemsize
    for size in shape:
        length *= size
    flat: AnyArray = np.frombuffer(_exactly(stream, length), dtype)
    return flat.reshape(shape, order=order)


def _exactly(stream: BinaryIO, length: int) -> bytes:
    """Read this many bytes into one object.

    Raises:
        EOFError: the connection was closed before.
    """
    found = stream.read(length)
    if len(found) < length:
        raise EOFError("a message is cut off")
    return found
