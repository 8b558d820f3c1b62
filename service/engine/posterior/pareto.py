"""The tail of importance weights: how heavy is it, and what lies in it beyond the samples that were drawn?

Vehtari, Simpson, Gelman, Yao, Gabry 2024, "Pareto smoothed importance sampling" (arXiv 1507.02646).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MIN_TAIL = 5
_UNSEEN = 20
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(48)


@dataclass(frozen=True)
class ParetoTail:
    """A generalised Pareto distribution fitted to each image's largest weights; all [B], weights beside the largest."""

    shape: NDArray[np.float64]
    """Pareto k, see `pareto_k`."""
    scale: NDArray[np.float64]
    cutoff: NDArray[np.float64]
    """The largest weight that is not in the tail."""
    size: int
    """M, the weights in the tail; 0 where there are too few to fit."""

    def mean_square(self) -> NDArray[np.float64]:
        """The mean of w² in the tail, by the fit and beyond the samples: [B]; NaN where there is none.

        The largest weights of a heavy tail are seldom drawn, so the sample variance misses them. Two corrections: the
        shape is raised by one standard error, (1 + k)/√M, to at most 1; and the mean includes weights up to the size
        that one estimate in twenty would contain: ∫ w(u)² du over survival u from 1/(20·M) to 1.
        """
        if not self.size:
            return np.full_like(self.shape, np.nan)
        shape = np.minimum(self.shape + (1 + np.maximum(self.shape, 0)) / math.sqrt(self.size), 1)[:, None]
        log_survival = math.log(_UNSEEN * self.size) * (_NODES - 1) / 2  # from log 1/(20·M) to 0
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            weight = self.cutoff[:, None] + self.scale[:, None] * np.expm1(-shape * log_survival) / shape
            share = _NODE_WEIGHTS * np.exp(log_survival)
            return np.asarray((weight**2 * share).sum(axis=1) / share.sum())


def pareto_k(log_weight: NDArray[np.floating]) -> NDArray[np.float64]:
    """Shape k of the generalised Pareto distribution fitted to the largest weights: [B, K] log weights → [B].

    The weights have finite moments up to order 1/k: below 0.5 the variance exists, above 1 not even the mean does.
    Positive means heavy-tailed. The tail is the largest min(K/5, 3·√K) weights. Weights that are all equal have k = −∞;
    fewer than five in the tail, or a weight that is not a number, give NaN.

    >>> rng = np.random.default_rng(0)
    >>> weight = rng.pareto(2.0, (1, 100_000)) + 1           # Pareto with shape 1/2
    >>> float(pareto_k(np.log(weight))[0].round(1))
    0.5
    """
    return fit_tail(log_weight).shape


def tail_size(num_samples: int) -> int:
    """M = min(K/5, 3·√K) rounded up; 0 where that is too few to fit."""
    size = math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))
    return size if size >= _MIN_TAIL else 0


def fit_tail(log_weight: NDArray[np.floating]) -> ParetoTail:
    """Fit the tail of each row: [B, K] log weights → [B]; see `pareto_k`."""
    log_weight = np.asarray(log_weight, np.float64)
    num_images, num_samples = log_weight.shape
    shape, scale = np.full(num_images, np.nan), np.full(num_images, np.nan)
    size = tail_size(num_samples)
    if not size:
        return ParetoTail(shape, scale, np.full(num_images, np.nan), size)
    largest = np.sort(np.partition(log_weight, num_samples - size - 1, axis=-1)[:, -size - 1 :], axis=-1)  # [B, M+1]
    with np.errstate(invalid="ignore"):
        weight = np.exp(largest - largest[:, -1:])
    excess = weight[:, 1:] - weight[:, :1]  # [B, M], ascending
    shape[excess[:, -1] <= 0] = -np.inf
    # A quarter of the tail at the cutoff itself leaves the estimator nothing to scale by; such ties are moved just off.
    spread = excess[:, -1] > 0  # False for NaN too
    shape[spread], scale[spread] = _fit(np.maximum(excess[spread], np.finfo(np.float64).tiny))
    return ParetoTail(shape, scale, weight[:, 0], size)


def _fit(excess: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Posterior mean of the shape, and the scale, given ascending exceedances [B, M] (Zhang, Stephens 2009).

    Technometrics 51:316. Their profile likelihood in θ is averaged over a grid; then ten pseudo-observations of 0.5
    stabilise the shape of small tails (appendix of the paper above).
    """
    count = excess.shape[-1]
    grid = 30 + math.isqrt(count)
    index = np.arange(1, grid + 1)
    quartile = excess[:, int(count / 4 + 0.5) - 1, None]  # [B, 1]
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        theta = 1 / excess[:, -1:] + (1 - np.sqrt(grid / (index - 0.5))) / (3 * quartile)  # [B, G]
        profile = _mean_log1p(theta, excess)
        log_likelihood = count * (np.log(-theta / profile) - profile - 1)
        log_likelihood[np.isnan(log_likelihood)] = -np.inf
        posterior = np.exp(log_likelihood - log_likelihood.max(axis=-1, keepdims=True))
        posterior /= posterior.sum(axis=-1, keepdims=True)
        theta_mean = np.where(posterior > 0, posterior * theta, 0).sum(axis=-1, keepdims=True)  # [B, 1]
        shape = _mean_log1p(theta_mean, excess)[:, 0]
        scale = -shape / theta_mean[:, 0]
    return np.asarray((count * shape + 10 * 0.5) / (count + 10)), np.asarray(scale)


def _mean_log1p(theta: NDArray[np.float64], excess: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the tail of log(1 − θ·excess): [B, G], [B, M] → [B, G]."""
    return np.asarray(np.log1p(-theta[:, :, None] * excess[:, None, :]).mean(axis=-1))
