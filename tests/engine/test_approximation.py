"""The Gaussian around a mode, corrected by values alone: against densities whose mean and Hessian are known."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import digamma
from scipy.stats import ortho_group

from service.engine.chunks import Chunks, complete
from service.engine.posterior.gaussians import Gaussians
from service.engine.posterior.laplace import approximate, hadamard
from service.engine.posterior.newton import Values
from service.engine.posterior.newton_state import Modes
from tests.rounding import FLOAT64, gamma
from tests.toys import AnyArray

DIMENSIONS = 12
STEEPEST = 40.0
"""The largest eigenvalue of a precision here."""
ROUNDED = gamma(4 * DIMENSIONS, FLOAT64) * STEEPEST * DIMENSIONS * np.sqrt(DIMENSIONS)
"""Of a value within √A deviations, each at most 1: awayᵀ·P·away, where |P|'s entries are larger than P's by up to √A.

The centre moves by less: ridge regression halves a slope's error, over √m = 4, and 0.4 of a deviation is its unit.
"""
EIGEN = gamma(10 * DIMENSIONS**2, FLOAT64) * STEEPEST
"""Of a matrix put together again from its eigenvectors: LAPACK's error is a modest polynomial of A times u·‖P‖."""


def values_of(log_density: Callable[[AnyArray, AnyArray], AnyArray]) -> tuple[Values, list[int]]:
    """log p(x|z) of a given posterior: the prior, which the engine adds again, taken off. Counts rows an image."""
    rows: list[int] = []

    def values(images: AnyArray, points: AnyArray) -> Chunks[AnyArray]:
        rows.append(points.shape[1])
        yield
        return np.asarray(log_density(images, points) + 0.5 * (points**2).sum(axis=-1))

    return values, rows


def modes(mode: AnyArray, precision: AnyArray) -> Modes:
    every = np.ones(len(mode), np.bool_)
    steps, gain = np.zeros(len(mode), np.int64), np.zeros(len(mode))
    return Modes(mode, np.zeros(len(mode)), precision, every, every, steps, gain)


def gaussian(count: int = 3, *, seed: int = 0) -> tuple[AnyArray, AnyArray]:
    """Means [n, A] and precisions [n, A, A] with eigenvalues from 1.5 to 40, in random directions."""
    rng = np.random.default_rng(seed)
    turns = ortho_group(DIMENSIONS).rvs(count, random_state=seed).reshape(count, DIMENSIONS, DIMENSIONS)
    precision = (turns * rng.uniform(1.5, STEEPEST, (count, 1, DIMENSIONS))) @ turns.transpose(0, 2, 1)
    return rng.standard_normal((count, DIMENSIONS)), precision


def quadratic(mean: AnyArray, precision: AnyArray) -> Callable[[AnyArray, AnyArray], AnyArray]:
    def log_density(images: AnyArray, points: AnyArray) -> AnyArray:
        away = points - mean[images, None]
        return np.asarray(-0.5 * ((away @ precision[images]) * away).sum(axis=-1))

    return log_density


def precision_of(found: Gaussians) -> AnyArray:
    return found.function(found.precisions)


def test_a_gaussian_posterior_is_left_as_it_is() -> None:
    mean, precision = gaussian()
    values, rows = values_of(quadratic(mean, precision))
    found = complete(approximate(modes(mean, precision), values))
    np.testing.assert_allclose(found.centre, mean, rtol=0, atol=ROUNDED)
    np.testing.assert_allclose(precision_of(found), precision, rtol=0, atol=EIGEN)
    assert rows == [32]  # twice the power of two above 12


def test_a_wrong_curvature_is_measured() -> None:
    mean, precision = gaussian(1)
    values, _ = values_of(quadratic(mean, precision))
    found = complete(approximate(modes(mean, np.diag(np.linspace(2, 90, DIMENSIONS))[None]), values))
    np.testing.assert_allclose(found.centre, mean, rtol=0, atol=ROUNDED)
    # Of a quadratic, second differences are exact but for rounding: of four values, scaled by deviations √90 twice.
    np.testing.assert_allclose(precision_of(found), precision, rtol=0, atol=4 * 90 * ROUNDED + EIGEN)


def test_a_wrong_curvature_is_measured_by_gradients_in_fewer_rows() -> None:
    mean, precision = gaussian(2)
    values, rows = values_of(quadratic(mean, precision))
    gradients: list[int] = []

    def slopes(images: AnyArray, points: AnyArray) -> Chunks[tuple[AnyArray, AnyArray]]:
        gradients.append(len(points))
        yield
        away = points - mean[images]
        return np.zeros(len(points)), points - (precision[images] @ away[..., None])[..., 0]  # the prior taken off

    wrong = np.repeat(np.diag(np.linspace(2, 90, DIMENSIONS))[None], 2, axis=0)
    found = complete(approximate(modes(mean, wrong), values, slopes))
    np.testing.assert_allclose(found.centre, mean, rtol=0, atol=ROUNDED)
    np.testing.assert_allclose(precision_of(found), precision, rtol=0, atol=4 * 90 * ROUNDED + EIGEN)
    assert gradients == [2 * 2 * DIMENSIONS]
    assert rows == [32, 32]  # both looks at the fit, and no second differences


def test_the_centre_moves_from_the_mode_towards_the_mean() -> None:
    """Log-gamma densities exp(a·t − a·eᵗ) along turned axes: mode 0, mean digamma(a) − log a, which is lower."""
    a, turn = 4.0, ortho_group(DIMENSIONS).rvs(1, random_state=1)
    mean = digamma(a) - np.log(a)

    def log_density(images: AnyArray, points: AnyArray) -> AnyArray:
        t = points @ turn
        return np.asarray((a * t - a * np.exp(t)).sum(axis=-1))

    values, _ = values_of(log_density)
    found = complete(approximate(modes(np.zeros((1, DIMENSIONS)), a * np.eye(DIMENSIONS)[None]), values))
    centre = (found.centre @ turn)[0]
    assert centre.mean() < mean / 3
    assert np.linalg.norm(centre - mean) < 0.7 * np.sqrt(DIMENSIONS) * abs(mean)


@pytest.mark.parametrize("nothing", [np.nan, -np.inf, np.inf])
def test_where_the_decoder_gives_no_number_nothing_moves(nothing: float) -> None:
    mean, precision = gaussian(2)
    spoiled = quadratic(mean, precision)

    def log_density(images: AnyArray, points: AnyArray) -> AnyArray:
        found = spoiled(images, points)
        found[images == 1] = nothing
        return found

    with np.errstate(invalid="ignore"):
        found = complete(approximate(modes(mean, precision), values_of(log_density)[0]))
    np.testing.assert_allclose(found.centre, mean, rtol=0, atol=ROUNDED)
    np.testing.assert_allclose(precision_of(found), precision, rtol=0, atol=EIGEN)


@pytest.mark.parametrize("num_columns", [1, 7, 31])
def test_the_design_tells_slopes_from_curvature(num_columns: int) -> None:
    signs = hadamard(1 << num_columns.bit_length(), num_columns)
    np.testing.assert_array_equal(signs.T @ signs, len(signs) * np.eye(num_columns))
    assert (signs.sum(axis=0) == 0).all()
    folded = np.concatenate([signs, -signs])
    products = np.einsum("mi,mj->mij", folded, folded).reshape(len(folded), -1)
    np.testing.assert_array_equal(folded.T @ products, 0)  # no slope is mixed up with any product of two


def test_left_out_dimensions_are_the_priors() -> None:
    mean, precision = gaussian(2)
    dimensions = np.array([0, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 15])
    wide = Gaussians.around(mean, precision).spread(dimensions, 16)
    full = precision_of(wide)
    np.testing.assert_allclose(full[:, dimensions[:, None], dimensions], precision, rtol=0, atol=EIGEN)
    left_out = np.setdiff1d(np.arange(16), dimensions)
    np.testing.assert_allclose(full[:, left_out[:, None], left_out], np.broadcast_to(np.eye(4), (2, 4, 4)))
    assert (wide.centre[:, left_out] == 0).all()
