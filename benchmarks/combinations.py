"""Ways to make one score of several statistics, for benchmarks/anomaly.py to compare with the one the engine ships.

Each is fitted to the statistics of ordinary images alone, [m, S], and scores others, [B, S], higher for stranger.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import ndtri

from service.engine.arrays import Float64Array

Score = Callable[[Float64Array], Float64Array]


def tails(reference: Float64Array) -> Callable[[Float64Array], tuple[Float64Array, Float64Array]]:
    """Conformal p-values of each statistic, of lying so low and of lying so high: [B, S] → twice [B, S]."""
    ascending = np.sort(reference, axis=0)
    count = len(reference)

    def both(values: Float64Array) -> tuple[Float64Array, Float64Array]:
        columns = list(zip(ascending.T, values.T, strict=True))
        at_most = np.stack([np.searchsorted(a, v, side="right") for a, v in columns], axis=1)
        below = np.stack([np.searchsorted(a, v, side="left") for a, v in columns], axis=1)
        return (at_most + 1) / (count + 1), (count - below + 1) / (count + 1)

    return both


def fisher(reference: Float64Array) -> Score:
    """Fisher's method, −Σ log p, over two-sided p-values: twice the smaller tail's."""
    both = tails(reference)
    return lambda values: -np.log(np.minimum(1, 2 * np.minimum(*both(values)))).sum(axis=1)


def fisher_upper(reference: Float64Array) -> Score:
    """Fisher's method over one-sided p-values, for statistics that are higher for stranger."""
    both = tails(reference)
    return lambda values: -np.log(both(values)[1]).sum(axis=1)


def smallest_p_value(reference: Float64Array) -> Score:
    """Tippett's method: the smallest of the two-sided p-values."""
    both = tails(reference)
    return lambda values: -np.log(np.minimum(*both(values)).min(axis=1))


def ecod(reference: Float64Array) -> Score:
    """The copula-based detector of Li et al. (COPOD, arXiv 2009.09463; ECOD, arXiv 2201.00382).

    The largest of three sums of −log tails: all left, all right, and each on the side that the statistic is skewed to.
    """
    both = tails(reference)
    right_skewed = ((reference - reference.mean(axis=0)) ** 3).mean(axis=0) > 0

    def score(values: Float64Array) -> Float64Array:
        left, right = (-np.log(tail) for tail in both(values))
        sides = (left, right, np.where(right_skewed, right, left))
        return np.asarray(np.max([side.sum(axis=1) for side in sides], axis=0))

    return score


def rank_mahalanobis(reference: Float64Array) -> Score:
    """Mahalanobis distance after each statistic is made normal by its rank (a Gaussian copula)."""
    both = tails(reference)

    def normal(values: Float64Array) -> Float64Array:
        low, high = both(values)
        return np.asarray(np.where(low < high, ndtri(np.minimum(low, 0.5)), -ndtri(np.minimum(high, 0.5))))

    return _mahalanobis(reference, normal)


def mahalanobis(reference: Float64Array) -> Score:
    """Mahalanobis distance of the statistics as they are."""
    return _mahalanobis(reference, lambda values: values)


def _mahalanobis(reference: Float64Array, transform: Score) -> Score:
    fitted = transform(reference)
    mean, precision = fitted.mean(axis=0), np.linalg.pinv(np.cov(fitted, rowvar=False))

    def score(values: Float64Array) -> Float64Array:
        away = transform(values) - mean
        return np.asarray(((away @ precision) * away).sum(axis=1))

    return score


def stouffer_upper(reference: Float64Array) -> Score:
    """Stouffer's method: the sum of normal quantiles of one-sided p-values."""
    both = tails(reference)
    return lambda values: -ndtri(np.minimum(both(values)[1], 1 - 1 / (len(reference) + 1))).sum(axis=1)


COMBINATIONS: dict[str, Callable[[Float64Array], Score]] = {
    "Fisher, two-sided": fisher,
    "smallest p-value": smallest_p_value,
    "ECOD": ecod,
    "rank Mahalanobis": rank_mahalanobis,
    "Mahalanobis": mahalanobis,
    "Fisher, upper": fisher_upper,
    "Stouffer, upper": stouffer_upper,
}
UPPER = ("Fisher, upper", "Stouffer, upper")
"""Those that take every statistic to be higher for stranger."""
