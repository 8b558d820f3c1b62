import numpy as np
import pytest

from model_store import ImageShape, PixelPreparation
from service.engine.preparation import Preparation
from tests.rounding import gamma
from tests.toys import AnyArray

SHAPE = ImageShape(channels=2, height=3, width=5)
PIXELS = np.random.default_rng(4).random((7, *SHAPE.chw), np.float32)


def prepare(pixels: AnyArray, **fields: object) -> AnyArray:
    return Preparation(PixelPreparation.model_validate(fields), SHAPE).prepare(pixels)


def test_none_only_scales() -> None:
    np.testing.assert_array_equal(prepare(PIXELS), PIXELS)
    np.testing.assert_array_equal(prepare(PIXELS, scale=4), 4 * PIXELS)


def test_threshold_is_one_above_a_half() -> None:
    pixels = np.full((1, *SHAPE.chw), 0.5, np.float32)
    assert not prepare(pixels, binarisation="threshold").any()
    assert (prepare(np.nextafter(pixels, np.float32(1)), binarisation="threshold", scale=3) == 3).all()
    np.testing.assert_array_equal(prepare(PIXELS, binarisation="threshold"), PIXELS > 0.5)


def test_the_dynamic_field_is_the_stores() -> None:
    """Golden numbers: models published before must see the same field, whatever becomes of this code or of NumPy."""
    passed = []
    for step in range(1, 256):
        level = np.full((1, *SHAPE.chw), step / 256, np.float32)
        passed.append(prepare(level, binarisation="dynamic", binarisation_seed=12))
    levels = 255 - np.concatenate(passed).sum(axis=0)  # ⌊256·u⌋: as many of the 255 levels do not pass u
    assert levels[0].tolist() == [[64, 242, 48, 45, 89], [59, 171, 29, 229, 219], [0, 138, 27, 66, 106]]
    assert levels[1].tolist() == [[116, 119, 237, 66, 48], [171, 242, 236, 225, 16], [239, 166, 223, 104, 56]]


def test_dynamic_is_one_where_the_pixel_passes_the_field() -> None:
    bits = np.random.PCG64(12).random_raw(SHAPE.size)
    field = np.array([int(value) >> 40 for value in bits]).reshape(SHAPE.chw) / 2**24
    x = prepare(PIXELS, binarisation="dynamic", binarisation_seed=12)
    np.testing.assert_array_equal(x, PIXELS.astype(np.float64) > field)
    assert not prepare(field[None].astype(np.float32), binarisation="dynamic", binarisation_seed=12).any()


@pytest.mark.parametrize("binarisation", ["none", "threshold", "dynamic"])
def test_zero_and_one_stay_as_they_are(binarisation: str) -> None:
    pixels = (PIXELS > 0.3).astype(np.float32)
    for seed in range(20):
        np.testing.assert_array_equal(prepare(pixels, binarisation=binarisation, binarisation_seed=seed), pixels)


def test_over_seeds_a_dynamic_pixel_is_one_as_often_as_its_value_says() -> None:
    num_seeds = 4000
    frequency = sum(prepare(PIXELS[:1], binarisation="dynamic", binarisation_seed=seed) for seed in range(num_seeds))
    deviation = (frequency / num_seeds - PIXELS[:1]) / np.sqrt(PIXELS[:1] * (1 - PIXELS[:1]) / num_seeds)
    assert np.abs(deviation).max() < 4  # 30 pixels
    assert 0.6 < deviation.std() < 1.5


@pytest.mark.parametrize("binarisation", ["none", "threshold", "dynamic"])
def test_an_image_is_prepared_alike_alone_and_in_any_order(binarisation: str) -> None:
    order = np.random.default_rng(0).permutation(len(PIXELS))
    batch = prepare(PIXELS[order], binarisation=binarisation)
    for place, index in enumerate(order):
        np.testing.assert_array_equal(prepare(PIXELS[index : index + 1], binarisation=binarisation)[0], batch[place])


def test_what_leaves_is_contiguous_float32_whatever_comes() -> None:
    for pixels in (PIXELS[::2], PIXELS[..., ::-1], np.asfortranarray(PIXELS)):
        x = prepare(pixels, scale=2)
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        np.testing.assert_array_equal(x, 2 * pixels)


def test_restore_undoes_the_scale_and_clips() -> None:
    preparation = Preparation(PixelPreparation(scale=255), SHAPE)
    np.testing.assert_allclose(preparation.restore(preparation.prepare(PIXELS)), PIXELS, rtol=gamma(2))
    assert preparation.restore(np.array([-3, 300], np.float32)).tolist() == [0, 1]
    assert preparation.restore(np.array([51.0])).dtype == np.float32
