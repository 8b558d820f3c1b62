"""How well scores tell images from elsewhere apart from a model's own: AUROC, AUPR, FPR at 95 % TPR, with intervals."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import betabinom

from service.engine.anomaly.conformal import benjamini_hochberg
from service.engine.arrays import Float64Array

TRUE_POSITIVE_RATE = 0.95


def auroc(inside: Float64Array, outside: Float64Array) -> float:
    """Probability that an outside image's score is above an inside one's, ties counting a half; both ascending."""
    below = np.searchsorted(inside, outside, side="left") + np.searchsorted(inside, outside, side="right")
    return float(below.mean() / (2 * len(inside)))


def aupr(inside: Float64Array, outside: Float64Array) -> float:
    """Average precision with the outside images as positives; both ascending."""
    false = len(inside) - np.searchsorted(inside, outside, side="left")
    true = len(outside) - np.searchsorted(outside, outside, side="left")
    return float((true / (true + false)).mean())


def fpr95(inside: Float64Array, outside: Float64Array) -> float:
    """Share of inside images called strange when 95 % of the outside ones are; both ascending."""
    threshold = outside[int((1 - TRUE_POSITIVE_RATE) * len(outside))]
    return float((inside >= threshold).mean())


MEASURES: dict[str, Callable[[Float64Array, Float64Array], float]] = {
    "AUROC": auroc,
    "AUPR": aupr,
    "FPR at 95 % TPR": fpr95,
}


@dataclass(frozen=True)
class Measured:
    """A figure and its interval: 95 % of bootstrap samples of both sets of images lie in it."""

    value: float
    low: float
    high: float


def measure(inside: Float64Array, outside: Float64Array, *, rounds: int, seed: int = 0) -> dict[str, Measured]:
    """All measures of scores [N] and [M], higher for stranger; one that is not a number is the strangest of all."""
    inside, outside = (np.nan_to_num(scores, nan=np.inf, posinf=np.inf, neginf=-np.inf) for scores in (inside, outside))
    rng = np.random.default_rng(seed)
    drawn = []
    for resampled in range(rounds + 1):
        a, b = (
            np.sort(scores[rng.integers(0, len(scores), len(scores))] if resampled else scores)
            for scores in (inside, outside)
        )
        drawn.append([figure(a, b) for figure in MEASURES.values()])
    value, *others = np.array(drawn)
    low, high = np.quantile(others, [0.025, 0.975], axis=0)
    return {name: Measured(*row) for name, row in zip(MEASURES, np.stack([value, low, high], axis=1), strict=True)}


def false_alarm_band(calibration_size: int, count: int, alpha: float, confidence: float = 0.99) -> tuple[float, float]:
    """Between which shares of `count` ordinary images alpha flags, with this confidence.

    The share that calibration images allow is a draw from Beta(k, n + 1 − k), k = ⌊α·(n + 1)⌋ (Vovk 2012, arXiv
    1209.2673), and the images counted add a binomial's noise to it.
    """
    k = int(alpha * (calibration_size + 1))
    tail = (1 - confidence) / 2
    low, high = betabinom(count, k, calibration_size + 1 - k).ppf([tail, 1 - tail]) / count
    return float(low), float(high)


def false_discoveries(
    inside: Float64Array,
    outside: Float64Array,
    *,
    fdr: float,
    rounds: int,
    sizes: tuple[int, int] = (450, 50),
    seed: int = 0,
) -> tuple[list[float], list[float]]:
    """Mix p-values of both in these numbers, decide by Benjamini-Hochberg; each round's false share, and its power."""
    rng = np.random.default_rng(seed)
    proportion, power = [], []
    for _ in range(rounds):
        drawn = [rng.choice(p, n, replace=len(p) < n) for p, n in zip((inside, outside), sizes, strict=True)]
        found = benjamini_hochberg(np.concatenate(drawn), fdr)
        false = found[: sizes[0]].sum()
        proportion.append(float(false / max(1, found.sum())))
        power.append(float(found[sizes[0] :].mean()))
    return proportion, power
