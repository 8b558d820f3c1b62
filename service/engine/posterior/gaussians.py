"""Gaussians by the axes of their precision, one an image."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Float64Array


@dataclass(frozen=True)
class Gaussians:
    """N(centre, axes·diag(1/precisions)·axesᵀ), one an image: [B, A], [B, A], [B, A, A]; axes are columns."""

    centre: Float64Array
    precisions: Float64Array
    axes: Float64Array

    @staticmethod
    def around(centre: Float64Array, precision: Float64Array) -> "Gaussians":
        """Of these precision matrices [B, A, A]; the axis that the image constrains most comes first."""
        precisions, axes = np.linalg.eigh(precision)
        return Gaussians(centre, precisions[:, ::-1], axes[:, :, ::-1])

    def take(self, images: NDArray[np.intp]) -> "Gaussians":
        """Those of these images."""
        return Gaussians(self.centre[images], self.precisions[images], self.axes[images])

    def function(self, of_precisions: Float64Array) -> Float64Array:
        """axes·diag(f)·axesᵀ, a smooth function of the precision matrix: f [B, A] → [B, A, A]."""
        return np.asarray((self.axes * of_precisions[:, None]) @ self.axes.transpose(0, 2, 1))

    @staticmethod
    def join(parts: Sequence["Gaussians"]) -> "Gaussians":
        """Images of several, in order."""
        return Gaussians(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(parts[0])})

    def spread(self, dimensions: NDArray[np.intp], latent_dim: int) -> "Gaussians":
        """The same in all D dimensions; in those left out it is the prior."""
        count = len(self.centre)
        centre, precisions = np.zeros((count, latent_dim)), np.ones((count, latent_dim))
        centre[:, dimensions], precisions[:, dimensions] = self.centre, self.precisions
        axes = np.repeat(np.eye(latent_dim)[None], count, axis=0)
        axes[:, dimensions[:, None], dimensions] = self.axes
        return Gaussians(centre, precisions, axes)
