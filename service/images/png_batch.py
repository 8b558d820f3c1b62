"""Decode many small PNG files of one size and colour type by one call of Pillow. Their levels are those of png.py.

A call of Pillow costs more than decoding a very small image. All images of a batch are decoded as one image with their
rows below one another. What makes each file right or wrong is still checked for each alone.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.images.errors import UnreadableImageError
from service.images.pixel_stream import uncompressed, unpacked
from service.images.png import HEADER_BYTES, SIGNATURE, PngHeader, has_only_pixels, plain_data, rows_decoded


def batch_header(items: Sequence[Any], start: int) -> PngHeader | None:
    """The header of the item at `start`, if it and the item after it are files that might be decoded together."""
    first, second = items[start], items[start + 1] if start + 1 < len(items) else None
    if not (isinstance(first, bytes) and isinstance(second, bytes) and first.startswith(SIGNATURE)):
        return None
    if not second.startswith(first[:HEADER_BYTES]):
        return None
    try:
        header = PngHeader.of(first[:HEADER_BYTES])
    except UnreadableImageError:
        return None
    return header if header.has_plain_samples else None


def batch_levels(items: Sequence[Any], start: int, header: PngHeader, most: int) -> NDArray[np.uint8] | None:
    """Levels [n, 1 or 3, h, w] of the items from `start` on, n ≤ `most`; None if no batch can be made of them.

    The batch ends before the first item that is not a file with the same header, has other chunks than pixels, or is
    broken. None is returned, too, if a row has a filter that PNG does not know. So no error is raised: whoever reads
    the files one by one finds it.

    Args:
        items: files as bytes, and anything else.
        start: a file with this header.
        header: as `batch_header` returns it.
        most: the largest size of the batch.
    """
    rows = list(_rows(islice(items, start, start + most), items[start][:HEADER_BYTES], header.unpacked_bytes))
    if len(rows) < 2:
        return None
    # The filters of an image's first row take the row above it for black, so a black row comes after each image.
    black = bytes(1 + header.width * header.channels)
    stream = uncompressed(black.join([*rows, b""]))
    mode = "L" if header.channels == 1 else "RGB"
    try:
        levels = rows_decoded(stream, (len(rows) * (header.height + 1), header.width), mode, mode)
    except UnreadableImageError:
        return None
    return levels.reshape(len(rows), header.height + 1, header.width, -1)[:, :-1].transpose(0, 3, 1, 2)


def _rows(items: Iterator[Any], head: bytes, length: int) -> Iterator[bytes]:
    """The unpacked rows, `length` bytes, of each file up to the first that does not belong to the batch."""
    for item in items:
        if not (isinstance(item, bytes) and item.startswith(head) and has_only_pixels(item)):
            return
        if (data := plain_data(item)) is None:
            return
        try:
            yield unpacked(data, length)[:length]
        except UnreadableImageError:
            return
