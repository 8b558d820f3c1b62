"""Several modes of each image's posterior, with the Gaussians around them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Float64Array, Indices
from service.engine.matrices import times
from service.engine.posterior.gaussians import Gaussians
from service.engine.posterior.newton_state import Modes

SAME_MODE = 4.0
"""Squared distance, in standard deviations, below which two searches ended at the same mode."""


@dataclass(frozen=True)
class Candidates:
    """Up to F modes of each image; the best first.

    Attributes:
        gaussians: around them by the curvature there, [B·F] in all D dimensions.
        log_evidence: what each would have of P(x) were the posterior a Gaussian there, less constants: nats [B, F]; −∞
            where it is one of the others.
        found: whether the best of them is a mode, [B].
    """

    gaussians: Gaussians
    log_evidence: Float64Array
    found: NDArray[np.bool_]

    def take(self, images: Indices) -> "Candidates":
        """Those of these images."""
        count = self.log_evidence.shape[1]
        rows = (images[:, None] * count + np.arange(count)).ravel()
        return Candidates(self.gaussians.take(rows), self.log_evidence[images], self.found[images])

    def with_first(self, gaussians: Gaussians) -> "Candidates":
        """With another Gaussian [B] around the best mode of each image."""
        num_images, count = self.log_evidence.shape
        index = np.arange(num_images * count)
        index[::count] = len(index) + np.arange(num_images)
        return replace(self, gaussians=Gaussians.join([self.gaussians, gaussians]).take(index))

    @staticmethod
    def join(parts: Sequence["Candidates"]) -> "Candidates":
        """Images of several, in order."""
        return Candidates(
            Gaussians.join([part.gaussians for part in parts]),
            np.concatenate([part.log_evidence for part in parts]),
            np.concatenate([part.found for part in parts]),
        )


def alone(gaussians: Gaussians) -> Candidates:
    """One mode of each image, which was found."""
    count = len(gaussians.centre)
    return Candidates(gaussians, np.zeros((count, 1)), np.ones(count, np.bool_))


def distinct(modes: Modes, count: int) -> tuple[Candidates, Modes]:
    """Of `count` modes of each image, [B·F]: those that are not the same, and the best of them, [B]."""
    gaussians = Gaussians.around(modes.mode, modes.precision)
    shape = (-1, count)
    evidence = modes.value - 0.5 * np.log(gaussians.precisions).sum(axis=1)
    evidence = np.where(modes.usable & np.isfinite(evidence), evidence, -np.inf).reshape(shape)
    every = np.arange(len(evidence))[:, None]
    order = np.argsort(-evidence, axis=1, kind="stable")
    index = (order + count * every).ravel()
    evidence = np.take_along_axis(evidence, order, axis=1)
    ordered = modes.take(index)
    mode = ordered.mode.reshape(*shape, ordered.mode.shape[1])
    precision = ordered.precision.reshape(*mode.shape, -1)
    for other in range(1, count):
        for better in range(other):
            evidence[is_same(mode[:, other], mode[:, better], precision[:, better]), other] = -np.inf
    found = Candidates(gaussians.take(index), evidence, np.asarray(ordered.converged.reshape(shape)[:, 0]))
    return found, modes.take(index[::count])


@np.errstate(over="ignore", invalid="ignore")  # a search may have gone anywhere
def is_same(mode: Float64Array, other: Float64Array, precision: Float64Array) -> NDArray[np.bool_]:
    """Whether modes [n, A] are the other ones, by the precision [n, A, A] there."""
    apart = mode - other
    return np.asarray((apart * times(precision, apart)).sum(axis=1) < SAME_MODE)


def best_of_each(modes: Modes, owner: Indices, count: int) -> Modes:
    """The best `count` modes of each image, best first; all images have as many."""
    value = np.where(modes.usable, modes.value, -np.inf)
    order = np.lexsort((-value, owner))  # which keeps the order of equals
    each = len(owner) // max(1, len(np.unique(owner)))
    return modes.take(order.reshape(-1, each)[:, :count].ravel())
