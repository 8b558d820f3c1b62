"""Log weights to an estimate of log P(x) that says how far it can be trusted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from service.engine.posterior.pareto import ParetoTail, fit_tail

MAX_RELIABLE_STD_ERROR = 0.5


@dataclass(frozen=True)
class LogLikelihood:
    """Estimates of log P(x) with their diagnostics, one entry an image; all [B], nats unless said otherwise."""

    log_likelihood: NDArray[np.float64]
    """logsumexp_k(log_weight) − log K."""
    bits_per_dim: NDArray[np.float64]
    """−log P(x) / (C·H·W·ln 2), in bits."""
    std_error: NDArray[np.float64]
    """sd(w) / (mean(w)·√K), the delta method's, where sd counts what the tail holds beyond the samples.

    The plain sample sd is too small just when the largest weights were not drawn; see `ParetoTail.mean_square`. NaN for
    a single sample."""
    elbo: NDArray[np.float64]
    """The evidence lower bound under the encoder, whatever the proposal."""
    posterior_gap: NDArray[np.float64]
    """log P(x) − ELBO = KL[q(z|x) ‖ p(z|x)]."""
    effective_sample_size: NDArray[np.float64]
    """(Σw)² / Σw², between 1 and K."""
    pareto_k: NDArray[np.float64]
    """Tail shape of the weights, see pareto.py; no unit."""
    num_samples: NDArray[np.int64]
    """K, the samples this image's estimate took."""
    proposal: NDArray[np.str_]
    """The proposal really used: `encoder` where `laplace` was asked for and found no curvature to use."""
    reliable: NDArray[np.bool_]
    """Whether `std_error` can be believed: see `is_reliable`."""

    @staticmethod
    def join(parts: Sequence["LogLikelihood"]) -> "LogLikelihood":
        """One record of several, images in order."""
        return LogLikelihood(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(parts[0])})

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> "LogLikelihood":
        """The record of these images, by index or by mask."""
        return LogLikelihood(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def estimate(
    log_weight: NDArray[np.floating], elbo: NDArray[np.float64], num_pixels: int, proposal: str = "encoder"
) -> LogLikelihood:
    """Reduce log weights [B, K] to estimates [B], in float64.

    `elbo` [B] is the encoder's, see `evidence_lower_bound`. A log weight of −∞ is a weight of zero; one that is not a
    number makes its image's estimate NaN and unreliable.

    >>> record = estimate(np.log([[1.0, 3.0]]), np.array([0.0]), num_pixels=1)
    >>> bool(np.isclose(record.log_likelihood[0], np.log(2))), float(record.effective_sample_size[0].round(3))
    (True, 1.6)
    """
    log_weight = np.asarray(log_weight, np.float64)
    num_samples = log_weight.shape[-1]
    highest = log_weight.max(axis=-1, keepdims=True)
    shift = np.where(np.isfinite(highest), highest, 0)
    tail = fit_tail(log_weight)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        weight = np.exp(log_weight - shift)  # [B, K]
        total = weight.sum(axis=-1)
        log_likelihood = np.log(total) + shift[..., 0] - math.log(num_samples)
        effective_sample_size = total**2 / (weight**2).sum(axis=-1)
        std_error = np.sqrt(_variance(weight, tail) * num_samples) / total
        posterior_gap = log_likelihood - elbo
    return LogLikelihood(
        log_likelihood=log_likelihood,
        std_error=std_error,
        elbo=np.asarray(elbo, np.float64),
        posterior_gap=posterior_gap,
        bits_per_dim=-log_likelihood / (num_pixels * math.log(2)),
        effective_sample_size=effective_sample_size,
        pareto_k=tail.shape,
        num_samples=np.full(total.shape, num_samples),
        proposal=np.full(total.shape, proposal),
        reliable=is_reliable(tail.shape, std_error, num_samples),
    )


def _variance(weight: NDArray[np.float64], tail: ParetoTail) -> NDArray[np.float64]:
    """Variance of weights [B, K], the largest being 1 → [B]: the sample's, or more where the tail's fit says more."""
    num_samples = weight.shape[-1]
    if num_samples < 2:
        return np.full(len(weight), np.nan)
    variance = weight.var(axis=-1, ddof=1)
    if not tail.size:
        return np.asarray(variance)
    drawn = (np.partition(weight, num_samples - tail.size, axis=-1)[:, num_samples - tail.size :] ** 2).mean(axis=-1)
    beyond = np.fmax(tail.mean_square() - drawn, 0)
    return np.asarray(variance + beyond * tail.size / num_samples)


def evidence_lower_bound(encoder_log_weight: NDArray[np.floating]) -> NDArray[np.float64]:
    """E_q[log p(x|z) + log p(z) − log q(z|x)], by the mean of the encoder's log weights: [B, K] → [B], nats."""
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        return np.asarray(encoder_log_weight.mean(axis=-1, dtype=np.float64))


def is_reliable(tail_shape: NDArray[np.float64], std_error: NDArray[np.float64], num_samples: int) -> NDArray[np.bool_]:
    """Whether an estimate's error bar can be believed: [B].

    Pareto k below min(1 − 1/log10 K, 0.7), the bound of Vehtari et al. 2024, and a standard error of at most 0.5 nat,
    beyond which the delta method's straight line no longer follows the logarithm. NaN is unreliable.
    """
    limit = min(1 - 1 / math.log10(num_samples), 0.7) if num_samples > 1 else -math.inf
    return (tail_shape < limit) & (std_error <= MAX_RELIABLE_STD_ERROR)
