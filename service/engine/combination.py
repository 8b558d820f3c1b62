"""One score of many statistics: how far they lie, together, from those of ordinary images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Combination:
    """Squared Mahalanobis distance: mean [S] and a root W [S, S] of the inverse covariance, W·Wᵀ."""

    mean: Array
    root: Array

    @staticmethod
    def fit(reference: Array) -> "Combination":
        """From the statistics of ordinary images, [m, S]."""
        mean = reference.mean(axis=0)
        count, size = reference.shape
        covariance = np.atleast_2d(np.cov(reference, rowvar=False))
        shrink = size / (size + count)
        covariance = (1 - shrink) * covariance + shrink * np.diag(np.diag(covariance)) + 1e-9 * np.eye(size)
        return Combination(mean, np.linalg.cholesky(np.linalg.inv(covariance)))

    def score(self, values: Array) -> Array:
        """Higher for stranger: [B, S] → [B]; not a number where a statistic is not finite."""
        with np.errstate(invalid="ignore", over="ignore"):
            score = (((values - self.mean) @ self.root) ** 2).sum(axis=1)
        return np.asarray(np.where(np.isfinite(values).all(axis=1), score, np.nan))
