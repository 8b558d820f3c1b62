"""Tempered sequential Monte Carlo: log P(x) where importance sampling from the Laplace proposal has too heavy a tail.

Particles go from the reference r(z|x) to p(x, z) through densities ∝ r^{1−β}·p(x, z)^β, β from 0 to 1. Each step takes
the next β so that the effective sample size of the weights (p/r)^{Δβ} is half of the particles; P(x) is estimated by
the product of the mean weights (Del Moral, Doucet, Jasra 2006, JRSS B 68:411). Where the way is short, the first step
goes on to a fourth: particles drawn from the reference are independent, those that were moved are not. Particles are
then drawn again by their weights and moved within the density of β by preconditioned Crank-Nicolson steps around the
particles' mean and covariance (crank_nicolson.py). No gradient: one decoder row a move.

It is waste-free (Dau, Chopin 2022, JRSS B 84:114): one particle in ten is drawn, each moves nine times, and all
ten states of each go on. On images unlike the training set that takes a fourth of the decoder rows of moving every
particle three times, for the same error.

Particles are in groups that are drawn again each by itself, and give an estimate of P(x) each. Their mean is the
estimate. Moves are around what the particles of other groups say: around their own, the estimate would be too low. But
for the temperatures and the lengths of steps, which all groups of an image tune together, it is unbiased.

Everything here is NumPy in float64; noise is shared by all images, and every sum is over one image, so that an image's
estimate has the same bits alone and in a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Float64Array, Indices
from service.engine.chunks import Chunks
from service.engine.posterior.crank_nicolson import CrankNicolson
from service.engine.posterior.newton import Values
from service.engine.posterior.reference import GROUP, LOG_2_PI, Reference, rounded

NUM_STATES = 10
"""Of each chain, its start among them."""
MAX_TEMPERATURES = 40
_TARGET_ESS, _FIRST_TARGET_ESS = 0.5, 0.25
"""Of the particles: what the effective sample size of one step's weights is to be, and of the first step's."""
_NEXT_TO_NONE = 0.02
"""Of the particles: with fewer effective ones at β = 1 the way is long, and its first step short."""
_TARGET_ACCEPTANCE = 0.3
_FIRST_STEP = 0.6
_LEAST_STEP = 0.02
_STEP_SPREAD = 0.3
"""Of the logarithm of a particle's step: where one length suits some places only, some particles have another."""
_BISECTIONS = 16
_IMPOSSIBLE = -1e300
"""In place of a log density that is not finite. A finite one may be −1e15: a narrow likelihood, far from its mode."""
_NOTHING = -1e200
"""An estimate below is of impossible particles only, and is −∞."""


@dataclass(frozen=True)
class Population:
    """Particles of B images with what is known at them; nats."""

    points: Float64Array  # [B, K, D]
    log_joint: Float64Array  # [B, K]: log p(x, z)
    log_reference: Float64Array  # [B, K]: log r(z|x)

    def take(self, images: Indices) -> "Population":
        """Those of these images."""
        return Population(self.points[images], self.log_joint[images], self.log_reference[images])


@dataclass(frozen=True)
class Annealed:
    """How annealing ended, image by image.

    Attributes:
        log_estimates: of P(x), by group, log [B, G]; −∞ where no particle of a group has a finite log p(x, z).
        num_rows: particles and their moves, [B].
        num_temperatures: [B].
        finished: whether it came to β = 1 in as many temperatures as are allowed, [B].
        points: the particles at the end, [B, K, D].
        log_weight: of each at the end, [B, K], where the posterior is their weighted distribution.
        inner_variance: relative, of the mean of the groups, by descent; see `_descent_variance`, [B].
    """

    log_estimates: Float64Array
    num_rows: NDArray[np.int64]
    num_temperatures: NDArray[np.int64]
    finished: NDArray[np.bool_]
    points: Float64Array
    log_weight: Float64Array
    inner_variance: Float64Array


def log_joint(log_likelihood: Float64Array, points: Float64Array) -> Float64Array:
    """log p(x|z) + log p(z), with all constants: [..., K] and [..., K, D] → [..., K]."""
    return np.asarray(log_likelihood - 0.5 * (points**2).sum(axis=-1) - 0.5 * points.shape[-1] * LOG_2_PI)


def start(reference: Reference, values: Values, noise: NDArray[np.float32]) -> Chunks[Population]:
    """Draw from the reference with noise [K, D]: K decoder rows an image."""
    points = reference.draw(noise)
    found = yield from values(np.arange(len(points)), points)
    return Population(points, log_joint(found, points), reference.log_density(points))


def anneal(
    population: Population, reference: Reference, values: Values, noise: Callable[[int], np.random.Generator]
) -> Chunks[Annealed]:
    """Take particles drawn from the reference to p(x, z).

    Args:
        population: K particles an image, K a multiple of a hundred: a hundred make a group.
        reference: of the same images.
        values: log p(x|z).
        noise: the generator of one temperature's noise, by its number from 0.
    """
    state = _State(population)
    for number in range(MAX_TEMPERATURES):
        images = state.advance(number)
        if not len(images):
            break
        yield from _move(state, images, reference.take(images), values, noise(number))
    return state.end()


class _State:
    """The particles of all images on their way."""

    def __init__(self, population: Population) -> None:
        num_images, num_particles, _ = population.points.shape
        self.points = population.points.copy()
        self.log_joint = _finite(population.log_joint)
        possible = np.asarray((self.log_joint > _IMPOSSIBLE).any(axis=1))
        self.log_reference = population.log_reference.copy()
        self.beta = np.zeros(num_images)
        self.step = np.full(num_images, _FIRST_STEP)
        self.num_groups = num_particles // GROUP
        self.log_estimates = np.where(possible, 0, _IMPOSSIBLE)[:, None] * np.ones(self.num_groups)
        self.log_weight = np.zeros((num_images, num_particles))
        self.num_rows = np.full(num_images, num_particles)
        self.num_temperatures = np.zeros(num_images, np.int64)
        self.finished: NDArray[np.bool_] = np.logical_not(possible)
        self.ancestor = np.tile(np.arange(num_particles), (num_images, 1))
        self.active = np.flatnonzero(possible)

    def advance(self, number: int) -> Indices:
        """Weigh particles of images on their way to their temperature of this number; returns those not at β = 1."""
        images = self.active
        log_ratio = self.log_joint[images] - self.log_reference[images]
        beta = self.beta[images]
        increment, arrives = next_increment(log_ratio, 1 - beta, first=not number)
        self.finished[images] = arrives
        if number == MAX_TEMPERATURES - 1:
            increment, arrives = 1 - beta, np.ones(len(images), np.bool_)
        log_weight = increment[:, None] * log_ratio  # [n, K]
        self.log_weight[images] = log_weight
        self.log_estimates[images] += log_mean_exp(log_weight.reshape(len(images), self.num_groups, GROUP))
        self.beta[images] = np.where(arrives, 1.0, beta + increment)
        self.num_temperatures[images] += 1
        self.active = images[~arrives]
        return self.active

    def end(self) -> Annealed:
        """What there is now."""
        grouped = self.log_weight.reshape(len(self.log_weight), self.num_groups, GROUP)
        shift = self.log_estimates - log_mean_exp(grouped)  # of a group's earlier temperatures
        log_weight = (grouped + shift[..., None]).reshape(self.log_weight.shape)
        return Annealed(
            np.where(self.log_estimates < _NOTHING, -np.inf, self.log_estimates),
            self.num_rows,
            self.num_temperatures,
            self.finished,
            self.points,
            log_weight,
            _descent_variance(log_weight, self.ancestor),
        )


def _move(
    state: _State, images: Indices, reference: Reference, values: Values, generator: np.random.Generator
) -> Chunks[None]:
    """Draw particles again by their weights, and move them within the density of their image's β."""
    points = state.points[images]
    weight = _normalised(state.log_weight[images])
    chains = GROUP // NUM_STATES
    around = CrankNicolson(points, weight, reference.covariance(), state.num_groups, chains)
    num_chains = chains * state.num_groups
    chosen = _resample(state.log_weight[images], state.num_groups, generator.random())  # [n, C]
    every = np.arange(len(images))[:, None]
    beta = state.beta[images][:, None]

    def beside_gaussian(u: Float64Array, log_p: Float64Array, log_r: Float64Array) -> Float64Array:
        """The log density of β less the Gaussian's that the moves keep."""
        return np.asarray((1 - beta) * log_r + beta * log_p + 0.5 * (u**2).sum(axis=2))

    z, log_p, log_r = (
        points[every, chosen],
        state.log_joint[images][every, chosen],
        state.log_reference[images][every, chosen],
    )
    u = around.normal(z)
    here = beside_gaussian(u, log_p, log_r)
    states = [(z, log_p, log_r)]
    step = state.step[images]
    density = reference.density()
    for _ in range(NUM_STATES - 1):
        noise = generator.standard_normal(z.shape[1:], np.float32).astype(np.float64)  # [C, D]
        length = np.exp(_STEP_SPREAD * generator.standard_normal(num_chains))
        threshold = np.log1p(-generator.random(num_chains))
        along = np.clip(step[:, None] * length, _LEAST_STEP, 1)[..., None]  # [n, C, 1]
        moved = rounded(around.moved(u, along, noise))
        found = yield from values(images, moved)
        moved_u, moved_p, moved_r = around.normal(moved), _finite(log_joint(found, moved)), density.log(moved)
        there = beside_gaussian(moved_u, moved_p, moved_r)
        accepted = threshold < there - here
        z, u = np.where(accepted[..., None], moved, z), np.where(accepted[..., None], moved_u, u)
        log_p, log_r = np.where(accepted, moved_p, log_p), np.where(accepted, moved_r, log_r)
        here = np.where(accepted, there, here)
        states.append((z, log_p, log_r))
        step = np.clip(step * np.exp(accepted.mean(axis=1) - _TARGET_ACCEPTANCE), _LEAST_STEP, 1)
    state.step[images] = step
    state.num_rows[images] += (NUM_STATES - 1) * num_chains
    arrays = (state.points, state.log_joint, state.log_reference)
    for array, found_states in zip(arrays, zip(*states, strict=True), strict=True):
        array[images] = np.stack(found_states, axis=2).reshape(len(images), num_chains * NUM_STATES, *array.shape[2:])
    state.ancestor[images] = np.repeat(state.ancestor[images][every, chosen], NUM_STATES, axis=1)


def next_increment(
    log_ratio: Float64Array, most: Float64Array, *, first: bool = False
) -> tuple[Float64Array, NDArray[np.bool_]]:
    """The largest Δβ ≤ most at which exp(Δβ·log ratio) has half of its effective samples, by bisection.

    log p/r [n, K] and most [n] → Δβ [n], and whether it is all of `most`. The `first` step of an image that has less
    than a fourth of them at `most`, but not next to none, goes on to a fourth.
    """
    count = log_ratio.shape[1]
    at_most = _effective_samples(log_ratio, most)
    arrives = at_most >= _TARGET_ESS * count
    further = first & (at_most < _FIRST_TARGET_ESS * count) & (at_most >= _NEXT_TO_NONE * count)
    wanted = np.where(further, _FIRST_TARGET_ESS, _TARGET_ESS) * count
    low, high = np.zeros_like(most), most.copy()
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        enough = _effective_samples(log_ratio, middle) >= wanted
        low, high = np.where(enough, middle, low), np.where(enough, high, middle)
    return np.where(arrives, most, np.maximum(low, 1e-6 * most)), arrives


def _effective_samples(log_ratio: Float64Array, increment: Float64Array) -> Float64Array:
    weight = increment[:, None] * log_ratio
    weight = np.exp(weight - weight.max(axis=1, keepdims=True))
    return np.asarray(weight.sum(axis=1) ** 2 / (weight**2).sum(axis=1))


def _normalised(log_weight: Float64Array) -> Float64Array:
    weight = np.exp(log_weight - log_weight.max(axis=-1, keepdims=True))
    return np.asarray(weight / weight.sum(axis=-1, keepdims=True))


def log_mean_exp(values: Float64Array) -> Float64Array:
    """log mean exp over the last axis; −∞ where all are.

    >>> float(log_mean_exp(np.log([1.0, 3.0])).round(3)), round(float(np.log(2)), 3)
    (0.693, 0.693)
    """
    highest = values.max(axis=-1, keepdims=True)
    shift = np.where(np.isfinite(highest), highest, 0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(values - shift).mean(axis=-1)) + shift[..., 0])


def _resample(log_weight: Float64Array, num_groups: int, offset: float) -> Indices:
    """Particles by index, where a group's chains start, by systematic resampling: [n, K] → [n, C], groups in order."""
    weight = _normalised(log_weight.reshape(len(log_weight), num_groups, GROUP))
    below = weight.cumsum(axis=2)  # [n, G, K]
    strata = (np.arange(GROUP // NUM_STATES) + offset) / (GROUP // NUM_STATES) * below[..., -1:]  # [n, G, C]
    drawn = np.minimum((below[:, :, None] < strata[..., None]).sum(axis=3), GROUP - 1)
    return np.asarray((drawn + GROUP * np.arange(num_groups)[:, None]).reshape(len(log_weight), -1))


def _descent_variance(log_weight: Float64Array, ancestor: Indices) -> Float64Array:
    """Relative variance of the estimate, by which first particle each last one descends from: [B].

    Σ over first particles of (their descendants' share of the weight)², less 1/K: what one importance sample's would
    be were there no temperatures (Lee, Whiteley 2018, Biometrika 105:609, up to terms of order 1/K²).
    """
    num_images, num_particles = ancestor.shape
    weight = _normalised(log_weight)
    shares = np.zeros((num_images, num_particles))
    np.add.at(shares, (np.arange(num_images)[:, None], ancestor), weight)
    return np.asarray(np.maximum((shares**2).sum(axis=1) - 1 / num_particles, 0))


def _finite(log_density: Float64Array) -> Float64Array:
    return np.asarray(np.where(np.isfinite(log_density), np.maximum(log_density, _IMPOSSIBLE), _IMPOSSIBLE))
