"""The Laplace proposal: Gaussians around the mode of p(z|x), made to fit where the posterior's mass is.

Classical Laplace takes mode and curvature at one point. In many dimensions a posterior's mass lies √A standard
deviations away from its mode. There two things are measured, with a few dozen decoder rows:

- The centre. A skewed posterior has its mean beside its mode. A two-level screening design with fold-over (the signs of
  a Hadamard matrix and their opposites, Box and Wilson 1951; Plackett and Burman 1946) separates the slope along every
  axis from all curvature, and the centre moves by it.
- The curvature. Where the design's values are not what a Gaussian's would be, the Hessian that Gauss-Newton and the
  secants gave is not the posterior's; it is measured in full, by second differences one standard deviation
  wide. Images unlike the training set need this, familiar ones seldom.

A second mode, far from the one that Newton's method finds, is covered only by the encoder's share of the samples: where
the encoder misses it too, the estimate is low and nothing shows it.

Everything here is NumPy in float64 on small matrices; the decoder is behind `values`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Float64Array
from service.engine.chunks import Chunks
from service.engine.matrices import MIN_PRECISION, dot, solve, times
from service.engine.posterior.gaussians import Gaussians
from service.engine.posterior.hessian import by_slopes, by_values
from service.engine.posterior.newton import Slopes, Values, joint
from service.engine.posterior.newton_state import Modes
from service.engine.proposal import DiagonalGaussian

WIDTHS = (1.0, 1.4, 2.0)
"""Of the proposal's Gaussians: the likelihood's part of the precision is divided by each squared.

A posterior has heavier tails than its curvature at the mode suggests, and the error bar of a proposal with lighter
tails is not trustworthy."""
SHARES = (0.6, 0.2, 0.1, 0.1)
"""Of the samples, for each width; the last is the encoder's."""
PATTERN = (0, 3, 1, 2, 0, 0, 1, 0, 0, 0)
"""Which part draws sample k, by k modulo 10; any four samples that open a request have one of each."""
MAX_MISFIT = 2.5
"""Nats by which log p(x, z) over the design may depart from a Gaussian's before the Hessian is measured."""
_MIN_DEPARTURE = 0.05
"""Where a dimension's row of the precision is nowhere further than this from the prior's, the image does not constrain
it."""
_MAX_MEASURED = 128
"""Dimensions in which the Hessian is measured, at most; more of them keep what Newton's method gave."""
_MAX_FALL = 25.0
"""Nats beyond a Gaussian's by which log p(x, z) may fall within a standard deviation of where Newton's method was cut
short."""
_MAX_NARROWING = 1e6
_MAX_SHIFT = 2.0
"""Standard deviations an axis, in the root mean square, by which the centre of such a Gaussian may move."""
_GROUP_NUMBERS = 2**22
"""Coordinates of the points at which Hessians are measured together; bounds memory."""
_SHIFT = 0.4
"""How far, in standard deviations along an axis, a mean is expected to lie from its mode."""
_TEMPER = 0.3


@dataclass(frozen=True)
class _Screening:
    """What the design told of n images."""

    shift: Float64Array
    """From the centre to the mean, [n, A]."""
    misfit: Float64Array
    """How far values depart from a Gaussian's, from one another or from the centre's, apart from a slope: [n], nats."""
    fall: Float64Array
    """By how much values lie below the centre's, in the median: [n], nats. A Gaussian's lie A/2 below."""


def approximate(modes: Modes, values: Values, slopes: Slopes | None = None) -> Chunks[Gaussians]:
    """The Gaussian nearest to each posterior: modes in A dimensions → Gaussians in A dimensions.

    With `slopes`, Hessians are measured by differences of gradients, which takes fewer rows.

    Where Newton's method was cut short, slope and curvature are not those of a mode, and samples drawn by them may lie
    thousands of nats below the point reached. There the Gaussian stays around that point if its centre would move by
    more than two standard deviations an axis, and is made narrower if a standard deviation costs far more than it
    should.
    """
    images = np.arange(len(modes.mode))
    gaussians = Gaussians.around(modes.mode, modes.precision)
    screening = yield from _screen(images, gaussians, modes.value, values)
    shift, misfit, fall = screening.shift, screening.misfit, screening.fall
    precisions, axes = gaussians.precisions.copy(), gaussians.axes.copy()
    for some, chosen in _to_measure(np.flatnonzero(modes.usable & (misfit > MAX_MISFIT)), gaussians):
        if slopes is None:
            precision = yield from by_values(some, gaussians.take(some), chosen, values)
        else:
            precision = yield from by_slopes(some, gaussians.take(some), chosen, slopes)
        measured = Gaussians.around(modes.mode[some], precision)
        again = yield from _screen(some, measured, modes.value[some], values)
        better = again.misfit < misfit[some]
        found = some[better]
        shift[found], misfit[found], fall[found] = again.shift[better], again.misfit[better], again.fall[better]
        precisions[found], axes[found] = measured.precisions[better], measured.axes[better]
    expected = modes.mode.shape[1] / 2
    unfinished = modes.usable & ~modes.converged
    wide = unfinished & (fall > expected + _MAX_FALL)
    precisions[wide] *= np.minimum(fall[wide] / expected, _MAX_NARROWING)[:, None]
    turned = times(axes.transpose(0, 2, 1), shift)  # along the axes
    shift[wide | (unfinished & (dot(turned, precisions * turned) > _MAX_SHIFT**2 * 2 * expected))] = 0
    return Gaussians(modes.mode + shift, precisions, axes)


def _to_measure(images: NDArray[np.intp], gaussians: Gaussians) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Cut images into groups whose Hessians are measured together, each with the dimensions to measure: [n], [n, C].

    Those of a group have one number C of dimensions, and so one design; a group has at most `_GROUP_NUMBERS`
    coordinates of points.
    """
    precision = gaussians.take(images).function(gaussians.precisions[images])
    dimensions = precision.shape[-1]
    departure = np.abs(precision - np.eye(dimensions)).max(axis=2)  # [n, A]
    counts = np.minimum((departure > _MIN_DEPARTURE).sum(axis=1), _MAX_MEASURED)
    ranked = np.argsort(-departure, axis=1, kind="stable")
    for count in np.unique(counts):
        group = np.flatnonzero(counts == count)
        rows = 1 + 2 * count + count * (count - 1) // 2
        size = max(1, _GROUP_NUMBERS // (int(rows) * dimensions))
        for first in range(0, len(group), size):
            some = group[first : first + size]
            yield images[some], np.sort(ranked[some, :count], axis=1)


def _screen(
    images: NDArray[np.intp], gaussians: Gaussians, centre_value: Float64Array, values: Values
) -> Chunks[_Screening]:
    """Look at each posterior one standard deviation up or down along all axes at once, by a design of signs.

    The design has twice as many rows as the power of two above A. Its axes are the latent dimensions' own, whitened by
    the covariance's symmetric root: unlike eigenvectors, that is a smooth function of it.
    """
    dimensions = gaussians.centre.shape[1]
    signs = hadamard(1 << dimensions.bit_length(), dimensions)  # [m, A]
    root = gaussians.function(1 / np.sqrt(gaussians.precisions))
    steps = signs @ root  # [n, m, A]
    points = gaussians.centre[:, None] + np.concatenate([steps, -steps], axis=1)  # [n, 2m, A]
    found = joint((yield from values(images, points)), points)
    up, down = found[:, : len(signs)], found[:, len(signs) :]
    with np.errstate(invalid="ignore"):
        even, odd = (up + down) / 2 - centre_value[:, None], (up - down) / 2
    finite = np.isfinite(even)
    even, odd = np.where(finite, even, -1e30), np.where(finite, odd, 0)
    level = _quantile(even, 0.5)
    spread = 1.4826 * _quantile(np.abs(even - level[:, None]), 0.5)  # a normal distribution's deviation
    misfit = np.maximum(spread, np.abs(level + dimensions / 2))
    return _Screening(times(root, _slope(even, odd, signs, gaussians)), misfit, -level)


def _slope(even: Float64Array, odd: Float64Array, signs: Float64Array, gaussians: Gaussians) -> Float64Array:
    """The slope along each axis, by least squares: how far, in deviations, the mean lies away: [n, m] twice → [n, A].

    Rows where the density has fallen steeply count less: no sample will be there. The slopes are drawn to zero by a
    Gaussian prior, the more so in directions that the image tells little of.
    """
    with np.errstate(over="ignore"):
        weight = np.minimum(1, np.exp(_TEMPER * (even - _quantile(even, 0.75)[:, None])))
    expected = gaussians.function(_SHIFT * np.sqrt(np.maximum(1 - 1 / gaussians.precisions, 0)))
    columns = signs @ expected  # [n, m, A]
    across = columns.transpose(0, 2, 1)
    gram = across @ (columns * weight[..., None]) + np.eye(signs.shape[-1])
    return times(expected, solve(gram, times(across, weight * odd)))


def _quantile(rows: Float64Array, share: float) -> Float64Array:
    """The value that this share of a row lies below, [n, m] → [n]; NumPy's own takes ten times as long on few rows."""
    ascending, position = np.sort(rows, axis=1), share * (rows.shape[1] - 1)
    low = int(position)
    part = position - low
    return np.asarray((1 - part) * ascending[:, low] + part * ascending[:, low + 1])


def hadamard(num_rows: int, num_columns: int) -> Float64Array:
    """Signs [m, A] whose columns are orthogonal to one another and to 1, as long as A < m, a power of two.

    >>> hadamard(4, 3)
    array([[ 1.,  1.,  1.],
           [-1.,  1., -1.],
           [ 1., -1., -1.],
           [-1., -1.,  1.]])
    """
    rows, columns = np.arange(num_rows)[:, None], np.arange(1, num_columns + 1)
    return np.asarray(1.0 - 2.0 * (np.bitwise_count(rows & columns) % 2))


def part_of(samples: NDArray[np.intp]) -> NDArray[np.intp]:
    """Which part of the mixture draws each sample, by index."""
    return np.asarray(PATTERN)[samples % len(PATTERN)]


def balanced(log_weight: Float64Array) -> Float64Array:
    """Mixture log weights [B, K] so that their plain mean is unbiased whatever K is.

    The mixture's density has its shares exactly; the K samples have them only roughly. Each part's mean counts with its
    exact share when its weights are multiplied by share·K/count.
    """
    num_samples = log_weight.shape[1]
    part = part_of(np.arange(num_samples))
    balance = np.array(SHARES) * num_samples / np.bincount(part, minlength=len(SHARES))
    return np.asarray(log_weight + np.log(balance[part]))


@dataclass(frozen=True)
class Mixture:
    """Gaussians around one centre, as the graph takes them: mode [B, D], basis [B, D, D], scales [B, J, D], float32."""

    mode: NDArray[np.float32]
    basis: NDArray[np.float32]
    scales: NDArray[np.float32]

    def take(self, images: NDArray[np.intp]) -> "Mixture":
        """Those of these images."""
        return Mixture(self.mode[images], self.basis[images], self.scales[images])

    @np.errstate(over="ignore", invalid="ignore")  # an encoder may be sure of nothing
    def latents(
        self, noise: NDArray[np.float32], part: NDArray[np.intp], encoder: DiagonalGaussian
    ) -> NDArray[np.float32]:
        """What the graph makes of noise [B, R, D] in these parts [B, R]: latents [B, R, D]."""
        images = np.arange(len(noise))[:, None]
        by_encoder = (part == self.scales.shape[1])[..., None]
        scales = self.scales[images, np.minimum(part, self.scales.shape[1] - 1)]  # [B, R, D]
        around_mode = self.mode[:, None] + (noise @ self.basis * scales) @ self.basis.transpose(0, 2, 1)
        around_mean = encoder.mean[:, None] + np.exp(encoder.log_var / 2)[:, None] * noise
        return np.where(by_encoder, around_mean, around_mode)


@np.errstate(over="ignore")
def mixture(gaussians: Gaussians, usable: NDArray[np.bool_], encoder: DiagonalGaussian) -> Mixture:
    """Each image's Gaussian in three widths; the encoder's own where no mode was usable.

    Only the likelihood's part of the precision is weakened: along an axis that the image says nothing of, every width
    is the prior's, and costs no effective samples.
    """
    weakened = [np.maximum((gaussians.precisions - 1) / width**2 + 1, MIN_PRECISION) for width in WIDTHS]
    scales = 1 / np.sqrt(np.stack(weakened, axis=1))  # [B, J, D]
    laplace, axes = usable[:, None], gaussians.axes
    return Mixture(
        mode=np.where(laplace, gaussians.centre, encoder.mean).astype(np.float32),
        basis=np.where(laplace[:, None], axes, np.eye(axes.shape[1])).astype(np.float32),
        scales=np.where(laplace[:, None], scales, np.exp(encoder.log_var / 2)[:, None]).astype(np.float32),
    )
