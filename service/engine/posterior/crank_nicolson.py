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
        of_particle = np.repeat(fold, points.shape[1] // num_groups)
        means, roots = [], []
        for f in range(num_folds):
            others = np.where(of_particle == f, 0, weight) if num_folds > 1 else weight
            total = others.sum(axis=1, keepdims=True)
            others = np.where(total > 0, others / np.where(total > 0, total, 1), weight)
            mean = np.matmul(others[:, None], points)  # [n, 1, D]
            means.append(mean)
            roots.append(_root(points - mean, others, expected))
        root = np.stack(roots, axis=1)  # [n, F, D, D]
        self._mean = np.stack(means, axis=1)[:, None]  # [n, 1, F, 1, D]
        self._root = np.ascontiguousarray(root.transpose(0, 1, 3, 2))[:, None]
        self._inverse = np.ascontiguousarray(np.linalg.inv(root).transpose(0, 1, 3, 2))[:, None]
        self._num_chains, self._missing = num_chains, -num_groups % num_folds * num_chains

    def normal(self, z: Float64Array) -> Float64Array:
        """Where chains are, in standard deviations from the mean: [n, C, D] → u = root⁻¹·(z − mean), [n, C, D]."""
        u = (self._folded(z) - self._mean) @ self._inverse
        return np.asarray(u.reshape(len(z), -1, z.shape[2])[:, : z.shape[1]])

    def moved(self, u: Float64Array, along: Float64Array, noise: Float64Array) -> Float64Array:
        """One preconditioned Crank-Nicolson step: u [n, C, D], lengths [n, C, 1] and noise [C, D] → z′ [n, C, D]."""
        z = self._mean + self._folded(np.sqrt(1 - along**2) * u + along * noise) @ self._root
        return np.asarray(z.reshape(len(u), -1, u.shape[2])[:, : u.shape[1]])

    def _folded(self, chains: Float64Array) -> Float64Array:
        """Chains [n, C, D] by fold, [n, R, F, chains of a group, D]; zeros where the last round has fewer groups."""
        if self._missing:
            chains = np.pad(chains, ((0, 0), (0, self._missing), (0, 0)))
        return chains.reshape(len(chains), -1, self._root.shape[2], self._num_chains, chains.shape[2])


def _root(centred: Float64Array, weight: Float64Array, expected: Float64Array) -> Float64Array:
    """The lower triangular root of the particles' covariance, the fewer the nearer to an expected one: [n, D, D]."""
    covariance = (centred * weight[..., None]).transpose(0, 2, 1) @ centred
    dimensions = centred.shape[2]
    effective = 1 / (weight**2).sum(axis=1)
    share = np.minimum(_SHRINKAGE * dimensions / (dimensions + effective), 1)[:, None, None]
    regular = (1 - share) * covariance + share * expected
    least = 1e-9 * np.trace(regular, axis1=1, axis2=2)[:, None, None] / dimensions + 1e-30
    return np.asarray(np.linalg.cholesky(regular + least * np.eye(dimensions)))
