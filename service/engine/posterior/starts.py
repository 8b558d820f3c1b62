"""Where searches for the modes of an image's posterior begin, but for what the bank has."""

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Float32Array, Float64Array
from service.engine.proposal import DEFAULT_SEED, standard_normal

IS_INDEPENDENT = np.array([False, False, True, True])
"""Of a further round's four: the first two begin where others have ended."""
ROUND_SEED = 5
_WIDE = 1.5
"""Times the prior: how far out the starting points lie that are drawn at random."""
_HOPS = np.array([0.4, 0.6])
"""b of the starts around the best mode, √(1 − b²)·mode + b·noise: neighbours of a good mode are often better (basin
hopping: Wales, Doye 1997, J. Phys. Chem. A 101:5111): three times as often as of starts elsewhere, for as many rows."""
NUM_HOPS = len(_HOPS)
_SHORT_HOPS = np.array([0.2, 0.4])
"""The same where posteriors are sharp."""


class Starts:
    """Points in the familiar dimensions, the same noise for all images.

    Args:
        latent_dim: D.
        dimensions: the familiar ones, [A].
    """

    def __init__(self, latent_dim: int, dimensions: NDArray[np.intp]) -> None:
        self._latent_dim = latent_dim
        self._dimensions = dimensions

    def of_round(self, first: Float64Array, from_bank: Float64Array, number: int) -> Float64Array:
        """Points [n, F, A], some of the bank [n, C, A], and wide draws from the prior: [n, 4, A]."""
        count = len(IS_INDEPENDENT) - first.shape[1] - from_bank.shape[1]
        wide = np.tile(_WIDE * self._noise(count, ROUND_SEED + 1 + number), (len(first), 1, 1))
        return np.concatenate([first, from_bank, wide], axis=1, dtype=np.float64)

    def around(self, modes: Float64Array, number: int) -> Float64Array:
        """Two points around each mode, for the round of this number, from 1: [n, A] → [n, 2, A]."""
        return _hop(modes, _HOPS, self._noise(number * len(_HOPS), ROUND_SEED)[-len(_HOPS) :])

    def beside(self, modes: Float64Array) -> Float64Array:
        """Each mode, two points around it, nearer than `around`, and the prior's mean: [n, A] → [n, 4, A]."""
        hops = _hop(modes, _SHORT_HOPS, self._noise(len(_SHORT_HOPS), ROUND_SEED))
        return np.concatenate([modes[:, None], hops, np.zeros_like(modes)[:, None]], axis=1)

    def of_competition(self, first: Float64Array, count: int) -> Float64Array:
        """A point [n, A], the prior's mean, and draws from the prior: [n, S, A]."""
        starts = np.zeros((len(first), count, first.shape[1]))
        starts[:, 0], starts[:, 2:] = first, self._noise(count - 2, DEFAULT_SEED)
        return starts

    def _noise(self, count: int, seed: int) -> Float32Array:
        return np.asarray(standard_normal(count, self._latent_dim, seed=seed)[:, self._dimensions])


def _hop(modes: Float64Array, lengths: Float64Array, noise: Float32Array) -> Float64Array:
    return np.asarray(np.sqrt(1 - lengths**2)[:, None] * modes[:, None] + lengths[:, None] * noise)
