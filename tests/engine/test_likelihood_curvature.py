"""Scores and information of every likelihood against numerical derivatives of its NumPy reference; all sum to one."""

from itertools import combinations_with_replacement

import numpy as np
import pytest
from scipy.stats import norm

from model_store import ImageShape, PixelPreparation
from service.engine.preparation import Preparation
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
from tests.rounding import FLOAT32, FLOAT64, FUNCTION, gamma, sampling_error
from tests.toys import AnyArray

RNG = np.random.default_rng(8)
SIZE = 60


def example(likelihood: Reference) -> tuple[AnyArray, dict[str, AnyArray]]:
    """x [SIZE] and parameters [SIZE], one pixel each, float64 of float32 values; edge levels among them."""
    loc = RNG.normal(0.5, 0.4, SIZE).astype(np.float32).astype(np.float64)
    log_scale = RNG.uniform(-6, 0, SIZE).astype(np.float32).astype(np.float64)
    match likelihood:
        case Bernoulli():
            return (RNG.random(SIZE) < 0.5) * 1.0, {
                "logits": RNG.normal(0, 3, SIZE).astype(np.float32).astype(np.float64)
            }
        case Gaussian():
            return RNG.random(SIZE), {"loc": loc}
        case GaussianWithScale():
            return RNG.random(SIZE), {"loc": loc, "log_scale": log_scale}
        case _:
            x = RNG.integers(0, 256, SIZE) / 255
            x[:6] = [0, 0, 0, 1, 1, 1]
            return x.astype(np.float32).astype(np.float64), {"loc": loc, "log_scale": log_scale}


LIKELIHOODS = [Bernoulli(), Gaussian(0.3), GaussianWithScale(), DiscretisedLogistic()]


def run(likelihood: Reference, x: AnyArray, parameters: dict[str, AnyArray]) -> dict[str, AnyArray]:
    """The graph of SIZE images of one pixel: log probability, score and information of each output."""
    names, size = likelihood.outputs, len(x)
    inputs = {"x": x.reshape(-1, 1, 1)}
    for index, name in enumerate(names):
        inputs[name] = parameters[name].reshape(-1, 1, 1)
        direction = np.zeros((size, len(names), 1))
        direction[:, index] = 1
        inputs[f"tangent.{name}"] = direction
    wanted = ["log_prob", "gradient", "information"]
    log_prob, gradient, information = run_likelihood(graph_of(spec_of(likelihood), 1), wanted, inputs)
    found = {"log_prob": log_prob[:, 0]}
    for index, name in enumerate(names):
        found[f"{name} score"] = gradient[:, index]
        for other_index, other in enumerate(names[index:], index):
            found[f"{name} {other} information"] = information[:, index, other_index]
            np.testing.assert_array_equal(information[:, index, other_index], information[:, other_index, index])
    return found


def log_prob(likelihood: Reference, x: AnyArray, parameters: dict[str, AnyArray]) -> AnyArray:
    shaped = {name: value.reshape(-1, 1, 1, 1) for name, value in parameters.items()}
    return likelihood.log_prob(x.reshape(-1, 1, 1, 1), shaped)


def inverse_scale(likelihood: Reference, parameters: dict[str, AnyArray]) -> AnyArray:
    """1/scale, by which each derivative in `loc` is larger."""
    match likelihood:
        case Bernoulli():
            return np.ones_like(parameters["logits"])
        case Gaussian():
            return np.full_like(parameters["loc"], 1 / likelihood.scale)
        case _:
            return np.asarray(np.exp(-parameters["log_scale"]))


def size(likelihood: Reference, x: AnyArray, parameters: dict[str, AnyArray]) -> AnyArray:
    """What terms of log p, of its score and of its information add up to without their signs, beside powers of 1/scale.

    With u = (x − loc)/scale, of a Gaussian 2·u² and less; of logistic sigmoids |a| + |b| and numbers below 4.
    """
    if isinstance(likelihood, Bernoulli):
        return 1 + np.abs(parameters["logits"])
    inverse = inverse_scale(likelihood, parameters)
    away = np.abs(x - parameters["loc"]) * inverse
    if likelihood.levels is not None:
        return np.asarray(4 + 2 * away + inverse / (likelihood.levels - 1))
    return np.asarray(1 + 2 * away**2 + np.abs(np.log(inverse)))


def rounding(likelihood: Reference, x: AnyArray, parameters: dict[str, AnyArray], unit: float) -> AnyArray:
    """Error of log p, or of a score or an information in units of powers of 1/scale.

    Roundings of the terms, and of u itself: x − loc loses what x and loc share, and the exponential is rounded.
    A Gaussian's terms change with u by 4·|u| + 1 at most, a logistic's with a and b by less than 4.
    """
    terms = gamma(4 * FUNCTION, unit) * size(likelihood, x, parameters)
    if isinstance(likelihood, Bernoulli):
        return np.asarray(terms)
    inverse = inverse_scale(likelihood, parameters)
    away = np.abs(x - parameters["loc"]) * inverse
    moved = gamma(4, unit) * (1 + np.abs(x) + np.abs(parameters["loc"])) * inverse + gamma(FUNCTION + 2, unit) * away
    return np.asarray(terms + (4 if likelihood.levels is not None else 4 * away + 1) * moved)


def difference_error(
    likelihood: Reference, x: AnyArray, parameters: dict[str, AnyArray], names: tuple[str, ...], step: float
) -> AnyArray:
    """Of a central difference of first or second order, in units of powers of 1/scale.

    Its truncation is step²/6 of a derivative two orders higher, 8 times the terms at most; its rounding is that of two
    or four values, in float64, over the step or its square.
    """
    inverse = inverse_scale(likelihood, parameters)
    steps = np.array([step * inverse ** (name == "loc") for name in names])  # [order, SIZE]
    truncation = 8 * size(likelihood, x, parameters) * (steps**2).max(axis=0) / 6
    values = 2 ** len(names) * rounding(likelihood, x, parameters, FLOAT64)
    return np.asarray(truncation + values / steps.prod(axis=0))


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda item: type(item).__name__)
def test_graph_and_reference_agree_and_scores_are_derivatives(likelihood: Reference) -> None:
    x, parameters = example(likelihood)
    found = run(likelihood, x, parameters)
    error = rounding(likelihood, x, parameters, FLOAT32)
    assert (np.abs(found["log_prob"] - log_prob(likelihood, x, parameters)) <= error).all()
    for name in likelihood.outputs:
        step = 1e-5
        up, down = ({**parameters, name: parameters[name] + sign * step} for sign in (1, -1))
        derivative = (log_prob(likelihood, x, up) - log_prob(likelihood, x, down)) / (2 * step)
        scale = inverse_scale(likelihood, parameters) ** (name == "loc")
        allowed = scale * (error + difference_error(likelihood, x, parameters, (name,), step))
        assert (np.abs(found[f"{name} score"] - derivative) <= allowed).all(), name


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda item: type(item).__name__)
def test_information_is_minus_the_second_derivative(likelihood: Reference) -> None:
    x, parameters = example(likelihood)
    found = run(likelihood, x, parameters)
    step = 2e-5
    error = rounding(likelihood, x, parameters, FLOAT32)

    def moved(**steps: int) -> AnyArray:
        return log_prob(likelihood, x, {n: value + steps.get(n, 0) * step for n, value in parameters.items()})

    for name, other in combinations_with_replacement(likelihood.outputs, 2):
        if name == other:
            difference = moved(**{name: 1}) - 2 * moved() + moved(**{name: -1})
        else:
            corners = [moved(**{name: up, other: across}) for up in (1, -1) for across in (1, -1)]
            difference = (corners[0] - corners[1] - corners[2] + corners[3]) / 4
        scale = inverse_scale(likelihood, parameters) ** (name, other).count("loc")
        allowed = scale * (error + difference_error(likelihood, x, parameters, (name, other), step))
        assert (np.abs(found[f"{name} {other} information"] + difference / step**2) <= allowed).all(), (name, other)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda item: type(item).__name__)
def test_its_mean_is_the_mean_square_of_the_score(likelihood: Reference) -> None:
    """Over draws from the likelihood itself: the two faces of Fisher's information."""
    middle: dict[str, float] = {"logits": 0.7, "loc": 0.5, "log_scale": -3.0}
    parameters = {name: np.full(40_000, middle[name]) for name in likelihood.outputs}
    drawn = draw(likelihood, parameters)
    found = run(likelihood, drawn, parameters)
    for name, other in combinations_with_replacement(likelihood.outputs, 2):
        products = found[f"{name} score"] * found[f"{other} score"]
        information = found[f"{name} {other} information"]
        error = np.sqrt((products.var() + information.var()) / len(drawn))
        assert abs(products.mean() - information.mean()) < 4 * error + 1e-3 * abs(products).mean(), (name, other)


@pytest.mark.parametrize("levels", [2, 4, 256])
@pytest.mark.parametrize(("loc", "log_scale"), [(0.4, -2.0), (-3.0, -5.0), (1.7, 1.0), (0.5, -12.0), (0.25, 6.0)])
def test_the_discretised_logistic_sums_to_one(levels: int, loc: float, log_scale: float) -> None:
    x = np.arange(levels) / (levels - 1)
    parameters = {"loc": np.full(levels, loc), "log_scale": np.full(levels, log_scale)}
    likelihood = DiscretisedLogistic(levels)
    probability = np.exp(log_prob(likelihood, x, parameters))
    error = (probability * rounding(likelihood, x, parameters, FLOAT64)).sum() + gamma(levels + FUNCTION, FLOAT64)
    assert abs(probability.sum() - 1) <= error < 1e-6


def test_the_discretised_logistic_graph_holds_far_out() -> None:
    x = np.array([0, 1, 0.2, 0.2], np.float32)
    x[2:] = np.float32(51 / 255)
    parameters = {"loc": np.array([9.0, -9.0, 5.0, 0.2]), "log_scale": np.array([-6.0, -6.0, -5.0, -14.0])}
    found = run(DiscretisedLogistic(), x, parameters)
    expected = log_prob(DiscretisedLogistic(), x.astype(np.float64), parameters)
    assert all(np.isfinite(values).all() for values in found.values())
    error = rounding(DiscretisedLogistic(), x.astype(np.float64), parameters, FLOAT32)
    assert (np.abs(found["log_prob"] - expected) <= error)[:3].all()


def test_the_gaussian_with_scale_is_scipys() -> None:
    x, parameters = example(GaussianWithScale())
    expected = norm.logpdf(x, parameters["loc"], np.exp(parameters["log_scale"]))
    error = 2 * rounding(GaussianWithScale(), x, parameters, FLOAT64)
    assert (np.abs(log_prob(GaussianWithScale(), x, parameters) - expected) <= error).all()


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda item: type(item).__name__)
def test_draws_have_the_mean(likelihood: Reference) -> None:
    middle: dict[str, float] = {"logits": 0.7, "loc": 0.5, "log_scale": -3.0}
    parameters = {name: np.full(100_000, middle[name]) for name in likelihood.outputs}
    drawn = draw(likelihood, parameters)
    inputs = {name: value[:1].reshape(1, 1, 1) for name, value in parameters.items()}
    (mean,) = run_likelihood(graph_of(spec_of(likelihood), 1), ["mean"], {"x": np.zeros((1, 1, 1)), **inputs})
    error = sampling_error(drawn.std(dtype=np.float64), len(drawn), num_means=len(LIKELIHOODS))
    assert abs(drawn.mean(dtype=np.float64) - mean.item()) < error


def draw(likelihood: Reference, parameters: dict[str, AnyArray]) -> AnyArray:
    """One pixel each: [N] → [N]."""
    size = len(next(iter(parameters.values())))
    inputs = {name: value.reshape(-1, 1, 1) for name, value in parameters.items()}
    count = 2 if isinstance(likelihood, Gaussian | GaussianWithScale) else 1
    uniform = RNG.random((size, 1, count))
    zeros = np.zeros((size, 1, 1))
    (drawn,) = run_likelihood(graph_of(spec_of(likelihood), 1), ["sample"], {"x": zeros, "uniform": uniform, **inputs})
    assert drawn.dtype == np.float32
    return drawn.ravel()


def test_levels_are_prepared() -> None:
    shape = ImageShape(channels=1, height=1, width=3)
    prepared = Preparation(PixelPreparation(), shape, 5).prepare(np.array([[[[0.1, 0.13, 0.95]]]], np.float32))
    assert prepared.tolist() == [[[[0.0, 0.25, 1.0]]]]
