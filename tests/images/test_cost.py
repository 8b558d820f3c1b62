"""What files cost, by their headers alone: in the right order, and before anything is unpacked."""

import contextlib
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from service.images.cost import array_cost, file_cost, is_brief
from service.images.decode_request import DecodeRequest, PlainShape
from service.images.errors import InvalidImageError
from service.images.webp import webp_size
from tests.hostile.image_bombs import (
    BOMBS,
    exif,
    jpeg_with,
    packed_exif_text,
    png_with,
    progressive_jpeg,
    segment,
    webp_canvas,
)
from tests.images.written import png_chunk
from tests.web.forms import image_file

RNG = np.random.default_rng(2)
PHOTOGRAPH = RNG.integers(0, 256, (300, 400, 3), np.uint8)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_a_file_costs_its_pixels_several_times(file_format: str) -> None:
    large, small = image_file(PHOTOGRAPH, file_format), image_file(PHOTOGRAPH[:30, :40], file_format)
    assert 4 * 120_000 < file_cost(large) < 20 * 120_000
    assert file_cost(small) < file_cost(large) / 10


def test_each_scan_costs() -> None:
    costs = [file_cost(progressive_jpeg(1000, scans)) for scans in (2, 10, 50, 100)]
    assert costs == sorted(costs)
    assert costs[-1] > 3 * costs[0]


def test_what_is_refused_by_its_header_costs_its_bytes() -> None:
    for content in (b"", b"GIF89a", b"\xff\xd8\xff", b"RIFF", jpeg_with(segment(0xE1, exif(65_000)) * 2)):
        assert file_cost(content) < 2**14 + 2 * len(content)


def test_the_cost_of_any_bomb_is_told_without_an_error() -> None:
    for name, (content_type, write, _) in BOMBS.items():
        if content_type.startswith("image/"):
            assert file_cost(write()) > 0, name
    assert file_cost(BOMBS["a png of 58 000 pieces"][1]()) > 2**25
    assert file_cost(BOMBS["a large jpeg of 60 scans"][1]()) > 2**28
    assert file_cost(BOMBS["a jpeg of 50 photoshop segments"][1]()) > 2**26


def entries(count: int) -> bytes:
    """EXIF data of so many entries, for each of which Pillow has a warning."""
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", count) + b"\x01\x12\0\x02\0\0\xff\xff\0\0\0\0" * count


def packed_text(keyword: bytes, data: bytes) -> bytes:
    return png_chunk(b"zTXt", keyword + b"\0\0" + zlib.compress(data))


XMP_CHUNK = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"\n" * (2**20 - 8)))
TURNED = {
    "a png of an xmp text": lambda: png_with(XMP_CHUNK),
    "a png of 63 xmp texts": lambda: png_with(XMP_CHUNK * 63),
    "a png of 63 exif texts": lambda: png_with(packed_text(b"Raw profile type exif", b"\n" * (2**20 - 8)) * 63),
    "a png of packed exif": lambda: png_with(
        packed_text(b"Raw profile type exif", b"\n\n\n" + entries(5400).hex().encode())
    ),
    "a png of exif": lambda: png_with(png_chunk(b"eXIf", entries(5400)[6:])),
    "a jpeg of exif": lambda: jpeg_with(segment(0xE1, entries(5400))),
    "a webp of exif": lambda: image_file(PHOTOGRAPH[:28, :28], "WEBP", exif=entries(5400)),
    "a webp of exif without its mark": lambda: image_file(PHOTOGRAPH[:28, :28], "WEBP", exif=entries(5400)[6:]),
}


def seconds_of(content: bytes) -> float:
    """Of the processor, the least of three."""
    taken = []
    for _ in range(3):
        started = time.process_time()
        with warnings.catch_warnings(), contextlib.suppress(InvalidImageError):
            warnings.simplefilter("ignore")
            DecodeRequest(PlainShape(1, 28, 28), True, 2**25, [content]).read()
        taken.append(time.process_time() - started)
    return min(taken)


@pytest.mark.parametrize("write", TURNED.values(), ids=TURNED)
def test_what_says_how_an_image_is_turned_costs_what_it_takes(write: Callable[[], bytes]) -> None:
    """Beside a photograph, whose cost is its pixels; it was a hundred times as much and more."""
    photograph = image_file(np.tile(PHOTOGRAPH, (3, 3, 1)), "JPEG")
    content = write()
    assert seconds_of(content) / file_cost(content) < 20 * seconds_of(photograph) / file_cost(photograph)


def test_a_little_exif_costs_little() -> None:
    """As cameras and phones write it."""
    digit = PHOTOGRAPH[:28, :28]
    for written, plain in (
        (jpeg_with(segment(0xE1, entries(10))), jpeg_with(b"")),
        (image_file(digit, "WEBP", exif=entries(10)), image_file(digit, "WEBP")),
        (png_with(png_chunk(b"eXIf", entries(10)[6:])), png_with(b"")),
    ):
        assert file_cost(plain) < file_cost(written) < file_cost(plain) + 2**18


def test_arrays_cost_by_their_images_and_pixels() -> None:
    assert array_cost(40_000, 40_000 * 784) > array_cost(1, 784) * 1000


def test_brief_is_a_small_file_of_one_scan() -> None:
    digit = RNG.integers(0, 256, (28, 28), np.uint8)
    assert is_brief(image_file(digit))
    assert is_brief(image_file(digit, "JPEG"))
    assert is_brief(jpeg_with(b"\xff" * 5000))  # which is refused at once
    assert not is_brief(jpeg_with(segment(0xFE, b"") * 100))
    assert not is_brief(jpeg_with(segment(0xED, b"Photoshop 3.0\0")))
    assert not is_brief(image_file(digit, "WEBP", lossless=True))
    assert not is_brief(image_file(digit, "JPEG", progressive=True))
    assert not is_brief(image_file(np.zeros((200, 200), np.uint8), "JPEG"))
    assert not is_brief(image_file(PHOTOGRAPH, "JPEG"))
    assert not is_brief(progressive_jpeg(28, 100))
    assert not is_brief(b"\xff\xd8\xff")
    assert not is_brief(b"")
    for oriented in (png_with(packed_exif_text(10_000)), png_with(png_chunk(b"eXIf", exif(5000)[6:]))):
        assert len(oriented) < 2**13
        assert not is_brief(oriented)
    assert not is_brief(jpeg_with(segment(0xE1, exif(5000))))


def test_images_are_brief_together_where_there_are_few_and_each_is() -> None:
    digit = image_file(RNG.integers(0, 256, (28, 28), np.uint8))

    def brief(*images: Any) -> bool:
        return DecodeRequest(PlainShape(1, 28, 28), True, 2**25, images).is_brief

    assert brief(digit)
    assert brief(*[digit] * 100)
    assert not brief(*[digit] * 1000)
    assert not brief(digit, progressive_jpeg(28, 100))
    assert brief(digit, np.zeros((1, 9, 9), np.float32))
    assert not brief(*[np.zeros((1, 9, 9), np.float32)] * 1000)
    assert not brief(digit, np.zeros((1, 300, 300), np.float32))
    assert not brief(*[image_file(np.zeros((128, 128), np.uint8), "JPEG")] * 20)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 50}, {"lossless": True, "exif": b"Exif\0\0"}])
def test_the_size_of_a_webp_is_told_by_its_first_bytes(options: dict[str, object]) -> None:
    assert webp_size(image_file(PHOTOGRAPH, "WEBP", **options)[:30]) == (400, 300)
    assert webp_size(webp_canvas(16_384)[:30]) == (16_384, 16_384)
    assert webp_size(b"RIFF") is None
