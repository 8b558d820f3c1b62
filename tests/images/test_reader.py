"""Colour modes, depths, transparency, orientation and size, down to the pixel."""

import io
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from PIL import Image

from model_store import ImageShape
from service.images.errors import InvalidImageError, PixelLimitError, UnreadableImageError
from service.images.file import ImageFile, is_small_png
from service.images.reader import ImageReader
from tests.rounding import gamma
from tests.web.forms import image_file

RNG = np.random.default_rng(4)
GREY = RNG.integers(0, 256, (5, 7), np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), np.uint8)
LEVEL = gamma(1)
"""Relative error of a level over white: a division, rounded to float32 once, of whole numbers that are exact."""
GREY_OF_COLOUR = gamma(6)
"""Of a luma, whose terms are all positive: levels and constants rounded, multiplied, and added up, three of them."""
LUMA = COLOUR.astype(np.float64) @ [0.299, 0.587, 0.114] / 255


def read(content: Any, channels: int = 1, *, height: int = 5, width: int = 7, resize: bool = False) -> Any:
    shape = ImageShape(channels=channels, height=height, width=width)
    pixels = ImageReader(shape, resize=resize, max_pixels=1_000_000).read_items([content])
    assert pixels.dtype == np.float32
    return pixels[0]


def save(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def test_eight_bit_grey_and_colour() -> None:
    assert_allclose(read(image_file(GREY))[0], GREY / 255, rtol=LEVEL)
    assert_allclose(read(image_file(COLOUR), 3), COLOUR.transpose(2, 0, 1) / 255, rtol=LEVEL)


def test_colour_to_grey_is_its_luma_and_grey_to_colour_three_copies() -> None:
    assert_allclose(read(image_file(COLOUR))[0], LUMA, rtol=GREY_OF_COLOUR)
    assert_allclose(read(image_file(GREY), 3), np.stack([GREY / 255] * 3), rtol=LEVEL)


def test_numbers_and_files_of_the_same_colours_agree() -> None:
    numbers = (COLOUR.transpose(2, 0, 1) / 255).tolist()
    assert_allclose(read(numbers), read(image_file(COLOUR)), rtol=2 * GREY_OF_COLOUR)
    assert_allclose(read(numbers, 3), read(image_file(COLOUR), 3), rtol=2 * LEVEL)


def test_sixteen_bits_keep_their_precision() -> None:
    deep = RNG.integers(0, 65536, (5, 7), np.uint16)
    assert_allclose(read(image_file(deep))[0], deep / 65535, rtol=LEVEL)


def test_one_bit_and_palette() -> None:
    assert_allclose(read(save(Image.fromarray(GREY > 128)))[0], GREY > 128)
    palette = Image.fromarray(COLOUR).quantize(16)
    expected = np.asarray(palette.convert("RGB")).transpose(2, 0, 1) / 255
    assert_allclose(read(save(palette), 3), expected, rtol=LEVEL)


def test_cmyk_jpeg() -> None:
    content = save(Image.fromarray(COLOUR).convert("CMYK"), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1) / 255
    assert_allclose(read(content, 3), expected, rtol=LEVEL)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_are_black(mode: str) -> None:
    alpha = np.zeros((5, 7), np.uint8)
    alpha[:, 3:] = 255
    image = Image.fromarray(COLOUR if mode == "RGBA" else GREY).convert(mode)
    image.putalpha(Image.fromarray(alpha))
    opaque = COLOUR.transpose(2, 0, 1) if mode == "RGBA" else np.stack([GREY] * 3)
    assert_allclose(read(save(image), 3), opaque / 255 * (alpha > 0), rtol=LEVEL)


def test_a_photograph_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise
    content = save(Image.fromarray(GREY), "PNG", exif=exif)
    assert_allclose(read(content, height=7, width=5)[0], np.rot90(GREY, -1) / 255, rtol=LEVEL)


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.fromarray(np.full((5, 7), level, np.uint8)) for level in (50, 200)]
    assert_allclose(read(save(frames[0], save_all=True, append_images=frames[1:])), 50 / 255, rtol=LEVEL)


def triangles(size: int) -> NDArray[np.float64]:
    """Weights [size, 4·size] that make one pixel of four: a triangle twice as wide, cut at the edge."""
    distance = (np.arange(4 * size) + 0.5) / 4 - (np.arange(size)[:, None] + 0.5)
    weight = np.maximum(1 - np.abs(distance), 0)
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


def test_another_size_is_refused_or_resampled_by_averaging() -> None:
    wide = np.kron(GREY, np.ones((4, 4), np.uint8))
    with pytest.raises(InvalidImageError, match="20×28"):
        read(image_file(wide))
    small = read(image_file(wide), resize=True)
    assert small.shape == (1, 5, 7)
    rows, columns = (triangles(size) for size in GREY.shape)
    # Terms are positive, and added up in float64; a level is rounded to float32, and so is each of two passes.
    resampled = gamma(3)
    assert_allclose(small[0], rows @ (wide / 255) @ columns.T, rtol=resampled)
    flat = read(image_file(np.full((9, 3), 77, np.uint8)), 3, resize=True)
    assert_allclose(flat, 77 / 255, rtol=resampled)
    numbers = read((wide / 255).tolist(), resize=True)
    assert_allclose(numbers, small, rtol=2 * resampled)


def test_pixels_are_counted_over_all_files_before_decoding() -> None:
    shape = ImageShape(channels=1, height=5, width=7)
    reader = ImageReader(shape, resize=False, max_pixels=100)
    reader.read_items([image_file(GREY)] * 2)
    with pytest.raises(PixelLimitError, match="105 pixels"):
        reader.read_items([image_file(GREY)] * 3)
    with pytest.raises(PixelLimitError, match="at most 100"):
        reader.read_items([image_file(np.zeros((20, 6), np.uint8))])


def test_arrays_of_bytes_and_floats_agree() -> None:
    reader = ImageReader(ImageShape(channels=3, height=5, width=7), resize=False, max_pixels=1000)
    levels = COLOUR.transpose(2, 0, 1)[None]
    assert_allclose(reader.read_array(levels), reader.read_array(levels.astype(np.float32) / 255), rtol=2 * LEVEL)
    assert_allclose(reader.read_array(GREY[None]), np.stack([GREY / 255] * 3)[None], rtol=LEVEL)


def test_only_a_png_that_is_small_in_both_ways_is_read_at_once() -> None:
    digit = image_file(np.zeros((28, 28), np.uint8))
    assert is_small_png(digit)
    assert not is_small_png(image_file(np.zeros((28, 28), np.uint8), "JPEG"))
    assert not is_small_png(image_file(np.zeros((300, 300), np.uint8)))  # few bytes, many pixels
    noise = np.random.default_rng(0).integers(0, 256, (100, 100), np.uint8)
    assert not is_small_png(image_file(noise))  # few pixels, many bytes
    assert not is_small_png(b"")


def test_a_second_header_does_not_tell_another_size() -> None:
    large = image_file(np.zeros((300, 300), np.uint8))
    with pytest.raises(InvalidImageError, match="more than one header"):
        read(image_file(GREY)[:33] + large[8:])


def crafted(levels: NDArray[np.uint8], chance: np.random.Generator) -> bytes:
    """A PNG with a few wrong bytes in its head or its compressed pixels, and checksums that fit them."""
    content = bytearray(image_file(levels))
    for _ in range(chance.integers(1, 4)):
        content[chance.choice([*range(16, 29), *range(41, len(content) - 16)])] = chance.integers(256)
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    content[-16:-12] = zlib.crc32(content[37:-16]).to_bytes(4, "big")
    return bytes(content)


def test_two_libraries_read_the_same_of_files_right_or_wrong() -> None:
    chance, read_by_both, refused_by_both = np.random.default_rng(0), 0, 0
    for turn in range(3000):
        levels = chance.integers(0, 3 if turn % 3 else 256, (5, 7) if turn % 2 else (5, 7, 3), np.uint8)
        content = crafted(levels, chance) if turn % 4 else image_file(levels)
        try:
            file = ImageFile(content)
        except (UnreadableImageError, PixelLimitError):
            continue
        if content[24:26] not in (b"\x08\0", b"\x08\2") or file.header.width * file.header.height > 10_000:
            continue  # of other kinds, Pillow gives not what the file says
        try:
            slow = np.asarray(Image.open(io.BytesIO(content)))
        except (OSError, SyntaxError, ValueError):
            with pytest.raises(UnreadableImageError):
                file.levels()
            refused_by_both += 1
        else:
            slow = slow.reshape(file.header.height, file.header.width, file.header.channels).transpose(2, 0, 1)
            try:
                fast = file.levels()
            except UnreadableImageError:
                continue  # Pillow is content with pixels that do not fit their own checksum
            assert np.array_equal(fast, slow)
            read_by_both += 1
    assert read_by_both > 750
    assert refused_by_both > 750


def test_every_single_wrong_byte_of_a_file_shows() -> None:
    for image in (Image.fromarray(GREY), Image.fromarray(COLOUR).quantize(7), Image.fromarray(COLOUR).convert("RGBA")):
        content = save(image, dpi=(72, 72))
        read(content)
        for position in range(len(content)):
            wrong = bytearray(content)
            wrong[position] ^= 16
            with pytest.raises((InvalidImageError, PixelLimitError)):
                read(bytes(wrong))
