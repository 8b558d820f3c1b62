"""Scores against calibration images: what they guarantee, and what they refuse."""

import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy import stats

from model_store import FITTING
from service.engine.anomaly.detector import (
    Detector,
    Judgement,
    UncalibratedModelError,
    UnknownMethodError,
    compared_with,
    fitting_images,
)
from service.engine.anomaly.scores import METHODS
from service.engine.anomaly.statistics import Statistics
from service.engine.calibration import calibrate
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.runtime import Session
from tests import reference
from tests.engine.test_statistics import GREY, ORACLE
from tests.toys import AnyArray


def draw(rng: np.random.Generator, num_images: int, *, ties: bool = False) -> dict[str, AnyArray]:
    """Statistics as of a model: correlated, skewed, and some whole numbers."""
    size = rng.gamma(5, 8, num_images)
    log_likelihood = -60 - size + rng.normal(0, 4, num_images)
    drawn = {
        "log_likelihood": log_likelihood,
        "elbo": log_likelihood - rng.gamma(4, 1, num_images),
        "kl": 5 + 0.2 * size + rng.gumbel(size=num_images),
        "complexity": 8 * np.log(2) * np.round(80 + size),
        "mean": rng.normal(0, 3, (num_images, 2)) + size[:, None] / 20,
    }
    return {name: np.round(array / 8) if ties else array for name, array in drawn.items()}


def detector(calibration: dict[str, AnyArray]) -> Detector:
    return Detector({**Statistics(**calibration).measured(), FITTING: fitting_images(len(calibration["elbo"]))})


def judge(
    found: Detector, images: dict[str, AnyArray], *, alpha: float = 0.05, fdr: float | None = None
) -> dict[str, Judgement]:
    return complete(found.judge(Statistics(**images), tuple(METHODS), alpha=alpha, fdr=fdr))


def trials() -> Iterator[tuple[dict[str, AnyArray], dict[str, AnyArray]]]:
    """Calibrations of 30 images, and one image each to score: 10 fit, 20 are compared with."""
    for seed in range(1500):
        rng = np.random.default_rng([3, seed])
        yield draw(rng, 30), draw(rng, 1)


def test_every_method_flags_ordinary_images_as_often_as_it_may() -> None:
    """Without ties, P(p ≤ α) is exactly k/(n + 1), whatever a method has fitted: a binomial count over the trials."""
    alpha, num_compared = 0.2, 20
    assert compared_with(30) == num_compared
    expected = stats.binom(1500, np.floor(alpha * (num_compared + 1)) / (num_compared + 1))
    flagged = dict.fromkeys(METHODS, 0)
    for calibration, image in trials():
        for name, judgement in judge(detector(calibration), image, alpha=alpha).items():
            flagged[name] += int(judgement.is_anomaly[0])
    for name, count in flagged.items():
        assert expected.ppf(0.0005) <= count <= expected.ppf(0.9995), name


def test_with_ties_no_method_flags_more() -> None:
    alpha, flagged = 0.2, dict.fromkeys(METHODS, 0)
    for seed in range(600):
        rng = np.random.default_rng([4, seed])
        found = detector(draw(rng, 30, ties=True))
        for name, judgement in judge(found, draw(rng, 1, ties=True), alpha=alpha).items():
            flagged[name] += int(judgement.is_anomaly[0])
    assert max(flagged.values()) <= stats.binom(600, alpha).ppf(0.9995)


def test_what_is_fitted_knows_nothing_of_the_images_compared_with() -> None:
    rng = np.random.default_rng(5)
    calibration, image = draw(rng, 60), draw(rng, 4)
    fitting = fitting_images(60) == 1
    moved = {name: np.where(fitting, array.T, array.T + 7).T for name, array in calibration.items()}
    scores, others = judge(detector(calibration), image), judge(detector(moved), image)
    for name in METHODS:
        np.testing.assert_array_equal(scores[name].score, others[name].score)
    shifted = {name: np.where(fitting, array.T + 7, array.T).T for name, array in calibration.items()}
    refitted = judge(detector(shifted), image)
    changed = {name for name in METHODS if (refitted[name].score != scores[name].score).all()}
    assert changed == {name for name, method in METHODS.items() if method.fits}


def test_a_gap_that_is_rounding_is_no_part_of_combined() -> None:
    """With an exact encoder ELBO is log P(x) but for rounding, which a strange image may have more or less of."""
    rng = np.random.default_rng(8)
    calibration, images = draw(rng, 300), draw(rng, 40)
    for drawn in (calibration, images):
        drawn["elbo"] = drawn["log_likelihood"] - 1e-11 * rng.random(len(drawn["elbo"]))
    found = detector(calibration)
    scores = judge(found, images)["combined"]
    images["elbo"] = images["log_likelihood"] - 1e-9
    images["elbo"][1] = np.nan
    again = judge(found, images)["combined"]
    np.testing.assert_array_equal(np.delete(again.score, 1), np.delete(scores.score, 1))
    assert again.p_value[1] == 1 / 201
    calibration["elbo"] -= rng.gamma(4, 1e-3, 300)  # a thousandth of a nat is more than rounding
    assert (judge(detector(calibration), images)["combined"].score != again.score)[2:].all()


def test_a_false_discovery_rate_is_decided_over_all_images() -> None:
    rng = np.random.default_rng(6)
    found = detector(draw(rng, 3000))
    images = draw(rng, 100)
    images["log_likelihood"][:30] -= 400
    decided = judge(found, images, fdr=0.1)["log_likelihood"]
    assert decided.is_anomaly[:30].all()
    assert 30 <= decided.is_anomaly.sum() <= 38
    threshold = decided.p_value[decided.is_anomaly].max()
    np.testing.assert_array_equal(decided.is_anomaly, decided.p_value <= threshold)
    alone = judge(found, {name: array[30:31] for name, array in images.items()}, fdr=0.1)["log_likelihood"]
    assert alone.is_anomaly[0] == (alone.p_value[0] <= 0.1)


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
@pytest.mark.parametrize("name", ["log_likelihood", "elbo", "complexity", "mean"])
def test_what_is_not_a_number_is_strange_and_no_warning(name: str, value: float) -> None:
    rng = np.random.default_rng(7)
    found, image = detector(draw(rng, 90)), draw(rng, 2)
    before = judge(found, image)
    image[name] = image[name].copy()
    image[name][0] = value
    scores = judge(found, image)
    assert scores["combined"].p_value[0] == 1 / 61
    for method in METHODS:
        assert 1 / 61 <= scores[method].p_value[0] <= 1
        assert scores[method].p_value[1] == before[method].p_value[1]
        if np.isnan(value) and np.isnan(scores[method].score[0]):
            assert scores[method].p_value[0] == 1 / 61


@pytest.mark.parametrize("num_images", range(1, 10))
def test_tiny_calibration_sets(num_images: int) -> None:
    """They serve what they can, and their p-values are what so few can tell."""
    rng = np.random.default_rng(num_images)
    found = detector(draw(rng, num_images))
    num_compared = compared_with(num_images)
    assert found.calibration_size == num_compared >= 1
    served = found.choose(["kl"]) + found.choose([])
    if num_images - num_compared < 2:
        assert served == ("kl", "log_likelihood")
        with pytest.raises(
            UncalibratedModelError, match="combined needs calibration images' scores of 2 images or more"
        ):
            found.choose(["combined"])
    else:
        assert served == ("kl", "combined")
    images = draw(rng, 50)
    scores = complete(found.judge(Statistics(**images), served, alpha=0.05, fdr=None))
    for judgement in scores.values():
        assert np.isfinite(judgement.score).all()
        assert set(judgement.p_value) <= set(np.arange(1, num_compared + 2) / (num_compared + 1))


def test_one_statistic_that_never_varies_does_no_harm() -> None:
    rng = np.random.default_rng(8)
    calibration = {**draw(rng, 90), "complexity": np.full(90, 900.0)}
    images = {**draw(rng, 20), "complexity": np.full(20, 900.0)}
    scores = judge(detector(calibration), images)["combined"]
    assert np.isfinite(scores.score).all()
    images["complexity"][0] = 100
    assert judge(detector(calibration), images)["combined"].p_value[0] == 1 / 61


def test_an_older_calibration_serves_what_it_can() -> None:
    rng = np.random.default_rng(9)
    full = draw(rng, 90)
    assert detector(full).default_method == "combined"
    found = Detector({name: full[name] for name in ("log_likelihood", "elbo")})
    assert found.default_method == "log_likelihood"
    assert found.calibration_size == 90
    assert found.choose(["posterior_gap", "log_likelihood", "posterior_gap"]) == ("posterior_gap", "log_likelihood")
    for method, lacking in {
        "typicality": "scores of 2 images or more to fit",
        "input_complexity": "complexity",
        "reconstruction": "reconstruction",
        "kl": "kl",
        "combined": "complexity, latent_0",
    }.items():
        with pytest.raises(UncalibratedModelError) as caught:
            found.choose(["log_likelihood", method])
        assert str(caught.value).startswith(f"{method} needs calibration images' {lacking}, which this version lacks")
        assert "score by: log_likelihood, posterior_gap. `python -m service calibrate`" in str(caught.value)
    with pytest.raises(UnknownMethodError, match=f"unknown method 'magic'; accepted: {', '.join(METHODS)}"):
        found.choose(["kl", "magic"])


@pytest.fixture(scope="module")
def model() -> Model:
    toy = ORACLE.toy(GREY, widen=1.2)
    return reference.load(reference.calibrated(toy, ORACLE.draw(240, GREY, seed=41)))


def test_a_models_ordinary_images_pass_and_strange_ones_do_not(model: Model) -> None:
    x = ORACLE.draw(200, GREY, seed=42)
    x[:20, 0] = np.random.default_rng(1).integers(0, 2, (20, 9, 7))
    scores = complete(model.anomaly_scores(x, methods=list(METHODS)))
    assert list(scores.by_method) == list(METHODS)
    assert scores.calibration_size == 160
    for name in ("log_likelihood", "reconstruction", "typicality", "combined"):
        assert (scores.by_method[name].p_value[:20] == 1 / 161).all(), name
    for name in METHODS:
        flagged = int(scores.by_method[name].is_anomaly[20:].sum())
        assert flagged <= stats.betabinom(180, 8, 153).ppf(0.999), name


def test_several_methods_are_each_what_it_is_alone(model: Model) -> None:
    x = ORACLE.draw(5, GREY, seed=43)
    together = complete(model.anomaly_scores(x, methods=["kl", "combined", "typicality"], alpha=0.3)).by_method
    for name, judgement in together.items():
        (alone,) = complete(model.anomaly_scores(x, methods=[name], alpha=0.3)).by_method.values()
        np.testing.assert_array_equal(alone.score, judgement.score)
        np.testing.assert_array_equal(alone.is_anomaly, judgement.is_anomaly)
    (default,) = complete(model.anomaly_scores(x)).by_method
    assert default == "combined"


def test_several_methods_cost_one_pass(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graph runs are counted: all methods take those of one."""
    runs, run = [0], Session.run

    def counted(session: Session, inputs: Any) -> Any:
        runs[0] += 1
        return run(session, inputs)

    monkeypatch.setattr(Session, "run", counted)
    taken = []
    for methods in (["log_likelihood"], list(METHODS)):
        runs[0] = 0
        complete(model.anomaly_scores(ORACLE.draw(5, GREY, seed=43), methods=methods))
        taken.append(runs[0])
    assert taken[0] == taken[1] > 0


def test_memory_does_not_grow_with_samples_of_all_images(model: Model) -> None:
    """What 4000 images more take is their own numbers, not 200 log weights each."""

    def peak(num_images: int) -> int:
        pixels = np.zeros((num_images, *GREY.chw), np.float32)
        tracemalloc.start()
        complete(model.anomaly_scores(pixels, methods=list(METHODS)))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    pixel_bytes = 4 * GREY.size
    assert (peak(5000) - peak(1000)) / 4000 < 4 * pixel_bytes < 2 * 4 * 200


class Improbable:
    """A model that finds its second image impossible."""

    def statistics(self, pixels: AnyArray, **protocol: Any) -> Any:
        """Of any images."""
        yield
        found = draw(np.random.default_rng(10), len(pixels))
        found["elbo"][1], found["log_likelihood"][1] = -np.inf, np.nan
        return Statistics(**found)


def test_an_impossible_image_calibrates_as_the_strangest() -> None:
    improbable: Any = Improbable()
    pixels = np.zeros((90, 1), np.float32)
    arrays = calibrate(improbable, [pixels], proposal="laplace", num_samples=4, seed=0)
    assert all(np.isfinite(array).all() for array in arrays.values())
    found = Detector(arrays)
    images = draw(np.random.default_rng(11), 50)
    assert 0.3 < judge(found, images)["combined"].p_value.mean() < 0.7
    for method in METHODS:
        assert np.isfinite(judge(found, images)[method].score).all(), method
    images["log_likelihood"][0] = -1e6
    assert judge(found, images)["log_likelihood"].p_value[0] == 2 / 61  # the impossible one is further out


def test_the_summary_tells_the_scores_that_p_values_compare_with() -> None:
    images = draw(np.random.default_rng(5), 90)
    compared = fitting_images(90) == 0
    summary = detector(images).summary(np.array([0, 0.5, 1]))
    assert set(summary.quantiles) == set(METHODS)
    scores = np.sort(-images["log_likelihood"][compared])  # 60 of them
    assert summary.quantiles["log_likelihood"].tolist() == [scores[0], scores[29], scores[59]]
    codes = images["mean"][compared]
    assert summary.code_mean is not None
    assert summary.code_variance is not None
    np.testing.assert_allclose(summary.code_mean, codes.mean(axis=0))
    np.testing.assert_allclose(summary.code_variance, codes.var(axis=0))
