"""The tail shape of importance weights: can a standard error computed from them be believed?

Vehtari, Simpson, Gelman, Yao, Gabry 2024, "Pareto smoothed importance sampling" (arXiv 1507.02646).
"""

import math

import numpy as np
from numpy.typing import NDArray

_MIN_TAIL = 5


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
    log_weight = np.asarray(log_weight, np.float64)
    num_samples = log_weight.shape[-1]
    tail = math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))
    if tail < _MIN_TAIL:
        return np.full(log_weight.shape[:-1], np.nan)
    largest = np.sort(np.partition(log_weight, num_samples - tail - 1, axis=-1)[..., -tail - 1 :], axis=-1)  # [B, M+1]
    with np.errstate(invalid="ignore"):
        weight = np.exp(largest - largest[..., -1:])
    excess = weight[..., 1:] - weight[..., :1]  # [B, M], ascending
    shape = np.full(excess.shape[:-1], np.nan)
    shape[excess[..., -1] <= 0] = -np.inf
    # A quarter of the tail at the cutoff itself leaves the estimator nothing to scale by; such ties are moved just off.
    spread = excess[..., -1] > 0  # False for NaN too
    shape[spread] = _fit_shape(np.maximum(excess[spread], np.finfo(np.float64).tiny))
    return shape


def _fit_shape(excess: NDArray[np.float64]) -> NDArray[np.float64]:
    """Posterior mean of the shape, given ascending exceedances [B, M] (Zhang and Stephens 2009, Technometrics 51:316).

    Their profile likelihood in θ is averaged over a grid; then ten pseudo-observations of 0.5 steady small tails
    (appendix of the paper above).
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
    return np.asarray((count * shape + 10 * 0.5) / (count + 10))


def _mean_log1p(theta: NDArray[np.float64], excess: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the tail of log(1 − θ·excess): [B, G], [B, M] → [B, G]."""
    return np.asarray(np.log1p(-theta[:, :, None] * excess[:, None, :]).mean(axis=-1))
