import math
from dataclasses import fields

import numpy as np
import pytest
from scipy.special import logsumexp

from service.engine.posterior.estimate import (
    MAX_RELIABLE_STD_ERROR,
    LogLikelihood,
    estimate,
    evidence_lower_bound,
    is_reliable,
)
from service.engine.posterior.pareto import fit_tail
from tests.engine.weights import figure_errors
from tests.rounding import FLOAT32, FLOAT64, FUNCTION, gamma
from tests.toys import AnyArray

INF = np.inf


def reduce(log_weight: object, num_pixels: int = 7) -> LogLikelihood:
    rows = np.atleast_2d(np.asarray(log_weight, np.float64))
    return estimate(rows, evidence_lower_bound(rows), num_pixels)


def skewed(num_images: int, num_samples: int, *, seed: int = 2) -> AnyArray:
    """Log-normal weights, a different spread for each image."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((num_images, num_samples)) * np.linspace(0.1, 1.5, num_images)[:, None] - 90


def test_every_figure_by_its_formula() -> None:
    log_weight = skewed(6, 400)
    record = reduce(log_weight)
    weight = np.exp(log_weight + 90)
    summed = gamma(400 + FUNCTION, FLOAT64)  # relative error of a sum of weights: absolute, of its logarithm
    shifted = gamma(4, FLOAT64) * np.abs(log_weight).max()
    np.testing.assert_allclose(
        record.log_likelihood, logsumexp(log_weight, axis=1) - np.log(400), rtol=0, atol=2 * summed + shifted
    )
    tail = np.sort(weight, axis=1)[:, -60:] / weight.max(axis=1, keepdims=True)  # 3·√400 of them
    beyond = np.maximum(fit_tail(log_weight).mean_square() - (tail**2).mean(axis=1), 0) * weight.max(axis=1) ** 2
    variance = weight.var(axis=1, ddof=1) + beyond * 60 / 400
    assert (beyond > 0).any()
    expected = np.sqrt(variance / 400) / weight.mean(axis=1)
    lost = (weight**2).mean(axis=1) / variance  # digits that a variance loses where it is small beside the square
    assert (np.abs(record.std_error - expected) <= 2 * summed * (1 + lost) * expected).all()
    np.testing.assert_allclose(record.effective_sample_size, weight.sum(1) ** 2 / (weight**2).sum(1), rtol=6 * summed)
    np.testing.assert_allclose(record.elbo, log_weight.mean(axis=1), rtol=2 * summed)
    np.testing.assert_allclose(record.posterior_gap, record.log_likelihood - record.elbo)
    np.testing.assert_allclose(record.bits_per_dim, -record.log_likelihood / 7 / math.log(2))
    assert (record.posterior_gap > 0).all()  # Jensen
    assert record.num_samples.tolist() == [400] * 6


@pytest.mark.parametrize("spread", [0.3, 0.7, 1.0, 1.4])
def test_the_interval_covers_the_truth_as_often_as_it_says(spread: float) -> None:
    """Log-normal weights of mean 1, whose sample deviation is too small when the largest were not drawn."""
    rng = np.random.default_rng(11)
    record = reduce(spread * rng.standard_normal((4000, 400)) - spread**2 / 2)
    covered = np.abs(record.log_likelihood) < 1.96 * record.std_error
    assert record.reliable.mean() > 0.75
    assert 0.95 < covered[record.reliable].mean() < 0.995


@pytest.mark.parametrize("num_samples", [2, 21, 1000])
def test_equal_weights_have_an_effective_sample_size_of_k(num_samples: int) -> None:
    record = reduce(np.full(num_samples, -80.0))
    np.testing.assert_allclose(record.log_likelihood, -80)
    assert record.std_error.tolist() == [0]
    assert record.effective_sample_size.tolist() == [num_samples]
    assert record.reliable.tolist() == [num_samples >= 21]  # below that there is no tail to look at


@pytest.mark.parametrize("num_samples", [2, 21, 1000])
def test_one_weight_alone_has_an_effective_sample_size_of_one(num_samples: int) -> None:
    log_weight = np.full(num_samples, -800.0)
    log_weight[num_samples // 2] = -5
    record = reduce(log_weight)
    np.testing.assert_allclose(record.log_likelihood, -5 - math.log(num_samples))
    np.testing.assert_allclose(record.effective_sample_size, 1)
    np.testing.assert_allclose(record.std_error, 1)  # the delta method's worst
    assert not record.reliable[0]


def test_a_single_sample_has_no_error_bar() -> None:
    record = reduce([-3.0])
    assert (record.log_likelihood[0], record.effective_sample_size[0]) == (-3, 1)
    assert np.isnan([record.std_error[0], record.pareto_k[0]]).all()
    assert not record.reliable[0]


@pytest.mark.parametrize("num_samples", [1, 30, 1000])
def test_weights_of_zero_count_as_samples(num_samples: int) -> None:
    log_weight = np.concatenate([np.full(num_samples, -INF), np.full(num_samples, -2.0)])
    record = reduce(log_weight)
    np.testing.assert_allclose(record.log_likelihood, -2 - math.log(2))
    np.testing.assert_allclose(record.effective_sample_size, num_samples)
    assert record.elbo[0] == -INF
    assert record.posterior_gap[0] == INF


@pytest.mark.parametrize("num_samples", [1, 2, 100])
def test_weights_all_zero_say_minus_infinity_and_unreliable(num_samples: int) -> None:
    record = reduce(np.full(num_samples, -INF))
    assert (record.log_likelihood[0], record.bits_per_dim[0]) == (-INF, INF)
    assert np.isnan([record.std_error[0], record.effective_sample_size[0], record.pareto_k[0]]).all()
    assert not record.reliable[0]


@pytest.mark.parametrize("value", [np.nan, INF])
@pytest.mark.parametrize("num_samples", [1, 2, 100])
def test_what_is_not_a_weight_spoils_only_its_own_image(value: float, num_samples: int) -> None:
    log_weight = skewed(3, num_samples)
    expected = reduce(log_weight)
    log_weight[1, -1] = value
    record = reduce(log_weight)
    assert not np.isfinite(record.log_likelihood[1])
    assert np.isnan(record.std_error[1])
    assert not record.reliable[1]
    for field in fields(LogLikelihood):
        np.testing.assert_array_equal(getattr(record, field.name)[[0, 2]], getattr(expected, field.name)[[0, 2]])


def test_opposite_infinities_are_no_number_and_no_warning() -> None:
    assert np.isnan(evidence_lower_bound(np.array([[INF, -INF]], np.float32))).all()


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_a_common_factor_shifts_the_estimate_and_nothing_else(shift: float) -> None:
    log_weight = skewed(5, 300)
    record, shifted = reduce(log_weight), reduce(log_weight + shift)
    rounded = gamma(1 + FUNCTION, FLOAT64) * np.abs(log_weight + shift).max()  # the shifted weights, and what they give
    errors = figure_errors(log_weight, rounded, 7)
    for name in ("std_error", "posterior_gap", "effective_sample_size", "pareto_k"):
        assert (np.abs(getattr(shifted, name) - getattr(record, name)) <= errors[name]).all(), name
    for name in ("log_likelihood", "elbo"):
        assert (np.abs(getattr(shifted, name) - getattr(record, name) - shift) <= errors[name]).all(), name


def test_the_sums_are_float64_whatever_comes() -> None:
    log_weight = np.full((1, 100_000), -87.3, np.float32)
    log_weight[0, ::2] -= 1
    exact = math.log((1 + math.exp(-1)) / 2) - float(np.float32(87.3))
    record = estimate(log_weight, evidence_lower_bound(log_weight), 1)
    assert record.log_likelihood.dtype == record.elbo.dtype == np.float64
    # A number of float32 less 1 is one of float32 again, or rounded once; the sums add nothing that float32 could show.
    rounded = FLOAT32 * 88.3 + gamma(log_weight.size + FUNCTION, FLOAT64) * 88.3
    np.testing.assert_allclose(record.log_likelihood, exact, rtol=0, atol=rounded)
    np.testing.assert_allclose(record.elbo, -float(np.float32(87.3)) - 0.5, rtol=0, atol=rounded)


@pytest.mark.parametrize(
    ("tail_shape", "std_error", "num_samples", "reliable"),
    [
        (0.69, 0.1, 10_000, True),
        (0.71, 0.1, 10_000, False),
        (0.66, 0.1, 1000, True),  # 1 − 1/log10(1000) = 0.667
        (0.67, 0.1, 1000, False),
        (0.49, 0.1, 100, True),
        (0.51, 0.1, 100, False),
        (-INF, 0.0, 100, True),
        (0.3, MAX_RELIABLE_STD_ERROR, 1000, True),
        (0.3, np.nextafter(MAX_RELIABLE_STD_ERROR, 1), 1000, False),
        (np.nan, 0.1, 1000, False),
        (0.3, np.nan, 1000, False),
        (-INF, 0.0, 1, False),
    ],
)
def test_the_rule_of_reliability(tail_shape: float, std_error: float, num_samples: int, reliable: bool) -> None:
    assert is_reliable(np.array([tail_shape]), np.array([std_error]), num_samples).tolist() == [reliable]


def test_what_is_joined_can_be_taken_apart() -> None:
    parts = [reduce(skewed(2, 50)), reduce(skewed(1, 90, seed=3))]
    joined = LogLikelihood.join(parts)
    assert joined.num_samples.tolist() == [50, 50, 90]
    for field in fields(LogLikelihood):
        np.testing.assert_array_equal(getattr(joined.take(np.array([2])), field.name), getattr(parts[1], field.name))
        np.testing.assert_array_equal(
            getattr(joined.take(np.array([True, True, False])), field.name), getattr(parts[0], field.name)
        )


def test_unreliable_samples_say_why() -> None:
    rng = np.random.default_rng(0)
    heavy = np.log(rng.pareto(1.0, (1, 400)) + 1)
    assert estimate(heavy, np.zeros(1), num_pixels=1).reason.tolist() == ["tail"]
    few = rng.normal(0, 0.1, (1, 10))  # no tail can be fitted to so few
    assert estimate(few, np.zeros(1), num_pixels=1).reason.tolist() == ["budget"]
    even = rng.normal(0, 0.1, (1, 400))
    record = estimate(even, np.zeros(1), num_pixels=1)
    assert record.reliable.tolist() == [True]
    assert record.reason.tolist() == [""]
