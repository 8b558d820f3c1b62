"""What reading images will cost, told by their headers in a few microseconds and without Pillow.

The unit is about what reading one pixel of a plain file takes: some ten nanoseconds. Costs are upper bounds, or nearly:
work is put in order by them, and counted, before a byte of it is unpacked. What a cost is in seconds is measured
(service/web/decoding/interface.py).
"""

import math
import re

from service.images.errors import UnreadableImageError
from service.images.file import is_small_png
from service.images.jpeg import JpegHead
from service.images.png import HEADER_BYTES, SIGNATURE, PngHeader
from service.images.webp import webp_size

IMAGE_COST = 2**12
_BRIEF_BYTES = 2**13
_PACKED_EXIF, _PACKED_XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"
_EXIF_MARK = re.compile(b"|".join(map(re.escape, (b"Exif\0\0", b"eXIf", _PACKED_EXIF, _PACKED_XMP))))
_MOST_EXIF_BYTES = 2**16  # more is refused
_EXIF_BYTE_COST = 2**7  # of entries of twelve bytes, each of which Pillow makes several objects of
_PACKED_TEXT_COST = 2**20  # of as many bytes, the most that Pillow unpacks a text to
_BRIEF_PIXELS = 2**14
_BRIEF_SEGMENTS = 2**5
_NOTHING = 0  # what is refused by its header
_MANY_CHUNKS = 2**11
_MANY_CHUNKS_COST = 2**25  # of as many as there may be
_SEGMENT_COST = 2**9
_SLOW_BYTE_COST = 2**5
_JPEG_PASSES, _WEBP_PASSES = 6, 8
_SCANS_PER_PASS = 4  # most scans bring little


def file_cost(content: bytes) -> int:
    """Of one file: its bytes, and its pixels as many times as they are passed over."""
    return IMAGE_COST + 2 * len(content) + _pixel_passes(content)


def is_brief(content: bytes) -> bool:
    """Whether reading this file takes at most a millisecond or two, going by its length and its header.

    A PNG, or a JPEG of one scan, without EXIF data, a few packed bytes of which may be much work. WebP is always left
    to another process, for the faults that libwebp has had.
    """
    if len(content) > _BRIEF_BYTES or _EXIF_MARK.search(content):
        return False
    if is_small_png(content):
        return True
    if not content.startswith(b"\xff\xd8\xff"):
        return False
    try:
        head = JpegHead.of(content)
    except UnreadableImageError:
        return True  # which takes no time at all
    if head is None or head.progressive or head.slow_bytes or head.segments > _BRIEF_SEGMENTS:
        return False
    return head.width * head.height <= _BRIEF_PIXELS


def array_cost(images: int, pixels: int) -> int:
    """Of an array of so many images, which have so many pixels together, before or after resampling."""
    return 2 * IMAGE_COST + images * 2**7 + 2 * pixels


def _pixel_passes(content: bytes) -> int:
    try:
        if content.startswith(SIGNATURE):
            png = PngHeader.of(content[:HEADER_BYTES])
            chunks_cost = _MANY_CHUNKS_COST if _has_many_chunks(content) else 0
            return 2 * png.width * png.height + png.unpacked_bytes + chunks_cost + _png_texts(content)
        if content.startswith(b"\xff\xd8\xff"):
            head = JpegHead.of(content)
            if head is None:
                return _NOTHING
            passes = _JPEG_PASSES + math.ceil(head.scans(content) / _SCANS_PER_PASS)
            header = head.segments * _SEGMENT_COST + head.slow_bytes * _SLOW_BYTE_COST
            return passes * head.width * head.height + header + head.exif_bytes * _EXIF_BYTE_COST
        size = webp_size(content[:30])
        return _NOTHING if size is None else _WEBP_PASSES * size[0] * size[1] + _exif(content, b"EXIF")
    except UnreadableImageError:
        return _NOTHING


def _exif(content: bytes, mark: bytes) -> int:
    """Of EXIF data, which have this mark before them, or of the most there can be behind it."""
    start = content.find(mark)
    return 0 if start < 0 else min(len(content) - start, _MOST_EXIF_BYTES) * _EXIF_BYTE_COST


def _png_texts(png: bytes) -> int:
    """Of what may say how it is turned: texts, which may be packed, and EXIF data, in the last one or a chunk."""
    packed_exif, packed_xmp = png.count(_PACKED_EXIF), png.count(_PACKED_XMP)
    exif = _MOST_EXIF_BYTES * _EXIF_BYTE_COST if packed_exif else _exif(png, b"eXIf")
    return (packed_exif + packed_xmp) * _PACKED_TEXT_COST + exif


def _has_many_chunks(png: bytes) -> bool:
    """Whether it has more chunks than an encoder writes that is not out for it."""
    position = len(SIGNATURE)
    for _ in range(_MANY_CHUNKS):
        if position >= len(png):
            return False
        position += 12 + int.from_bytes(png[position : position + 4], "big")
    return True
