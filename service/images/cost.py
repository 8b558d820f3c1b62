"""How much work it is to read images, estimated from their headers in a few microseconds and without Pillow.

The unit is about the time to read one pixel of a plain file: some ten nanoseconds. Costs are upper bounds, or nearly.
They decide the order of work, and are counted, before anything is unpacked. How many seconds a cost takes is measured
while serving (service/web/decoding/interface.py).
"""

import math
import re

from service.images.errors import UnreadableImageError
from service.images.file import is_small_png
from service.images.jpeg import JpegHead
from service.images.png import HEADER_BYTES, SIGNATURE, PngHeader, has_only_pixels
from service.images.webp import webp_size

IMAGE_COST = 2**12
_BRIEF_BYTES = 2**13
_PACKED_EXIF, _PACKED_XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"
_EXIF_MARK = re.compile(b"|".join(map(re.escape, (b"Exif\0\0", b"eXIf", _PACKED_EXIF, _PACKED_XMP))))
_MOST_EXIF_BYTES = 2**16  # more is refused
_EXIF_BYTE_COST = 2**7  # EXIF entries have twelve bytes, and Pillow makes several objects of each
_PACKED_TEXT_COST = 2**20  # Pillow unpacks a text to at most 2²⁰ bytes
_BRIEF_PIXELS = 2**14
_BRIEF_SEGMENTS = 2**5
_NOTHING = 0  # the header alone is enough to refuse it
_MANY_CHUNKS = 2**11
_MANY_CHUNKS_COST = 2**25  # the cost of the largest number that is allowed
_SEGMENT_COST = 2**9
_SLOW_BYTE_COST = 2**5
_JPEG_PASSES, _WEBP_PASSES = 6, 8
_SCANS_PER_PASS = 4  # most scans change few pixels


def file_cost(content: bytes) -> int:
    """The cost of one file: its bytes, and its pixels times the number of passes over them."""
    return IMAGE_COST + 2 * len(content) + _pixel_passes(content)


def is_brief(content: bytes) -> bool:
    """Whether reading this file takes at most a millisecond or two, judged by its length and its header.

    True for a small PNG, or JPEG of one scan, without EXIF data: a few packed bytes of EXIF can be much work. WebP is
    always read in another process, because libwebp has had security faults.
    """
    if len(content) > _BRIEF_BYTES or (_EXIF_MARK.search(content) and not has_only_pixels(content)):
        return False
    if is_small_png(content):
        return True
    if not content.startswith(b"\xff\xd8\xff"):
        return False
    try:
        head = JpegHead.of(content)
    except UnreadableImageError:
        return True  # refusing it takes no time
    if head is None or head.progressive or head.slow_bytes or head.segments > _BRIEF_SEGMENTS:
        return False
    return head.width * head.height <= _BRIEF_PIXELS


def array_cost(images: int, pixels: int) -> int:
    """The cost of an array of images with so many pixels in all, before or after resampling."""
    return 2 * IMAGE_COST + images * 2**7 + 2 * pixels


def _pixel_passes(content: bytes) -> int:
    try:
        if content.startswith(SIGNATURE):
            png = PngHeader.of(content[:HEADER_BYTES])
            pixels = 2 * png.width * png.height + png.unpacked_bytes
            if has_only_pixels(content):
                return pixels
            chunks_cost = _MANY_CHUNKS_COST if _has_many_chunks(content) else 0
            return pixels + chunks_cost + _png_texts(content)
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
    """The cost of the EXIF data after this marker, assuming that they are as long as they can be."""
    start = content.find(mark)
    return 0 if start < 0 else min(len(content) - start, _MOST_EXIF_BYTES) * _EXIF_BYTE_COST


def _png_texts(png: bytes) -> int:
    """The cost of looking for the orientation: in texts, which may be compressed, and in EXIF data."""
    packed_exif, packed_xmp = png.count(_PACKED_EXIF), png.count(_PACKED_XMP)
    exif = _MOST_EXIF_BYTES * _EXIF_BYTE_COST if packed_exif else _exif(png, b"eXIf")
    return (packed_exif + packed_xmp) * _PACKED_TEXT_COST + exif


def _has_many_chunks(png: bytes) -> bool:
    """Whether it has more chunks than any ordinary encoder writes."""
    position = len(SIGNATURE)
    for _ in range(_MANY_CHUNKS):
        if position >= len(png):
            return False
        position += 12 + int.from_bytes(png[position : position + 4], "big")
    return True
