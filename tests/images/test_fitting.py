"""Images of any size become a model's, and each has the bits that Pillow gives it alone."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, ImageOps

from model_store import ImageShape
from service.images.decode_request import DecodeRequest, PlainShape, receive_request
from service.images.errors import InvalidImageError
from service.images.fitting import Fit, Fitting, Levels, eight_bits
from service.images.reader import ImageReader
from tests.images.written import png
from tests.web.forms import image_file

RNG = np.random.default_rng(6)
FITS: tuple[Fit, ...] = ("crop", "pad", "stretch")
SIZES = [((300, 200), (64, 64)), ((200, 300), (48, 64)), ((30, 20), (64, 48)), ((9, 7), (5, 12)), ((64, 48), (64, 48))]
EXTREME = [((1, 1), (7, 5)), ((1, 3000), (16, 16)), ((3000, 1), (16, 16)), ((5, 4), (1, 1)), ((3, 900), (64, 2))]


def noise(*shape: int) -> Levels:
    return RNG.integers(0, 256, shape).astype(np.uint8)


def by_pillow(image: Levels, fit: Fit, height: int, width: int) -> Levels:
    """One grey image [h, w] by Pillow's own functions for it."""
    whole = Image.fromarray(image)
    if fit == "crop":
        return np.asarray(ImageOps.fit(whole, (width, height), Image.Resampling.BILINEAR))
    if fit == "stretch":
        return np.asarray(whole.resize((width, height), Image.Resampling.BILINEAR))
    scale = min(height / whole.height, width / whole.width)
    across, down = (max(1, int(side * scale + 0.5)) for side in whole.size)
    padded = Image.new("L", (width, height))
    resized = whole.resize((across, down), Image.Resampling.BILINEAR)
    padded.paste(resized, ((width - across) // 2, (height - down) // 2))
    return np.asarray(padded)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("found", "wanted"), SIZES)
def test_each_fit_is_what_pillow_makes_of_the_image(found: tuple[int, int], wanted: tuple[int, int], fit: Fit) -> None:
    image = noise(*found)
    assert_array_equal(Fitting(fit).levels(image[None, None], (1, *wanted))[0, 0], by_pillow(image, fit, *wanted))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("found", "wanted"), SIZES + EXTREME)
def test_an_image_has_the_same_bits_among_others(found: tuple[int, int], wanted: tuple[int, int], fit: Fit) -> None:
    images = noise(40, 3, *found)
    together = Fitting(fit).levels(images, (3, *wanted))
    assert together.shape == (40, 3, *wanted)
    for index in (0, 17, 39):
        assert_array_equal(Fitting(fit).levels(images[index : index + 1], (3, *wanted))[0], together[index])
        bands = [Fitting(fit).levels(band[None, None], (1, *wanted))[0, 0] for band in images[index]]
        assert_array_equal(np.stack(bands), together[index])


@pytest.mark.parametrize("fit", FITS)
def test_a_flat_image_stays_flat(fit: Fit) -> None:
    for height, width in (found for found, _ in SIZES + EXTREME):
        fitted = Fitting(fit).levels(np.full((1, 1, height, width), 201, np.uint8), (1, 32, 48))
        assert set(np.unique(fitted)) == ({0, 201} if fit == "pad" and 3 * height != 2 * width else {201})


@pytest.mark.parametrize("shape", [(1, 2**20), (2**20, 1)])
@pytest.mark.parametrize("fit", FITS)
def test_no_shape_makes_more_pixels_on_the_way_than_before_or_after(
    shape: tuple[int, int], fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column of a million pixels, made 64 wide before it is made 64 high, would be 64 MB; of 2²⁵, two gigabytes."""
    sizes = []
    resize = Image.Image.resize

    def recorded(image: Image.Image, size: tuple[int, int], *arguments: Any) -> Image.Image:
        sizes.append(size[0] * size[1])
        return resize(image, size, *arguments)

    monkeypatch.setattr(Image.Image, "resize", recorded)
    Fitting(fit).levels(np.zeros((1, 1, *shape), np.uint8), (1, 64, 64))
    assert max(sizes) <= 2**20


def test_grey_of_colour_is_pillows() -> None:
    colour = np.stack(np.meshgrid(*[np.arange(0, 256, 5)] * 3)).astype(np.uint8).reshape(3, 52, -1)
    expected = np.asarray(Image.fromarray(np.ascontiguousarray(colour.transpose(1, 2, 0))).convert("L"))
    assert_array_equal(Fitting("crop").levels(colour[None], (1, *expected.shape))[0, 0], expected)


def test_deeper_levels_and_floats_are_rounded_to_the_nearest_level() -> None:
    deep = np.arange(2**16, dtype=np.uint16).reshape(1, 1, 256, 256)
    assert_array_equal(eight_bits(deep), np.rint(deep / 257))
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    assert_array_equal(eight_bits(levels.astype(np.float32) / np.float32(255)), levels)
    assert_array_equal(eight_bits(levels.astype(np.uint16) * 257), levels)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("channels", [1, 3])
def test_files_and_numbers_of_the_same_pixels_have_the_same_bits(channels: int, fit: Fit) -> None:
    levels = noise(21, 34, 3)
    reader = ImageReader(
        ImageShape(channels=channels, height=16, width=12), resize=False, max_pixels=10**6, fitting=Fitting(fit)
    )
    deep = png(levels.astype(np.uint16) * 257, 2, 16)
    chw = levels.transpose(2, 0, 1)
    floats = chw.astype(np.float32) / np.float32(255)
    pixels = reader.read_items([image_file(levels), deep, floats, floats.tolist()])
    assert pixels.dtype == np.float32
    for image in (*pixels[1:], *reader.read_array(np.stack([chw] * 3)), *reader.read_array(floats[None])):
        assert_array_equal(image, pixels[0])
    assert_array_equal(np.rint(pixels * 255) / np.float32(255), pixels)  # whole levels


@pytest.mark.parametrize("fit", ["exact", "crop"])
def test_inverted_is_white_minus_the_level(fit: Fit) -> None:
    levels = noise(6, 5)
    reader = ImageReader(
        ImageShape(channels=1, height=6, width=5), resize=False, max_pixels=10**6, fitting=Fitting(fit, invert=True)
    )
    expected = (255 - levels.astype(np.float32)) / np.float32(255)
    assert_array_equal(reader.read_items([image_file(levels)])[0, 0], expected)
    assert_array_equal(reader.read_array(levels[None])[0, 0], expected)
    floats = levels.astype(np.float32) / np.float32(255)
    for pixels in (reader.read_array(floats[None]), reader.read_items([floats.tolist()])):
        assert np.abs(pixels[0, 0] - expected).max() <= np.finfo(np.float32).eps


def test_what_is_padded_stays_black_also_if_inverted() -> None:
    fitted = Fitting("pad", invert=True).levels(np.full((1, 1, 4, 8), 255, np.uint8), (1, 8, 8))
    assert not fitted.any()
    fitted = Fitting("pad", invert=True).levels(np.zeros((1, 1, 4, 8), np.uint8), (1, 8, 8))[0, 0]
    assert_array_equal(fitted, np.repeat([0, 255, 255, 0], 2)[:, None] * np.ones(8))


def test_a_wrong_number_of_channels_is_refused_as_before() -> None:
    reader = ImageReader(
        ImageShape(channels=3, height=6, width=5), resize=False, max_pixels=10**6, fitting=Fitting("crop")
    )
    with pytest.raises(InvalidImageError, match="2 channels, the model takes 3") as caught:
        reader.read_array(np.zeros((2, 2, 9, 9), np.uint8))
    assert caught.value.index == 0


def test_a_worker_is_told_how_images_are_fitted() -> None:
    request = DecodeRequest(PlainShape(1, 8, 6), False, 10**6, [image_file(noise(30, 40))], Fitting("pad", invert=True))
    stream = io.BytesIO(b"".join(request.message()))
    received = receive_request(stream)
    assert received is not None
    assert received.fitting == request.fitting
    assert_array_equal(received.read(), request.read())
