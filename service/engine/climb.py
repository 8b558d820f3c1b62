"""The climb from the encoder's mean to the mode of p(z|x), and the curvature there.

Importance sampling from the encoder is low by whole nats where the encoder has not learned to infer (Wu et al. 2017,
arXiv 1611.04273). The posterior's own mode and curvature depend on no training. Steps are damped Gauss-Newton; far from
the training set the residuals are large and Gauss-Newton alone crawls, so the part of the Hessian that it leaves out is
learned from the gradients along the way (the structured secant update of Dennis, Gay, Welsch 1981, ACM TOMS 7:348, with
their sizing).

Everything here is NumPy in float64 on small matrices; the decoder is behind `evaluate`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from service.engine.chunks import Chunks

Array = NDArray[np.float64]
TOLERANCE = 0.05
"""Nats that one more Newton step may still gain for a mode to count as found; that step is then taken unseen."""
MIN_PRECISION = 0.5
"""Least precision in any direction; the prior's is 1, so the proposal is never much wider than the prior."""
_SHORTER_STEPS = np.array([0.5, 0.2, 0.05])
_MAX_DAMPING = 1e5


@dataclass(frozen=True)
class Evaluation:
    """The log likelihood around points z, for n images: value [n], gradient [n, A], information [n, A, A]."""

    value: Array
    gradient: Array
    information: Array


Evaluate = Callable[[NDArray[np.intp], Array], Chunks[Evaluation]]
"""Images by index [n] and points [n, A] → Evaluation. A ≤ D: dimensions that the decoder ignores are left out."""
Values = Callable[[NDArray[np.intp], Array], Chunks[Array]]
"""Images by index [n] and points [n, K, A] → log likelihoods [n, K]."""

Keep = Callable[[int, Array, NDArray[np.intp]], NDArray[np.intp]]
"""Tries made, values of all climbs [B], and those still under way, by index → those that go on."""


@dataclass(frozen=True)
class Modes:
    """Where the climb ended: mode [B, A], precision of p(z|x) there [B, A, A], and how it went, image by image."""

    mode: Array
    value: Array
    """log p(x, z) at the mode, without the prior's constant: [B]."""
    precision: Array
    converged: NDArray[np.bool_]
    """One more step would gain less than the tolerance; where climbs competed, the two best came to one mode, too."""
    usable: NDArray[np.bool_]
    """Values stayed finite, and the climb converged or at least rose."""
    num_steps: NDArray[np.int64]

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

    @staticmethod
    def join(parts: Sequence["Modes"]) -> "Modes":
        """Images of several, in order."""
        return Modes(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(parts[0])})


@dataclass
class _Climb:
    """The state of all images; log p(x, z) without constants, and its derivatives, at the best point so far."""

    point: Array  # [B, A]
    value: Array  # [B]
    gradient: Array  # [B, A]
    information: Array  # [B, A, A]
    secant: Array  # [B, A, A], what Gauss-Newton leaves out of the Hessian
    damping: Array  # [B]
    num_steps: NDArray[np.int64]  # [B]

    def precision(self, images: NDArray[np.intp]) -> Array:
        """Minus the Hessian of log p(x, z), made positive definite: [n, A, A]."""
        prior = np.eye(self.point.shape[1])
        return positive_definite(self.information[images] + self.secant[images] + prior)

    def move(self, images: NDArray[np.intp], point: Array, at: Evaluation, value: Array) -> None:
        """Take new points, and learn the Hessian's missing part from how the gradient changed."""
        step = point - self.point[images]
        gradient = at.gradient - point
        fall = self.gradient[images] - gradient  # y, what minus the Hessian times the step should be
        prior = np.eye(point.shape[1])
        missing = fall - times(at.information + prior, step)
        secant, told = self.secant[images], times(self.secant[images], step)
        wanted, has = np.abs(_dot(step, missing)), np.abs(_dot(step, told))
        size = np.where(self.num_steps[images] == 0, 1.0, np.minimum(1.0, wanted / np.maximum(has, 1e-12)))
        error = missing - size[:, None] * told
        along = np.where((_dot(step, fall) > 1e-8)[:, None], fall, step)
        scale = np.maximum(_dot(along, step), 1e-12)[:, None, None]
        update = (_outer(error, along) + _outer(along, error)) / scale
        update -= _dot(error, step)[:, None, None] / scale**2 * _outer(along, along)
        self.secant[images] = size[:, None, None] * secant + update
        self.point[images], self.value[images], self.gradient[images] = point, value, gradient
        self.information[images] = at.information
        self.num_steps[images] += 1


def find_modes(
    start: Array,
    *,
    evaluate: Evaluate,
    values: Values,
    max_steps: int,
    tolerance: float = TOLERANCE,
    keep: Keep | None = None,
) -> Chunks[Modes]:
    """Climb log p(x, z) from `start` [B, A] until each image has converged, is stuck, or has made `max_steps` tries.

    Familiar images take two or three tries. An image leaves the batch as soon as it is done, or `keep` drops it.
    """
    images = np.arange(len(start))
    with np.errstate(all="ignore"):
        at = yield from evaluate(images, start)
        climb = _Climb(
            point=start.copy(),
            value=joint(at.value, start),
            gradient=at.gradient - start,
            information=at.information.copy(),
            secant=np.zeros_like(at.information),
            damping=np.zeros(len(start)),
            num_steps=np.zeros(len(start), np.int64),
        )
        finite = _finite(climb.value, at)
        converged = np.zeros(len(start), np.bool_)
        last_step, last_gain = np.zeros_like(start), np.zeros(len(start))  # taken unseen: small, the precision known
        active = images[finite]
        for step in range(max_steps):
            active = active if keep is None else keep(step, climb.value, active)
            precision = climb.precision(active)
            newton = solve(precision, climb.gradient[active])
            gain = 0.5 * _dot(climb.gradient[active], newton)
            near = gain < tolerance
            converged[active[near]] = True
            last_step[active[near]], last_gain[active[near]] = newton[near], gain[near]
            on = ~near & (climb.damping[active] < _MAX_DAMPING)
            active, precision, newton = active[on], precision[on], newton[on]
            if not len(active):
                break
            damping = climb.damping[active]
            if damping.any():
                precision = precision + damping[:, None, None] * np.eye(start.shape[1])
                newton = solve(precision, climb.gradient[active])
            yield from _try(climb, active, newton, evaluate, values)
        return Modes(
            mode=climb.point + last_step,
            value=climb.value + last_gain,
            precision=_final_precision(climb, finite),
            converged=converged,
            usable=finite & (converged | (climb.num_steps > 0)),
            num_steps=climb.num_steps,
        )


def _try(climb: _Climb, active: NDArray[np.intp], newton: Array, evaluate: Evaluate, values: Values) -> Chunks[None]:
    """One step for each image: in full if that rises, else the best of some shorter ones, else more damping."""
    start = climb.point[active]
    point = start + newton
    at = yield from evaluate(active, point)
    value = joint(at.value, point)
    rises = (value > climb.value[active]) & _finite(value, at)
    climb.move(active[rises], point[rises], _take(at, rises), value[rises])
    eased = climb.damping[active[rises]] / 4
    climb.damping[active[rises]] = np.where(eased < 0.05, 0, eased)

    failed, start, newton = active[~rises], start[~rises], newton[~rises]
    if not len(failed):
        return
    points = start[:, None] + _SHORTER_STEPS[:, None] * newton[:, None]  # [n, 3, A]
    found = yield from values(failed, points)
    found = np.nan_to_num(joint(found, points), nan=-np.inf)
    best = found.argmax(axis=1)
    value = found[np.arange(len(failed)), best]
    rises = value > climb.value[failed]
    climb.damping[failed] = np.where(
        rises, np.maximum(2 * climb.damping[failed], 1), np.maximum(10 * climb.damping[failed], 5)
    )
    climb.secant[failed[~rises]] = 0
    shorter, point = failed[rises], points[rises, best[rises]]
    if len(shorter):
        at = yield from evaluate(shorter, point)
        fine = _finite(at.value, at)
        climb.move(shorter[fine], point[fine], _take(at, fine), joint(at.value, point)[fine])


def positive_definite(matrix: Array) -> Array:
    """Raise every eigenvalue below MIN_PRECISION to it: [n, A, A] → [n, A, A]; a matrix without any keeps its bits."""
    try:
        np.linalg.cholesky(matrix - MIN_PRECISION * np.eye(matrix.shape[-1]))
    except np.linalg.LinAlgError:
        eigenvalues, vectors = np.linalg.eigh(matrix)
        raised = (vectors * np.maximum(eigenvalues, MIN_PRECISION)[:, None]) @ vectors.transpose(0, 2, 1)
        low = np.asarray((eigenvalues < MIN_PRECISION).any(axis=1))
        return np.where(low[:, None, None], raised, matrix)
    return matrix


def _final_precision(climb: _Climb, finite: NDArray[np.bool_]) -> Array:
    """The precision where values are finite, the prior's elsewhere."""
    precision = np.broadcast_to(np.eye(climb.point.shape[1]), climb.information.shape).copy()
    precision[finite] = climb.precision(np.flatnonzero(finite))
    return precision


def joint(log_likelihood: Array, point: Array) -> Array:
    """log p(x|z) + log p(z), without the prior's constant: [..., A] → [...]."""
    return np.asarray(log_likelihood - 0.5 * (point**2).sum(axis=-1))


def _finite(value: Array, at: Evaluation) -> NDArray[np.bool_]:
    derivatives = np.isfinite(at.gradient).all(axis=1) & np.isfinite(at.information).all(axis=(1, 2))
    return np.asarray(np.isfinite(value) & derivatives)


def _take(at: Evaluation, rows: NDArray[np.bool_]) -> Evaluation:
    return Evaluation(at.value[rows], at.gradient[rows], at.information[rows])


# Products are written so that an image's digits are the same in a batch of any size; einsum's are not.


def _dot(a: Array, b: Array) -> Array:
    return np.asarray((a * b).sum(axis=-1))


def times(matrix: Array, vector: Array) -> Array:
    """Matrices [n, m, A] by vectors [n, A] → [n, m]."""
    return np.asarray((matrix @ vector[..., None])[..., 0])


def _outer(a: Array, b: Array) -> Array:
    return a[:, :, None] * b[:, None, :]


def solve(matrix: Array, vector: Array) -> Array:
    """What the matrices [n, A, A] take to the vectors [n, A] → [n, A]."""
    return np.asarray(np.linalg.solve(matrix, vector[..., None])[..., 0])
