"""Images that are far brighter or darker than a model's training images are told of; others, never."""

from typing import Any

import numpy as np
import pytest

from service.images.brightness import Brightness, mean_pixels
from tests.training.photographs import photographs

DIGITS = Brightness(0.05, 0.3)


def test_the_negative_of_dark_images_is_noticed_and_they_are_not() -> None:
    images = np.random.default_rng(0).random((500, 1, 8, 8)).astype(np.float32) ** 6  # most pixels are dark
    usual = Brightness.of([mean_pixels(images[:250]), mean_pixels(images[250:])])
    assert 0.05 < usual.lowest < usual.highest < 0.3
    assert usual.warning(images) is None
    told = usual.warning(np.concatenate([images[:3], 1 - images[3:5]]))
    assert told is not None
    assert told.startswith("image 3 has a mean pixel of 0.8")
    assert told.endswith("are black and white exchanged? (2 of 5 looked at are like this)")


def test_levels_and_floats_of_the_same_pixels_are_as_bright() -> None:
    levels = photographs(20, 9, 7, channels=3)
    assert np.allclose(mean_pixels(levels), mean_pixels(levels.astype(np.float32) / np.float32(255)), atol=1e-6)
    usual = Brightness.of([mean_pixels(levels)])
    assert usual.warning(levels.astype(np.float32) / np.float32(255)) is None


def test_many_or_large_images_are_looked_at_here_and_there() -> None:
    many = np.broadcast_to(np.float32(0.9), (100_000, 1, 1, 1))
    assert "(64 of 64 looked at are like this)" in str(DIGITS.warning(many))
    assert DIGITS.warning(np.broadcast_to(np.float32(0.2), (1, 3, 4096, 1024))) is None


@pytest.mark.parametrize(
    "fields",
    [
        None,
        4,
        [],
        {},
        {"lowest": 0},
        {"lowest": "0", "highest": 1},
        {"lowest": 0, "highest": 2},
        {"lowest": True, "highest": 1},
    ],
)
def test_what_another_program_wrote_is_not_taken_for_a_record(fields: Any) -> None:
    assert Brightness.from_json(fields) is None


def test_a_record_survives_json() -> None:
    assert Brightness.from_json(DIGITS.as_json()) == DIGITS
