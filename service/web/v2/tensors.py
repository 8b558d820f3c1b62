"""The tensors of the Open Inference Protocol: names, types, shapes, and data as JSON or as bytes."""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.images.arrays import AnyArray
from service.images.numbers import NotNumbersError, array_of
from service.images.reader import unpacked
from service.web.problems import InvalidBodyError, LimitError

MAX_DIMENSIONS = 4
DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "INT32": np.dtype("<i4"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""NumPy's type of each type that tensors have here, but BYTES."""
BYTES = "BYTES"
_LENGTH = struct.Struct("<I")
_MAX_SIZE = 2**31
_QUICK_BYTES, _QUICK_FILES = 2**18, 2**6


@dataclass(frozen=True)
class Tensor:
    """One input of a request. Its data are read by `numbers` or `files`, which can take long.

    Attributes:
        name, datatype, shape: as the request says.
        data: a JSON value, or the bytes.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Any

    @property
    def is_quick(self) -> bool:
        """Whether reading its data takes at most a millisecond, if the request's JSON is small."""
        if not isinstance(self.data, memoryview):
            return True
        return len(self.data) <= _QUICK_BYTES and (self.datatype != BYTES or self.shape[0] <= _QUICK_FILES)

    def numbers(self) -> AnyArray:
        """The data as an array of the tensor's shape and type; of bytes it is a view, unless that is not aligned.

        Raises:
            InvalidBodyError: there are more or fewer numbers than the shape says, or other values.
        """
        dtype, count = DTYPES[self.datatype], math.prod(self.shape)
        if isinstance(self.data, memoryview):
            if len(self.data) != count * dtype.itemsize:
                expected = f"{self._described} has {count * dtype.itemsize} bytes"
                raise InvalidBodyError(f"{expected}, but its binary_data_size is {len(self.data)}")
            array: AnyArray = np.frombuffer(self.data, dtype).reshape(self.shape)
            return array if array.flags.aligned else array.copy()
        try:
            found = array_of(self.data, max_dimensions=MAX_DIMENSIONS)
        except NotNumbersError as error:
            raise InvalidBodyError(f"the data of {self._described} are no numbers: {error}") from None
        if found.shape not in (self.shape, (count,)):
            raise InvalidBodyError(f"{self._described} has {count} numbers, but its data have shape {[*found.shape]}")
        return self._converted(found.reshape(self.shape), dtype)

    def files(self, most: int) -> list[bytes]:
        """The elements of a tensor of BYTES, which in JSON are base64.

        Raises:
            LimitError: there are more than `most`.
            InvalidBodyError: there are more or fewer than the shape says, or they are cut off.
            InvalidImageError: one is not base64.
        """
        (count,) = self.shape
        if count > most:
            raise LimitError(f"{self._described} has more than {most} files, which pass the limit on pixels")
        files = self._elements() if isinstance(self.data, memoryview) else self._texts()
        if len(files) != count:
            raise InvalidBodyError(f"{self._described} has {count} elements, but its data have {len(files)}")
        return files

    def _elements(self) -> list[bytes]:
        """Each element comes after four bytes with its length. At most one more than the shape says are read."""
        data, position = self.data, 0
        files: list[bytes] = []
        while position < len(data) and len(files) <= self.shape[0]:
            start = position + _LENGTH.size
            position = start + _LENGTH.unpack_from(data, position)[0] if start <= len(data) else start
            if position > len(data):
                raise InvalidBodyError(f"element {len(files)} of {self._described} is cut off")
            files.append(bytes(data[start:position]))
        return files

    def _texts(self) -> list[bytes]:
        if not isinstance(self.data, list) or not all(type(item) is str for item in self.data):
            raise InvalidBodyError(f"the data of {self._described} must be a list of base64 texts")
        return [bytes(unpacked(text, index)) for index, text in enumerate(self.data)]

    def _converted(self, found: NDArray[np.float64], dtype: np.dtype[Any]) -> AnyArray:
        if dtype.kind == "f":
            with np.errstate(over="ignore"):
                return found.astype(dtype)
        limits = np.iinfo(dtype)
        if not ((found >= limits.min) & (found <= limits.max) & (found == np.floor(found))).all():
            raise InvalidBodyError(
                f"the data of {self._described} must be whole numbers from {limits.min} to {limits.max}"
            )
        return found.astype(dtype)

    @property
    def _described(self) -> str:
        return f"input {self.name} ({self.datatype} {[*self.shape]})"


def checked_shape(name: str, shape: Any) -> tuple[int, ...]:
    """The shape of an input.

    Raises:
        InvalidBodyError: it is not one to four whole numbers, or one of them is zero.
    """
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= MAX_DIMENSIONS
        or any(type(size) is not int or not 0 <= size < _MAX_SIZE for size in shape)
    ):
        raise InvalidBodyError(f"the shape of input {name} must be a list of one to four whole numbers")
    if 0 in shape:
        raise InvalidBodyError(f"input {name} of shape {shape} is empty")
    return tuple(shape)
