"""How strange is an image? A score, higher for stranger, and its conformal p-value."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Method = Literal["log_likelihood"]
METHODS: tuple[Method, ...] = get_args(Method)
DEFAULT_METHOD: Method = "log_likelihood"


class UnknownMethodError(ValueError):
    """An anomaly method this engine does not have."""


class UncalibratedModelError(Exception):
    """A model without calibration scores cannot say what is strange."""


@dataclass(frozen=True)
class AnomalyScores:
    """Scores with their p-values, one entry an image; arrays [B], nats where there is a unit."""

    score: NDArray[np.float64]
    p_value: NDArray[np.float64]
    is_anomaly: NDArray[np.bool_]
    """p_value ≤ alpha."""
    log_likelihood: NDArray[np.float64]
    posterior_gap: NDArray[np.float64]
    calibration_size: int


def strangeness(method: str, log_likelihood: NDArray[np.float64]) -> NDArray[np.float64]:
    """The score of each image, higher for stranger: [B] → [B], nats.

    `log_likelihood` is −log P(x). It calls a simple image from elsewhere familiar (Nalisnick et al. 2019, arXiv
    1810.09136): a model of clothes gives digits the higher likelihood.

    Raises:
        UnknownMethodError: another method.
    """
    if method == "log_likelihood":
        return -log_likelihood
    raise UnknownMethodError(f"unknown method {method!r}; accepted: {', '.join(METHODS)}")


def conformal_p_value(score: NDArray[np.float64], calibration_score: NDArray[np.float64]) -> NDArray[np.float64]:
    """(1 + #{calibration at least as strange}) / (n + 1): scores [B], calibration scores [n] → [B].

    For an image exchangeable with the calibration images, P(p ≤ α) ≤ α (Bates et al. 2023, arXiv 2104.08279). A score
    that is not a number has the p-value of the strangest: 1 / (n + 1).

    >>> conformal_p_value(np.array([5.0, 0.0]), np.array([1.0, 2.0, 5.0])).tolist()
    [0.5, 1.0]
    """
    ascending = np.sort(calibration_score)
    at_least = len(ascending) - np.searchsorted(ascending, score, side="left")  # NaN sorts above all numbers
    return np.asarray((1 + at_least) / (len(ascending) + 1))
