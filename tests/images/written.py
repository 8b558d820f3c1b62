"""Image files written byte by byte, so that no library decides what they hold."""

import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from tests.toys import AnyArray

_DC_CODES = ["00", "010", "011", "100", "101", "110", *("1" * ones + "0" for ones in range(3, 9))]
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples: AnyArray, colour_type: int, depth: int, chunks: bytes = b"", *, interlaced: bool = False) -> bytes:
    """A PNG of samples [h, w, samples of a pixel], each of `depth` bits, with `chunks` before its pixels."""
    height, width, _ = samples.shape
    parts = [samples[top::down, left::across] for left, top, across, down in _PASSES] if interlaced else [samples]
    rows = (row for part in parts if part.size for row in part)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, int(interlaced))
    data = zlib.compress(b"".join(_filtered(rows, depth, samples.shape[2])))
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + chunks + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    )


def _filtered(rows: Iterator[AnyArray], depth: int, samples: int) -> Iterator[bytes]:
    """Rows after their filter's number: every other one by Sub, the difference from the pixel before."""
    pixel_bytes = max(1, samples * depth // 8)
    for number, row in enumerate(rows):
        bits = (row.reshape(-1, 1).astype(np.int64) >> np.arange(depth - 1, -1, -1)) & 1
        packed = np.packbits(bits.astype(np.uint8).reshape(-1))
        if number % 2:
            before = np.concatenate([np.zeros(pixel_bytes, np.uint8), packed])[: len(packed)]
            yield b"\1" + (packed - before).tobytes()
        else:
            yield b"\0" + packed.tobytes()


def jpeg(levels: Sequence[AnyArray], *, adobe: int | None = None, restart: int = 0, head: bytes = b"") -> bytes:
    """A baseline JPEG of blocks of one level: components [rows, columns] of 8×8 blocks → [8·rows, 8·columns] pixels.

    Only each block's mean is coded, DC = 8 · (level − 128), quantised by 1: so decoding gives the levels exactly.

    Args:
        levels: of each component; one is grey, three are YCbCr unless `adobe` is 0, four CMYK or, of `adobe` 2, YCCK.
        adobe: the colour transform that an Adobe marker names; None writes no such marker.
        restart: blocks of an interval; 0 writes no restart markers.
        head: segments after the start.
    """
    rows, columns = levels[0].shape
    count = len(levels)
    out = [b"\xff\xd8", head]
    if adobe is not None:
        out.append(_segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, adobe)))
    out.append(_segment(0xDB, b"\0" + b"\1" * 64))
    parts = b"".join(bytes((number + 1, 0x11, 0)) for number in range(count))
    out.append(_segment(0xC0, struct.pack(">BHHB", 8, 8 * rows, 8 * columns, count) + parts))
    # DC: the standard's code of the categories 0 to 11; AC: one code of one bit, the end of the block.
    out.append(_segment(0xC4, b"\0" + bytes((0, 1, 5, 1, 1, 1, 1, 1, 1)) + bytes(7) + bytes(range(12))))
    out.append(_segment(0xC4, b"\x10" + b"\1" + bytes(15) + b"\0"))
    if restart:
        out.append(_segment(0xDD, struct.pack(">H", restart)))
    scanned = b"".join(bytes((number + 1, 0)) for number in range(count))
    out.append(_segment(0xDA, bytes((count,)) + scanned + b"\0\x3f\0"))
    blocks = [[8 * (int(part.flat[place]) - 128) for part in levels] for place in range(rows * columns)]
    step = restart or len(blocks)
    for number, start in enumerate(range(0, len(blocks), step)):
        if number:
            out.append(bytes((0xFF, 0xD0 + (number - 1) % 8)))
        out.append(_coded(blocks[start : start + step]))
    return b"".join(out) + b"\xff\xd9"


def _coded(blocks: Sequence[Sequence[int]]) -> bytes:
    bits, before = "", [0] * len(blocks[0])
    for block in blocks:
        for component, mean in enumerate(block):
            difference = mean - before[component]
            size = abs(difference).bit_length()
            extra = difference if difference > 0 else difference + 2**size - 1
            bits += _DC_CODES[size] + (f"{extra:0{size}b}" if size else "") + "0"
        before = list(block)
    bits += "1" * (-len(bits) % 8)
    data = bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits), 8))
    return data.replace(b"\xff", b"\xff\0")


def _segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def exif(orientation: int) -> bytes:
    """What an EXIF block says of an orientation and nothing else."""
    return b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x112, 3, 1, orientation, 0, 0)


def jpeg_exif(orientation: int) -> bytes:
    return _segment(0xE1, b"Exif\0\0" + exif(orientation))
