"""One score of many statistics: how far they lie, together, from those of ordinary images.

Fitted to some ordinary images, and never the last word: what is made of the score is a p-value against other images,
which holds however badly it fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.engine.arrays import Float64Array

_TAIL_SHARE = 20
_LEAST = 1e-9


@dataclass(frozen=True)
class Neighbours:
    """Euclidean distance to the nearest of some ordinary images' latent codes [m, D]."""

    codes: Float64Array

    def distance(self, codes: Float64Array) -> Float64Array:
        """[B, D] → [B]; NaN where a code is not finite."""
        with np.errstate(invalid="ignore", over="ignore"):
            return np.array([np.square(self.codes - code).sum(axis=1).min(initial=np.inf) for code in codes]) ** 0.5

    def distance_among(self) -> Float64Array:
        """Of each of them to the nearest of the others, m at least 2: [m]."""
        nearest = np.empty(len(self.codes))
        for index, code in enumerate(self.codes):
            apart = np.square(self.codes - code).sum(axis=1)
            apart[index] = np.inf
            nearest[index] = apart.min()
        return np.sqrt(nearest)


@dataclass(frozen=True)
class ScoreTail:
    """P(X ≥ x) of ordinary images: between their own values by interpolation, beyond the largest 5 % exponential.

    A share of images alone could not tell far from further.
    """

    ascending: Float64Array
    threshold: float
    scale: float
    log_share: float
    """log P(X ≥ threshold)."""

    @staticmethod
    def fit(reference: Float64Array) -> "ScoreTail":
        """From the values of m ordinary images [m], m at least 2; those that are not finite tell nothing."""
        finite = reference[np.isfinite(reference)]
        ascending = np.sort(finite if len(finite) > 1 else np.zeros(2))
        count = len(ascending)
        beyond = max(1, count // _TAIL_SHARE)
        threshold = float(ascending[-beyond - 1])
        scale = max(float((ascending[-beyond:] - threshold).mean()), _LEAST * max(1.0, abs(threshold)))
        return ScoreTail(ascending, threshold, scale, float(np.log((beyond + 1) / (count + 1))))

    def log_probability(self, values: Float64Array) -> Float64Array:
        """log P(X ≥ x): [B] → [B]."""
        count = len(self.ascending)
        share = np.interp(values, self.ascending, np.arange(count, 0, -1) / (count + 1))
        with np.errstate(invalid="ignore"):
            far = self.log_share - (values - self.threshold) / self.scale
            return np.asarray(np.where(values > self.threshold, far, np.log(share)))


@dataclass(frozen=True)
class Combination:
    """Fisher's method, −2·Σ log p (Fisher 1932), over the upper tails of statistics that are each higher for stranger.

    One-sided, each of them: what lies on the ordinary side of a statistic must not count as strange, or a good
    statistic's power is lost among the others.
    """

    tails: Sequence[ScoreTail]

    @staticmethod
    def fit(statistics: Sequence[Float64Array]) -> "Combination":
        """From each statistic's values of ordinary images: S arrays [m]."""
        return Combination([ScoreTail.fit(values) for values in statistics])

    def score(self, statistics: Sequence[Float64Array]) -> Float64Array:
        """Higher for stranger: S arrays [B] → [B]; not a number where a statistic is not finite."""
        log_p = sum(tail.log_probability(values) for tail, values in zip(self.tails, statistics, strict=True))
        return np.asarray(np.where(np.isfinite(statistics).all(axis=0), -2 * log_p, np.nan))
