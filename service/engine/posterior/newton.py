"""Newton's method from the encoder's mean to the mode of p(z|x), and the curvature there.

Importance sampling from the encoder is low by whole nats where the encoder has not learned to infer (Wu et al. 2017,
arXiv 1611.04273). The posterior's own mode and curvature depend on no training. Steps are damped Gauss-Newton; far from
the training set the residuals are large and Gauss-Newton alone is slow, so the part of the Hessian that it leaves out
is estimated from the gradients along the way (the structured secant update of Dennis, Gay, Welsch 1981, ACM TOMS 7:348,
with their sizing).

Everything here is NumPy in float64 on small matrices; the decoder is behind `evaluate`.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Float64Array
from service.engine.chunks import Chunks
from service.engine.matrices import dot, solve
from service.engine.posterior.newton_state import Evaluation, Modes, NewtonState

TOLERANCE = 0.05
"""Nats that one more Newton step may still gain for a mode to count as found; that step is then taken unseen."""
_SHORTER_STEPS = np.array([0.5, 0.2, 0.05])
_MAX_DAMPING = 1e5
_MAX_AGE = 12
"""Steps by gradients alone, after which the information is evaluated again."""


Evaluate = Callable[[NDArray[np.intp], Float64Array], Chunks[Evaluation]]
"""Images by index [n] and points [n, A] → Evaluation. A ≤ D: dimensions that the decoder ignores are left out."""
Slopes = Callable[[NDArray[np.intp], Float64Array], Chunks[tuple[Float64Array, Float64Array]]]
"""Images by index [n] and points [n, A] → log likelihoods [n] and their gradients [n, A], for about three decoder rows
each, where an evaluation takes A + 1 rows."""
Values = Callable[[NDArray[np.intp], Float64Array], Chunks[Float64Array]]
"""Images by index [n] and points [n, K, A] → log likelihoods [n, K]."""

Keep = Callable[[int, Float64Array, Float64Array, NDArray[np.intp]], NDArray[np.intp]]
"""Iterations made, points [B, A] and values [B] of all images, and those still running, by index → those that go on."""


def find_modes(
    start: Float64Array,
    *,
    evaluate: Evaluate,
    values: Values,
    slopes: Slopes | None = None,
    expected: Float64Array | None = None,
    max_steps: int,
    tolerance: float = TOLERANCE,
    keep: Keep | None = None,
) -> Chunks[Modes]:
    """Maximise log p(x, z) from `start` [B, A] until each image has converged, is stuck, or has made `max_steps` tries.

    Familiar images take two or three tries. An image leaves the batch as soon as it is done, or `keep` drops it: its
    precision is what was known then. With `slopes`, steps are by gradients alone, and the information is evaluated at
    the mode and after some steps only; at the start too unless it is `expected`, [B, A, A], NaN where it is not.
    """
    images = np.arange(len(start))
    if slopes is None:
        state = _begin(start, (yield from evaluate(images, start)))
    else:
        value, gradient = yield from slopes(images, start)  # a difference is not exact
        information = np.full((*start.shape, start.shape[1]), np.nan) if expected is None else expected.copy()
        unknown = np.flatnonzero(np.isnan(information).any(axis=(1, 2)))
        if len(unknown):
            information[unknown] = (yield from evaluate(unknown, start[unknown])).information
        state = _begin(start, Evaluation(value, gradient, information))
        state.age[:] = 1
        state.age[unknown] = 0
    active, going_on = images[state.finite], state.finite.copy()
    for step in range(max_steps):
        if keep is not None:
            kept = keep(step, state.point, state.value, active)
            going_on[np.setdiff1d(active, kept)] = False
            active = kept
        old = active[state.age[active] >= _MAX_AGE]
        if len(old):
            _renew(state, old, (yield from evaluate(old, state.point[old])))
        active, newton, gain = _next_steps(state, active, tolerance)
        while (is_near := (gain < tolerance) & (state.age[active] > 0)).any():
            near = active[is_near]
            _renew(state, near, (yield from evaluate(near, state.point[near])))
            again = _next_steps(state, near, tolerance)
            active, newton, gain = (
                np.concatenate([old[~is_near], new]) for old, new in zip((active, newton, gain), again, strict=True)
            )
        if not len(active):
            break
        if slopes is None:
            yield from _try(state, active, newton, evaluate, values)
        else:
            yield from _try_by_slopes(state, active, newton, slopes, values)
    aged = images[going_on & (state.age > 0)]
    if len(aged):
        _renew(state, aged, (yield from evaluate(aged, state.point[aged])))
    return _end(state)


def _try(
    state: NewtonState, active: NDArray[np.intp], newton: Float64Array, evaluate: Evaluate, values: Values
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


def _try_by_slopes(
    state: NewtonState, active: NDArray[np.intp], newton: Float64Array, slopes: Slopes, values: Values
) -> Chunks[None]:
    """The same with gradients alone."""
    point = _moved(state.point[active], newton)
    rises = _glide_full_steps(state, active, point, (yield from slopes(active, point)))
    failed = active[~rises]
    if len(failed):
        points = _moved(state.point[failed][:, None], _SHORTER_STEPS[:, None] * newton[~rises][:, None])
        shorter, point = _choose_shorter_steps(state, failed, points, (yield from values(failed, points)))
        if len(shorter):
            _glide_shorter_steps(state, shorter, point, (yield from slopes(shorter, point)))


# Far from the training set a decoder may give anything, and what overflows is refused by its value. The functions that
# compute keep NumPy from warning of it. The generators above must not: NumPy's error state belongs to the thread's
# context, not to a generator, and would hold for whoever computes between two chunks.
_quietly = np.errstate(all="ignore")


@_quietly
def _begin(start: Float64Array, at: Evaluation) -> NewtonState:
    value = joint(at.value, start)
    return NewtonState(
        point=start.copy(),
        value=value,
        gradient=at.gradient - start,
        information=at.information.copy(),
        secant=np.zeros_like(at.information),
        previous=start.copy(),
        previous_gradient=at.gradient - start,
        drift=np.zeros_like(at.information),
        age=np.zeros(len(start), np.int64),
        learned=np.zeros(len(start), np.bool_),
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
    state: NewtonState, active: NDArray[np.intp], tolerance: float
) -> tuple[NDArray[np.intp], Float64Array, Float64Array]:
    """Those of the active images that have neither converged nor are stuck, their steps [n, A], and expected gains [n].

    Steps are Newton's, damped; the gains are of steps without damping. An image whose information was not evaluated
    where it is does not converge.
    """
    precision = state.precision(active)
    newton = solve(precision, state.gradient[active])
    gain = 0.5 * dot(state.gradient[active], newton)
    near = (gain < tolerance) & (state.age[active] == 0)
    state.converged[active[near]] = True
    state.last_step[active[near]], state.last_gain[active[near]] = newton[near], gain[near]
    on = ~near & (state.damping[active] < _MAX_DAMPING)
    active, precision, newton, gain = active[on], precision[on], newton[on], gain[on]
    damping = state.damping[active]
    if damping.any():
        precision = precision + damping[:, None, None] * np.eye(newton.shape[1])
        newton = solve(precision, state.gradient[active])
    return active, newton, gain


@_quietly
def _renew(state: NewtonState, images: NDArray[np.intp], at: Evaluation) -> None:
    """Note the information where images are; where it is no number, what was known is kept, and trusted."""
    fine = np.isfinite(at.information).all(axis=(1, 2))
    state.inform(images[fine], at.information[fine])
    state.age[images] = 0


@_quietly
def _glide_full_steps(
    state: NewtonState, active: NDArray[np.intp], point: Float64Array, found: tuple[Float64Array, Float64Array]
) -> NDArray[np.bool_]:
    """As `_take_full_steps`."""
    value, gradient = joint(found[0], point), found[1]
    rises = np.asarray((value > state.value[active]) & np.isfinite(value) & np.isfinite(gradient).all(axis=1))
    state.glide(active[rises], point[rises], gradient[rises], value[rises])
    _ease(state, active[rises])
    return rises


@_quietly
def _glide_shorter_steps(
    state: NewtonState, shorter: NDArray[np.intp], point: Float64Array, found: tuple[Float64Array, Float64Array]
) -> None:
    value, gradient = joint(found[0], point), found[1]
    fine = np.isfinite(value) & np.isfinite(gradient).all(axis=1)
    state.glide(shorter[fine], point[fine], gradient[fine], value[fine])


def _ease(state: NewtonState, images: NDArray[np.intp]) -> None:
    """Damp less after a full step."""
    eased = state.damping[images] / 4
    state.damping[images] = np.where(eased < 0.05, 0, eased)


@_quietly
def _moved(point: Float64Array, step: Float64Array) -> Float64Array:
    return point + step


@_quietly
def _take_full_steps(
    state: NewtonState, active: NDArray[np.intp], point: Float64Array, at: Evaluation
) -> NDArray[np.bool_]:
    """Move where the value rises, and say where it does."""
    value = joint(at.value, point)
    rises = np.asarray((value > state.value[active]) & _finite(value, at))
    state.move(active[rises], point[rises], _take(at, rises), value[rises])
    _ease(state, active[rises])
    return rises


@_quietly
def _choose_shorter_steps(
    state: NewtonState, failed: NDArray[np.intp], points: Float64Array, log_likelihood: Float64Array
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
def _take_shorter_steps(state: NewtonState, shorter: NDArray[np.intp], point: Float64Array, at: Evaluation) -> None:
    fine = _finite(at.value, at)
    state.move(shorter[fine], point[fine], _take(at, fine), joint(at.value, point)[fine])


@_quietly
def _end(state: NewtonState) -> Modes:
    return Modes(
        mode=state.point + state.last_step,
        value=state.value + state.last_gain,
        precision=_final_precision(state, state.finite),
        converged=state.converged,
        usable=state.finite,
        num_steps=state.num_steps,
        gain=state.value + state.last_gain - state.first_value,
    )


def _final_precision(state: NewtonState, finite: NDArray[np.bool_]) -> Float64Array:
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
