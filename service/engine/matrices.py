"""NumPy on stacks of small matrices, written so that an image's digits are the same in a batch of any size."""

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Float64Array

MIN_PRECISION = 0.5
"""Least precision in any direction; the prior's is 1, so the proposal is never much wider than the prior."""


def dot(a: Float64Array, b: Float64Array) -> Float64Array:
    """Scalar products over the last axis. einsum's digits depend on the batch."""
    return np.asarray((a * b).sum(axis=-1))


def times(matrix: Float64Array, vector: Float64Array) -> Float64Array:
    """Matrices [n, m, A] by vectors [n, A] → [n, m]."""
    return np.asarray((matrix @ vector[..., None])[..., 0])


def outer(a: Float64Array, b: Float64Array) -> Float64Array:
    """Vectors [n, A] twice → matrices [n, A, A]."""
    return a[:, :, None] * b[:, None, :]


def solve(matrix: Float64Array, vector: Float64Array) -> Float64Array:
    """What the matrices [n, A, A] take to the vectors [n, A] → [n, A]."""
    return np.asarray(np.linalg.solve(matrix, vector[..., None])[..., 0])


def positive_definite(matrix: Float64Array) -> Float64Array:
    """Raise every eigenvalue below MIN_PRECISION to it: [n, A, A] → [n, A, A]; a matrix without any keeps its bits."""
    failed = _without_factor(matrix - MIN_PRECISION * np.eye(matrix.shape[-1]))
    if not len(failed):
        return matrix
    eigenvalues, vectors = np.linalg.eigh(matrix[failed])
    low = (eigenvalues < MIN_PRECISION).any(axis=1)
    vectors, eigenvalues = vectors[low], eigenvalues[low]
    raised = matrix.copy()
    raised[failed[low]] = (vectors * np.maximum(eigenvalues, MIN_PRECISION)[:, None]) @ vectors.transpose(0, 2, 1)
    return raised


def _without_factor(matrix: Float64Array) -> NDArray[np.intp]:
    """Those of the matrices [n, A, A], by index, that have no Cholesky factor.

    NumPy says only that one of a batch has none, so each half is asked again. A few in a hundred fail, and to ask for
    every matrix's eigenvalues takes longer.
    """
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        if len(matrix) == 1:
            return np.array([0])
        middle = len(matrix) // 2
        return np.concatenate([_without_factor(matrix[:middle]), _without_factor(matrix[middle:]) + middle])
    return np.array([], np.intp)
