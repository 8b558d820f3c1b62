"""Where Newton's method is, and what it knows there of the Hessian of log p(x, z).

Minus the Hessian is the prior's 1, the likelihood's Gauss-Newton information, and a secant: what the information leaves
out, learned from how the gradient changes between two informations. Steps by gradients alone add a drift, by which all
of it has changed since; the next information replaces it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Float64Array
from service.engine.matrices import dot, outer, positive_definite, times


@dataclass(frozen=True)
class Evaluation:
    """The log likelihood around points z, for n images: value [n], gradient [n, A], information [n, A, A]."""

    value: Float64Array
    gradient: Float64Array
    information: Float64Array


@dataclass(frozen=True)
class Modes:
    """Where the iteration ended: mode [B, A], precision of p(z|x) there [B, A, A], and how it went, image by image."""

    mode: Float64Array
    value: Float64Array
    """log p(x, z) at the mode, without the prior's constant: [B]."""
    precision: Float64Array
    converged: NDArray[np.bool_]
    """One more step would gain less than the tolerance; after a search from several points, the two best also ended at
    the same mode."""
    usable: NDArray[np.bool_]
    """Value, gradient and information are finite there, also at a start from which no step was taken."""
    num_steps: NDArray[np.int64]
    gain: Float64Array
    """Nats by which log p(x, z) is higher there than at the start, [B]."""

    @property
    def information(self) -> Float64Array:
        """The likelihood's part of the precision, [B, A, A]."""
        return self.precision - np.eye(self.mode.shape[1])

    def spread(self, dimensions: NDArray[np.intp], latent_dim: int) -> "Modes":
        """The same in all D dimensions; in those left out, the mode is 0 and the precision 1, as the prior's."""
        mode = np.zeros((len(self.mode), latent_dim))
        mode[:, dimensions] = self.mode
        precision = np.broadcast_to(np.eye(latent_dim), (len(mode), latent_dim, latent_dim)).copy()
        precision[np.ix_(np.arange(len(mode)), dimensions, dimensions)] = self.precision
        return replace(self, mode=mode, precision=precision)

    def take(self, images: NDArray[np.intp]) -> "Modes":
        """Those of these images."""
        return Modes(**{item.name: getattr(self, item.name)[images] for item in fields(self)})

    def put(self, images: NDArray[np.intp], others: "Modes") -> "Modes":
        """The same, but for these images."""
        changed = {item.name: getattr(self, item.name).copy() for item in fields(self)}
        for name, values in changed.items():
            values[images] = getattr(others, name)
        return Modes(**changed)

    @staticmethod
    def join(parts: Sequence["Modes"]) -> "Modes":
        """Images of several, in order."""
        return Modes(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(parts[0])})


@dataclass
class NewtonState:
    """The state of all images; log p(x, z) without constants, and its derivatives, at the best point so far."""

    point: Float64Array  # [B, A]
    value: Float64Array  # [B]
    gradient: Float64Array  # [B, A]
    information: Float64Array  # [B, A, A]
    secant: Float64Array  # [B, A, A], what Gauss-Newton leaves out of the Hessian
    damping: Float64Array  # [B]
    num_steps: NDArray[np.int64]  # [B]
    finite: NDArray[np.bool_]  # [B], at the start; no step leads to where it is not
    converged: NDArray[np.bool_]  # [B]
    previous: Float64Array  # [B, A], the point before
    previous_gradient: Float64Array  # [B, A]
    drift: Float64Array  # [B, A, A], by which the Hessian has changed since the information was evaluated
    age: NDArray[np.int64]  # [B], steps since the information was evaluated; 1 where it is what was expected
    learned: NDArray[np.bool_]  # [B], whether the secant was updated before
    last_step: Float64Array  # [B, A], taken unseen: small, and the precision is known
    last_gain: Float64Array  # [B]
    first_value: Float64Array  # [B]

    def precision(self, images: NDArray[np.intp]) -> Float64Array:
        """Minus the Hessian of log p(x, z), made positive definite: [n, A, A]."""
        prior = np.eye(self.point.shape[1])
        return positive_definite(self.information[images] + self.secant[images] + self.drift[images] + prior)

    def move(self, images: NDArray[np.intp], point: Float64Array, at: Evaluation, value: Float64Array) -> None:
        """Take new points whose information is known."""
        self._go(images, point, value, at.gradient - point)
        self.inform(images, at.information)

    def inform(self, images: NDArray[np.intp], information: Float64Array) -> None:
        """Note the information at points that were taken, and learn the Hessian's missing part from the gradient."""
        point, gradient = self.point[images], self.gradient[images]
        step = point - self.previous[images]
        fall = self.previous_gradient[images] - gradient  # y, what minus the Hessian times the step should be
        prior = np.eye(point.shape[1])
        missing = fall - times(information + prior, step)
        secant, predicted = self.secant[images], times(self.secant[images], step)
        wanted, has = np.abs(dot(step, missing)), np.abs(dot(step, predicted))
        size = np.where(self.learned[images], np.minimum(1.0, wanted / np.maximum(has, 1e-12)), 1.0)
        error = missing - size[:, None] * predicted
        self.secant[images] = size[:, None, None] * secant + _secant_update(error, step, fall)
        self.information[images] = information
        self.drift[images], self.age[images], self.learned[images] = 0, 0, True

    def glide(
        self, images: NDArray[np.intp], point: Float64Array, log_gradient: Float64Array, value: Float64Array
    ) -> None:
        """Take new points by their gradients alone, and learn from these how the Hessian changes."""
        step = point - self.point[images]
        gradient = log_gradient - point
        fall = self.gradient[images] - gradient
        known = self.information[images] + self.secant[images] + self.drift[images] + np.eye(point.shape[1])
        self.drift[images] += _secant_update(fall - times(known, step), step, fall)
        self._go(images, point, value, gradient)
        self.age[images] += 1

    def _go(self, images: NDArray[np.intp], point: Float64Array, value: Float64Array, gradient: Float64Array) -> None:
        self.previous[images], self.previous_gradient[images] = self.point[images], self.gradient[images]
        self.point[images], self.value[images], self.gradient[images] = point, value, gradient
        self.num_steps[images] += 1


def _secant_update(error: Float64Array, step: Float64Array, fall: Float64Array) -> Float64Array:
    """The least symmetric matrix, weighed by y, that takes the step to the error: [n, A] thrice → [n, A, A]."""
    along = np.where((dot(step, fall) > 1e-8)[:, None], fall, step)
    scale = np.maximum(dot(along, step), 1e-12)[:, None, None]
    update = (outer(error, along) + outer(along, error)) / scale
    return np.asarray(update - dot(error, step)[:, None, None] / scale**2 * outer(along, along))
