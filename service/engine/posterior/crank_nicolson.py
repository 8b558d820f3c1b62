"""Moves that keep a Gaussian: z′ = mean + √(1 − β²)·(z − mean) + β·root·noise, whatever the number of dimensions.

Preconditioned Crank-Nicolson (Cotter, Roberts, Stuart, White 2013, Statistical Science 28:424). Everything is NumPy in
float64, one image at a time within a stack, so that an image's digits do not depend on its batch.
"""

import numpy as np

from service.engine.arrays import Float64Array

_SHRINKAGE = 3.0
"""Times D / (D + effective samples): the part of the covariance that is the Laplace approximation's."""
_MAX_FOLDS = 4


class CrankNicolson:
    """The Gaussian that chains move by: of each group, that of the particles of other groups.

    By their own, particles would be drawn to where they are already, and the estimate to too low a value. Groups are in
    up to four folds, and a group moves by what the other folds' particles say.

    Args:
        points: all particles, [n, K, D].
        weight: theirs, [n, K].
        expected: the covariance to be drawn to, [n, D, D].
        num_groups: G.
        num_chains: of each group.
    """

    def __init__(
        self, points: Float64Array, weight: Float64Array, expected: Float64Array, num_groups: int, num_chains: int
    ) -> None:
        num_folds = min(num_groups, _MAX_FOLDS)
        fold = np.arange(num_groups) % num_folds
        of_particle, self._of_chain = np.repeat(fold, points.shape[1] // num_groups), np.repeat(fold, num_chains)
        self._mean, self._root, self._inverse = [], [], []
        for f in range(num_folds):
            others = np.where(of_particle == f, 0, weight) if num_folds > 1 else weight
            total = others.sum(axis=1, keepdims=True)
            others = np.where(total > 0, others / np.where(total > 0, total, 1), weight)
            mean = np.matmul(others[:, None], points)  # [n, 1, D]
            root = _root(points - mean, others, expected)
            self._mean.append(mean)
            self._root.append(root)
            self._inverse.append(np.linalg.inv(root))

    # `take`, for an index in brackets gives one image another layout than several, and sums another order.

    def half_square(self, z: Float64Array) -> Float64Array:
        """Half of the squared distance from the mean, in standard deviations: chains [n, C, D] → [n, C]."""
        found = np.empty(z.shape[:2])
        for f, (mean, inverse) in enumerate(zip(self._mean, self._inverse, strict=True)):
            some = np.flatnonzero(self._of_chain == f)
            found[:, some] = 0.5 * (((z.take(some, axis=1) - mean) @ inverse.transpose(0, 2, 1)) ** 2).sum(axis=2)
        return found

    def moved(self, z: Float64Array, along: Float64Array, noise: Float64Array) -> Float64Array:
        """One preconditioned Crank-Nicolson step: chains [n, C, D], lengths [n, C, 1], noise [C, D] → [n, C, D]."""
        found = np.empty_like(z)
        for f, (mean, root) in enumerate(zip(self._mean, self._root, strict=True)):
            some = np.flatnonzero(self._of_chain == f)
            step = along.take(some, axis=1)
            kept = np.sqrt(1 - step**2) * (z.take(some, axis=1) - mean)
            found[:, some] = mean + kept + step * (noise[some] @ root.transpose(0, 2, 1))
        return found


def _root(centred: Float64Array, weight: Float64Array, expected: Float64Array) -> Float64Array:
    """The lower triangular root of the particles' covariance, the fewer the nearer to an expected one: [n, D, D]."""
    covariance = (centred * weight[..., None]).transpose(0, 2, 1) @ centred
    dimensions = centred.shape[2]
    effective = 1 / (weight**2).sum(axis=1)
    share = np.minimum(_SHRINKAGE * dimensions / (dimensions + effective), 1)[:, None, None]
    regular = (1 - share) * covariance + share * expected
    least = 1e-9 * np.trace(regular, axis1=1, axis2=2)[:, None, None] / dimensions + 1e-30
    return np.asarray(np.linalg.cholesky(regular + least * np.eye(dimensions)))
