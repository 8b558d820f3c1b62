"""Image files and bodies that ask for far more work, or memory, than their bytes suggest; written byte by byte."""

import base64
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
from PIL import Image

from tests.images.written import png_chunk
from tests.web.forms import image_file, npy

GREY = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)
PNG_START, END = b"\x89PNG\r\n\x1a\n", png_chunk(b"IEND", b"")


def progressive_jpeg(size: int, scans: int) -> bytes:
    """A grey square of so many scans, each of which says of all pixels, in a few bytes, that nothing more is to come.

    The first is DC's; those after it are all the same, and refine nothing.
    """
    blocks = ((size + 7) // 8) ** 2
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, size, size, 1) + b"\x01\x11\x00"
    quantisation = b"\xff\xdb" + struct.pack(">H", 67) + b"\x00" + bytes([1] * 64)
    dc_codes = b"\xff\xc4" + struct.pack(">H", 20) + b"\x00" + bytes([1] + [0] * 15) + b"\x00"
    ac_codes = b"\xff\xc4" + struct.pack(">H", 21) + b"\x10" + bytes([0, 2] + [0] * 14) + b"\xe0\x00"
    run, left = "", blocks
    while left >= 2**14:  # 00: a run of 2¹⁴ blocks and 14 bits more; 01: one block
        length = min(left, 2**15 - 1)
        run += f"00{length - 2**14:014b}"
        left -= length
    run += "01" * left
    scan = b"\xff\xda" + struct.pack(">HB", 8, 1) + b"\x01\x00"
    first = scan + bytes((0, 0, 0)) + packed("0" * blocks)
    others = (scan + bytes((1, 63, 0)) + packed(run)) * (scans - 1)
    return b"\xff\xd8" + quantisation + frame + dc_codes + ac_codes + first + others + b"\xff\xd9"


def packed(bits: str) -> bytes:
    """As JPEG packs them: filled up with ones, a zero after each 0xFF."""
    padded = bits + "1" * (-len(bits) % 8)
    return int(padded, 2).to_bytes(len(padded) // 8, "big").replace(b"\xff", b"\xff\x00")


def segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def jpeg_with(inserted: bytes) -> bytes:
    """A right image with these bytes after its first marker."""
    jpeg = image_file(GREY, "JPEG")
    return jpeg[:2] + inserted + jpeg[2:]


def exif(length: int) -> bytes:
    """EXIF data whose every entry has all of them as its value."""
    entries = min(65_535, (length - 18) // 12)
    table = b"".join(struct.pack(">HHII", tag, 1, length - 14, 0) for tag in range(1, entries + 1))
    data = b"Exif\0\0MM\0\x2a\0\0\0\x08" + struct.pack(">H", entries) + table
    return data + bytes(length - len(data))


def png_with(chunks: bytes) -> bytes:
    png = image_file(GREY)
    return png[:33] + chunks + png[33:]


def png_in_pieces(size: int, piece: int, *, claims: int | None = None) -> bytes:
    """Interlaced, black, with so many bytes in each chunk of data."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    raw = b"".join(
        bytes((1 + -(-(size - left) // across)) * -(-(size - top) // down))
        for left, top, across, down in passes
        if size > left and size > top
    )
    data = zlib.compress(raw, 0)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", claims or size, claims or size, 8, 0, 0, 0, 1))
    chunks = b"".join(png_chunk(b"IDAT", data[start : start + piece]) for start in range(0, len(data), piece))
    return PNG_START + header + chunks + END


def webp_canvas(size: int) -> bytes:
    """A file whose canvas is so large, and whose only image has one pixel."""
    image = image_file(GREY[:1, :1], "WEBP", lossless=True)[12:]
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + 2 * (size - 1).to_bytes(3, "little")
    body = b"WEBP" + canvas + image
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_animation(frames: int) -> bytes:
    stream = io.BytesIO()
    pictures = [Image.fromarray(np.full((28, 28, 3), number % 251, np.uint8)) for number in range(frames)]
    pictures[0].save(stream, "WEBP", save_all=True, append_images=pictures[1:], lossless=True, method=0, duration=1)
    return stream.getvalue()


def other_format(name: str) -> bytes:
    return image_file(GREY, name)


def form(files: list[bytes]) -> bytes:
    head = b'--x\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n\r\n'
    return b"".join(head + file + b"\r\n" for file in files) + b"--x--\r\n"


def as_json(files: list[bytes]) -> bytes:
    return orjson.dumps({"images": [base64.b64encode(file).decode() for file in files]})


def gigapixel_jpeg() -> bytes:
    return progressive_jpeg(28, 2).replace(b"\0\x1c\0\x1c", b"\xff\xf0\xff\xf0")


def packed_exif_text(length: int) -> bytes:
    text = b"\nexif\n9\n" + exif(length).hex().encode()
    return png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))


def png_animation(frames: int) -> bytes:
    return png_with((png_chunk(b"fcTL", bytes(26)) + png_chunk(b"fdAT", bytes(99))) * frames)


ICC = b"ICC_PROFILE\0\1\1"
EXIF_SEGMENT = segment(0xE1, exif(65_000))
JPEG, PNG, WEBP = "image/jpeg", "image/png", "image/webp"
FORM, JSON, NPY = "multipart/form-data; boundary=x", "application/json", "application/x-npy"
REFUSED, READ, LARGE = {422}, {200}, {413}
LONG = {200, 413, 422, 429, 504}
"""What takes long on a slow machine is refused for that; never is it a 500, a 503, or nothing."""

ZEROS = zlib.compress(bytes(2**26), 9)
# name: its content type, the body, and how it may be answered
BOMBS: dict[str, tuple[str, Callable[[], bytes], set[int]]] = {
    "a jpeg of 1500 scans": (JPEG, lambda: progressive_jpeg(5700, 1500), REFUSED),
    "a jpeg of 101 scans": (JPEG, lambda: progressive_jpeg(28, 101), REFUSED),
    "a jpeg of 100 scans": (JPEG, lambda: progressive_jpeg(28, 100), READ),
    "a large jpeg of 100 scans": (JPEG, lambda: progressive_jpeg(5700, 100), REFUSED),
    "a large jpeg of 60 scans": (JPEG, lambda: progressive_jpeg(5700, 60), LONG),
    "a jpeg of 4 gigapixels": (JPEG, gigapixel_jpeg, LARGE),
    "a jpeg of a million fill bytes": (JPEG, lambda: jpeg_with(b"\xff" * 10**6), REFUSED),
    "a jpeg of a million bytes of junk": (JPEG, lambda: jpeg_with(bytes(10**6)), REFUSED),
    "a jpeg of 100 000 comments": (JPEG, lambda: jpeg_with(segment(0xFE, b"") * 100_000), REFUSED),
    "a jpeg of 100 000 comments at its end": (
        JPEG,
        lambda: image_file(GREY, "JPEG")[:-2] + segment(0xFE, b"") * 100_000 + b"\xff\xd9",
        REFUSED,
    ),
    "a jpeg of exif whose 5000 entries are all of it": (JPEG, lambda: jpeg_with(EXIF_SEGMENT), READ | REFUSED),
    "a jpeg of exif in 100 segments": (JPEG, lambda: jpeg_with(EXIF_SEGMENT * 100), REFUSED),
    "a jpeg of 100 profiles": (JPEG, lambda: jpeg_with(segment(0xE2, ICC + bytes(65_000)) * 100), READ),
    "a jpeg of 50 photoshop segments": (
        JPEG,
        lambda: jpeg_with(segment(0xED, b"Photoshop 3.0\0" + b"8BIM\0\1\0\0\0\0\0\0" * 5400) * 50),
        LONG,
    ),
    "a png of 50 000 texts": (PNG, lambda: png_with(png_chunk(b"tEXt", b"a\0b") * 50_000), LONG),
    "a png of 70 000 texts": (PNG, lambda: png_with(png_chunk(b"tEXt", b"a\0b") * 70_000), LONG - {200}),
    "a png of 58 000 pieces": (PNG, lambda: png_in_pieces(240, 1), LONG),
    "a png of more pixels than pieces": (PNG, lambda: png_in_pieces(240, 1000, claims=5000), REFUSED),
    "a png of a megabyte of exif": (PNG, lambda: png_with(png_chunk(b"eXIf", exif(10**6)[6:])), REFUSED),
    "a png of exif in a packed text": (PNG, lambda: png_with(packed_exif_text(400_000)), REFUSED),
    "a small png of exif in a packed text": (PNG, lambda: png_with(packed_exif_text(20_000)), READ),
    "a png of packed texts that say which way is up": (
        PNG,
        lambda: png_with(png_chunk(b"zTXt", b"Raw profile type exif\0\0" + ZEROS) * 100),
        READ | REFUSED,
    ),
    "an animated png": (PNG, lambda: png_animation(20_000), LONG),
    "a webp canvas of 268 megapixels": (WEBP, lambda: webp_canvas(16_384), LARGE),
    "a webp canvas of 33 megapixels and one pixel": (WEBP, lambda: webp_canvas(5700), LONG),
    "a webp of 300 frames": (WEBP, lambda: webp_animation(300), READ),
    "a gif": (PNG, lambda: other_format("GIF"), REFUSED),
    "a tiff": (JPEG, lambda: other_format("TIFF"), REFUSED),
    "a bmp": (WEBP, lambda: other_format("BMP"), REFUSED),
    "a form of 5000 small files": (FORM, lambda: form([image_file(GREY)] * 5000), LONG),
    "a form of jpegs of 100 scans": (FORM, lambda: form([progressive_jpeg(500, 100)] * 100), LONG),
    "json of jpegs of 100 scans": (JSON, lambda: as_json([progressive_jpeg(800, 100)] * 30), LONG),
    "json of 20 000 images of a pixel": (JSON, lambda: orjson.dumps({"images": [[[1]]] * 20_000}), LONG),
    "npy of 40 000 images of a pixel": (NPY, lambda: npy(np.zeros((40_000, 1, 1), np.uint8)), LONG),
    "npy of 3000 images of a pixel and a line": (NPY, lambda: npy(np.zeros((3000, 1, 5000), np.uint8)), LONG),
    "npy of 33 megapixels in fortran's order": (
        NPY,
        lambda: npy(np.asfortranarray(np.zeros((2, 4000, 4000), np.uint8))),
        LONG,
    ),
}  # fmt: skip


def headers(content_type: str, timeout_ms: int | None = None) -> dict[str, Any]:
    more = {} if timeout_ms is None else {"X-Request-Timeout-Ms": str(timeout_ms)}
    return {"Content-Type": content_type, **more}
