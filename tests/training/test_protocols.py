"""Of which images `publish` takes its figures, and by how many samples, where the user does not say."""

import argparse

import numpy as np
import pytest

from training.parser import build_parser
from training.publish.evaluation import Protocol
from training.publish.protocols import encoder_samples_of, measured_defects, measured_images, scoring_of

SMALL = np.arange(28 * 28 * 300, dtype=np.float32).reshape(300, 1, 28, 28)
LARGE = np.arange(28 * 29 * 300, dtype=np.float32).reshape(300, 1, 28, 29)


def parsed(*options: str) -> argparse.Namespace:
    return build_parser(None).parse_args(["publish", "run", "--name=n", *options])


def test_small_images_are_measured_as_the_literature_does() -> None:
    assert measured_images(parsed(), SMALL) is SMALL
    assert encoder_samples_of(parsed(), SMALL) == 5000


def test_large_images_are_measured_by_fewer_of_them() -> None:
    some = measured_images(parsed(), LARGE)
    assert isinstance(some, np.ndarray)
    assert len(some) == 256
    assert np.array_equal(some[[0, -1]], LARGE[[0, -1]])
    assert measured_images(parsed(), LARGE[:200]) is not LARGE
    assert len(measured_images(parsed(), LARGE[:200])) == 200
    assert encoder_samples_of(parsed(), LARGE) == 0


@pytest.mark.parametrize("images", [SMALL, LARGE])
def test_what_is_said_counts(images: "np.typing.NDArray[np.float32]") -> None:
    assert len(measured_images(parsed("--images=7"), images)) == 7
    assert len(measured_images(parsed("--images=7000"), images)) == 300
    assert encoder_samples_of(parsed("--encoder-samples=12"), images) == 12
    assert encoder_samples_of(parsed("--encoder-samples=0"), images) == 0


@pytest.mark.parametrize(
    ("options", "small", "large"),
    [
        ((), ("laplace", 128), ("encoder", 128)),
        (("--score-samples=9",), ("laplace", 9), ("encoder", 9)),
        (("--score-proposal=auto",), ("auto", 400), ("auto", 400)),
        (("--score-proposal=encoder",), ("encoder", 5000), ("encoder", 5000)),
        (("--score-proposal=laplace", "--score-samples=50"), ("laplace", 50), ("laplace", 50)),
    ],
)
def test_scores_take_few_samples_unless_said(
    options: tuple[str, ...], small: tuple[str, int], large: tuple[str, int]
) -> None:
    estimates = Protocol("auto", 400, 3)
    for images, (proposal, num_samples) in ((SMALL, small), (LARGE, large)):
        assert scoring_of(parsed(*options), estimates, images) == Protocol(proposal, num_samples, 3)


def test_scores_of_small_images_take_no_more_samples_than_estimates_and_other_proposals_are_kept() -> None:
    for images, estimates, scores in (
        (SMALL, Protocol("auto", 50, 3), Protocol("laplace", 50, 3)),
        (LARGE, Protocol("auto", 50, 3), Protocol("encoder", 128, 3)),
        (SMALL, Protocol("laplace", 400, 3), Protocol("laplace", 128, 3)),
        (LARGE, Protocol("laplace", 400, 3), Protocol("laplace", 400, 3)),
        (SMALL, Protocol("encoder", 300, 3), Protocol("encoder", 300, 3)),
        (SMALL, Protocol("prior", 300, 3), Protocol("prior", 300, 3)),
    ):
        assert scoring_of(parsed(), estimates, images) == scores


def test_kinds_of_defects_share_the_number_and_none_is_left_with_few() -> None:
    kinds = {"cut": LARGE, "dent": LARGE[:40], "stain": LARGE[:5]}
    found = measured_defects(parsed(), kinds)
    assert {kind: len(images) for kind, images in found.items()} == {"cut": 85, "dent": 40, "stain": 5}
    assert [len(images) for images in measured_defects(parsed("--images=6"), kinds).values()] == [16, 16, 5]
    assert len(measured_defects(parsed(), {"cut": SMALL})["cut"]) == 300
    assert measured_defects(parsed(), {}) == {}
