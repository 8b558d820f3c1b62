"""The methods of scoring: each turns statistics into a score that is higher for stranger. docs/anomaly-scores.md."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from service.engine.combination import Combination
from service.engine.statistics import Array, Values

Score = Callable[[Values], Array]
"""Statistics → score [B]."""

DEFAULT_METHOD = "combined"
DISTANT, ONE_SIDED = ("log_likelihood", "reconstruction", "kl", "complexity"), "posterior_gap"
"""The statistics that `combined` looks at. The gap is a sum of three others: with them it would count twice."""
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


def _combined(reference: Values) -> Score:
    """See combination.py."""

    def distant(values: Values) -> Array:
        return np.stack([values[name] for name in DISTANT], axis=1)

    combination = Combination.fit(distant(reference), reference[ONE_SIDED])
    return lambda values: combination.score(distant(values), values[ONE_SIDED])


METHODS: Mapping[str, Method] = {
    "log_likelihood": Method(("log_likelihood",), _plain(lambda values: -values["log_likelihood"])),
    "posterior_gap": Method(("posterior_gap",), _plain(lambda values: values["posterior_gap"])),
    "typicality": Method(("log_likelihood",), _typicality, fits=True),
    "input_complexity": Method(
        ("log_likelihood", "complexity"), _plain(lambda values: -values["log_likelihood"] - values["complexity"])
    ),
    "reconstruction": Method(("reconstruction",), _plain(lambda values: values["reconstruction"])),
    "kl": Method(("kl",), _plain(lambda values: values["kl"])),
    "combined": Method((*DISTANT, ONE_SIDED), _combined, fits=True),
}
