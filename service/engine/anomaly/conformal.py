"""Conformal p-values, decisions over many of them, and what so many calibration images can promise."""

import math

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Float64Array

_PRECISION = 1e-6


def conformal_p_value(score: Float64Array, calibration_score: Float64Array) -> Float64Array:
    """(1 + #{calibration at least as strange}) / (n + 1): scores [B], calibration scores [n] → [B].

    For an image exchangeable with the calibration images, P(p ≤ α) ≤ α (Vovk et al. 2005; Bates et al. 2023, arXiv
    2104.08279). A score that is not a number is stranger than every number, and as strange as the calibration scores
    that are none: its p-value is 1 / (n + 1) where there is no such one.

    >>> conformal_p_value(np.array([5.0, 0.0, np.nan]), np.array([1.0, 2.0, 5.0])).tolist()
    [0.5, 1.0, 0.25]
    >>> conformal_p_value(np.array([np.inf, np.nan]), np.array([1.0, 2.0, np.nan])).tolist()
    [0.5, 0.5]
    """
    ascending = np.sort(calibration_score)
    at_least = len(ascending) - np.searchsorted(ascending, score, side="left")  # NaN sorts above all numbers
    return np.asarray((1 + at_least) / (len(ascending) + 1))


def benjamini_hochberg(p_value: Float64Array, fdr: float) -> NDArray[np.bool_]:
    """Which of m p-values to reject so that the expected share of false rejections is at most `fdr`: [m] → [m].

    Rejected are the k smallest, k being the largest with p_(k) ≤ fdr·k/m (Benjamini and Hochberg 1995). Conformal
    p-values against one calibration set depend on one another, and in a way that keeps the bound (Bates et al. 2023,
    theorem 2).

    >>> benjamini_hochberg(np.array([0.01, 0.9, 0.06, 0.02]), 0.1).tolist()
    [True, False, True, True]
    """
    ascending, rank = np.sort(p_value), np.arange(1, len(p_value) + 1)
    passed = ascending[ascending <= fdr * rank / max(1, len(p_value))]
    return np.asarray(p_value <= passed.max(initial=0))


def false_alarm_band(num_images: int, alpha: float, confidence: float = 0.99) -> tuple[float, float]:
    """Between which shares of ordinary images `alpha` flags with this confidence, n calibration images being drawn.

    On average over calibration sets the share is k/(n + 1) ≤ α, with k = ⌊α·(n + 1)⌋. For one set without ties it
    is a draw from Beta(k, n + 1 − k) (Vovk 2012, arXiv 1209.2673); the band is between its quantiles.

    >>> [round(share, 3) for share in false_alarm_band(2000, 0.05)]
    [0.038, 0.063]
    """
    k = min(int(alpha * (num_images + 1)) + 1, num_images)
    while k and k / (num_images + 1) > alpha:
        k -= 1
    if k == 0:
        return 0.0, 0.0
    tail = (1 - confidence) / 2
    return _beta_quantile(k, num_images + 1 - k, tail), _beta_quantile(k, num_images + 1 - k, 1 - tail)


def guarantee(num_images: int, alpha: float) -> str:
    """What n images to compare with can and cannot promise at this alpha, in words.

    >>> guarantee(2000, 0.05)
    'at alpha = 0.05 the share of ordinary images flagged lies between 3.8 % and 6.3 %, with 99 % probability'
    """
    if 1 / (num_images + 1) > alpha:
        needed = math.ceil(1 / alpha) - 1
        return f"with {num_images} images to compare with, alpha = {alpha} never fires; {needed} are needed"
    low, high = (100 * share for share in false_alarm_band(num_images, alpha))
    return (
        f"at alpha = {alpha} the share of ordinary images flagged lies between {low:.2g} % and {high:.2g} %, "
        "with 99 % probability"
    )


def _beta_quantile(a: int, b: int, probability: float) -> float:
    """By bisection; P(Beta(a, b) ≤ x) = P(Binomial(a + b − 1, x) ≥ a) for whole a and b."""
    low, high = 0.0, 1.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if _binomial_at_least(a, a + b - 1, middle) < probability else (low, middle)
    return (low + high) / 2


def _binomial_at_least(least: int, trials: int, share: float) -> float:
    """P(Binomial(trials, share) ≥ least), summed from there away from the mean, where terms only fall."""
    above = least > trials * share
    k = least if above else least - 1
    log_term = math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
    term = math.exp(log_term + k * math.log(share) + (trials - k) * math.log1p(-share))
    odds, total = share / (1 - share), 0.0
    while 0 <= k <= trials and term > total * 1e-17:
        total += term
        term *= (trials - k) / (k + 1) * odds if above else k / ((trials - k + 1) * odds)
        k += 1 if above else -1
    return total if above else 1 - total
