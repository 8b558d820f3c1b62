"""An image file is the same pixels to training and to the service."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_store import ImageShape
from service.images.reader import ImageReader
from training.data.sources import read_source
from training.errors import DataError
from training.publish.evaluation import in_unit_interval

RANDOM = np.random.default_rng(11)
HEIGHT, WIDTH = 6, 5


def _noise(*channels: int) -> Image.Image:
    return Image.fromarray(RANDOM.integers(0, 256, (HEIGHT, WIDTH, *channels), dtype=np.uint8))


def _grey_with_alpha() -> Image.Image:
    return Image.merge("LA", (_noise(), _noise()))


def _palette() -> Image.Image:
    return _noise(3).quantize(16)


# What is drawn, the file's suffix, and what it is saved with.
CASES: Mapping[str, tuple[Image.Image, str, dict[str, Any]]] = {
    "1": (_noise().convert("1"), ".png", {}),
    "L": (_noise(), ".png", {}),
    "L, one level transparent": (_noise().point(lambda level: level // 64), ".png", {"transparency": 2}),
    "LA": (_grey_with_alpha(), ".png", {}),
    "P": (_palette(), ".png", {}),
    "P, one colour transparent": (_palette(), ".png", {"transparency": 3}),
    "P, alpha by colour": (_palette(), ".png", {"transparency": bytes(range(0, 256, 16))}),
    "RGB": (_noise(3), ".png", {}),
    "RGBA": (_noise(4), ".png", {}),
    "grey JPEG": (_noise(), ".jpg", {}),
    "colour JPEG": (_noise(3), ".jpeg", {}),
    "lossless WebP": (_noise(3), ".webp", {"lossless": True}),
    "lossy WebP": (_noise(4), ".webp", {"quality": 60}),
    "I;16": (Image.fromarray(RANDOM.integers(0, 2**16, (HEIGHT, WIDTH), dtype=np.uint16)), ".png", {}),
    "CMYK JPEG": (_noise(3).convert("CMYK"), ".jpg", {}),
}


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _both(folder: Path, image: Image.Image, suffix: str, options: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The pixels [C, H, W] in [0, 1] that training reads from a file, and those that the service reads."""
    file = folder / f"image{suffix}"
    image.save(file, **options)
    (trained,) = read_source(folder).train
    channels, height, width = trained.shape
    shape = ImageShape(channels=channels, height=height, width=width)
    (served,) = ImageReader(shape, resize=False, max_pixels=10_000).read_items([file.read_bytes()])
    return in_unit_interval(trained), served


@pytest.mark.parametrize("case", CASES)
def test_training_reads_what_the_service_reads(tmp_path: Path, case: str) -> None:
    trained, served = _both(tmp_path, *CASES[case])
    assert trained.shape == ((1 if case.startswith(("1", "L", "grey", "I")) else 3), HEIGHT, WIDTH)
    assert np.abs(trained - served).max() < 1e-6  # of grey with alpha, the service takes the luma: a rounding


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("mode", "suffix"), [("L", ".png"), ("RGBA", ".png"), ("RGB", ".jpg")])
def test_both_turn_an_image_as_its_exif_says(tmp_path: Path, mode: str, suffix: str, orientation: int) -> None:
    image = _noise(len(mode)) if len(mode) > 1 else _noise()
    trained, served = _both(tmp_path, image, suffix, {"exif": _turned(orientation)})
    assert trained.shape[1:] == ((WIDTH, HEIGHT) if orientation > 4 else (HEIGHT, WIDTH))
    assert (trained == served).all()


def test_what_is_transparent_is_black(tmp_path: Path) -> None:
    pixels = np.full((HEIGHT, WIDTH, 4), 200, dtype=np.uint8)
    pixels[:3, :, 3], pixels[3:, :, 3] = 0, 255
    Image.fromarray(pixels).save(tmp_path / "0.png")
    assert (read_source(tmp_path).train == np.where(np.arange(HEIGHT) < 3, 0, 200)[:, None]).all()


def test_sizes_are_compared_after_turning(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 3), 9, dtype=np.uint8)).save(tmp_path / "0.png")
    Image.fromarray(np.full((3, 4), 9, dtype=np.uint8)).save(tmp_path / "1.png", exif=_turned(6))
    assert read_source(tmp_path).train.shape == (2, 1, 4, 3)


def test_a_format_that_the_service_does_not_read_is_refused(tmp_path: Path) -> None:
    _noise().save(tmp_path / "0.png", format="BMP")
    with pytest.raises(DataError, match=r"0\.png: not a readable image"):
        read_source(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # it remarks on broken EXIF, and reads on
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_broken_bytes_are_refused_by_name_or_read(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"0{suffix}"
    _noise(3).save(file, exif=_turned(6))
    whole = file.read_bytes()
    mutations = np.random.default_rng(2)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for position in mutations.integers(0, len(content), mutations.integers(1, 4)):
            content[position] = mutations.integers(0, 256)
        file.write_bytes(content)
        try:
            read_source(tmp_path)
        except DataError as error:
            assert error.file in (file, tmp_path)  # noqa: PT017 (some are read after all)
            refused += 1
    assert refused > 50
