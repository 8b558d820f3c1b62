"""One score of many statistics: how far they lie, together, from those of ordinary images.

Fitted to some ordinary images, and never the last word: what is made of the score is a p-value against other images,
which holds however badly it fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_TAIL_SHARE = 20
_LEAST = 1e-9


@dataclass(frozen=True)
class Distance:
    """Squared Mahalanobis distance: mean [S], and a root W [S, S] of the inverse covariance W·Wᵀ."""

    mean: Array
    root: Array

    @staticmethod
    def fit(reference: Array) -> "Distance":
        """From the statistics of m ordinary images, [m, S], m at least 2.

        The covariance is drawn to its diagonal by S/(S + m), so that few images, or statistics that follow from one
        another, leave it invertible.
        """
        count, size = reference.shape
        covariance = np.cov(reference, rowvar=False).reshape(size, size)
        diagonal = np.diag(np.maximum(np.diag(covariance), _LEAST))
        drawn = (count * covariance + size * diagonal) / (count + size)
        return Distance(reference.mean(axis=0), np.linalg.cholesky(np.linalg.inv(drawn)))

    def of(self, values: Array) -> Array:
        """[B, S] → [B]; NaN where a statistic is not finite."""
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray((((values - self.mean) @ self.root) ** 2).sum(axis=1))


@dataclass(frozen=True)
class Tail:
    """P(X ≥ x) of ordinary images: between their own values by interpolation, beyond the largest 5 % exponential.

    A share of images alone could not tell far from further.
    """

    ascending: Array
    threshold: float
    scale: float
    log_share: float
    """log P(X ≥ threshold)."""

    @staticmethod
    def fit(reference: Array) -> "Tail":
        """From the values of m ordinary images [m], m at least 2."""
        ascending, count = np.sort(reference), len(reference)
        beyond = max(1, count // _TAIL_SHARE)
        threshold = float(ascending[-beyond - 1])
        scale = max(float((ascending[-beyond:] - threshold).mean()), _LEAST * max(1.0, abs(threshold)))
        return Tail(ascending, threshold, scale, float(np.log((beyond + 1) / (count + 1))))

    def log_probability(self, values: Array) -> Array:
        """log P(X ≥ x): [B] → [B]."""
        count = len(self.ascending)
        share = np.interp(values, self.ascending, np.arange(count, 0, -1) / (count + 1))
        with np.errstate(invalid="ignore"):
            far = self.log_share - (values - self.threshold) / self.scale
            return np.asarray(np.where(values > self.threshold, far, np.log(share)))


@dataclass(frozen=True)
class Combination:
    """Fisher's method over two tails, −2·Σ log p (Fisher 1932).

    The first is of the distance of several statistics from their mean, which any departure makes larger, be it to the
    simple side. The second is of one statistic that is strange only when large, and would be diluted there.
    """

    distance: Distance
    tails: Sequence[Tail]

    @staticmethod
    def fit(statistics: Array, one_sided: Array) -> "Combination":
        """From m ordinary images' statistics [m, S] and the one-sided one [m]."""
        distance = Distance.fit(statistics)
        return Combination(distance, (Tail.fit(distance.of(statistics)), Tail.fit(one_sided)))

    def score(self, statistics: Array, one_sided: Array) -> Array:
        """Higher for stranger: [B, S] and [B] → [B]; not a number where a statistic is not finite."""
        finite = np.isfinite(statistics).all(axis=1) & np.isfinite(one_sided)
        values = (self.distance.of(statistics), one_sided)
        log_p = [tail.log_probability(value) for tail, value in zip(self.tails, values, strict=True)]
        return np.asarray(np.where(finite, -2 * (log_p[0] + log_p[1]), np.nan))
