"""PNG files of every kind, written byte by byte, against what the specification says of them."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from model_store import ImageShape
from service.images.errors import UnreadableImageError
from service.images.file import ImageFile, in_unit_interval
from service.images.reader import ImageReader
from tests.images.written import exif, png, png_chunk
from tests.toys import AnyArray
from training.data.sources import read_source
from training.publish.evaluation import in_unit_interval as trained_in_unit_interval

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
KINDS = [
    *((GREY, depth, transparent) for depth in (1, 2, 4, 8, 16) for transparent in (False, True)),
    *((RGB, depth, transparent) for depth in (8, 16) for transparent in (False, True)),
    *((PALETTE, depth, transparent) for depth in (1, 2, 4, 8) for transparent in (False, True)),
    *((colour_type, depth, True) for colour_type in (GREY_ALPHA, RGBA) for depth in (8, 16)),
]


def written(
    colour_type: int, depth: int, transparent: bool, size: tuple[int, int], interlaced: bool
) -> tuple[bytes, AnyArray]:
    """A file, and its levels [h, w, 1 or 3] as the specification says, in exact integers."""
    random = np.random.default_rng([colour_type, depth, *size])
    white, full = 2**depth - 1, 2 ** max(depth, 8) - 1
    samples = random.integers(0, white + 1, (*size, SAMPLES[colour_type]))
    chunks = b""
    if colour_type in (GREY, RGB):
        levels = samples * full // white  # full is a multiple of white
        if transparent:
            colour = samples[0, -1]
            chunks = png_chunk(b"tRNS", colour.astype(">u2").tobytes())
            near = samples[-1, 0]  # differs in the lowest bit of one sample, and is not transparent
            near[:] = colour
            near[-1] ^= 1
            levels = np.where((samples == colour).all(axis=-1, keepdims=True), 0, samples * full // white)
            assert (levels[-1, 0] == near * full // white).all() or size == (1, 1)
    elif colour_type == PALETTE:
        palette, alphas = random.integers(0, 256, (2**depth, 3)), random.integers(0, 256, max(1, 2**depth - 1))
        chunks = png_chunk(b"PLTE", palette.astype(np.uint8).tobytes())
        levels = palette[samples[..., 0]]
        if transparent:
            chunks += png_chunk(b"tRNS", alphas.astype(np.uint8).tobytes())  # of one colour less: it is opaque
            levels = (2 * levels * np.append(alphas, 255)[samples[..., 0]][..., None] + 255) // 510
    else:
        levels = (2 * samples[..., :-1] * samples[..., -1:] + full) // (2 * full)  # the nearest level
    return png(samples, colour_type, depth, chunks, interlaced=interlaced), levels


@pytest.mark.parametrize("interlaced", [False, True], ids=["", "interlaced"])
@pytest.mark.parametrize(("colour_type", "depth", "transparent"), KINDS)
def test_every_kind_is_read_as_specified_by_service_and_training(
    tmp_path: Path, colour_type: int, depth: int, transparent: bool, interlaced: bool
) -> None:
    for size in ((2, 1), (1, 5), (11, 13)):
        content, levels = written(colour_type, depth, transparent, size, interlaced)
        file = ImageFile(content)
        channels, white = 1 if colour_type in (GREY, GREY_ALPHA) else 3, 65535 if depth == 16 else 255
        assert (file.header.channels, file.header.bits) == (channels, 16 if depth == 16 else 8)
        found = file.levels()
        assert np.array_equal(found.transpose(1, 2, 0), levels)
        exact = (levels / white).astype(np.float32).transpose(2, 0, 1)
        assert np.array_equal(in_unit_interval(found), exact)
        shape = ImageShape(channels=channels, height=size[0], width=size[1])
        (served,) = ImageReader(shape, resize=False, max_pixels=1000).read_items([content])
        assert np.array_equal(served, exact)
    (tmp_path / "0.png").write_bytes(content)
    (tmp_path / "1.png").write_bytes(png(np.full((*size, 1), 255), GREY, 8))  # a set of black images is refused
    trained, _ = trained_in_unit_interval(read_source(tmp_path).train)
    assert np.array_equal(trained, served)


def test_bits_beyond_the_depth_of_a_transparent_grey_are_ignored() -> None:
    samples = np.array([[[0], [1], [2], [3]]])
    content = png(samples, GREY, 2, png_chunk(b"tRNS", b"\xff\xfe"))  # the lowest two bits are 2
    assert ImageFile(content).levels().tolist() == [[[0, 85, 0, 255]]]


def test_an_index_beyond_the_palette_is_black() -> None:
    content = png(np.array([[[0], [1], [9]]]), PALETTE, 4, png_chunk(b"PLTE", b"\x0a\x14\x1e\xff\xff\xff"))
    assert ImageFile(content).levels().tolist() == [[[10, 255, 0]], [[20, 255, 0]], [[30, 255, 0]]]


TURNED = {1: "ab/cd/ef", 2: "ba/dc/fe", 3: "fe/dc/ba", 4: "ef/cd/ab", 5: "ace/bdf", 6: "eca/fdb", 7: "fdb/eca",
          8: "bdf/ace"}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("after", [False, True], ids=["before pixels", "after pixels"])
def test_an_image_is_turned_as_its_exif_says(orientation: int, after: bool) -> None:
    samples = np.array([[[ord(letter)] for letter in row] for row in TURNED[1].split("/")])
    told = png_chunk(b"eXIf", exif(orientation))
    content = png(samples, GREY, 8, b"" if after else told)
    if after:
        content = content[:-12] + told + content[-12:]
    (levels,) = ImageFile(content).levels()
    assert "/".join("".join(map(chr, row)) for row in levels.tolist()) == TURNED[orientation]


@pytest.fixture(params=[2**24, 0], ids=["packed again", "unpacked twice"])
def most_packed_again(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files as they are mostly read, and as very large ones are."""
    monkeypatch.setattr("service.images.pixel_stream._MOST_PACKED_AGAIN", request.param)


def broken(content: bytes, tmp_path: Path) -> str:
    """What the service says of a file, after a look that training says the same."""
    with pytest.raises(UnreadableImageError) as refusal:
        ImageFile(content).levels()
    (tmp_path / "0.png").write_bytes(content)
    with pytest.raises(Exception, match="none of the 1 training images can be read") as trained:
        read_source(tmp_path)
    assert str(refusal.value) in str(trained.value)
    return str(refusal.value)


@pytest.mark.parametrize("interlaced", [False, True], ids=["", "interlaced"])
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, interlaced: bool) -> None:
    content, _ = written(GREY, 8, False, (11, 13), interlaced)
    for length in range(len(content)):
        with pytest.raises(UnreadableImageError):
            ImageFile(content[:length]).levels()
    assert "cut off" in broken(content[:-30], tmp_path)
    assert "cut off" in broken(content[:-12], tmp_path)  # IEND alone is missing
    assert ImageFile(content + b"what follows").levels().shape == (1, 11, 13)


def test_missing_and_wrong_chunks_are_named(tmp_path: Path) -> None:
    content, _ = written(PALETTE, 4, True, (11, 13), False)
    data = content.index(b"IDAT") - 4
    length = int.from_bytes(content[data : data + 4], "big") + 12
    assert "it has no pixels" in broken(content[:data] + content[data + length :], tmp_path)
    for kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT"):
        wrong = bytearray(content)
        wrong[content.index(kind) + 11] ^= 1
        assert f"the checksum of its chunk {kind.decode()} is wrong" in broken(bytes(wrong), tmp_path)
    plte = content.index(b"PLTE") - 4
    without = content[:plte] + content[plte + 12 + 48 :]
    assert "palette has 0 bytes" in broken(without, tmp_path)


@pytest.mark.usefixtures("most_packed_again")
@pytest.mark.parametrize("interlaced", [False, True], ids=["", "interlaced"])
def test_pixels_that_are_not_all_packed_are_refused_though_every_checksum_is_right(
    tmp_path: Path, interlaced: bool
) -> None:
    content, levels = written(RGB, 8, False, (11, 13), interlaced)
    data = content.index(b"IDAT") - 4
    unpacked = zlib.decompress(content[data + 8 : -16])

    def packed(pixels: bytes) -> bytes:
        return content[:data] + png_chunk(b"IDAT", pixels) + content[-12:]

    assert "1 of" in broken(packed(zlib.compress(unpacked[:-1])), tmp_path)
    assert "pixels are broken" in broken(packed(zlib.compress(unpacked)[:-1] + b"\0"), tmp_path)
    more = ImageFile(packed(zlib.compress(unpacked + b"more"))).levels()
    assert np.array_equal(more.transpose(1, 2, 0), levels)
    halves = zlib.compress(unpacked)
    split = content[:data] + png_chunk(b"IDAT", halves[:9]) + png_chunk(b"IDAT", b"") + png_chunk(b"IDAT", halves[9:])
    assert np.array_equal(ImageFile(split + content[-12:]).levels(), more)


@pytest.mark.usefixtures("most_packed_again")
def test_a_filter_that_png_does_not_know_is_refused(tmp_path: Path) -> None:
    content = png(np.full((11, 13, 3), 7), RGB, 8)
    data = content.index(b"IDAT") - 4
    rows = bytearray(zlib.decompress(content[data + 8 : -16]))
    rows[-(1 + 3 * 13)] = 5  # before the last row
    wrong = content[:data] + png_chunk(b"IDAT", zlib.compress(rows)) + content[-12:]
    assert "its pixels are broken" in broken(wrong, tmp_path)


@pytest.mark.usefixtures("most_packed_again")
@pytest.mark.parametrize("colour_type", [GREY, RGB, GREY_ALPHA, RGBA])
def test_large_pixels_of_16_bits_are_read_to_the_last_bit(colour_type: int) -> None:
    content, levels = written(colour_type, 16, colour_type in (GREY_ALPHA, RGBA), (370, 360), True)
    assert np.array_equal(ImageFile(content).levels().transpose(1, 2, 0), levels)


def test_large_pixels_over_black_are_those_of_small(tmp_path: Path) -> None:
    """Large images are put over black in parts, and unpacked in pieces."""
    random = np.random.default_rng(0)
    samples: AnyArray = random.integers(0, 256, (700, 300, 4))
    levels = ImageFile(png(samples, RGBA, 8)).levels().transpose(1, 2, 0)
    assert np.array_equal(levels, (2 * samples[..., :3] * samples[..., 3:] + 255) // 510)
