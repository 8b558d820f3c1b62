import numpy as np
import pytest
from arviz_stats.base import array_stats
from scipy.integrate import quad
from scipy.stats import genpareto

from service.engine.posterior.pareto import fit_tail, pareto_k
from tests.engine.weights import figure_errors
from tests.rounding import FLOAT64, FUNCTION, gamma
from tests.toys import AnyArray

INF = np.inf


def log_weights(shape: float, num_images: int, num_samples: int, *, seed: int = 8) -> AnyArray:
    """Log weights whose tail is exactly generalised Pareto."""
    weights = 1 + genpareto(shape).rvs((num_images, num_samples), random_state=np.random.default_rng(seed))
    return np.asarray(np.log(weights))


def arviz_k(log_weight: AnyArray) -> AnyArray:
    """arviz-stats takes log likelihoods and negates them: −log w in, for weights w."""
    return np.array([array_stats.psislw(-row)[1] for row in log_weight]).ravel()


# Tails of a whole number of weights: the paper rounds their number up, arviz-stats down.
@pytest.mark.parametrize("num_samples", [25, 100, 225, 400, 10_000, 90_000])
@pytest.mark.parametrize("shape", [-0.5, 0.0, 0.3, 0.7, 1.0])
def test_the_fit_is_arviz_stats(num_samples: int, shape: float) -> None:
    log_weight = log_weights(shape, 3, num_samples)
    # Shapes on a grid are weighed by exp(M·profile): what rounding does to the profile counts as often as there are
    # weights in the tail, and with it what the difference from the cutoff loses of a weight.
    tail = fit_tail(log_weight)
    lost = 1 + tail.cutoff / tail.scale
    error = gamma(tail.size * 4 * FUNCTION, FLOAT64) * lost * (1 + np.abs(tail.shape))
    assert (np.abs(pareto_k(log_weight) - arviz_k(log_weight)) <= error).all()
    assert np.abs(pareto_k(log_weight) - arviz_k(-log_weight)).max() > 0.05  # the sign matters


@pytest.mark.parametrize("num_samples", [111, 1000, 4999])
def test_rounding_the_tails_length_up_changes_little(num_samples: int) -> None:
    log_weight = log_weights(0.5, 200, num_samples)
    assert np.abs(pareto_k(log_weight) - arviz_k(log_weight)).mean() < 0.1
    assert abs(pareto_k(log_weight).mean() - arviz_k(log_weight).mean()) < 0.02


@pytest.mark.parametrize("shape", [-0.5, -0.2, 0.0, 0.3, 0.5, 0.7, 1.0])
def test_a_known_shape_is_found(shape: float) -> None:
    tail = 3 * np.sqrt(100_000)
    found = pareto_k(log_weights(shape, 8, 100_000))
    # The prior pulls towards 0.5; the estimator's own deviation is about (1 + k) / √tail.
    expected = (tail * shape + 10 * 0.5) / (tail + 10)
    assert np.abs(found - expected).max() < 4 * (1 + max(shape, 0)) / np.sqrt(tail)
    assert abs(found.mean() - expected) < 3 * (1 + max(shape, 0)) / np.sqrt(8 * tail)


@pytest.mark.parametrize("shape", [-0.5, 0.0, 0.3, 0.7])
def test_the_tails_mean_square_is_the_integral_to_what_one_in_twenty_would_meet(shape: float) -> None:
    tail = fit_tail(log_weights(shape, 3, 400))
    heavier = np.minimum(tail.shape + (1 + np.maximum(tail.shape, 0)) / np.sqrt(tail.size), 1)
    end = 1 / (20 * tail.size)
    for image, found in enumerate(tail.mean_square()):
        beyond = genpareto(heavier[image], loc=tail.cutoff[image], scale=tail.scale[image])
        exact, error = np.array(quad(lambda u, beyond=beyond: beyond.isf(u) ** 2, end, 1, limit=500)) / (1 - end)
        # Of 48 nodes, the quadrature of an exponential has no error that float64 could show; SciPy tells its own.
        assert abs(found - exact) <= error + gamma(48 + 4 * FUNCTION, FLOAT64) * exact


def test_no_tail_has_no_mean_square() -> None:
    assert np.isnan(fit_tail(np.zeros((2, 10))).mean_square()).all()


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_neither_a_common_factor_nor_the_order_matters(shift: float) -> None:
    log_weight = log_weights(0.4, 5, 300)
    shuffled = np.random.default_rng(0).permutation(log_weight, axis=1)
    rounded = gamma(1 + FUNCTION, FLOAT64) * np.abs(log_weight + shift).max()
    error = figure_errors(log_weight, rounded, 1)["pareto_k"]
    assert (np.abs(pareto_k(shuffled + shift) - pareto_k(log_weight)) <= error).all()


def test_an_images_shape_does_not_depend_on_its_batch() -> None:
    log_weight = np.concatenate([log_weights(k, 1, 1000) for k in (-0.5, 0.2, 0.9)] + [np.zeros((1, 1000))])
    together = pareto_k(log_weight)
    np.testing.assert_array_equal(together, [pareto_k(row[None])[0] for row in log_weight])
    assert (np.diff(together[:3]) > 0).all()


@pytest.mark.parametrize("num_samples", [1, 2, 5, 19, 20])
def test_fewer_than_five_in_the_tail_say_nothing(num_samples: int) -> None:
    assert np.isnan(pareto_k(np.zeros((3, num_samples)))).all()


@pytest.mark.parametrize("num_samples", [21, 25, 225, 226, 1000, 100_000])
def test_every_length_has_an_answer(num_samples: int) -> None:
    assert np.isfinite(pareto_k(log_weights(0.5, 2, num_samples))).all()
    assert pareto_k(np.full((2, num_samples), -80.0)).tolist() == [-INF, -INF]


@pytest.mark.parametrize("value", [np.nan, INF])
def test_what_is_not_a_weight_makes_its_own_image_unknown(value: float) -> None:
    log_weight = log_weights(0.5, 3, 100)
    expected = pareto_k(log_weight)
    log_weight[1, 17] = value
    found = pareto_k(log_weight)
    assert np.isnan(found[1])
    np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])


def test_zero_weights_are_weights() -> None:
    log_weight = log_weights(0.5, 4, 1000)
    expected = pareto_k(log_weight)
    log_weight[log_weight < np.median(log_weight, axis=1, keepdims=True)] = -INF
    np.testing.assert_array_equal(pareto_k(log_weight), expected)  # they are not in the tail


@pytest.mark.parametrize("num_positive", [1, 2, 5, 30, 94])
def test_almost_all_weight_on_few_samples_is_a_heavy_tail(num_positive: int) -> None:
    log_weight = np.full((1, 1000), -INF)
    log_weight[0, :num_positive] = np.linspace(0, 0.1, num_positive)
    assert (pareto_k(log_weight) > 0.7) == (num_positive <= 30)
    assert not np.isnan(pareto_k(log_weight)).any()
    assert np.isnan(pareto_k(np.full((1, 1000), -INF))).all()


@pytest.mark.parametrize("high", [3, 24, 60, 400])
def test_ties_give_a_number(high: int) -> None:
    """Weights of two values: the tail may be all one of them, or mostly ties at the cutoff."""
    log_weight = np.zeros((1, 1000))
    log_weight[0, :high] = 1.0
    k = pareto_k(log_weight)[0]
    assert not np.isnan(k)
    assert k == -INF if high > 95 else k > 0.7
