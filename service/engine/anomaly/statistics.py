"""What one pass over an image tells of it: the statistics from which anomaly scores are made.

A statistic is one field of `Statistics`, or, where it follows from others, one line of `derived`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from model_store import LATENT
from service.engine.arrays import Float64Array
from service.engine.parts import Results
from service.engine.proposal import DiagonalGaussian

_INFINITE, _NO_NUMBER = 1e12, 4e12
Values = Mapping[str, Float64Array]
"""Statistics by name, each [B]."""


@dataclass(frozen=True)
class Statistics(Results):
    """Of each image: arrays [B], in nats, but for `mean`. Their names are those of the arrays in calibration.npz."""

    log_likelihood: Float64Array
    """log P(x)."""
    elbo: Float64Array
    """The evidence lower bound under the encoder, by its samples."""
    kl: Float64Array
    """KL[q(z|x) ‖ p(z)], see `divergence`."""
    mean: Float64Array
    """The latent code: the encoder's mean [B, D], no unit. calibration.npz has it in columns, `latent_0` and so on."""
    complexity: Float64Array | None = None
    """Lossless size of the prepared image, see complexity.py; None of models of features."""
    local: Float64Array | None = None
    """How unlikely the least likely positions of the feature maps are, see local.py; None of models of pixels."""

    def measured(self) -> dict[str, Float64Array]:
        """Arrays [B] by name: what calibration.npz keeps."""
        every = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "mean"}
        named = {name: values for name, values in every.items() if values is not None}
        return named | {f"{LATENT}{d}": column for d, column in enumerate(self.mean.T)}


def derived(measured: Values) -> dict[str, Float64Array]:
    """Statistics with those that follow from them; of an older calibration, which has fewer, as many as can be had.

    - `posterior_gap` = log P(x) − ELBO = KL[q(z|x) ‖ p(z|x)]
    - `reconstruction` = −ELBO − KL[q(z|x) ‖ p(z)] = −E_q[log p(x|z)]
    """
    values = dict(measured)
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        values["posterior_gap"] = measured["log_likelihood"] - measured["elbo"]
        if "kl" in measured:
            values["reconstruction"] = -measured["elbo"] - measured["kl"]
    return values


def storable(measured: Values) -> dict[str, Float64Array]:
    """Statistics of calibration images as calibration.npz takes them, finite: ±∞ as ±10¹², what is no number as 4·10¹².

    >>> stored = storable({"elbo": np.array([-90.0, -np.inf, np.nan])})
    >>> stored["elbo"].tolist(), restored(stored)["elbo"].tolist()
    ([-90.0, -1000000000000.0, 4000000000000.0], [-90.0, -inf, nan])
    """
    return {
        name: np.where(np.isnan(array), _NO_NUMBER, np.clip(array, -_INFINITE, _INFINITE))
        for name, array in measured.items()
    }


def restored(stored: Values) -> dict[str, Float64Array]:
    """What `storable` was given."""
    return {
        name: np.where(
            array == _NO_NUMBER, np.nan, np.where(np.abs(array) >= _INFINITE, np.copysign(np.inf, array), array)
        )
        for name, array in stored.items()
    }


def divergence(posterior: DiagonalGaussian) -> Float64Array:
    """KL[q(z|x) ‖ N(0, I)] = ½·Σ (mean² + exp(log_var) − log_var − 1), nats: [B, D] → [B].

    >>> one = np.ones((1, 2), np.float32)
    >>> divergence(DiagonalGaussian(mean=one, log_var=0 * one)).tolist()
    [1.0]
    """
    mean, log_var = posterior.mean.astype(np.float64), posterior.log_var.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(0.5 * (mean**2 + np.exp(log_var) - log_var - 1).sum(axis=1))
