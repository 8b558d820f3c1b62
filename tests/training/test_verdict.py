"""Whether a model is good for its purpose, and what lossless formats need for the same images."""

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.photographs import photographs
from training.configuration import Configuration
from training.data.splits import DataSplits
from training.fit.gradients import log_weight_in_parts
from training.fit.loaded_model import load_model
from training.fit.run import Run
from training.fit.trainer import image_bounds, validate
from training.report.lossless import comparable_bits_per_dim, lossless_bits_per_dim
from training.report.verdict import Figures, judge, measure

GOOD = Figures(
    configuration=Configuration(epochs=100),
    num_channels=1,
    bits_per_dim=3.0,
    train_bits_per_dim=2.95,
    difference_error=0.02,
    lossless={"PNG": 3.6, "WebP": 3.3},
    num_validation=200,
    num_active=20,
    num_calibration=300,
    unused_epochs=0,
    minutes=4.0,
    reliable=0.97,
)


def test_a_good_model_is_called_good_and_told_what_might_still_help() -> None:
    first, *evidence, last = judge(GOOD).lines()
    assert first == "verdict: good: nothing speaks against its use"
    assert (
        "  bits per dimension of 200 validation images: model 3.000, lossless PNG 3.600, lossless WebP 3.300"
        in evidence
    )
    assert "  active latent units: 20 of 50" in evidence
    assert "  reliable estimates of log P(x): 97 % of the test images" in evidence
    assert any(
        line.startswith("  of 300 calibration images 100 fit the scores and 200 are compared") for line in evidence
    )
    assert last == "  next: more images, which help any model"
    hurried = judge(replace(GOOD, unused_epochs=300))
    assert hurried.advice == ["more time: --minutes 16, for 400 epochs instead of 100"]
    (larger,) = judge(replace(GOOD, num_active=47)).advice
    assert "--latent-dim 100" in larger


@pytest.mark.parametrize(
    ("changes", "problem", "advice"),
    [
        ({"bits_per_dim": 3.31}, "lossless WebP needs fewer bits (3.30 against 3.31)", "it overfits"),
        ({"bits_per_dim": 3.35, "train_bits_per_dim": 3.3}, "lossless WebP needs fewer bits", "more images"),
        ({"train_bits_per_dim": 2.7}, "it overfits: images that it was not trained on take 0.30 bits", "--flip"),
        ({"train_bits_per_dim": 2.7, "of_features": True}, "it overfits: images that it was not", "network (--width "),
        (
            {"num_active": 0},
            "the latent code carries nothing: none of 50 units",
            "--objective elbo --kl-warm-up-epochs",
        ),
        ({"num_calibration": 20}, "with 14 images to compare with, alpha = 0.05 never fires", "--num-calibration 30"),
        (
            {"detected": {"combined": 0.71, "kl": 0.4, "input_complexity": 0.9}},
            "its anomaly scores miss",
            "=input_comp",
        ),
        ({"reliable": 0.6}, "only 60 % of the estimates of log P(x) are reliable", "--latent-dim 25"),
    ],
)
def test_each_problem_is_named_with_its_remedy(changes: dict[str, Any], problem: str, advice: str) -> None:
    verdict = judge(replace(GOOD, **changes))
    assert any(found.startswith(problem) for found in verdict.problems), verdict.problems
    assert verdict.lines()[0] == f"verdict: not good yet: {'; '.join(verdict.problems)}"
    assert advice in verdict.advice[0] or advice in verdict.summary


@pytest.mark.parametrize("num_channels", [1, 3])
def test_pixels_that_are_modelled_apart_are_told_of_neighbours(num_channels: int) -> None:
    options: dict[str, Any] = {"binarisation": "none"}
    figures = replace(GOOD, num_channels=num_channels, bits_per_dim=3.4, train_bits_per_dim=3.4)
    for likelihood, told in (
        ("discretised_logistic", True),
        ("discretised_logistic_mixture", False),
        ("discretised_logistic_neighbours", False),
    ):
        verdict = judge(replace(figures, configuration=Configuration(**options, likelihood=likelihood)))
        assert verdict.problems
        assert ("--likelihood discretised_logistic_neighbours" in verdict.advice[0]) == told


def test_of_missed_defects_the_likelihood_of_neighbours_tells_the_other() -> None:
    options: dict[str, Any] = {"binarisation": "none"}
    for likelihood, told in (("discretised_logistic", False), ("discretised_logistic_neighbours", True)):
        configuration = Configuration(**options, likelihood=likelihood)
        figures = replace(GOOD, configuration=configuration, detected={"combined": 0.6, "kl": 0.7})
        assert ("--likelihood discretised_logistic," in judge(figures).advice[0]) == told


def test_a_difference_within_its_error_is_no_overfitting() -> None:
    assert replace(GOOD, train_bits_per_dim=2.7, difference_error=0.14).overfits
    assert not replace(GOOD, train_bits_per_dim=2.7, difference_error=0.16).overfits
    assert not replace(GOOD, train_bits_per_dim=2.9, difference_error=0.0).overfits


def test_the_gravest_problem_comes_first() -> None:
    verdict = judge(replace(GOOD, num_active=0, num_calibration=20, reliable=0.1))
    assert len(verdict.problems) == 3
    *_, first, second, third = verdict.lines()
    assert first.startswith("  next: --objective elbo")
    assert second == "  then: more images, or --num-calibration 30"
    assert third.startswith("  then: fewer latent units (--latent-dim 25)")
    given = Configuration(objective="elbo", kl_warm_up_epochs=3.0)
    assert "--free-bits" in judge(replace(GOOD, num_active=0, configuration=given)).advice[0]


def test_there_is_advice_on_the_three_gravest_problems() -> None:
    verdict = judge(
        replace(
            GOOD,
            bits_per_dim=3.4,
            train_bits_per_dim=2.7,
            num_active=0,
            num_calibration=20,
            detected={"combined": 0.6, "kl": 0.7},
            reliable=0.1,
        )
    )
    assert [problem.split(":")[0].split(" (")[0] for problem in verdict.problems] == [
        "the latent code carries nothing",
        "it overfits",
        "lossless WebP needs fewer bits",
        "its anomaly scores miss defects",
        "with 14 images to compare with, alpha = 0.05 never fires",
        "only 10 % of the estimates of log P(x) are reliable",
    ]
    code, overfitting, detection = verdict.advice
    assert code.startswith("--objective elbo")
    assert overfitting.startswith("more images; or --flip")
    assert detection.startswith("?method=kl")


def test_a_remedy_of_one_problem_does_not_make_another_worse() -> None:
    """A larger code and more epochs are no remedy of a model that overfits, nor that code where it is not searched."""
    hungry = replace(GOOD, bits_per_dim=3.4, train_bits_per_dim=3.39, num_active=50)  # as many as there are
    assert "--latent-dim 100" in judge(hungry).advice[0]
    assert judge(replace(hungry, reliable=0.5)).advice[1].startswith("fewer latent units (--latent-dim 25)")
    assert judge(replace(hungry, reliable=0.5)).advice[0] == "more images, which help any model"
    overfitted = replace(hungry, train_bits_per_dim=2.7)
    for figures in (overfitted, replace(overfitted, unused_epochs=300)):
        (told,) = judge(figures).advice
        assert told.startswith("more images; or --flip")
    few = judge(replace(overfitted, num_calibration=20)).advice
    assert [told.split(" or ")[0] for told in few] == ["more images;", "more images,"]


def test_densities_are_compared_with_no_format() -> None:
    assert not judge(replace(GOOD, lossless=None, bits_per_dim=-2.0, train_bits_per_dim=-2.05)).problems
    assert "a density of real numbers" in judge(replace(GOOD, lossless=None)).lines()[1]


def test_strips_are_lossless_and_know_black_and_white() -> None:
    images = photographs(12, 16, 20, channels=3)
    bits = lossless_bits_per_dim(images)
    strip = images.transpose(0, 2, 3, 1).reshape(-1, 20, 3)
    for name in bits:
        stream = io.BytesIO()
        Image.fromarray(strip).save(stream, name, **({"lossless": True} if name == "WebP" else {}))
        assert np.array_equal(np.asarray(Image.open(stream)), strip)
        assert bits[name] <= 8 * stream.tell() / images.size + 0.01
    noise = np.random.default_rng(1).integers(0, 256, (40, 1, 32, 32)).astype(np.uint8)
    assert all(7.9 < value < 8.4 for value in lossless_bits_per_dim(noise).values())
    coins = (noise > 127).astype(np.uint8) * np.uint8(255)
    assert all(0.98 < value < 1.2 for value in lossless_bits_per_dim(coins).values())


def test_a_run_is_measured_by_the_bounds_of_its_validation(finished_run: Run, splits: DataSplits) -> None:
    vae, configuration = load_model(finished_run).vae, finished_run.description.configuration
    figures = measure(finished_run, vae, splits)
    validation = torch.from_numpy(splits.validation)
    _, bound = validate(vae, validation, configuration)
    assert figures.bits_per_dim == pytest.approx(-bound / (784 * math.log(2)), rel=1e-9)
    assert image_bounds(vae, validation, configuration).mean().item() == pytest.approx(bound, rel=1e-9)
    assert (figures.num_validation, figures.num_calibration) == (len(splits.validation), len(splits.calibration))
    assert 0 < figures.num_active <= 6
    assert figures.train_bits_per_dim < figures.bits_per_dim + 0.1
    assert figures.unused_epochs == 1000 - configuration.epochs  # ten steps an epoch
    assert figures.lossless is not None
    assert all(0.1 < value < 0.5 for value in figures.lossless.values())  # binarised digits, not grey ones
    assert comparable_bits_per_dim(vae, validation, replace(configuration, binarisation="none")) is None


def test_where_training_has_one_sample_validation_has_four(
    finished_run: Run, splits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound of one image alone is then the logsumexp of four weights, and the ELBO their mean."""
    vae, one = load_model(finished_run).vae, replace(finished_run.description.configuration, num_samples=1)
    seen: list[torch.Tensor] = []

    def remembered(*arguments: Any) -> torch.Tensor:
        seen.append(log_weight_in_parts(*arguments))
        return seen[-1]

    monkeypatch.setattr("training.fit.trainer.log_weight_in_parts", remembered)
    elbo, bound = validate(vae, torch.from_numpy(splits.validation[:1]), one)
    (log_weights,) = seen
    assert log_weights.shape == (1, 4)
    assert elbo == pytest.approx(log_weights.double().mean().item(), rel=1e-12)
    assert bound == pytest.approx(torch.logsumexp(log_weights.double(), 1).item() - math.log(4), rel=1e-12)
    assert len(image_bounds(vae, torch.from_numpy(splits.validation[:1]), one)) == 1
    assert seen[1].shape == (1, 16)
