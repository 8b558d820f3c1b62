"""Newton's method from the encoder's mean to the mode of p(z|x), and the curvature there.

Importance sampling from the encoder is low by whole nats where the encoder has not learned to infer (Wu et al. 2017,
arXiv 1611.04273). The posterior's own mode and curvature depend on no training. Steps are damped Gauss-Newton; far from
the training set the residuals are large and Gauss-Newton alone is slow, so the part of the Hessian that it leaves out
is estimated from the gradients along the way (the structured secant update of Dennis, Gay, Welsch 1981, ACM TOMS 7:348,
with their sizing).

Everything here is NumPy in float64 on small matrices; the decoder is behind `evaluate`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Float64Array
from service.engine.chunks import Chunks
from service.engine.matrices import dot, outer, positive_definite, solve, times

TOLERANCE = 0.05
"""Nats that one more Newton step may still gain for a mode to count as found; that step is then taken unseen."""
_SHORTER_STEPS = np.array([0.5, 0.2, 0.05])
_MAX_DAMPING = 1e5


@dataclass(frozen=True)
class Evaluation:
    """The log likelihood around points z, for n images: value [n], gradient [n, A], information [n, A, A]."""

    value: Float64Array
    gradient: Float64Array
    information: Float64Array


Evaluate = Callable[[NDArray[np.intp], Float64Array], Chunks[Evaluation]]
"""Images by index [n] and points [n, A] → Evaluation. A ≤ D: dimensions that the decoder ignores are left out."""
Values = Callable[[NDArray[np.intp], Float64Array], Chunks[Float64Array]]
"""Images by index [n] and points [n, K, A] → log likelihoods [n, K]."""

Keep = Callable[[int, Float64Array, Float64Array, NDArray[np.intp]], NDArray[np.intp]]
"""Iterations made, points [B, A] and values [B] of all images, and those still running, by index → those that go on."""


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
class _NewtonState:
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
    last_step: Float64Array  # [B, A], taken unseen: small, and the precision is known
    last_gain: Float64Array  # [B]
    first_value: Float64Array  # [B]

    def precision(self, images: NDArray[np.intp]) -> Float64Array:
        """Minus the Hessian of log p(x, z), made positive definite: [n, A, A]."""
        prior = np.eye(self.point.shape[1])
        return positive_definite(self.information[images] + self.secant[images] + prior)

    def move(self, images: NDArray[np.intp], point: Float64Array, at: Evaluation, value: Float64Array) -> None:
        """Take new points, and learn the Hessian's missing part from how the gradient changed."""
        step = point - self.point[images]
        gradient = at.gradient - point
        fall = self.gradient[images] - gradient  # y, what minus the Hessian times the step should be
        prior = np.eye(point.shape[1])
        missing = fall - times(at.information + prior, step)
        secant, predicted = self.secant[images], times(self.secant[images], step)
        wanted, has = np.abs(dot(step, missing)), np.abs(dot(step, predicted))
        size = np.where(self.num_steps[images] == 0, 1.0, np.minimum(1.0, wanted / np.maximum(has, 1e-12)))
        error = missing - size[:, None] * predicted
        along = np.where((dot(step, fall) > 1e-8)[:, None], fall, step)
        scale = np.maximum(dot(along, step), 1e-12)[:, None, None]
        update = (outer(error, along) + outer(along, error)) / scale
        update -= dot(error, step)[:, None, None] / scale**2 * outer(along, along)
        self.secant[images] = size[:, None, None] * secant + update
        self.point[images], self.value[images], self.gradient[images] = point, value, gradient
        self.information[images] = at.information
        self.num_steps[images] += 1


def find_modes(
    start: Float64Array,
    *,
    evaluate: Evaluate,
    values: Values,
    max_steps: int,
    tolerance: float = TOLERANCE,
    keep: Keep | None = None,
) -> Chunks[Modes]:
    """Maximise log p(x, z) from `start` [B, A] until each image has converged, is stuck, or has made `max_steps` tries.

    Familiar images take two or three tries. An image leaves the batch as soon as it is done, or `keep` drops it.
    """
    images = np.arange(len(start))
    state = _begin(start, (yield from evaluate(images, start)))
    active = images[state.finite]
    for step in range(max_steps):
        active = active if keep is None else keep(step, state.point, state.value, active)
        active, newton = _next_steps(state, active, tolerance)
        if not len(active):
            break
        yield from _try(state, active, newton, evaluate, values)
    return _end(state)


def _try(
    state: _NewtonState, active: NDArray[np.intp], newton: Float64Array, evaluate: Evaluate, values: Values
) -> Chunks[None]:
    """One step for each image: in full if that rises, else the best of some shorter ones, else more damping."""
    point = _moved(state.point[active], newton)
    rises = _take_full_steps(state, active, point, (yield from evaluate(active, point)))
    failed = active[~rises]
    if not len(failed):
        return
    points = _moved(state.point[failed][:, None], _SHORTER_STEPS[:, None] * newton[~rises][:, None])  # [n, 3, A]
    shorter, point = _choose_shorter_steps(state, failed, points, (yield from values(failed, points)))
    if len(shorter):
        _take_shorter_steps(state, shorter, point, (yield from evaluate(shorter, point)))


# Far from the training set a decoder may give anything, and what overflows is refused by its value. The functions that
# compute keep NumPy from warning of it. The generators above must not: NumPy's error state belongs to the thread's
# context, not to a generator, and would hold for whoever computes between two chunks.
_quietly = np.errstate(all="ignore")


@_quietly
def _begin(start: Float64Array, at: Evaluation) -> _NewtonState:
    value = joint(at.value, start)
    return _NewtonState(
        point=start.copy(),
        value=value,
        gradient=at.gradient - start,
        information=at.information.copy(),
        secant=np.zeros_like(at.information),
        damping=np.zeros(len(start)),
        num_steps=np.zeros(len(start), np.int64),
        finite=_finite(value, at),
        converged=np.zeros(len(start), np.bool_),
        last_step=np.zeros_like(start),
        last_gain=np.zeros(len(start)),
        first_value=value.copy(),
    )


@_quietly
def _next_steps(
    state: _NewtonState, active: NDArray[np.intp], tolerance: float
) -> tuple[NDArray[np.intp], Float64Array]:
    """Those of the active images that have neither converged nor are stuck, and their damped Newton steps [n, A]."""
    precision = state.precision(active)
    newton = solve(precision, state.gradient[active])
    gain = 0.5 * dot(state.gradient[active], newton)
    near = gain < tolerance
    state.converged[active[near]] = True
    state.last_step[active[near]], state.last_gain[active[near]] = newton[near], gain[near]
    on = ~near & (state.damping[active] < _MAX_DAMPING)
    active, precision, newton = active[on], precision[on], newton[on]
    damping = state.damping[active]
    if damping.any():
        precision = precision + damping[:, None, None] * np.eye(newton.shape[1])
        newton = solve(precision, state.gradient[active])
    return active, newton


@_quietly
def _moved(point: Float64Array, step: Float64Array) -> Float64Array:
    return point + step


@_quietly
def _take_full_steps(
    state: _NewtonState, active: NDArray[np.intp], point: Float64Array, at: Evaluation
) -> NDArray[np.bool_]:
    """Move where the value rises, and say where it does."""
    value = joint(at.value, point)
    rises = np.asarray((value > state.value[active]) & _finite(value, at))
    state.move(active[rises], point[rises], _take(at, rises), value[rises])
    eased = state.damping[active[rises]] / 4
    state.damping[active[rises]] = np.where(eased < 0.05, 0, eased)
    return rises


@_quietly
def _choose_shorter_steps(
    state: _NewtonState, failed: NDArray[np.intp], points: Float64Array, log_likelihood: Float64Array
) -> tuple[NDArray[np.intp], Float64Array]:
    """Of points [n, 3, A] the best, for those images where it rises; the others are damped more."""
    found = np.nan_to_num(joint(log_likelihood, points), nan=-np.inf)
    best = found.argmax(axis=1)
    rises = found[np.arange(len(failed)), best] > state.value[failed]
    state.damping[failed] = np.where(
        rises, np.maximum(2 * state.damping[failed], 1), np.maximum(10 * state.damping[failed], 5)
    )
    state.secant[failed[~rises]] = 0
    return failed[rises], points[rises, best[rises]]


@_quietly
def _take_shorter_steps(state: _NewtonState, shorter: NDArray[np.intp], point: Float64Array, at: Evaluation) -> None:
    fine = _finite(at.value, at)
    state.move(shorter[fine], point[fine], _take(at, fine), joint(at.value, point)[fine])


@_quietly
def _end(state: _NewtonState) -> Modes:
    return Modes(
        mode=state.point + state.last_step,
        value=state.value + state.last_gain,
        precision=_final_precision(state, state.finite),
        converged=state.converged,
        usable=state.finite,
        num_steps=state.num_steps,
        gain=state.value + state.last_gain - state.first_value,
    )


def _final_precision(state: _NewtonState, finite: NDArray[np.bool_]) -> Float64Array:
    """The precision where values are finite, the prior's elsewhere."""
    precision = np.broadcast_to(np.eye(state.point.shape[1]), state.information.shape).copy()
    precision[finite] = state.precision(np.flatnonzero(finite))
    return precision


def joint(log_likelihood: Float64Array, point: Float64Array) -> Float64Array:
    """log p(x|z) + log p(z), without the prior's constant: [..., A] → [...]."""
    return np.asarray(log_likelihood - 0.5 * (point**2).sum(axis=-1))


def _finite(value: Float64Array, at: Evaluation) -> NDArray[np.bool_]:
    derivatives = np.isfinite(at.gradient).all(axis=1) & np.isfinite(at.information).all(axis=(1, 2))
    return np.asarray(np.isfinite(value) & derivatives)


def _take(at: Evaluation, rows: NDArray[np.bool_]) -> Evaluation:
    return Evaluation(at.value[rows], at.gradient[rows], at.information[rows])
