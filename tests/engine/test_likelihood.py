from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from tests.likelihoods import (
    Bernoulli,
    DiscretisedLogistic,
    Gaussian,
    GaussianWithScale,
    Reference,
    graph_of,
    run_likelihood,
    spec_of,
)
from tests.rounding import FLOAT32, FLOAT64, FUNCTION, gamma, sum_error
from tests.toys import AnyArray

# 784 = 14·56; 127 is prime and above 64, 61 prime and below; 128 = 2·64; 3·6·5 is a colour image
SHAPES = [(1, 1, 1), (1, 1, 61), (1, 1, 127), (1, 16, 8), (1, 28, 28), (3, 6, 5)]


def run_graph(likelihood: Reference, x: AnyArray, parameters: AnyArray) -> AnyArray:
    """log p by the likelihood's graph, of one parameter: x [B, C, H, W], parameters [B, K, C, H, W] → [B, K]."""
    return run_graphs(likelihood, x, {likelihood.outputs[0]: parameters})


def run_graphs(likelihood: Reference, x: AnyArray, parameters: dict[str, AnyArray]) -> AnyArray:
    """The same of all its parameters, each [B, K, C, H, W]."""
    num_images, num_samples = next(iter(parameters.values())).shape[:2]
    inputs = {"x": x.reshape(num_images, 1, -1)}
    inputs |= {name: value.reshape(num_images, num_samples, -1) for name, value in parameters.items()}
    return run_likelihood(graph_of(spec_of(likelihood), x[0].size), ["log_prob"], inputs)[0]


def draw(shape: tuple[int, int, int], *, scale: float, seed: int = 1) -> tuple[AnyArray, AnyArray]:
    """Binary images [2, C, H, W] and parameters [2, 3, C, H, W]."""
    rng = np.random.default_rng(seed)
    x = (rng.random((2, *shape)) < 0.3).astype(np.float32)
    return x, (scale * rng.standard_normal((2, 3, *shape))).astype(np.float32)


def bernoulli_terms(x: AnyArray, logits: AnyArray) -> AnyArray:
    """What a graph adds up, made positive: x·l, max(l, 0) and, as a factor from 1 to 2, 1 + exp(−|l|): → [...].

    An error relative to a factor is an absolute one of its logarithm.
    """
    l = logits.astype(np.float64)  # noqa: E741
    return np.asarray((x * np.abs(l) + np.maximum(l, 0) + 1 + np.exp(-np.abs(l))).sum(axis=(-3, -2, -1)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.01, 3.0, 60.0, 1000.0])
def test_bernoulli_graph_is_the_reference(shape: tuple[int, int, int], scale: float) -> None:
    x, logits = draw(shape, scale=scale)
    reference = Bernoulli().log_prob(x[:, None], {"logits": logits})
    error = sum_error(x[0].size, bernoulli_terms(x[:, None], logits))
    assert (np.abs(run_graph(Bernoulli(), x, logits) - reference) <= error).all()


@pytest.mark.parametrize("extreme", [60.0, 88.0, 104.0, 1000.0, 1e30])
def test_bernoulli_stays_exact_at_extreme_logits(extreme: float) -> None:
    x = np.array([0, 1, 0, 1] * 32, np.float32).reshape(1, 1, 16, 8)
    signs = np.array([1, 1, -1, -1] * 32, np.float32).reshape(x.shape)
    for sign in (1, -1):
        logits = sign * extreme * signs
        reference = Bernoulli().log_prob(x, {"logits": logits})
        # Half of the pixels are certain and wrong; 1e30 is not a number of float32.
        np.testing.assert_allclose(reference, -64 * extreme, rtol=FLOAT32 + gamma(x.size + FUNCTION, FLOAT64))
        error = sum_error(x.size, bernoulli_terms(x, logits))
        assert (np.abs(run_graph(Bernoulli(), x, logits[None])[0] - reference) <= error).all()


def test_bernoulli_is_scipys() -> None:
    x, logits = draw((3, 4, 5), scale=3.0)
    expected = stats.bernoulli.logpmf(x[:, None], expit(logits.astype(np.float64))).sum(axis=(-3, -2, -1))
    # SciPy's log(1 − p) has lost the digits that 1 − p has: p's rounding, times p/(1 − p) ≤ exp(|l|).
    lost = np.exp(np.abs(logits.astype(np.float64))).sum(axis=(-3, -2, -1))
    error = sum_error(x[0].size, bernoulli_terms(x[:, None], logits) + lost, FLOAT64)
    assert (np.abs(Bernoulli().log_prob(x[:, None], {"logits": logits}) - expected) <= error).all()
    found = run_likelihood(
        graph_of(spec_of(Bernoulli()), 60), ["mean"], {"x": x.reshape(2, 1, -1), "logits": logits.reshape(2, 3, -1)}
    )[0].reshape(logits.shape)
    assert np.abs(found - expit(logits.astype(np.float64))).max() <= gamma(FUNCTION)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0])
def test_gaussian_graph_is_the_reference(shape: tuple[int, int, int], scale: float) -> None:
    x, loc = draw(shape, scale=2.0)
    likelihood = Gaussian(scale)
    reference = likelihood.log_prob(x[:, None], {"loc": loc})
    cost = likelihood.log_prob(loc, {"loc": loc}) - reference  # the squares alone, all positive
    # A square has the rounding of a difference, twice, and its own; the normaliser is in float64.
    error = sum_error(x[0].size, cost, roundings_of_a_term=3) + gamma(FUNCTION, FLOAT64) * np.abs(reference)
    assert (np.abs(run_graph(likelihood, x, loc) - reference) <= error).all()


def test_gaussian_is_scipys() -> None:
    x, loc = draw((3, 4, 5), scale=2.0)
    expected = stats.norm(loc.astype(np.float64), 0.3).logpdf(x[:, None]).sum(axis=(-3, -2, -1))
    error = sum_error(
        x[0].size, np.abs(Gaussian(0.3).pixel_log_prob(x[:, None], {"loc": loc})).max() * x[0].size, FLOAT64
    )
    assert (np.abs(Gaussian(0.3).log_prob(x[:, None], {"loc": loc}) - expected) <= error).all()


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.5)], ids=["bernoulli", "gaussian"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_parameter_that_is_no_number_is_not_hidden(likelihood: Reference, value: float) -> None:
    x, parameters = draw((1, 5, 5), scale=1.0)
    parameters[1, 2, 0, 3, 4] = value
    log_prob: Any = run_graph(likelihood, x, parameters)
    assert not np.isfinite(log_prob[1, 2])
    log_prob[1, 2] = 0
    assert np.isfinite(log_prob).all()


ALL = [Bernoulli(), Gaussian(0.05), GaussianWithScale(), DiscretisedLogistic()]


def photograph(likelihood: Reference, shape: tuple[int, int, int]) -> tuple[AnyArray, dict[str, AnyArray]]:
    """An image [1, C, H, W] and parameters [1, 2, C, H, W], all float32."""
    rng = np.random.default_rng(5)
    x = rng.random((1, *shape))
    if isinstance(likelihood, Bernoulli):
        x = np.rint(x)
    if likelihood.levels is not None:
        x = np.rint(x * (likelihood.levels - 1)) / (likelihood.levels - 1)
    drawn = {
        "loc": 0.5 + 0.05 * rng.standard_normal((1, 2, *shape)),
        "log_scale": rng.normal(-2, 0.3, (1, 2, *shape)),
        "logits": 2 * rng.standard_normal((1, 2, *shape)),
    }
    parameters = {name: np.asarray(drawn[name], np.float32) for name in likelihood.outputs}
    return x.astype(np.float32), parameters


@pytest.mark.parametrize("shape", [(3, 300, 300), (3, 512, 512)])
def test_a_gaussians_sum_over_a_photograph_is_exact(shape: tuple[int, int, int]) -> None:
    """Constant parameters, in closed form: 13 million nats, where float32 has steps of 1.

    Rounding is independent from one operation to the next (Higham and Mary 2019, SIAM J. Sci. Comput. 41:A2815): of
    each square, a difference's counted twice and its own, and 15 of each sum of 16. Their root of squares, six times.
    """
    x = np.random.default_rng(2).random((1, *shape), np.float32)
    scale, loc = 0.05, np.full((1, 1, *shape), 0.375, np.float32)  # exact in float32
    squares = np.square(x.astype(np.float64) - 0.375)
    distance = squares.sum()
    sums = squares.reshape(-1, 16).sum(axis=1)
    bound = 6 * FLOAT32 * np.sqrt(5 * (squares**2).sum() + 15 * (sums**2).sum()) / 2
    exact = -0.5 * distance / scale**2 - x.size * (np.log(scale) + 0.5 * np.log(2 * np.pi))
    assert abs(exact) > 1e6
    error = run_graph(Gaussian(scale), x, loc)[0, 0] - exact
    assert abs(error) < bound / scale**2 < 0.2
    wide = run_graph(Gaussian(1.0), x, loc)[0, 0] - (-0.5 * distance - x.size * 0.5 * np.log(2 * np.pi))
    assert abs(wide) < bound


@pytest.mark.parametrize("likelihood", ALL, ids=lambda item: type(item).__name__)
@pytest.mark.parametrize("shape", [(3, 300, 300), (1, 33, 35), (1, 1, 1031)])
def test_sums_over_many_pixels_lose_nothing_that_their_terms_have(
    likelihood: Reference, shape: tuple[int, int, int]
) -> None:
    """A term is off by a few units of float32's last place at random, so a sum of P by √P of them, and not by its own.

    Pixels of one level can be off in the same way, so that of L levels it may be P/√L. 1031 is prime.
    """
    x, parameters = photograph(likelihood, shape)
    terms = likelihood.pixel_log_prob(x[:, None].astype(np.float64), parameters)
    found = run_graphs(likelihood, x, parameters)
    independent = min(x.size, likelihood.levels or x.size)
    bound = 8 * np.finfo(np.float32).eps * (8 + np.abs(terms).max()) * x.size / np.sqrt(independent)
    error = np.abs(found - terms.sum(axis=(-3, -2, -1))).max()
    assert error < bound


@pytest.mark.parametrize("likelihood", ALL, ids=lambda item: type(item).__name__)
@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 21, 30), (3, 21, 30), (1, 1, 1031), (1, 1, 61)])
def test_an_images_sum_is_the_same_alone_and_in_a_batch(likelihood: Reference, shape: tuple[int, int, int]) -> None:
    x, parameters = photograph(likelihood, shape)
    for samples in (1, 2):
        one = {name: value[:, :samples] for name, value in parameters.items()}
        many = {name: np.concatenate([value + 1, value, value]) for name, value in one.items()}
        together = run_graphs(likelihood, np.repeat(x, 3, axis=0), many)
        alone = run_graphs(likelihood, x, one)
        np.testing.assert_array_equal(together[1:], np.repeat(alone, 2, axis=0))
