"""Read the IDX format of MNIST: a magic number, the sizes, then the values; plain or gzipped."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError

_UNSIGNED_BYTE = 0x08


def read_idx_images(file: Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes: [N, H, W] or [N, C, H, W] as the file says. gzip is recognised.

    Raises:
        DataError: the file cannot be read, is truncated, is too long, or contains something else.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(file, f"cannot be read ({error.strerror})") from error
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(file, f"truncated or broken gzip ({error})") from error
    return parse_idx_images(content, file)


def parse_idx_images(content: bytes, file: Path) -> NDArray[np.uint8]:
    """The images in the decompressed bytes of an IDX file; `file` is the name for error messages.

    >>> parse_idx_images(bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 7, 9]), Path("two-pixels")).tolist()
    [[[7, 9]]]
    """
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DataError(file, "not an IDX file: it does not begin with the magic number 0x0000")
    kind, num_axes = content[2], content[3]
    if kind != _UNSIGNED_BYTE or num_axes not in (3, 4):
        raise DataError(file, f"IDX type 0x{kind:02x} with {num_axes} axes; images are unsigned bytes with 3 or 4 axes")
    start = 4 + 4 * num_axes
    shape = tuple(int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(num_axes))
    if len(content) < start or len(content) - start != math.prod(shape):
        found = max(len(content) - start, 0)
        raise DataError(file, f"truncated or broken: {found} bytes of pixels where {math.prod(shape)} {shape} belong")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()
