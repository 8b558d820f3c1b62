"""The distribution r(z|x) that annealing starts from: Gaussians around several modes of p(z|x), and the encoder's.

Each mode's Gaussian comes in the widths of laplace.py. How many samples each part draws is fixed for every hundred
samples, so any hundred in a row have the shares of the density exactly, and the mean of p(x, z) / r(z|x) over them is
unbiased (the balance heuristic of Veach and Guibas 1995).

All arrays are float64, for the likelihood of a large 8-bit image changes within a millionth of a latent unit.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Float32Array, Float64Array, Indices
from service.engine.matrices import MIN_PRECISION
from service.engine.posterior.gaussians import Gaussians
from service.engine.posterior.laplace import PATTERN, SHARES, WIDTHS
from service.engine.proposal import DiagonalGaussian

GROUP = 100
"""Samples that have each part's share exactly."""
_LEAST = 0.12
"""Of the samples, the share that a mode gets at least."""
_FAR = 50.0
"""Of the logarithm of an encoder's standard deviation: beyond, the encoder is of no use."""
_FARTHEST = 1e15
"""Of a coordinate of a mode or an encoder's mean: beyond, it is of no use."""
LOG_2_PI = float(np.log(2 * np.pi))


@dataclass(frozen=True)
class Reference:
    """One mixture an image, of M modes in J widths, and the encoder's Gaussian.

    Attributes:
        mode: [B, M, D].
        axes: of each mode's Gaussian, in columns, [B, M, D, D].
        scales: standard deviations along the axes, by width, [B, M, J, D].
        counts: samples of each part in a hundred, [B, M, J]; zero where there is no such mode.
        encoder: its mean and standard deviation, [B, D] each; the prior's where they are of no use.
        encoder_usable: whether they are, [B].
    """

    mode: Float64Array
    axes: Float64Array
    scales: Float64Array
    counts: Indices
    encoder: tuple[Float64Array, Float64Array]
    encoder_usable: NDArray[np.bool_]

    def take(self, images: Indices) -> "Reference":
        """Those of these images."""
        encoder = (self.encoder[0][images], self.encoder[1][images])
        parts = (self.mode[images], self.axes[images], self.scales[images], self.counts[images])
        return Reference(*parts, encoder, self.encoder_usable[images])

    def draw(self, noise: Float32Array) -> Float64Array:
        """Samples made of noise [K, D]: [B, K, D], exact in float32. Which width draws which is as in laplace.py."""
        mean, scale = self.encoder
        part, place = _parts(len(noise))
        by_encoder = part == len(WIDTHS)
        points = np.empty((len(self.mode), len(noise), self.mode.shape[2]))
        points[:, by_encoder] = mean[:, None] + scale[:, None] * noise[by_encoder]
        others = np.flatnonzero(~by_encoder)
        width, drawn = part[others], noise[others].astype(np.float64)
        upto = self.counts.cumsum(axis=1)[:, :, width]  # [B, M, K′]
        mode = (place[others] >= upto).sum(axis=1)  # [B, K′]
        for m in range(self.mode.shape[1]):
            there = np.flatnonzero((mode == m).any(axis=1))  # few images have several modes
            axes = self.axes[there, m]
            around = (drawn @ axes) * np.ascontiguousarray(self.scales[there, m][:, width])
            here = self.mode[there, m, None] + around @ axes.transpose(0, 2, 1)
            image, sample = np.nonzero(mode[there] == m)
            points[there[image], others[sample]] = here[image, sample]
        return rounded(points)

    def covariance(self) -> Float64Array:
        """Of the modes' Gaussians in their middle width, by their shares, less what the modes lie apart: [B, D, D]."""
        share = self.counts.sum(axis=2) / self.counts.sum(axis=(1, 2))[:, None]  # [B, M]
        middle = self.axes * self.scales[:, :, len(WIDTHS) // 2, None]  # [B, M, D, D]
        return np.asarray((share[..., None, None] * (middle @ middle.transpose(0, 1, 3, 2))).sum(axis=1))

    def density(self) -> "Density":
        """Its density, ready for points."""
        mean, scale = self.encoder
        with np.errstate(divide="ignore"):
            log_weights = np.log(self.counts / GROUP) - np.log(self.scales).sum(axis=3)  # [B, M, J]
        there = np.flatnonzero(self.counts.any(axis=(0, 2)))
        return Density(
            mean[:, None],
            1 / scale[:, None],
            (np.log(SHARES[-1]) - np.log(scale).sum(axis=1))[:, None],
            self.mode.take(there, axis=1)[:, :, None],
            self.axes.take(there, axis=1),
            (0.5 / self.scales**2).transpose(0, 1, 3, 2).take(there, axis=1),
            log_weights.take(there, axis=1)[:, :, None],
        )

    def log_density(self, points: Float64Array) -> Float64Array:
        """log r(z|x), nats, with all constants: points [B, K, D] → [B, K]."""
        return self.density().log(points)

    def encoder_log_density(self, points: Float64Array) -> Float64Array:
        """log q(z|x), nats: points [B, K, D] → [B, K]; NaN where the encoder is of no use."""
        mean, scale = self.encoder
        squares = (((points - mean[:, None]) / scale[:, None]) ** 2).sum(axis=2)
        log_density = -0.5 * squares - (np.log(scale).sum(axis=1) + 0.5 * mean.shape[1] * LOG_2_PI)[:, None]
        return np.where(self.encoder_usable[:, None], log_density, np.nan)


@dataclass(frozen=True)
class Density:
    """What the log density of a `Reference` of B images needs of it, with M modes that any image has."""

    mean: Float64Array  # [B, 1, D], of the encoder, as the next two
    inverse_scale: Float64Array  # [B, 1, D]
    log_constant: Float64Array  # [B, 1]
    mode: Float64Array  # [B, M, 1, D]
    axes: Float64Array  # [B, M, D, D]
    half_precisions: Float64Array  # [B, M, D, J]
    log_weights: Float64Array  # [B, M, 1, J]; −∞ where there is no such part

    def log(self, points: Float64Array) -> Float64Array:
        """log r(z|x), nats, with all constants: points [B, K, D] → [B, K]."""
        by_encoder = self.log_constant - 0.5 * (((points - self.mean) * self.inverse_scale) ** 2).sum(axis=2)
        highest, by_mode = by_encoder, []
        for m in range(self.mode.shape[1]):
            turned = (points - self.mode[:, m]) @ self.axes[:, m]  # [B, K, D]
            by_mode.append(self.log_weights[:, m] - (turned**2) @ self.half_precisions[:, m])  # [B, K, J]
            highest = np.maximum(highest, by_mode[-1].max(axis=2))
        total = np.exp(by_encoder - highest)
        for part in by_mode:
            total += np.exp(part - highest[..., None]).sum(axis=2)
        return np.asarray(np.log(total) + highest - 0.5 * points.shape[2] * LOG_2_PI)


def rounded(points: Float64Array) -> Float64Array:
    """The nearest numbers that float32 has: the decoder sees no others."""
    with np.errstate(over="ignore"):
        return points.astype(np.float32).astype(np.float64)


def drawn_by_encoder(count: int) -> NDArray[np.bool_]:
    """Which of so many samples the encoder draws: [K]."""
    return np.asarray(_parts(count)[0] == len(WIDTHS))


def reference(gaussians: Gaussians, log_evidence: Float64Array, encoder: DiagonalGaussian) -> Reference:
    """Around some modes of each image: Gaussians [B·M], and what each would have of P(x), log [B, M]; −∞ is no mode.

    A mode's share grows with the root of its evidence, for the evidence is that of a Gaussian.
    """
    num_images, num_modes = log_evidence.shape
    latent_dim = gaussians.centre.shape[1]
    there = np.isfinite(log_evidence.ravel()) & (np.abs(gaussians.centre) <= _FARTHEST).all(axis=1)  # False for NaN
    log_evidence = np.where(there.reshape(log_evidence.shape), log_evidence, -np.inf)
    gaussians = Gaussians(
        np.where(there[:, None], gaussians.centre, 0),
        np.where(there[:, None], gaussians.precisions, 1),
        np.where(there[:, None, None], gaussians.axes, np.eye(latent_dim)),
    )
    usable = is_usable(encoder)
    mean, log_var = (np.where(usable[:, None], part, 0).astype(np.float64) for part in (encoder.mean, encoder.log_var))
    weakened = [np.maximum((gaussians.precisions - 1) / width**2 + 1, MIN_PRECISION) for width in WIDTHS]
    scales = (1 / np.sqrt(np.stack(weakened, axis=1))).reshape(num_images, num_modes, len(WIDTHS), latent_dim)
    return Reference(
        gaussians.centre.reshape(num_images, num_modes, latent_dim),
        gaussians.axes.reshape(num_images, num_modes, latent_dim, latent_dim),
        scales,
        _counts(log_evidence),
        (mean, np.exp(log_var / 2)),
        usable,
    )


def is_usable(encoder: DiagonalGaussian) -> NDArray[np.bool_]:
    """Whether samples may be drawn from q(z|x): [B]. False where it is no number, or so large that none is finite."""
    in_reach = (np.abs(encoder.mean) <= _FARTHEST) & (np.abs(encoder.log_var) <= 2 * _FAR)
    return np.asarray(in_reach.all(axis=1))


def _counts(log_evidence: Float64Array) -> Indices:
    """Of each hundred samples, those of each mode and width: log evidence [B, M] → [B, M, J].

    >>> _counts(np.array([[0.0, -np.inf]]))[0].tolist()
    [[60, 20, 10], [0, 0, 0]]
    """
    there = np.isfinite(log_evidence)
    there[~there.any(axis=1), 0] = True
    filled = np.where(np.isfinite(log_evidence), log_evidence, 0)
    best = np.where(there, filled, -np.inf).max(axis=1, keepdims=True)
    share = np.where(there, np.exp(0.5 * np.where(there, filled - best, 0)), 0)
    share = np.where(there, np.maximum(share / share.sum(axis=1, keepdims=True), _LEAST), 0)
    totals = [round(GROUP * part) for part in SHARES[:-1]]
    return np.stack([_apportion(share, total) for total in totals], axis=2)


def _parts(count: int) -> tuple[Indices, Indices]:
    """Which width, or the encoder, draws each sample, and how many before it in its hundred the same has drawn: [K]."""
    within = np.arange(count) % GROUP
    pattern = np.asarray(PATTERN)[np.arange(GROUP) % len(PATTERN)]
    before = np.array([(pattern[:k] == pattern[k]).sum() for k in range(GROUP)])
    return pattern[within], before[within]


def _apportion(shares: Float64Array, total: int) -> Indices:
    """Whole numbers [B, n] in proportion to shares [B, n] that sum to a total: the largest share takes what is left.

    >>> _apportion(np.array([[0.2, 0.5, 0.3]]), 9).tolist()
    [[1, 6, 2]]
    """
    whole: Indices = np.floor(total * shares / shares.sum(axis=1, keepdims=True)).astype(np.intp)
    whole[np.arange(len(shares)), shares.argmax(axis=1)] += total - whole.sum(axis=1)
    return whole
