"""The methods of scoring: each turns statistics into a score that is higher for stranger. docs/anomaly-scores.md."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from service.engine.combination import Combination, Neighbours
from service.engine.statistics import LATENT, Array, Values

Score = Callable[[Values], Array]
"""Statistics → score [B]."""

DEFAULT_METHOD = "combined"
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
    centre = reference["log_likelihood"].mean()
    return lambda values: np.abs(values["log_likelihood"] - centre)


def _input_complexity(values: Values) -> Array:
    return -values["log_likelihood"] - values["complexity"]


def _codes(values: Values) -> Array:
    """The encoder's means [B, D], of their columns."""
    return np.stack([values[f"{LATENT}{d}"] for d in range(sum(name.startswith(LATENT) for name in values))], axis=1)


def _combined(reference: Values) -> Score:
    """How hard to infer, how unlikely for its complexity, how far from any ordinary code: see combination.py."""
    neighbours = Neighbours(_codes(reference))

    def parts(values: Values, distance: Array) -> Array:
        return np.stack([values["posterior_gap"], _input_complexity(values), distance], axis=1)

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
