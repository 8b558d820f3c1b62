"""PNG files that are decoded together: the bits and errors of reading each alone."""

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator

from model_store import ImageShape
from service.images.errors import InvalidImageError, PixelLimitError
from service.images.file import in_unit_interval
from service.images.fitting import FITTINGS, Fitting
from service.images.png import PngHeader
from service.images.png_batch import batch_header, batch_levels
from service.images.reader import ImageReader
from tests.images.written import png, png_chunk
from tests.toys import AnyArray

GREY, RGB = 0, 2


def packed(rows: bytes, size: tuple[int, int], colour_type: int, chunks: bytes = b"") -> bytes:
    """A file of these rows, each after the number of its filter."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *size[::-1], 8, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def random_rows(chance: Generator, size: tuple[int, int], samples: int) -> AnyArray:
    """Rows [h, 1 + w · samples] of any filters and bytes: the levels are what the filters make of them."""
    rows = chance.integers(0, 256, (size[0], 1 + size[1] * samples), np.uint8)
    rows[:, 0] = chance.integers(0, 5, size[0])
    return rows


def unfiltered(rows: AnyArray, samples: int) -> AnyArray:
    """Levels [h, w · samples] by the definition of the filters (PNG, third edition, 9.2)."""
    levels = np.zeros((len(rows) + 1, rows.shape[1] - 1 + samples), np.int64)  # black above and left
    for y, row in enumerate(rows.astype(np.int64)):
        for x, byte in enumerate(row[1:]):
            left, above, corner = levels[y + 1, x], levels[y, x + samples], levels[y, x]
            guess = left + above - corner
            nearest = min((abs(guess - level), order, level) for order, level in enumerate((left, above, corner)))[2]
            predicted = (0, left, above, (left + above) // 2, nearest)[row[0]]
            levels[y + 1, x + samples] = (byte + predicted) % 256
    return levels[1:, samples:]


def alone(reader: ImageReader, items: Sequence[Any]) -> AnyArray:
    """Pixels of files that are read one by one."""
    return np.concatenate([reader.read_items([item]) for item in items])


def reader_of(size: tuple[int, int], channels: int, **options: Any) -> ImageReader:
    shape = ImageShape(channels=channels, height=size[0], width=size[1])
    return ImageReader(shape, **{"resize": False, "max_pixels": 10**6, **options})


def refusal(reader: ImageReader, items: Sequence[Any]) -> tuple[type, str, int | None]:
    with pytest.raises((InvalidImageError, PixelLimitError)) as found:
        reader.read_items(items)
    return found.type, str(found.value), getattr(found.value, "index", None)


@pytest.mark.parametrize("colour_type", [GREY, RGB])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 5), (7, 4), (8, 9)], ids=str)
def test_every_filter_gives_the_levels_of_its_definition_and_of_reading_alone(
    colour_type: int, size: tuple[int, int]
) -> None:
    chance, samples = np.random.default_rng([colour_type, *size]), 3 if colour_type else 1
    rows = [random_rows(chance, size, samples) for _ in range(11)]
    for number in range(5):  # each filter in a first row, under the image before
        rows[number + 1][0, 0] = number
    files = [packed(one.tobytes(), size, colour_type) for one in rows]
    header = batch_header(files, 0)
    assert header is not None
    levels = batch_levels(files, 0, header, 100)
    assert levels is not None
    exact = np.stack([unfiltered(one, samples).reshape(*size, samples).transpose(2, 0, 1) for one in rows])
    assert np.array_equal(levels, exact)
    reader = reader_of(size, samples)
    assert reader.read_items(files).tobytes() == alone(reader, files).tobytes()


@pytest.mark.parametrize("fitting", FITTINGS.values(), ids=lambda fitting: f"{fitting.fit} {fitting.invert}")
@pytest.mark.parametrize("channels", [1, 3])
def test_many_sizes_kinds_and_forms_are_read_together_as_alone(fitting: Fitting, channels: int) -> None:
    chance = np.random.default_rng(channels)
    items: list[Any] = []
    for width in range(1, 41):
        size, colour_type = (int(chance.integers(1, 20)), width), int(chance.choice([GREY, RGB]))
        rows = [random_rows(chance, size, 3 if colour_type else 1) for _ in range(chance.integers(1, 5))]
        items += [packed(one.tobytes(), size, colour_type) for one in rows]
        if width % 5 == 0:
            items.append(packed(bytes(size[0] * (1 + size[1])), size, GREY, png_chunk(b"tRNS", b"\0\0")))
            items.append(png(chance.integers(0, 4, (*size, 1)), GREY, 2))
            items.append(png(chance.integers(0, 256, (*size, 1)), GREY, 8, interlaced=True))
            items.append(chance.random(size, np.float32)[None])
    if fitting.is_exact:
        reader = reader_of((9, 11), channels, resize=True, fitting=fitting)
    else:
        reader = reader_of((9, 11), channels, fitting=fitting)
    assert reader.read_items(items).tobytes() == alone(reader, items).tobytes()


SIZE = (6, 5)


def with_filter_of_5(rows: AnyArray) -> bytes:
    rows[-1, 0] = 5
    return packed(rows.tobytes(), SIZE, GREY)


def with_wrong_byte(content: bytes, position: int) -> bytes:
    return content[:position] + bytes((content[position] ^ 1,)) + content[position:][1:]


BROKEN: dict[str, Callable[[AnyArray], bytes]] = {
    "a filter that there is not": with_filter_of_5,
    "a byte missing": lambda rows: packed(rows.tobytes()[:-1], SIZE, GREY),
    "a row missing": lambda rows: packed(rows[:-1].tobytes(), SIZE, GREY),
    "no pixels": lambda rows: packed(b"", SIZE, GREY),
    "a wrong checksum of the header": lambda rows: with_wrong_byte(packed(rows.tobytes(), SIZE, GREY), 29),
    "a wrong checksum of the pixels": lambda rows: with_wrong_byte(packed(rows.tobytes(), SIZE, GREY), -13),
    "a wrong byte": lambda rows: with_wrong_byte(packed(rows.tobytes(), SIZE, GREY), 50),
    "no end": lambda rows: packed(rows.tobytes(), SIZE, GREY)[:-12],
    "a header alone": lambda rows: packed(rows.tobytes(), SIZE, GREY)[:33],
    "another size": lambda rows: packed(bytes(7 * 6), (7, 5), GREY),
    "too many pixels": lambda rows: packed(bytes(400 * 401), (400, 400), GREY),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_at_any_place_is_refused_as_alone(fault: str) -> None:
    chance = np.random.default_rng(0)
    good = [packed(random_rows(chance, SIZE, 1).tobytes(), SIZE, GREY) for _ in range(5)]
    broken = BROKEN[fault](random_rows(chance, SIZE, 1))
    reader = reader_of(SIZE, 1, max_pixels=1000)
    kind, text, _ = refusal(reader, [broken])
    for place in range(6):
        items = [*good[:place], broken, *good[place:]]
        found = refusal(reader, items)
        if kind is InvalidImageError:
            assert found == (kind, text, place)
            assert refusal(reader, [*items, broken, good[0]]) == found  # the first of two
        else:
            assert found == (kind, text.replace("160000", str(160000 + place * 30)), None)


def test_more_bytes_than_the_pixels_need_do_not_reach_the_next_image() -> None:
    chance = np.random.default_rng(0)
    rows = [random_rows(chance, SIZE, 3) for _ in range(4)]
    exact = [packed(one.tobytes(), SIZE, RGB) for one in rows]
    longer = [packed(one.tobytes() + b"\0more" * length, SIZE, RGB) for length, one in enumerate(rows)]
    header = batch_header(longer, 0)
    assert header is not None
    levels = batch_levels(longer, 0, header, 10)
    assert levels is not None
    assert np.array_equal(in_unit_interval(levels), alone(reader_of(SIZE, 3), exact))


def test_pixels_are_counted_to_the_last_that_is_allowed() -> None:
    files = [packed(bytes(6 * 6), SIZE, GREY)] * 10
    assert len(reader_of(SIZE, 1, max_pixels=300).read_items(files)) == 10
    small = reader_of((2, 2), 1, resize=True, max_pixels=299)  # the files' pixels are too many, not the model's
    assert refusal(small, files) == (
        PixelLimitError,
        "the images have 300 pixels or more; at most 299 are accepted",
        None,
    )
    assert refusal(small, [*files[:9], b"", *files])[1] == "the file cannot be read: it is empty"


def test_a_form_of_any_length_is_decoded_in_batches_of_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    largest: list[tuple[int, int]] = []

    def observed(items: Sequence[Any], start: int, header: PngHeader, most: int) -> AnyArray | None:
        levels = batch_levels(items, start, header, most)
        assert levels is not None
        largest.append((len(levels), levels.size))
        return levels

    monkeypatch.setattr("service.images.reader.batch_levels", observed)
    for size, model in (((1, 1), (1, 1)), ((28, 28), (28, 28)), ((1, 1), (64, 64)), ((200, 300), (200, 300))):
        largest.clear()
        files = [packed(bytes(size[0] * (1 + size[1])), size, GREY)] * 3000
        files = files[: 3000 if size[0] < 100 else 10]
        reader = reader_of(model, 1, max_pixels=10**8, fitting=FITTINGS["stretch", False])
        assert not reader.read_items(files).any()
        assert len(largest) > 1
        for count, levels in largest:
            assert count <= 1024
            assert levels <= 2**18
            assert count * model[0] * model[1] <= 2**18
