"""The compressed pixels of a PNG file: a zlib stream (RFC 1950), which must be whole before anything is made of it."""

import struct
import zlib
from collections.abc import Sequence

from service.images.errors import UnreadableImageError

_PIECE_BYTES = 2**18
_MOST_STORED = 2**16 - 1  # bytes of one block
_MOST_PACKED_AGAIN = 2**24  # bytes, which are then twice in memory


def checked_stream(data: Sequence[bytes], length: int) -> bytes:
    """The compressed pixels as one piece, refused where they unpack to less than this; what is too much is ignored.

    Pillow takes a stream that ends early for whole, and may not get to the stream's own checksum, which zlib compares
    here. What was unpacked for that is packed again without compression: Pillow then unpacks it in no time, and gets
    nothing of a stranger's but the pixels. Very many are not kept, but unpacked twice.

    Raises:
        UnreadableImageError: they are broken, or too few.
    """
    packed = data[0] if len(data) == 1 else b"".join(data)
    try:
        if length <= _MOST_PACKED_AGAIN:
            unpacked = zlib.decompressobj().decompress(packed, length + 1)
            left, checked = length - len(unpacked), _uncompressed(unpacked)
        else:
            left, checked = _count_missing(packed, length), packed
    except zlib.error as error:
        raise UnreadableImageError(f"its pixels are broken ({error})") from None
    if left > 0:
        raise UnreadableImageError(f"its pixels are cut off: {left} of {length} bytes are missing")
    return checked


def _uncompressed(data: bytes) -> bytes:
    """A zlib stream of these bytes as they are (RFC 1950). zlib itself takes 256 KiB to write a small one.

    >>> zlib.decompress(_uncompressed(b"pixels"))
    b'pixels'
    """
    if len(data) > _MOST_STORED:
        return zlib.compress(data, 0)
    block = struct.pack("<BHH", 1, len(data), len(data) ^ _MOST_STORED)  # the last one, stored (RFC 1951, 3.2.4)
    return b"\x78\x01" + block + data + struct.pack(">I", zlib.adler32(data))


def _count_missing(packed: bytes, length: int) -> int:
    """The bytes that unpacked data lack of this length; none of them are kept."""
    stream = zlib.decompressobj()
    view = memoryview(packed)
    pieces = (view[start : start + _PIECE_BYTES] for start in range(0, len(view), _PIECE_BYTES))
    left = length
    tail: bytes | memoryview = b""
    while left >= 0:
        most = min(left + 1, _PIECE_BYTES)
        unpacked = len(stream.decompress(tail, most))
        left -= unpacked
        tail = stream.unconsumed_tail
        if not tail and unpacked < most:
            tail = next(pieces, b"")
            if not tail:
                break
    return left
