"""Unpack bodies that a client of the Open Inference Protocol has compressed, within the limits of any body."""

import io
import zlib
from collections.abc import Callable

from service.web.problems import InvalidBodyError, LimitError

_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # zlib's numbers for the formats of RFC 1952 and RFC 1950
_FED_BYTES, _PIECE_BYTES = 2**16, 2**18


def unpack(body: bytes, coding: str, most: int, hold: Callable[[int], None]) -> bytes:
    """Unpack a body; called in another thread than the event loop.

    Args:
        body: the body as it came.
        coding: `gzip` or `deflate`.
        most: the most bytes that the result may have.
        hold: told how many bytes there are, before there are more; may refuse them.

    >>> unpack(zlib.compress(b"{}"), "deflate", 100, lambda _: None)
    b'{}'

    Raises:
        InvalidBodyError: it is not in this coding, is cut off, or more bytes follow.
        LimitError: the result would be larger. Also what `hold` raises.
    """
    decoder = zlib.decompressobj(_WINDOW_BITS[coding])
    whole = io.BytesIO()
    try:
        for start in range(0, len(body), _FED_BYTES):
            piece = decoder.decompress(body[start : start + _FED_BYTES], _PIECE_BYTES)
            while piece:
                if whole.tell() + len(piece) > most:
                    raise LimitError(f"the body unpacks to more than {most} bytes, which are accepted")
                hold(whole.tell() + len(piece))
                whole.write(piece)
                piece = decoder.decompress(decoder.unconsumed_tail, _PIECE_BYTES)
            if decoder.eof:
                if decoder.unused_data or start + _FED_BYTES < len(body):
                    raise InvalidBodyError(f"after the body's {coding} data more bytes follow")
                return whole.getvalue()  # returns the buffer, not a copy
    except zlib.error as error:
        raise InvalidBodyError(f"the body is not {coding}: {error}") from None
    raise InvalidBodyError(f"the body's {coding} data are cut off")
