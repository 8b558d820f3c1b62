import json

import numpy as np
import pytest
from numpy.typing import NDArray

from service.images.bottom_k import SIZE, BottomKSketch, image_hashes

Images = NDArray[np.uint8]


def images(count: int, seed: int) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 5, 3), dtype=np.uint8)


def test_few_images_are_all_known() -> None:
    known, others = images(300, 1), images(200, 2)
    sketch = BottomKSketch.of([known[:100], known[100:], known[:50]])
    assert sketch.num_images == 350
    assert sketch.look_up(image_hashes(np.concatenate([others, known[::2]]))) == (350, 150)


def test_of_many_images_a_known_share_is_looked_up() -> None:
    known, others = images(8000, 1), images(8000, 2)
    sketch = BottomKSketch.of(np.split(known, 80))
    assert len(sketch.smallest) == SIZE
    assert sketch.look_up(image_hashes(known)) == (SIZE, SIZE)
    decidable, found = sketch.look_up(image_hashes(others))
    assert found == 0
    assert abs(decidable - SIZE) < 6 * np.sqrt(SIZE)  # as many as if they had been trained on, within chance
    every = BottomKSketch.of([known])
    assert (every.smallest == np.unique(image_hashes(known))[:SIZE]).all()


def test_a_sketch_survives_json_within_seven_kilobytes() -> None:
    for count in (0, 3, 5000):
        sketch = BottomKSketch.of([images(count, 3)])
        text = json.dumps(sketch.as_json())
        assert len(text) < 7200
        again = BottomKSketch.from_json(json.loads(text))
        assert again is not None
        assert again.num_images == count
        assert (again.smallest == sketch.smallest).all()


@pytest.mark.parametrize("fields", [{}, {"hash": "MD5", "smallest": ""}, []])
def test_another_kind_of_record_is_no_sketch(fields: dict[str, str]) -> None:
    assert BottomKSketch.from_json(fields) is None
    for broken in ("####", "AAAA"):
        assert BottomKSketch.from_json(BottomKSketch.of([]).as_json() | {"smallest": broken}) is None


def test_the_same_pixels_have_the_same_hash_as_levels_and_as_floats() -> None:
    levels = images(20, 4)
    floats = levels.astype(np.float32) / np.float32(255)
    assert (image_hashes(levels) == image_hashes(floats)).all()
    assert (image_hashes(levels) != image_hashes(levels.reshape(20, 1, 3, 5))).all()
    assert image_hashes(levels).max() < 2**40
