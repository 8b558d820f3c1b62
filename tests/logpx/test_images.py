"""Images of every form, and what is sent of them. The service's side is in tests/web/test_client.py."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from logpx import ImageError
from logpx.chunks import ChunkSize, chunks_of
from logpx.images import ImageFile, count_of, items_of

GREY = np.arange(6 * 5, dtype=np.uint8).reshape(6, 5)
COLOUR = np.arange(3 * 6 * 5, dtype=np.uint8).reshape(3, 6, 5)


def png(array: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def sent(images: Any) -> list[Any]:
    """Arrays as they are, files as their pixels."""
    return [
        np.asarray(Image.open(io.BytesIO(item.read()))) if isinstance(item, ImageFile) else item
        for item in items_of(images)
    ]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (GREY, [GREY]),
        (np.stack([GREY, GREY + 1]), [GREY, GREY + 1]),
        (COLOUR[None], [COLOUR]),
        (np.moveaxis(COLOUR, 0, -1)[None], [COLOUR]),
        ([np.moveaxis(COLOUR, 0, -1), GREY], [COLOUR, GREY]),
        ([COLOUR[None], np.stack([COLOUR, COLOUR])], [COLOUR, COLOUR, COLOUR]),
        (GREY > 9, [(GREY > 9).astype(np.float32)]),
        (GREY / 30, [(GREY / 30).astype(np.float32)]),
        ([(GREY / 30).astype(np.float16)], [(GREY / 30).astype(np.float16).astype(np.float32)]),
        (torch.tensor(GREY / 30, requires_grad=True), [(GREY / 30).astype(np.float32)]),
        ([torch.tensor(GREY)], [GREY]),
        (Image.fromarray(GREY), [GREY]),
        (png(GREY), [GREY]),
        ((png(GREY), bytearray(png(GREY)), memoryview(png(GREY))), [GREY] * 3),
        ([], []),
    ],
)
def test_images_of_every_form_are_sent_as_they_are(images: Any, expected: list[Any]) -> None:
    found = sent(images)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert count_of(images) in (len(expected), None)


def test_files_are_opened_when_they_are_sent_and_no_sooner(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(b"at first")
    (by_text,), (by_path,) = items_of(str(path)), items_of([path])
    path.write_bytes(b"later")
    assert isinstance(by_text, ImageFile)
    assert isinstance(by_path, ImageFile)
    assert by_text.read() == by_path.read() == b"later"
    path.unlink()
    with pytest.raises(ImageError, match=r"image 0: .*one.png cannot be read: No such file"):
        by_path.read()


def test_pil_images_are_turned_as_the_service_turns_files() -> None:
    turned = Image.fromarray(GREY)
    turned.getexif()[0x0112] = 6  # a quarter to the right
    (found,) = sent(turned)
    np.testing.assert_array_equal(found, np.rot90(GREY, -1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pil_images_of_usual_modes_become_png_of_the_same_pixels(mode: str) -> None:
    image = Image.fromarray(GREY).convert(mode) if mode != "I;16" else Image.fromarray(GREY.astype(np.uint16) * 1000)
    (item,) = items_of([image])
    assert isinstance(item, ImageFile)
    decoded = Image.open(io.BytesIO(item.read()))
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image))


@pytest.mark.parametrize(
    ("images", "index", "told"),
    [
        ([GREY, GREY.astype(np.int64)], 1, "the array holds int64; give uint8, or floats"),
        ([GREY, GREY, np.zeros((7, 6, 5), np.uint8)], 2, r"has shape \[7, 6, 5\]"),
        ([np.stack([COLOUR, COLOUR]), GREY[0]], 2, r"has shape \[5\]"),
        ([GREY, None], 1, "NoneType is no image"),
        ([GREY, "no/such/file.png"], 1, "no/such/file.png cannot be read"),
        ([Image.new("F", (4, 4))], 0, "the PIL image of mode F cannot be made a PNG"),
        ([GREY, [[0.0, 1.0]]], 1, "list is no image"),
    ],
)
def test_what_cannot_be_sent_is_named_by_its_index(images: Any, index: int, told: str) -> None:
    with pytest.raises(ImageError, match=f"^image {index}: .*{told}") as raised:
        list(items_of(images))
    assert raised.value.index == index


@pytest.mark.parametrize(
    ("images", "error"),
    [(7, TypeError), (np.zeros(4), ValueError), (np.zeros((6, 5, 3)), ValueError), (np.zeros((1,) * 5), ValueError)],
)
def test_what_is_no_image_or_two_things_is_refused(images: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        list(items_of(images))


def test_chunks_keep_the_order_and_hold_one_form_each() -> None:
    file = png(GREY)
    images = [GREY, GREY, GREY, file, file, COLOUR, GREY]
    chunks = list(chunks_of(items_of(images), ChunkSize(images=2, num_bytes=10**6)))
    assert [(chunk.start, len(chunk)) for chunk in chunks] == [(0, 2), (2, 1), (3, 2), (5, 1), (6, 1)]
    sizes = ChunkSize(images=9, num_bytes=len(file) + 1)
    assert [len(chunk) for chunk in chunks_of(items_of([file] * 3), sizes)] == [1, 1, 1]


def test_chunks_are_made_when_they_are_asked_for() -> None:
    pulled: list[None] = []

    def endless() -> Iterator[Any]:
        while True:
            pulled.append(None)
            yield GREY

    size = ChunkSize(images=8, num_bytes=10**6)
    chunks = chunks_of(items_of(endless()), size)
    assert pulled == []
    assert len(next(chunks)) == 8
    assert len(pulled) == 9
    size.images = 2
    assert len(next(chunks)) == 2


def test_an_array_that_is_filled_again_is_sent_as_it_was() -> None:
    buffer = np.zeros((6, 5), np.uint8)

    def refilled() -> Iterator[Any]:
        for level in range(4):
            buffer[:] = level
            yield buffer

    (chunk,) = chunks_of(items_of(refilled()), ChunkSize(images=8, num_bytes=10**6))
    content_type, body = chunk.body()
    assert content_type == "application/x-npy"
    array = np.load(io.BytesIO(body), allow_pickle=False)
    assert array[:, 0, 0].tolist() == [0, 1, 2, 3]
