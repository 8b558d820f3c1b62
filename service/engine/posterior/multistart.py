"""What searches from several starting points have found of each image, and whether more are needed.

A search that ends at the best mode again says that few better ones are left: with n independent searches, the chance
that the next one ends where none has ended is about the number of modes that were reached once, over n (Good 1953,
Biometrika 40:237; for global optimisation Boender, Rinnooy Kan 1987, Mathematical Programming 37:59). So an image whose
searches all end at one mode needs few of them, and one with several good modes gets more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Float64Array, Indices
from service.engine.posterior.candidates import is_same
from service.engine.posterior.newton_state import Modes

NUM_KEPT = 4
"""Modes of each image: the best that are not the same."""
NEAR = 5.0
"""Nats: a search that will end further below the best is given up."""
_BESIDE = 3.0
"""Nats below the best: a mode that lies higher has a part of P(x) that matters."""
_ENOUGH = 2
"""Searches that end at each mode that matters."""
_ENOUGH_AT_BEST = 5
"""Searches that end at the best mode."""


@dataclass(frozen=True)
class FoundModes:
    """The best modes of B images.

    Attributes:
        modes: the best first, [B·F].
        log_evidence: what each would have of P(x) were the posterior a Gaussian there, less constants: nats [B, F]; −∞
            where there are fewer.
        hits: independent searches that ended at each, [B, F].
    """

    modes: Modes
    log_evidence: Float64Array
    hits: Indices

    @property
    def height(self) -> Float64Array:
        """log p(x, z) at the best mode of each image, [B]."""
        return self.modes.value[:: self.hits.shape[1]]

    @property
    def best(self) -> Float64Array:
        """The best mode of each image, [B, A]."""
        return self.modes.mode[:: self.hits.shape[1]]

    @property
    def information(self) -> Float64Array:
        """The likelihood's part of the precision at the best mode of each image, [B, A, A]."""
        return self.modes.information[:: self.hits.shape[1]]

    @property
    def is_mode(self) -> NDArray[np.bool_]:
        """Which there are, [B, F]."""
        return np.isfinite(self.log_evidence)

    @property
    def is_confirmed(self) -> NDArray[np.bool_]:
        """Whether the modes that matter were reached often enough, [B]."""
        best = np.where(self.is_mode[:, :1], self.log_evidence[:, :1], 0)
        once = self.is_mode & (self.log_evidence >= best - _BESIDE) & (self.hits < _ENOUGH)
        return np.asarray(~once.any(axis=1) & (self.hits[:, 0] >= _ENOUGH_AT_BEST))

    def know(self, images: Indices, points: Float64Array) -> Indices:
        """At which of the modes that are known points [n, A] are, each of an image by index; −1: at none: [n]."""
        kept = self.hits.shape[1]
        known = np.full(len(images), -1)
        for mode in reversed(range(kept)):
            rows = images * kept + mode
            there = np.isfinite(self.log_evidence[images, mode])
            known[there & is_same(points, self.modes.mode[rows], self.modes.precision[rows])] = mode
        return known

    def take(self, images: Indices) -> "FoundModes":
        """Those of these images."""
        count = self.hits.shape[1]
        rows = (images[:, None] * count + np.arange(count)).ravel()
        return FoundModes(self.modes.take(rows), self.log_evidence[images], self.hits[images])

    @staticmethod
    def join(parts: Sequence["FoundModes"]) -> "FoundModes":
        """Images of several, in order."""
        return FoundModes(
            Modes.join([part.modes for part in parts]),
            np.concatenate([part.log_evidence for part in parts]),
            np.concatenate([part.hits for part in parts]),
        )

    @staticmethod
    def of(modes: Modes, num_images: int) -> "FoundModes":
        """Where as many independent searches of each image have ended, in order: [B·S]."""
        count = len(modes.mode) // max(1, num_images)
        return _best_distinct(modes, _log_evidence(modes), np.ones((num_images, count), np.intp))

    def add(self, modes: Modes, *, is_independent: NDArray[np.bool_]) -> "FoundModes":
        """Where further searches of each image have ended, [B·S], and which of an image's are independent, [S].

        One that began near the best mode says something only if it ends elsewhere.
        """
        num_images, kept = self.hits.shape
        count = len(is_independent)
        hits = np.ones((num_images, count), np.intp)
        best = np.arange(num_images) * kept
        for search in np.flatnonzero(~is_independent):
            ended = modes.mode[search::count]
            hits[is_same(ended, self.best, self.modes.precision[best]), search] = 0
        every = np.arange(num_images)[:, None]
        rows = np.concatenate([every * kept + np.arange(kept), num_images * kept + every * count + np.arange(count)], 1)
        log_evidence = np.concatenate([self.log_evidence.ravel(), _log_evidence(modes)])
        hits = np.concatenate([self.hits, hits], axis=1)
        return _best_distinct(Modes.join([self.modes, modes]).take(rows.ravel()), log_evidence[rows.ravel()], hits)


@np.errstate(over="ignore", invalid="ignore")
def _log_evidence(modes: Modes) -> Float64Array:
    """log p(x, z) + ½·log |Σ| at each, [n], as if they were modes; −∞ where there is no number."""
    evidence = modes.value - 0.5 * np.linalg.slogdet(modes.precision)[1]
    return np.where(modes.usable & np.isfinite(evidence), evidence, -np.inf)


def _best_distinct(modes: Modes, log_evidence: Float64Array, hits: Indices) -> FoundModes:
    """Of modes [B·S], with their evidence [B·S] and how often each was reached [B, S]: the best, each once."""
    num_images, count = hits.shape
    evidence = log_evidence.reshape(num_images, count)
    order = np.argsort(-evidence, axis=1, kind="stable")
    evidence, hits = np.take_along_axis(evidence, order, axis=1), np.take_along_axis(hits, order, axis=1)
    modes = modes.take((order + count * np.arange(num_images)[:, None]).ravel())
    mode = modes.mode.reshape(num_images, count, modes.mode.shape[1])
    precision = modes.precision.reshape(*mode.shape, mode.shape[2])
    for better in range(count - 1):
        for other in range(better + 1, count):
            there = np.isfinite(evidence[:, better]) & np.isfinite(evidence[:, other])
            same = there & is_same(mode[:, other], mode[:, better], precision[:, better])
            hits[same, better] += hits[same, other]
            evidence[same, other] = -np.inf
    order = np.argsort(-evidence, axis=1, kind="stable")[:, :NUM_KEPT]
    kept = modes.take((order + count * np.arange(num_images)[:, None]).ravel())
    return FoundModes(kept, np.take_along_axis(evidence, order, axis=1), np.take_along_axis(hits, order, axis=1))
