"""Check the compressed pixels of a PNG file, a zlib stream (RFC 1950), for completeness before decoding them."""

import struct
import zlib
from collections.abc import Sequence

from service.images.errors import UnreadableImageError

_PIECE_BYTES = 2**18
_MOST_STORED = 2**16 - 1  # bytes of one block
_MOST_PACKED_AGAIN = 2**24  # bytes; more would be in memory twice


def checked_stream(data: Sequence[bytes], length: int) -> bytes:
    """The compressed pixels as one piece, after checking that they unpack to at least `length` bytes; more are ignored.

    Pillow accepts a stream that ends early, and may not reach the stream's checksum, which zlib checks here. The
    unpacked bytes are packed again without compression: Pillow then unpacks them very quickly, and is given nothing
    from the client but pixels. If they are very many they are not kept, and are unpacked a second time.

    Raises:
        UnreadableImageError: the stream is broken, or has too few bytes.
    """
    packed = data[0] if len(data) == 1 else b"".join(data)
    if length <= _MOST_PACKED_AGAIN:
        return uncompressed(unpacked(packed, length))
    try:
        left = _count_missing(packed, length)
    except zlib.error as error:
        raise _broken(error) from None
    if left > 0:
        raise _cut_off(left, length)
    return packed


def unpacked(packed: bytes, length: int) -> bytes:
    """The first `length` bytes of a compressed stream, and at most one more, after the same checks.

    Raises:
        UnreadableImageError: the stream is broken, or has too few bytes.
    """
    try:
        data = zlib.decompressobj().decompress(packed, length + 1)
    except zlib.error as error:
        raise _broken(error) from None
    if len(data) < length:
        raise _cut_off(length - len(data), length)
    return data


def _broken(error: zlib.error) -> UnreadableImageError:
    return UnreadableImageError(f"its pixels are broken ({error})")


def _cut_off(missing: int, length: int) -> UnreadableImageError:
    return UnreadableImageError(f"its pixels are cut off: {missing} of {length} bytes are missing")


def uncompressed(data: bytes) -> bytes:
    """A zlib stream of these bytes without compression (RFC 1950). zlib itself needs 256 KiB to write a small one.

    >>> zlib.decompress(uncompressed(b"pixels"))
    b'pixels'
    """
    if len(data) > _MOST_STORED:
        return zlib.compress(data, 0)
    block = struct.pack("<BHH", 1, len(data), len(data) ^ _MOST_STORED)  # the last one, stored (RFC 1951, 3.2.4)
    return b"\x78\x01" + block + data + struct.pack(">I", zlib.adler32(data))


def _count_missing(packed: bytes, length: int) -> int:
    """How many bytes the unpacked data lack to this length; the data are not kept."""
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
