"""Read arrays in NumPy's file format, npy, without pickle and without a copy."""

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
    UserWarning,  # NumPy's for headers written by Python 2, if warnings are turned into errors
)
MAX_HEADER_BYTES = 1024
"""Longest header that is read; NumPy writes 118 bytes. It is parsed as Python, so a long one could be an attack."""
_parsing = threading.Lock()
_MAGIC = b"\x93NUMPY"
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def parse_pixels(body: bytes) -> AnyArray:
    """Parse an npy file of images, float32 or uint8. Raises what `parse_npy` raises."""
    return parse_npy(body, (np.dtype("<f4"), np.dtype("u1")))


def parse_npy(body: bytes, dtypes: Sequence[np.dtype[Any]]) -> AnyArray:
    """Parse an npy file; the array is a read-only view of the body, not a copy.

    Raises:
        InvalidArrayError: it is not an npy file, has another dtype (such as objects), or its header gives a wrong
            length.
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
        expected *= size  # Python integers, which a false header cannot overflow
    if expected != found:
        raise InvalidArrayError(f"the npy header says {expected} bytes of {dtype} {list(shape)}, the body has {found}")
    flat: AnyArray = np.frombuffer(body, dtype, offset=offset)
    return flat.reshape(shape, order="F" if fortran_order else "C")


def _npy_header_end(body: bytes) -> int:
    """The offset at which the header says that it ends; 10 if the version is not 1.0 or 2.0."""
    if not body.startswith((_MAGIC + b"\x01\x00", _MAGIC + b"\x02\x00")):
        return 10
    length, start = (body[8:10], 10) if body[6:7] == b"\x01" else (body[8:12], 12)
    return start + int.from_bytes(length, "little")


@lru_cache(maxsize=64)
def _npy_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether in Fortran order, dtype, and length of the header. Cached: a client's headers are mostly the same.

    Headers are parsed one at a time. NumPy uses Python's parser, which before 3.11.8 counts its depth for all threads
    together, and raises SystemError if two threads parse at once (python/cpython#106905).
    """
    stream = io.BytesIO(head)
    with _parsing:
        version = np.lib.format.read_magic(stream)
        shape, fortran_order, dtype = _NPY_HEADERS[version](stream)
    return shape, fortran_order, dtype, stream.tell()
