"""Log weights to an estimate of log P(x) that says how far it can be trusted."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.parts import Results
from service.engine.posterior.pareto import ParetoTail, fit_tail, tail_size

MAX_RELIABLE_STD_ERROR = 0.5
REASONS = ("mode", "tail", "groups", "budget")
"""Why an estimate is not reliable: no mode of the posterior was found, or two searches found different ones; the
weights' tail is too heavy for an error bar; groups of particles disagree; more samples would make it reliable."""
_GROUP_ALLOWANCE = 1.4
"""Of an annealed estimate's standard error: few groups spread less than many would (Student's t, four groups)."""
_MAX_SPREAD = 3.0
"""Nats between the highest and the lowest group beyond which they disagree."""


@dataclass(frozen=True)
class LogLikelihood(Results):
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
    """(Σw)² / Σw², between 1 and K; NaN where the estimate is annealed."""
    pareto_k: NDArray[np.float64]
    """Tail shape of the weights, see pareto.py; no unit. NaN where the estimate is annealed."""
    num_samples: NDArray[np.int64]
    """K, the samples this image's estimate took; of an annealed one, particles and their moves."""
    proposal: NDArray[np.str_]
    """The proposal really used: `encoder` where `laplace` was asked for and found no curvature to use."""
    reliable: NDArray[np.bool_]
    """Whether `std_error` can be believed: see `is_reliable`, and `annealed_estimate`."""
    reason: NDArray[np.str_]
    """Why it is not reliable, one of `REASONS`; empty where it is."""


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
    return LogLikelihood(
        **_said_of(log_likelihood, elbo, num_pixels),
        std_error=std_error,
        effective_sample_size=effective_sample_size,
        pareto_k=tail.shape,
        num_samples=np.full(total.shape, num_samples),
        proposal=np.full(total.shape, proposal),
        reliable=is_reliable(tail.shape, std_error, num_samples),
        reason=_reason(tail.shape, std_error, num_samples),
    )


def _said_of(
    log_likelihood: NDArray[np.float64], elbo: NDArray[np.float64], num_pixels: int
) -> dict[str, NDArray[np.float64]]:
    """The fields that follow from log P(x) and the ELBO, however these were estimated."""
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        gap = log_likelihood - elbo
    bits = -log_likelihood / (num_pixels * math.log(2))
    return {
        "log_likelihood": log_likelihood,
        "elbo": np.asarray(elbo, np.float64),
        "posterior_gap": gap,
        "bits_per_dim": bits,
    }


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


def annealed_estimate(
    log_estimates: NDArray[np.float64],
    inner_variance: NDArray[np.float64],
    elbo: NDArray[np.float64],
    num_samples: NDArray[np.int64],
    num_pixels: int,
    *,
    found: NDArray[np.bool_],
    finished: NDArray[np.bool_],
) -> LogLikelihood:
    """The mean of some groups' estimates of P(x): log estimates [B, R, G] of R rounds → estimates [B].

    `std_error` is the larger of two, times 1.4: by the spread of the groups, sd/(mean·√G), and by descent within them,
    √`inner_variance`, the relative variance of the mean of all groups (annealing.py). It is reliable where a mode was
    found, the groups' means over rounds lie within three nats of one another, and it is at most half a nat.

    Args:
        log_estimates: by round and group, log [B, R, G].
        inner_variance: [B].
        elbo: [B].
        num_samples: particles and their moves, [B].
        num_pixels: C·H·W.
        found: whether the search found a mode, [B].
        finished: whether annealing came to its end, [B].
    """
    every = log_estimates.reshape(len(log_estimates), -1)  # [B, R·G]
    highest = every.max(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        estimates = np.exp(every - np.where(np.isfinite(highest), highest, 0)[:, None])
        mean = estimates.mean(axis=1)
        log_likelihood = np.log(mean) + highest
        between = estimates.std(axis=1, ddof=1) / (mean * math.sqrt(every.shape[1]))
        std_error = _GROUP_ALLOWANCE * np.maximum(between, np.sqrt(inner_variance))
        by_group = np.log(estimates.reshape(log_estimates.shape).mean(axis=1))  # [B, G]
        spread = by_group.max(axis=1) - by_group.min(axis=1)
        agree = (spread <= _MAX_SPREAD) & (std_error <= MAX_RELIABLE_STD_ERROR)
    shape = log_likelihood.shape
    return LogLikelihood(
        **_said_of(log_likelihood, elbo, num_pixels),
        std_error=std_error,
        effective_sample_size=np.full(shape, np.nan),
        pareto_k=np.full(shape, np.nan),
        num_samples=num_samples,
        proposal=np.full(shape, "annealed"),
        reliable=agree & found & finished,
        reason=np.select([~found, ~finished, ~agree], ["mode", "budget", "groups"], ""),
    )


def evidence_lower_bound(encoder_log_weight: NDArray[np.floating]) -> NDArray[np.float64]:
    """E_q[log p(x|z) + log p(z) − log q(z|x)], by the mean of the encoder's log weights: [B, K] → [B], nats."""
    rows = np.ascontiguousarray(encoder_log_weight)  # the order of a sum over strides depends on the batch
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        return np.asarray(rows.mean(axis=-1, dtype=np.float64))


def is_reliable(tail_shape: NDArray[np.float64], std_error: NDArray[np.float64], num_samples: int) -> NDArray[np.bool_]:
    """Whether an estimate's error bar can be believed: [B].

    Pareto k below min(1 − 1/log10 K, 0.7), the bound of Vehtari et al. 2024, and a standard error of at most 0.5 nat,
    beyond which the delta method's straight line no longer follows the logarithm. NaN is unreliable.
    """
    return (tail_shape < _tail_limit(num_samples)) & (std_error <= MAX_RELIABLE_STD_ERROR)


def _tail_limit(num_samples: int) -> float:
    return min(1 - 1 / math.log10(num_samples), 0.7) if num_samples > 1 else -math.inf


def _reason(tail_shape: NDArray[np.float64], std_error: NDArray[np.float64], num_samples: int) -> NDArray[np.str_]:
    """Why importance samples are not reliable: [B]; fewer than a tail can be fitted to are too few."""
    too_heavy = ~(tail_shape < _tail_limit(num_samples)) & (tail_size(num_samples) > 0)
    too_wide = ~(std_error <= MAX_RELIABLE_STD_ERROR) | (tail_size(num_samples) == 0)
    return np.select([too_heavy, too_wide], ["tail", "budget"], "")
