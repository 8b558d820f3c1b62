"""Arrays in NumPy's file format, npy, without pickle and without a copy."""

import io
import struct
import threading
import tokenize
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from service.images.arrays import AnyArray
from service.images.errors import InvalidArrayError

_NPY_ERRORS = (
    *(ValueError, LookupError, SyntaxError, TypeError, EOFError, RecursionError, MemoryError, OverflowError),
    *(struct.error, tokenize.TokenError),
    UserWarning,  # NumPy's, of a header as Python 2 wrote it, where warnings are errors
)
MAX_HEADER_BYTES = 1024
"""An array's header has 118; Python parses it, in which longer numbers and deeper brackets can do harm."""
_parsing = threading.Lock()
_MAGIC = b"\x93NUMPY"
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def parse_pixels(body: bytes) -> AnyArray:
    """An npy file of images, float32 or uint8; see `parse_npy` for what it raises."""
    return parse_npy(body, (np.dtype("<f4"), np.dtype("u1")))


def parse_npy(body: bytes, dtypes: Sequence[np.dtype[Any]]) -> AnyArray:
    """An npy file as a read-only view of the body, without a copy.

    Raises:
        InvalidArrayError: not an npy file, another dtype (objects among them), or a header that lies about the length.
    """
    if (end := _npy_header_end(body)) > MAX_HEADER_BYTES:
        raise InvalidArrayError(f"the npy header has {end} bytes; at most {MAX_HEADER_BYTES} are accepted")
    try:
        shape, fortran_order, dtype, offset = _npy_header(body[:end])
    except _NPY_ERRORS as error:
        problem = str(error)[:200]
        raise InvalidArrayError(f"the body is not an npy file of version 1.0 or 2.0: {problem}") from None
    if dtype not in dtypes:
        raise InvalidArrayError(f"the array holds {dtype}; accepted: {', '.join(str(item) for item in dtypes)}")
    if not 1 <= len(shape) <= 4 or any(type(size) is not int or not 0 < size < 2**31 for size in shape):
        raise InvalidArrayError(f"the npy header's shape is {str(shape)[:200]}; accepted: one to four numbers from 1")
    expected, found = dtype.itemsize, len(body) - offset
    for size in shape:
        expected *= size  # Python integers: a lying header cannot overflow them
    if expected != found:
        raise InvalidArrayError(f"the npy header says {expected} bytes of {dtype} {list(shape)}, the body has {found}")
    flat: AnyArray = np.frombuffer(body, dtype, offset=offset)
    return flat.reshape(shape, order="F" if fortran_order else "C")


def _npy_header_end(body: bytes) -> int:
    """Where the header says that it ends; 10 where it is not of version 1.0 or 2.0."""
    if not body.startswith((_MAGIC + b"\x01\x00", _MAGIC + b"\x02\x00")):
        return 10
    length, start = (body[8:10], 10) if body[6:7] == b"\x01" else (body[8:12], 12)
    return start + int.from_bytes(length, "little")


@lru_cache(maxsize=64)
def _npy_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether in Fortran's order, dtype, and the header's own length. One client's headers are mostly alike.

    One at a time: NumPy has Python parse it, which before 3.11.8 counts how deep it is for all threads together, and
    raises a SystemError where two threads parse at once (python/cpython#106905).
    """
    stream = io.BytesIO(head)
    with _parsing:
        version = np.lib.format.read_magic(stream)
        shape, fortran_order, dtype = _NPY_HEADERS[version](stream)
    return shape, fortran_order, dtype, stream.tell()
