"""Read PNG files of every colour type and bit depth as the levels that the specification says (PNG, third edition).

Pillow is given only the compressed rows: it unpacks them and reverses their filters. Chunks and the meaning of samples
(palettes, transparent colours, alpha) are handled here, because Pillow compares a transparent grey of 2 or 4 bits with
levels that it has already scaled to 8 bits, and keeps only 8 of 16 bits in colour.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.images.errors import UnreadableImageError
from service.images.pixel_stream import checked_stream

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
HEADER_BYTES = 33  # the signature and the chunk IHDR
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6  # colour types
_SAMPLES: Mapping[int, int] = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGBA: 4}  # samples of a pixel
_DEPTHS: Mapping[int, Sequence[int]] = {
    _GREY: (1, 2, 4, 8, 16),
    _PALETTE: (1, 2, 4, 8),
    **dict.fromkeys((_RGB, _GREY_ALPHA, _RGBA), (8, 16)),
}
# The mode of the image that Pillow makes of the rows, and the layout (raw mode) it is told they have. Filters depend on
# the number of bits of a pixel, not on their meaning, so any layout with that many bits that keeps all of them will do.
# Pillow keeps one byte of each 16-bit colour sample, so it makes an image of the high bytes, then one of the low bytes.
_LAYOUTS: Mapping[tuple[int, int], tuple[str, Sequence[str]]] = {
    **{(colour_type, depth): ("P", [f"P;{depth}"]) for colour_type in (_GREY, _PALETTE) for depth in (1, 2, 4)},
    (_GREY, 8): ("L", ["L"]),
    (_PALETTE, 8): ("L", ["L"]),
    (_GREY, 16): ("I;16", ["I;16B"]),
    (_RGB, 8): ("RGB", ["RGB"]),
    (_RGB, 16): ("RGB", ["RGB;16B", "RGB;16L"]),
    (_GREY_ALPHA, 8): ("LA", ["LA"]),
    (_GREY_ALPHA, 16): ("RGBA", ["RGBA"]),
    (_RGBA, 8): ("RGBA", ["RGBA"]),
    (_RGBA, 16): ("RGBA", ["RGBA;16B", "RGBA;16L"]),
}
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # Adam7
_MAX_CHUNKS = 2**16
_PIECE_BYTES = 2**18
_KEPT = {b"IDAT", b"PLTE", b"tRNS", b"eXIf", b"tEXt", b"zTXt", b"iTXt"}
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_ORIENTING = {b"eXIf", *_TEXTS}
_ORIENTING_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")

Levels = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class PngHeader:
    """The contents of the chunk IHDR."""

    width: int
    height: int
    depth: int
    colour_type: int
    interlaced: bool

    @staticmethod
    @lru_cache(maxsize=256)  # a client's headers are mostly the same
    def of(head: bytes) -> "PngHeader":
        """Read the header from a file's first `HEADER_BYTES` bytes; its checksum is not checked here.

        Raises:
            UnreadableImageError: it is cut off or invalid.
        """
        if len(head) < HEADER_BYTES or head[8:16] != b"\0\0\0\x0dIHDR":
            raise UnreadableImageError("its header is broken or cut off")
        width, height, depth, colour_type, compression, filtering, interlace = struct.unpack(">IIBBBBB", head[16:29])
        if not (0 < width < 2**31 and 0 < height < 2**31 and depth in _DEPTHS.get(colour_type, ())):
            raise UnreadableImageError(f"its header is broken: {width}×{height}, {depth} bits, type {colour_type}")
        if compression or filtering or interlace > 1:
            raise UnreadableImageError("its header is broken: it is packed in a way that PNG does not know")
        return PngHeader(width, height, depth, colour_type, interlace == 1)

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour and palettes; alpha does not count."""
        return 1 if self.colour_type in (_GREY, _GREY_ALPHA) else 3

    @property
    def has_plain_samples(self) -> bool:
        """Whether the levels are the stored bytes in the order of rows: 8 bits, grey or RGB, and not interlaced."""
        return self.depth == 8 and self.colour_type in (_GREY, _RGB) and not self.interlaced

    @property
    def bits(self) -> int:
        """Bits of a level: 8 or 16. Samples of fewer than 8 bits are scaled to 8."""
        return max(self.depth, 8)

    @cached_property
    def unpacked_bytes(self) -> int:
        """Length of the unpacked data: the rows, each preceded by a byte for its filter."""
        bits = self.depth * _SAMPLES[self.colour_type]
        return sum(
            rows * (1 + (columns * bits + 7) // 8)
            for rows, columns in (
                (-((top - self.height) // down), -((left - self.width) // across))
                for left, top, across, down in (_PASSES if self.interlaced else ((0, 0, 1, 1),))
            )
            if columns > 0
        )


class PngFile:
    """A PNG file with all its chunks and correct checksums.

    Raises:
        UnreadableImageError: a chunk is missing, or its checksum is wrong.
    """

    def __init__(self, content: bytes) -> None:
        self.header = PngHeader.of(content[:HEADER_BYTES])
        self._chunks: dict[bytes, list[bytes]] = {}
        self.may_be_turned = False
        """Whether there are chunks that can contain an orientation; see `orientation_file`."""
        if has_only_pixels(content) and (data := plain_data(content)) is not None:
            self._chunks[b"IDAT"] = [data]
            return
        order = []
        for kind, start, end in _walk(content):
            order.append(kind)
            if kind in _KEPT:
                self._chunks.setdefault(kind, []).append(content[start:end])
        if order.count(b"IHDR") != 1:
            raise UnreadableImageError("it has more than one header")
        self.may_be_turned = not self._chunks.keys().isdisjoint(_ORIENTING)
        if b"IDAT" not in self._chunks:
            raise UnreadableImageError("it is cut off: it has no pixels")

    def levels(self) -> Levels:
        """Grey or colour levels [h, w, 1 or 3] of 8 or 16 bits, on black where transparent; not yet rotated.

        Raises:
            UnreadableImageError: pixels are missing or broken.
        """
        header = self.header
        samples = self._samples()
        match header.colour_type:
            case 0 | 2:
                return self._without_transparent_colour(samples) if b"tRNS" in self._chunks else samples
            case 3:
                return self._looked_up(samples[..., 0])
            case _:
                return over_black(samples[..., : header.channels], samples[..., header.channels])

    def orientation_file(self) -> bytes | None:
        """A PNG of one pixel with this file's orientation; None if this file has none.

        Pillow can then read the orientation without unpacking pixels, unrelated texts or colour profiles.
        """
        found = [(b"eXIf", data) for data in self._chunks.get(b"eXIf", ())]
        found += [
            (kind, data) for kind in _TEXTS for data in self._chunks.get(kind, ()) if data.startswith(_ORIENTING_TEXTS)
        ]
        if not found:
            return None
        return _file(PngHeader(1, 1, 8, _GREY, interlaced=False), zlib.compress(bytes(2)), found)

    def _samples(self) -> Levels:
        """Stored samples [h, w, samples of a pixel]; fewer than 8 bits are scaled to 8, except palette indices."""
        header = self.header
        data = checked_stream(self._chunks[b"IDAT"], header.unpacked_bytes)
        mode, layouts = _LAYOUTS[header.colour_type, header.depth]
        found: Levels = self._decoded(data, mode, layouts[0])
        if len(layouts) > 1:
            low = self._decoded(data, mode, layouts[1])
            found = found.astype(np.uint16)
            found <<= 8
            found |= low
        elif (header.colour_type, header.depth) == (_GREY_ALPHA, 16):  # high and low bytes are separate samples
            found = found.astype(np.uint16)
            found = found[..., 0::2] << np.uint16(8) | found[..., 1::2]
        if header.colour_type == _GREY and header.depth < 8:
            found = found * np.uint8(255 // (2**header.depth - 1))
        return found

    def _decoded(self, data: bytes, mode: str, layout: str) -> NDArray[Any]:
        """Samples [h, w, samples of a pixel] in Pillow's mode, from rows in the layout of Pillow's raw mode."""
        size = self.header.height, self.header.width
        return rows_decoded(data, size, mode, layout, interlaced=self.header.interlaced)

    def _without_transparent_colour(self, samples: Levels) -> Levels:
        """Replace the one colour that the chunk tRNS declares transparent by black."""
        header = self.header
        data = self._chunks[b"tRNS"][0]
        if len(data) != 2 * header.channels:
            raise UnreadableImageError(f"its transparent colour has {len(data)} bytes")
        white = 2**header.depth - 1
        colour = np.frombuffer(data, ">u2").astype(np.uint16) & np.uint16(white)  # the other bits should be 0
        colour = colour * np.uint16((2**header.bits - 1) // white)
        transparent = (samples == colour).all(axis=-1, keepdims=True)
        return np.where(transparent, samples.dtype.type(0), samples)

    def _looked_up(self, indices: Levels) -> Levels:
        """The palette's colours; black for indices beyond its end."""
        colours = self._chunks.get(b"PLTE", [b""])[0]
        if not colours or len(colours) % 3 or len(colours) > 3 * 256:
            raise UnreadableImageError(f"its palette has {len(colours)} bytes")
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(colours) // 3] = np.frombuffer(colours, np.uint8).reshape(-1, 3)
        if b"tRNS" in self._chunks:
            alphas = np.frombuffer(self._chunks[b"tRNS"][0][:256], np.uint8)
            alpha = np.full(256, 255, np.uint8)
            alpha[: len(alphas)] = alphas
            palette = over_black(palette[None], alpha[None])[0]
        return palette[indices]


def over_black(levels: Levels, alpha: Levels) -> Levels:
    """Levels [h, w, c] over black: level · alpha / white, rounded to the nearest level; alpha [h, w]."""
    white = np.uint32(np.iinfo(levels.dtype).max)
    if (alpha == white).all():
        return levels
    over = np.empty_like(levels)
    rows = max(1, _PIECE_BYTES // (levels.shape[1] * levels.shape[2]))
    for start in range(0, len(levels), rows):  # some rows at a time, because products take four bytes each
        part = slice(start, start + rows)
        product = levels[part].astype(np.uint32) * alpha[part, :, None]  # below 2³², also of 16 bits
        over[part] = (product + white // 2) // white
    return over


def has_only_pixels(content: bytes) -> bool:
    """Whether the file is a header, one chunk of data and the end, as most small images are; no checksum is read."""
    if content[37:41] != b"IDAT" or content[-12:] != _END:
        return False
    return int.from_bytes(content[33:37], "big") == len(content) - 57


def plain_data(content: bytes) -> bytes | None:
    """The compressed pixels of a file for which `has_only_pixels` is true; None if a checksum is wrong."""
    header, data = zlib.crc32(content[12:29]), zlib.crc32(content[37:-16])
    if header != int.from_bytes(content[29:33], "big") or data != int.from_bytes(content[-16:-12], "big"):
        return None
    return content[41:-16]


def rows_decoded(
    data: bytes, size: tuple[int, int], mode: str, layout: str, *, interlaced: bool = False
) -> NDArray[Any]:
    """Samples [h, w, samples of a pixel] of rows in a zlib stream, whose filters are reversed; `size` is h and w.

    Raises:
        UnreadableImageError: a row has a filter that PNG does not know.
    """
    image = Image.new(mode, size[::-1], None)
    try:
        image.frombytes(data, "zip", (layout, int(interlaced)))
    except ValueError as error:
        raise UnreadableImageError(f"its pixels are broken ({error})") from None
    samples = np.frombuffer(image.tobytes(), "<u2" if mode == "I;16" else np.uint8)
    return samples.reshape(*size, -1)


def _walk(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each chunk's data, up to the end of the image; anything after it is ignored."""
    view = memoryview(content)
    position = len(SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        start = position + 8
        kind = content[position + 4 : start]
        end = start + int.from_bytes(content[position : position + 4], "big")
        position = end + 4
        if position > len(content):
            raise UnreadableImageError("it is cut off: its last chunk is missing or not complete")
        if zlib.crc32(view[start - 4 : end]) != int.from_bytes(content[end:position], "big"):
            raise UnreadableImageError(f"the checksum of its chunk {ascii(kind)[2:-1]} is wrong")
        yield kind, start, end
        if kind == b"IEND":
            return
    raise UnreadableImageError(f"it has more than {_MAX_CHUNKS} chunks")


def _file(header: PngHeader, data: bytes, chunks: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """A PNG file with these compressed pixels, and other chunks before them."""
    sizes = header.width, header.height, header.depth, header.colour_type, 0, 0, int(header.interlaced)
    written = [SIGNATURE]
    for kind, body in ((b"IHDR", struct.pack(">IIBBBBB", *sizes)), *chunks, (b"IDAT", data), (b"IEND", b"")):
        checksum = zlib.crc32(body, zlib.crc32(kind))
        written += (len(body).to_bytes(4, "big"), kind, body, checksum.to_bytes(4, "big"))
    return b"".join(written)
