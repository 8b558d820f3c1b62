"""JPEG and WebP files: their levels, and that none is read of which a part is missing."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.images.errors import PixelLimitError, UnreadableImageError
from service.images.file import ImageFile
from service.images.jpeg import JpegFile
from tests.hostile.image_bombs import exif, gigapixel_jpeg, jpeg_with, png_with, progressive_jpeg, segment, webp_canvas
from tests.images.written import jpeg, jpeg_exif, png_chunk
from tests.toys import AnyArray
from training.data.sources import read_source
from training.errors import CorruptImageError

RANDOM = np.random.default_rng(5)
BLOCKS = RANDOM.integers(0, 256, (3, 5))
END = b"\xff\xd9"


def read(content: bytes) -> AnyArray:
    """[h, w, 1 or 3]"""
    return ImageFile(content).levels().transpose(1, 2, 0)


def pixels(blocks: AnyArray) -> AnyArray:
    return np.kron(blocks, np.ones((8, 8), np.int64))


def photograph(size: int, channels: int) -> Image.Image:
    down, across = np.mgrid[:size, :size] / size
    smooth = 128 + 60 * np.sin(6 * across) + 40 * np.cos(9 * down)
    noisy = np.clip(smooth[..., None] + RANDOM.normal(0, 10, (size, size, channels)), 0, 255).astype(np.uint8)
    return Image.fromarray(noisy[..., 0] if channels == 1 else noisy)


def saved(image: Image.Image, file_format: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


@pytest.mark.parametrize("restart", [0, 1, 4])
def test_grey_is_what_was_written(restart: int) -> None:
    assert np.array_equal(read(jpeg([BLOCKS], restart=restart))[..., 0], pixels(BLOCKS))


def test_colours_are_those_of_the_standard() -> None:
    luma, blue, red = RANDOM.integers(60, 190, (3, 3, 5))
    found = read(jpeg([luma, blue, red]))
    cb, cr = blue - 128, red - 128  # ITU-R BT.601, as JFIF says
    expected = np.stack([luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb], axis=-1)
    exact = np.kron(np.clip(expected, 0, 255), np.ones((8, 8, 1)))
    assert np.abs(found - exact).max() <= 1  # libjpeg adds rounded parts
    untransformed = np.kron(np.stack([luma, blue, red], axis=-1), np.ones((8, 8, 1), np.int64))
    assert np.array_equal(read(jpeg([luma, blue, red], adobe=0)), untransformed)


def test_ink_is_inverted_as_adobe_writes_it() -> None:
    inks = RANDOM.integers(0, 256, (4, 3, 5))  # 255 is none
    cyan_magenta_yellow, black = np.moveaxis(inks[:3], 0, -1), inks[3][..., None]
    exact = np.kron(cyan_magenta_yellow * black / 255, np.ones((8, 8, 1)))
    assert np.abs(read(jpeg(list(inks), adobe=0)) - exact).max() <= 1  # rounded once on the way


TURNED = {1: "ab/cd/ef", 2: "ba/dc/fe", 3: "fe/dc/ba", 4: "ef/cd/ab", 5: "ace/bdf", 6: "eca/fdb", 7: "fdb/eca",
          8: "bdf/ace"}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNED)
def test_an_image_is_turned_as_its_exif_says(orientation: int) -> None:
    blocks = np.array([[ord(letter) for letter in row] for row in TURNED[1].split("/")])
    found = read(jpeg([blocks], head=jpeg_exif(orientation)))[::8, ::8, 0]
    assert "/".join("".join(map(chr, row)) for row in found.tolist()) == TURNED[orientation]


@pytest.mark.parametrize("restart", [0, 1, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_cut_off_anywhere_is_refused_also_when_it_was_closed(channels: int, restart: int) -> None:
    """Cut at every byte: as a connection cuts it, and as a program leaves it that writes the end all the same."""
    content = jpeg([60 + BLOCKS // 2] * channels, restart=restart)
    whole = read(content)
    for length in range(len(content) - 2):
        with pytest.raises(UnreadableImageError):
            read(content[:length])
        try:
            closed = read(content[:length].rstrip(b"\xff") + END)
        except UnreadableImageError:
            continue
        assert length >= len(content) - 3  # no more than the bits after the last code are missing
        assert np.array_equal(closed, whole)
    assert np.array_equal(read(content + b"what a camera appends \xff\xd8\xff"), whole)


OPTIONS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "optimized": {"optimize": True, "subsampling": 0},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "progressive, restarts": {"progressive": True, "restart_marker_rows": 1},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("size", "channels"), [(28, 1), (28, 3), (300, 1), (300, 3)])
def test_a_photograph_cut_off_is_refused(name: str, size: int, channels: int) -> None:
    content = saved(photograph(size, channels), quality=85, **OPTIONS[name])
    assert np.array_equal(read(content).squeeze(), np.asarray(Image.open(io.BytesIO(content))))
    for length in range(3, len(content) - 4, max(11, len(content) // 40)):
        for end in (b"", END, END + b"what a camera appends", bytes(len(content) - length)):
            with pytest.raises(UnreadableImageError, match=r"cut off|none of PNG|truncated"):
                read(content[:length].rstrip(b"\xff") + end)


def test_a_progressive_file_cut_between_two_scans_is_refused() -> None:
    content = saved(photograph(28, 3), progressive=True)
    scans = JpegFile.of(content).scans
    assert len(scans) > 5
    for _, stop in scans[:-1]:
        with pytest.raises(UnreadableImageError, match="scans of it are missing"):
            read(content[:stop] + END)


def test_a_file_of_very_many_scans_is_refused() -> None:
    content = saved(photograph(28, 1), progressive=True)
    start, stop = JpegFile.of(content).scans[-1]
    head = content.rindex(b"\xff\xda", 0, start)
    repeated = content[:stop] + content[head:stop] * 100 + END
    with pytest.raises(UnreadableImageError, match=r"it has 1\d\d scans; at most 100 are read"):
        read(repeated)


def test_several_images_of_a_camera_are_read_as_the_first() -> None:
    first, second = photograph(28, 3), photograph(28, 3)
    content = saved(first, "MPO", save_all=True, append_images=[second])
    assert content.count(b"\xff\xd8\xff") == 2
    assert np.array_equal(read(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webp(options: dict[str, Any], mode: str) -> None:
    levels = np.kron(RANDOM.integers(0, 256, (2, 2, len(mode)), np.uint8), np.ones((14, 14, 1), np.uint8))
    content = saved(Image.fromarray(levels), "WEBP", exact=True, **options)
    if "lossless" in options:
        over = levels.astype(np.int64)
        over = (2 * over[..., :3] * over[..., 3:] + 255) // 510 if mode == "RGBA" else over
        assert np.array_equal(read(content), over)
    for length in range(len(content)):
        with pytest.raises(UnreadableImageError):
            read(content[:length])
        shorter = content[:4] + (max(length, 8) - 8).to_bytes(4, "little") + content[8:length]  # its length fits
        with pytest.raises(UnreadableImageError):
            read(shorter)


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_training_names_a_file_that_is_cut_off_and_counts_it(tmp_path: Path, file_format: str) -> None:
    suffix = {"JPEG": ".jpg", "WEBP": ".webp"}[file_format]
    content = saved(photograph(28, 3), file_format)
    for name in ("0", "1", "2"):
        (tmp_path / f"{name}{suffix}").write_bytes(content)
    cut = content[: len(content) // 2] + (END if file_format == "JPEG" else b"")
    (tmp_path / f"1{suffix}").write_bytes(cut)
    with pytest.raises(CorruptImageError, match=rf"1\{suffix}: .*; 1 of 3 images cannot be read"):
        read_source(tmp_path)
    assert len(read_source(tmp_path, skip_corrupt=True).train) == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (progressive_jpeg(5700, 67), "it has 67 scans; of so many pixels at most 66 are read"),
        (progressive_jpeg(28, 101), "it has 101 scans; at most 100 are read"),
        (jpeg_with(segment(0xFE, b"") * 4096), "it has more than 4096 segments"),
        (jpeg_with(segment(0xFE, b"") * 3000), ""),
        (jpeg_with(b"\xff" * 4097), "more than 4096 bytes between segments"),
        (jpeg_with(b"\xff" * 2000), ""),
        (jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(40_000)) * 2), "more than 65536 bytes of EXIF data"),
        (jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(65_000))), ""),
        (png_with(png_chunk(b"eXIf", exif(70_000)[6:])), "more than 65536 bytes of EXIF data"),
    ],
    ids=range(9),
)  # fmt: skip
def test_files_that_would_take_long_are_refused_in_training_too(content: bytes, problem: str, tmp_path: Path) -> None:
    """An empty problem: it is read."""
    suffix = ".png" if content.startswith(b"\x89") else ".jpg"
    (tmp_path / f"image{suffix}").write_bytes(content)
    if not problem:
        assert read(content).shape == (28, 28, 1)
        assert len(read_source(tmp_path).train) == 1
        return
    with pytest.raises(UnreadableImageError, match=problem):
        read(content)
    with pytest.raises(CorruptImageError, match=problem):
        _ = read_source(tmp_path).train[0]


def test_a_webp_or_jpeg_of_too_many_pixels_is_refused_before_memory_is_taken_for_them() -> None:
    with pytest.raises(PixelLimitError, match="16384×16384 pixels; at most 1000 are decoded"):
        ImageFile(webp_canvas(16_384), max_pixels=1000)
    with pytest.raises(PixelLimitError, match="16384×16384"):
        ImageFile(webp_canvas(16_384))
    with pytest.raises(PixelLimitError, match="65520×65520"):
        ImageFile(gigapixel_jpeg())
