"""`Scorer`, as Ray's map_batches, Spark's predict_batch_udf, Daft and Dask call it."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_store import ImageShape
from service.engine.runtime import RUNTIME_ERRORS
from service.scoring.scorer import COLUMNS, Scorer
from tests.scoring.conftest import COUNT
from tests.toys import AnyArray, bernoulli_toy


@pytest.fixture(scope="module")
def scorer(store: Path) -> Scorer:
    return Scorer("toy", store, proposal="encoder", num_samples=50)


def test_files_and_arrays_of_every_layout_give_the_same(scorer: Scorer, folder: Path, pixels: AnyArray) -> None:
    expected = scorer({"image": pixels})
    contents = [file.read_bytes() for file in (*sorted(folder.glob("*.png")), *sorted(folder.glob("more/*.png")))]
    mixed = [content if index % 2 else pixels[index] for index, content in enumerate(contents)]
    for images in (contents, np.array(contents, object), pixels[:, None], pixels[..., None], [*pixels], mixed):
        found = scorer({"image": images})
        assert [*found] == [*COLUMNS, "error"]
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert {name: array.dtype.type for name, array in expected.items() if name != "error"} == COLUMNS


def test_what_is_wrong_is_said_of_each_image_alone(scorer: Scorer, pixels: AnyArray) -> None:
    Image.new("1", (2**13, 2**13)).save(bomb := io.BytesIO(), "PNG")
    images = [pixels[0], b"", np.full((5, 4), 2, np.float32), np.zeros((3, 3), np.uint8), pixels[1], bomb.getvalue()]
    found = scorer({"image": images, "key": np.arange(6)})
    assert found["key"].tolist() == [0, 1, 2, 3, 4, 5]
    assert [str(error)[:24] for error in found["error"]] == [
        "None",
        "the file cannot be read:",
        "pixels range from 2 to 2",
        "the image is 3×3 (height",
        "None",
        "the images have 67108864",
    ]
    expected = scorer({"image": pixels[:2]})
    for name in COLUMNS:
        np.testing.assert_array_equal(found[name][[0, 4]], expected[name])
    assert np.isnan(found["p_value"][[1, 2, 3, 5]]).all()
    assert not found["reliable"][[1, 2, 3, 5]].any()


def test_no_image_is_an_empty_answer_and_many_are_scored_some_at_a_time(
    scorer: Scorer, pixels: AnyArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = scorer({"image": np.zeros((0, 5, 4), np.uint8)})
    assert {name: (len(array), array.dtype.type) for name, array in empty.items()} == {
        **{name: (0, kind) for name, kind in COLUMNS.items()},
        "error": (0, np.object_),
    }
    expected = scorer({"image": pixels})
    monkeypatch.setattr("service.scoring.scorer.MOST_IMAGES", 4)
    assert scorer.batch_images == 4
    assert scorer({"image": pixels})["score"].tolist() == expected["score"].tolist()


def test_a_pickle_has_the_model_s_bytes_and_no_session(scorer: Scorer, pixels: AnyArray) -> None:
    expected = scorer({"image": pixels})
    content = pickle.dumps(scorer)
    assert len(content) < 100_000
    again: Scorer = pickle.loads(content)  # noqa: S301 (our own)
    assert "model" not in vars(again)
    np.testing.assert_array_equal(again({"image": pixels})["log_likelihood"], expected["log_likelihood"])


def test_an_image_that_cannot_be_computed_does_not_end_the_others(
    scorer: Scorer, pixels: AnyArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scorer({"image": pixels})
    measure = Scorer._measure

    def fail_at_the_third(self: Scorer, images: AnyArray) -> object:
        if (images == pixels[2] / np.float32(255)).all(axis=(1, 2, 3)).any():
            raise RUNTIME_ERRORS[0]("no such number\nand more")
        return measure(self, images)

    monkeypatch.setattr(Scorer, "_measure", fail_at_the_third)
    found = scorer({"image": pixels})
    assert [error for error in found["error"] if error] == ["it cannot be scored (no such number)"]
    others = np.delete(np.arange(COUNT), 2)
    np.testing.assert_array_equal(found["score"][others], expected["score"][others])


def test_colour_images_may_have_their_channels_last(tmp_path: Path) -> None:
    bernoulli_toy(ImageShape(channels=3, height=4, width=2), name="colour").publish(tmp_path)
    scorer = Scorer("colour", tmp_path, image="picture", proposal="encoder", num_samples=50)
    images = np.random.default_rng(1).integers(0, 256, (3, 3, 4, 2)).astype(np.uint8)
    first, second = (scorer({"picture": some}) for some in (images, images.transpose(0, 2, 3, 1)))
    np.testing.assert_array_equal(first["log_likelihood"], second["log_likelihood"])
