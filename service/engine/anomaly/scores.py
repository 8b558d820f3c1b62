"""The methods of scoring: each turns statistics into a score that is higher for stranger. docs/anomaly-scores.md."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from model_store import LATENT
from service.engine.anomaly.combination import Combination, Neighbours
from service.engine.anomaly.statistics import Values
from service.engine.arrays import Float64Array

Score = Callable[[Values], Float64Array]
"""Statistics → score [B]."""

DEFAULT_METHOD = "combined"
_MOST_NEIGHBOURS = 1000
"""Codes that a code is compared with; more cost every image of every request."""
_ROUNDING = 1e-6
"""Of log P(x): a gap that varies by less than that among ordinary images is the rounding of its two numbers."""
MIN_FITTING = 2
"""Images that a method which fits anything takes at least."""


@dataclass(frozen=True)
class Method:
    """One way of scoring.

    Attributes:
        needs: the statistics it looks at.
        fit: statistics of ordinary images, by name → the score; those images are not compared with later.
        fits: whether `fit` looks at them at all.
    """

    needs: tuple[str, ...]
    fit: Callable[[Values], Score]
    fits: bool = False


def _plain(score: Score) -> Callable[[Values], Score]:
    return lambda _: score


def _typicality(reference: Values) -> Score:
    """|−log P(x) − E[−log P]|: the entropy is estimated by the mean over ordinary images."""
    found = reference["log_likelihood"]
    centre = found[np.isfinite(found)].mean() if np.isfinite(found).any() else 0.0
    return lambda values: np.abs(values["log_likelihood"] - centre)


def _input_complexity(values: Values) -> Float64Array:
    return -values["log_likelihood"] - values["complexity"]


def _codes(values: Values) -> Float64Array:
    """The encoder's means [B, D], of their columns."""
    return np.stack([values[f"{LATENT}{d}"] for d in range(sum(name.startswith(LATENT) for name in values))], axis=1)


def _local(values: Values) -> Float64Array:
    return values["local"]


def _varies(gap: Float64Array, log_likelihood: Float64Array) -> bool:
    """Whether gaps of ordinary images differ by more than rounding; those that are not finite tell nothing."""
    finite = np.isfinite(gap) & np.isfinite(log_likelihood)
    return not finite.any() or bool(gap[finite].std() > _ROUNDING * np.abs(log_likelihood[finite]).mean())


def _combined(reference: Values, unlikely: Score = _input_complexity) -> Score:
    """How hard to infer, how unlikely (for its complexity), how far from any ordinary code: see combination.py.

    Where the encoder is the exact posterior, every image is as easy to infer: only the other two count.
    """
    codes = _codes(reference)
    codes = codes[np.isfinite(codes).all(axis=1)]
    neighbours = Neighbours(codes[:: math.ceil(len(codes) / _MOST_NEIGHBOURS)] if len(codes) else codes)

    is_inferred = _varies(reference["posterior_gap"], reference["log_likelihood"])

    def parts(values: Values, distance: Float64Array) -> tuple[Float64Array, ...]:
        gap = values["posterior_gap"]
        return (
            (gap, unlikely(values), distance)
            if is_inferred
            else (np.where(np.isfinite(gap), unlikely(values), np.nan), distance)
        )

    combination = Combination.fit(parts(reference, neighbours.distance_among()))
    return lambda values: combination.score(parts(values, neighbours.distance(_codes(values))))


METHODS: Mapping[str, Method] = {
    "log_likelihood": Method(("log_likelihood",), _plain(lambda values: -values["log_likelihood"])),
    "posterior_gap": Method(("posterior_gap",), _plain(lambda values: values["posterior_gap"])),
    "typicality": Method(("log_likelihood",), _typicality, fits=True),
    "input_complexity": Method(("log_likelihood", "complexity"), _plain(_input_complexity)),
    "reconstruction": Method(("reconstruction",), _plain(lambda values: values["reconstruction"])),
    "kl": Method(("kl",), _plain(lambda values: values["kl"])),
    "combined": Method(("posterior_gap", "log_likelihood", "complexity", f"{LATENT}0"), _combined, fits=True),
}
"""Of models of pixels."""
FEATURE_METHODS: Mapping[str, Method] = {
    **{name: method for name, method in METHODS.items() if name not in ("input_complexity", "combined")},
    "local": Method(("local",), _plain(_local)),
    "combined": Method(("posterior_gap", "local", f"{LATENT}0"), partial(_combined, unlikely=_local), fits=True),
}
"""Of models of features, of which a lossless file tells nothing: `local` takes its place."""
ALL_METHODS = (*METHODS, *(name for name in FEATURE_METHODS if name not in METHODS))
