"""The steps of "How your photo becomes pixels" in docs/your-images.md, written again, against service and training."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from PIL import Image, ImageOps

from model_store import CHANNELS, ImageShape
from service.images.errors import InvalidImageError
from service.images.fitting import Fit, Fitting
from service.images.reader import ImageReader
from tests.images.written import png
from tests.toys import AnyArray
from training.data.preparation import Preparation
from training.data.sources import read_source

SIZE = (12, 16)
RNG = np.random.default_rng(21)


def _noise(*shape: int, below: int = 256) -> AnyArray:
    return RNG.integers(0, below, shape).astype(np.uint8 if below == 256 else np.uint16)


def _saved(image: Image.Image, named: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, named, **options)
    return stream.getvalue()


def _seen(content: bytes) -> AnyArray:
    """What Pillow alone makes of a file without transparency: its first frame, turned as EXIF says, as colour."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))


def _over_black(levels: AnyArray, alpha: AnyArray) -> AnyArray:
    white = np.iinfo(levels.dtype).max
    return np.rint(levels * (alpha[..., None] / white)).astype(levels.dtype)


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    return exif


def _odd_files() -> dict[str, tuple[bytes, AnyArray]]:
    """By name: a file, and the levels [h, w, c] that are in it by steps 1 to 3."""
    deep, deep_colour = _noise(20, 31, 1, below=65536), _noise(9, 40, 4, below=65536)
    colour, other = _noise(25, 18, 3), _noise(25, 18, 3)
    with_alpha, clear = _noise(14, 14, 2), _noise(30, 22, 4)
    cmyk = _saved(Image.fromarray(_noise(24, 40, 4), "CMYK"), "JPEG", quality=95)
    turned = _saved(Image.fromarray(_noise(40, 24, 3)), "JPEG", exif=_turned())
    palette = Image.fromarray(colour).quantize(9)
    opaque = np.asarray(palette.convert("RGB"))
    paletted = np.where((np.asarray(palette) == 4)[..., None], 0, opaque).astype(np.uint8)
    frames = {"save_all": True, "append_images": [Image.fromarray(other)], "lossless": True}
    one, strip, digit = _noise(1, 1, 3), _noise(3, 5000, 1), np.full((28, 28, 1), 255, np.uint8)
    digit[4:24, 13:16] = 0
    return {
        "deep.png": (png(deep, 0, 16), deep),
        "deep-clear.png": (png(deep_colour, 6, 16), _over_black(deep_colour[..., :3], deep_colour[..., 3])),
        "cmyk.jpg": (cmyk, _seen(cmyk)),
        "palette.png": (_saved(palette, "PNG", transparency=4), paletted),
        "animated.webp": (_saved(Image.fromarray(colour), "WEBP", **frames), colour),
        "turned.jpg": (turned, _seen(turned)),
        "one.png": (png(one, 2, 8), one),
        "strip.png": (png(strip, 0, 8), strip),
        "grey-clear.png": (png(with_alpha, 4, 8), _over_black(with_alpha[..., :1], with_alpha[..., 1])),
        "clear.webp": (
            _saved(Image.fromarray(clear), "WEBP", lossless=True, exact=True),
            _over_black(clear[..., :3], clear[..., 3]),
        ),
        "digit.png": (png(digit, 0, 8), digit),
    }


FILES = _odd_files()


def _documented(levels: AnyArray, fit: Fit, colour: str, invert: bool) -> NDArray[np.uint8]:
    """Steps 4 to 7: levels [h, w, c] → [C, H, W]."""
    eight = np.rint(levels / 257).astype(np.uint8) if levels.dtype == np.uint16 else levels
    eight = 255 - eight if invert else eight
    if colour == "grey" and eight.shape[2] == 3:
        eight = (eight.astype(np.int64) @ np.array([[19595], [38470], [7471]]) + 32768) >> 16
    bands = [_fitted(band.astype(np.uint8), fit) for band in np.moveaxis(eight, 2, 0)]
    return np.stack(bands * (CHANNELS[colour] // len(bands)))


def _fitted(band: NDArray[np.uint8], fit: Fit) -> NDArray[np.uint8]:
    (rows, columns), (height, width) = band.shape, SIZE
    box, inner = (0.0, 0.0, float(columns), float(rows)), SIZE
    if fit == "crop":
        scale = min(rows / height, columns / width)
        above, beside = (rows - height * scale) / 2, (columns - width * scale) / 2
        box = (beside, above, columns - beside, rows - above)
    elif fit == "pad":
        scale = max(rows / height, columns / width)
        inner = max(1, int(rows / scale + 0.5)), max(1, int(columns / scale + 0.5))
    image = Image.fromarray(band)
    steps = ["along rows", "along columns"]
    for step in reversed(steps) if inner[1] > columns and inner[0] < rows else steps:
        if step == "along rows":
            size, part = (inner[1], image.height), (box[0], 0.0, box[2], float(image.height))
        else:
            size, part = (image.width, inner[0]), (0.0, box[1], float(image.width), box[3])
        image = image.resize(size, Image.Resampling.BILINEAR, part)
    whole = np.zeros(SIZE, np.uint8)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    whole[top : top + inner[0], left : left + inner[1]] = np.asarray(image)
    return whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    for name, (content, _) in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def _reader(fit: Fit, colour: str, invert: bool) -> ImageReader:
    shape = ImageShape(channels=CHANNELS[colour], height=SIZE[0], width=SIZE[1])
    return ImageReader(shape, resize=False, max_pixels=10**6, fitting=Fitting(fit, invert))


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("colour", ["grey", "rgb"])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_odd_files_become_the_pixels_that_the_page_describes(folder: Path, fit: Fit, colour: Any, invert: bool) -> None:
    expected = [_documented(levels, fit, colour, invert) for _, (_, levels) in sorted(FILES.items())]
    trained = read_source(folder, preparation=Preparation(SIZE, fit, colour, invert)).train
    served = _reader(fit, colour, invert).read_items([(folder / name).read_bytes() for name in sorted(FILES)])
    for name, wanted, learned, answered in zip(sorted(FILES), expected, trained, served, strict=True):
        assert_array_equal(learned, wanted, err_msg=name)
        assert_array_equal(np.rint(answered * np.float32(255)), wanted, err_msg=name)


def test_a_gif_is_refused_by_the_service_and_skipped_by_training(folder: Path, tmp_path: Path) -> None:
    gif = _saved(Image.fromarray(_noise(9, 9)), "GIF", save_all=True, append_images=[Image.fromarray(_noise(9, 9))])
    with pytest.raises(InvalidImageError, match="none of PNG, JPEG, WebP"):
        _reader("crop", "grey", invert=False).read_items([gif])
    for name in ("digit.png", "strip.png"):
        (tmp_path / name).write_bytes(FILES[name][0])
    (tmp_path / "moving.gif").write_bytes(gif)
    source = read_source(tmp_path, preparation=Preparation(SIZE, "crop"))
    assert len(source.train) == 2
    assert source.ignored == {".gif file": (1, "moving.gif")}
