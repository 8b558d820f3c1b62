"""Find the mode of p(z|x): from the encoder's mean for familiar images, from several starting points for strange ones.

The posterior of an image unlike the training set has many modes. The one nearest to the encoder's mean, or to any
other starting point, may be tens of nats below the best. So Newton's method starts from several points. After some
iterations the worse half is dropped, and the two best continue to the end. If they do not end at the same mode, there
may be a better one, and the search does not count as converged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Float32Array, Float64Array, Indices
from service.engine.chunks import Chunks
from service.engine.matrices import times
from service.engine.posterior.gaussians import Gaussians
from service.engine.posterior.laplace import approximate
from service.engine.posterior.newton import TOLERANCE, Evaluate, Slopes, Values, find_modes
from service.engine.posterior.newton_state import Modes
from service.engine.posterior.sampling import Sampler
from service.engine.proposal import DEFAULT_SEED, DiagonalGaussian, standard_normal

_FAMILIAR_STEPS = 5
MORE_STEPS = 32
"""The same where images that the model draws need more."""
_FAMILIAR_TOLERANCE = 0.5
"""Nats, as `newton.TOLERANCE`: near the encoder's mean what is left is a Gaussian's, and the last step exact enough."""


@dataclass(frozen=True)
class _Schedule:
    """A competition of starting points."""

    starts: int
    kept: Mapping[int, int]
    """After so many iterations, how many of an image's searches go on: the best."""
    steps: int
    """Iterations of the last ones, at most."""
    finalists: int
    tolerance: float


_THOROUGH = _Schedule(starts=12, kept={16: 6}, steps=32, finalists=2, tolerance=TOLERANCE)
"""Where one mode is to be the best, and its curvature exact."""
_QUICK = _Schedule(starts=10, kept={8: 5, 16: 3}, steps=32, finalists=3, tolerance=0.1)
"""Where annealing corrects what is left. To drop the worse half after three iterations lost the best mode too often."""
_NEARBY = _Schedule(starts=4, kept={8: 3}, steps=24, finalists=3, tolerance=0.1)
"""From around the best mode so far."""
_DISTANCES = (0.3, 0.45, 0.6, 0.75)
"""b of each start around a mode, √(1 − b²)·mode + b·noise: neighbours of a good mode are often better (basin hopping:
Wales, Doye 1997, J. Phys. Chem. A 101:5111)."""
_NEARBY_SEED = 5
_LAST_STEPS = 20
"""Iterations in all dimensions, at most."""
_SAME_MODE = 4.0
"""Squared distance, in standard deviations, below which two searches ended at the same mode."""
_BLOCK_NUMBERS = 2**22
"""Entries of the matrices [D, D] held at once; bounds memory where the latent space is large."""


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


class ModeSearch:
    """Finds the posterior's mode, and the Gaussian around it, with one model's sampler.

    Args:
        max_steps: iterations after which Newton's method ends, converged or not.
        block_images: images whose modes are searched for from several starting points at once.
    """

    def __init__(self, sampler: Sampler, *, max_steps: int, block_images: int) -> None:
        self._sampler = sampler
        self._block_images = block_images
        self._max_steps = max_steps
        self.familiar_steps = _FAMILIAR_STEPS  # from the encoder's mean; more than a few are made by gradients alone

    def block_size(self, latent_dim: int) -> int:
        """Images whose modes are searched for from several starting points at once."""
        return max(1, min(self._block_images, _BLOCK_NUMBERS // (_THOROUGH.starts * latent_dim**2)))

    def from_encoder(self, x: Float32Array, encoder: DiagonalGaussian) -> Chunks[Modes]:
        """Images [B, P] and their q(z|x) → where a few iterations lead from the mean, in familiar dimensions."""
        start = encoder.mean[:, self._sampler.familiar_dimensions].astype(np.float64)
        return (yield from self._find_from(x, start, min(self.familiar_steps, self._max_steps), _FAMILIAR_TOLERANCE))

    def approximate(self, x: Float32Array, modes: Modes) -> Chunks[Gaussians]:
        """The Gaussian nearest to the posterior around each image's mode, in all D dimensions."""
        found = yield from approximate(modes, self._values(x), self._sampler.slopes_of(x))
        if modes.mode.shape[1] == self._sampler.latent_dim:
            return found
        return found.spread(self._sampler.familiar_dimensions, self._sampler.latent_dim)

    def fit(self, x: Float32Array, encoder: DiagonalGaussian) -> Chunks[tuple[Modes, Gaussians]]:
        """Images [B, P] and their q(z|x) → the mode and the Gaussian of each, in all D dimensions.

        First from the encoder's mean, in the dimensions that familiar images need. An image that has not converged in
        a few iterations is strange: it gets several starting points, and the two best continue in all dimensions.
        """
        dimensions, latent_dim = self._sampler.familiar_dimensions, encoder.mean.shape[1]
        reached = yield from self.from_encoder(x, encoder)
        done = reached.converged | (self._max_steps <= _FAMILIAR_STEPS)
        familiar, strange = np.flatnonzero(done), np.flatnonzero(~done)
        found = [reached.take(familiar).spread(dimensions, latent_dim)]
        gaussians = [(yield from self.approximate(x[familiar], reached.take(familiar)))]
        size = self.block_size(latent_dim)
        for first in range(0, len(strange), size):
            images = strange[first : first + size]
            modes = yield from self._search_to_the_end(x[images], reached.take(images))
            found.append(modes)
            gaussians.append((yield from self.approximate(x[images], modes)))
        order = np.argsort(np.concatenate([familiar, strange]))
        return Modes.join(found).take(order), Gaussians.join(gaussians).take(order)

    def candidates(self, x: Float32Array, reached: Modes, far: NDArray[np.bool_]) -> Chunks[Candidates]:
        """Images [B, P] and where the search from the encoder's mean ended → up to three modes of each.

        Of an image that is not `far`, the others are searched for around that mode. Of one that is, first from several
        starting points, then around the best of what they lead to, and at last in all dimensions.
        """
        size = self.block_size(self._sampler.latent_dim)
        parts, order = [], []
        for chosen, several in ((np.flatnonzero(~far), False), (np.flatnonzero(far), True)):
            for first in range(0, len(chosen), size):
                some = chosen[first : first + size]
                best = reached.take(some)
                if several:
                    best = yield from self._compete(x[some], self._starts(best, _QUICK.starts), _QUICK)
                nearby = yield from self._compete(x[some], self._around(best, len(some)), _NEARBY)
                owner = np.concatenate([_owner(best, len(some)), _owner(nearby, len(some))])
                modes = _best(Modes.join([best, nearby]), owner, _NEARBY.finalists)
                modes = self._spread(modes)
                if several:
                    modes = yield from self._finish(np.repeat(x[some], _NEARBY.finalists, axis=0), modes)
                found, best = _candidates(modes, _NEARBY.finalists)
                if several:
                    fitted = yield from approximate(best, self._values(x[some]), self._sampler.slopes_of(x[some]))
                    found = found.with_first(fitted)
                parts.append(found)
                order.append(some)
        return Candidates.join(parts).take(np.argsort(np.concatenate(order)))

    def _finish(self, x: Float32Array, modes: Modes) -> Chunks[Modes]:
        """Go on in all dimensions, for far from the training set the others may matter too: [n] → [n]."""
        steps = min(_LAST_STEPS, max(0, self._max_steps - _FAMILIAR_STEPS - _QUICK.steps))
        further = yield from self._find_from(x, modes.mode, steps, _NEARBY.tolerance)
        return further if steps else modes

    def _starts(self, reached: Modes, count: int) -> Float64Array:
        """Where the first search ended, the prior's mean, and draws from the prior: [n, S, A]."""
        draws = standard_normal(count - 2, self._sampler.latent_dim, seed=DEFAULT_SEED)
        starts = np.zeros((len(reached.mode), count, reached.mode.shape[1]))
        starts[:, 0], starts[:, 2:] = reached.mode, draws[:, self._sampler.familiar_dimensions]
        return starts

    def _around(self, modes: Modes, num_images: int) -> Float64Array:
        """Points around the first of each image's modes [n·F]: [n, S, A]."""
        first = modes.mode.reshape(num_images, -1, modes.mode.shape[1])[:, :1]
        draws = standard_normal(len(_DISTANCES), self._sampler.latent_dim, seed=_NEARBY_SEED)
        distance = np.array(_DISTANCES)[:, None]
        return np.asarray(np.sqrt(1 - distance**2) * first + distance * draws[:, self._sampler.familiar_dimensions])

    def _spread(self, modes: Modes) -> Modes:
        return modes.spread(self._sampler.familiar_dimensions, self._sampler.latent_dim)

    def _compete(self, x: Float32Array, starts: Float64Array, schedule: _Schedule) -> Chunks[Modes]:
        """Search from each of the starts [n, S, A]; returns the best of each image, in order: [n·F]."""
        count = starts.shape[1]

        def keep(step: int, value: Float64Array, active: Indices) -> Indices:
            if step not in schedule.kept:
                return active
            rank = np.argsort(np.argsort(-value.reshape(-1, count), axis=1, kind="stable"), axis=1).ravel()
            return active[rank[active] < schedule.kept[step]]

        owner = np.repeat(np.arange(len(x)), count)
        found = yield from find_modes(
            starts.reshape(len(owner), -1),
            evaluate=self._evaluate(x[owner]),
            values=self._values(x[owner]),
            slopes=self._slopes(x[owner]),
            max_steps=min(schedule.steps, max(0, self._max_steps - _FAMILIAR_STEPS)),
            tolerance=schedule.tolerance,
            keep=keep,
        )
        return _best(found, owner, schedule.finalists)

    def _search_to_the_end(self, x: Float32Array, reached: Modes) -> Chunks[Modes]:
        """Of several starting points, follow the two best to the end in all dimensions, and take the better."""
        finalists = self._spread((yield from self._compete(x, self._starts(reached, _THOROUGH.starts), _THOROUGH)))
        left = self._max_steps - _FAMILIAR_STEPS - _THOROUGH.steps
        # Without an iteration left for all dimensions, what was found in some is kept, though it may not be the mode.
        further = replace(
            finalists, converged=np.zeros(2 * len(x), np.bool_), num_steps=np.zeros_like(finalists.num_steps)
        )
        if left > 0:
            further = yield from self._find_from(np.repeat(x, 2, axis=0), finalists.mode, left)
        winner = np.argmax(np.nan_to_num(further.value, nan=-np.inf).reshape(-1, 2), axis=1) + 2 * np.arange(len(x))
        won, other = further.take(winner), further.take(winner ^ 1)
        apart = won.mode - other.mode
        met = (apart * times(won.precision, apart)).sum(axis=1) < _SAME_MODE
        steps = reached.num_steps + finalists.take(winner).num_steps + won.num_steps
        return replace(won, converged=won.converged & other.converged & met, num_steps=steps)

    def _evaluate(self, x: Float32Array) -> Evaluate:
        return lambda images, points: self._sampler.evaluate(x[images], points)

    def _slopes(self, x: Float32Array) -> Slopes | None:
        """Where a few iterations suffice, gradients of their own win nothing."""
        return self._sampler.slopes_of(x) if self.familiar_steps > _FAMILIAR_STEPS else None

    def _values(self, x: Float32Array) -> Values:
        return lambda images, points: self._sampler.log_likelihoods(x[images], points)

    def _find_from(
        self, x: Float32Array, start: Float64Array, max_steps: int, tolerance: float = TOLERANCE
    ) -> Chunks[Modes]:
        evaluate, values = self._evaluate(x), self._values(x)
        slopes = self._sampler.slopes_of(x) if max_steps > _FAMILIAR_STEPS else None
        return find_modes(
            start, evaluate=evaluate, values=values, slopes=slopes, max_steps=max_steps, tolerance=tolerance
        )


def _owner(modes: Modes, num_images: int) -> Indices:
    """Which image each mode is of, where all have as many, in order: [n·F]."""
    return np.repeat(np.arange(num_images), len(modes.mode) // max(1, num_images))


def _best(modes: Modes, owner: Indices, count: int) -> Modes:
    """The best `count` modes of each image, best first; all images have as many."""
    value = np.where(modes.usable, modes.value, -np.inf)
    order = np.lexsort((-value, owner))  # which keeps the order of equals
    each = len(owner) // max(1, len(np.unique(owner)))
    return modes.take(order.reshape(-1, each)[:, :count].ravel())


def alone(gaussians: Gaussians) -> Candidates:
    """One mode of each image, which was found."""
    count = len(gaussians.centre)
    return Candidates(gaussians, np.zeros((count, 1)), np.ones(count, np.bool_))


def _candidates(modes: Modes, num_finalists: int) -> tuple[Candidates, Modes]:
    """Of the best modes of each image, [B·F]: those that are not the same, and the first of them, [B]."""
    gaussians = Gaussians.around(modes.mode, modes.precision)
    shape = (-1, num_finalists)
    evidence = modes.value - 0.5 * np.log(gaussians.precisions).sum(axis=1)
    evidence = np.where(modes.usable & np.isfinite(evidence), evidence, -np.inf).reshape(shape)
    every = np.arange(len(evidence))[:, None]
    order = np.argsort(-evidence, axis=1, kind="stable")
    index = (order + num_finalists * every).ravel()
    evidence = np.take_along_axis(evidence, order, axis=1)
    ordered = modes.take(index)
    mode = ordered.mode.reshape(*shape, ordered.mode.shape[1])
    precision = ordered.precision.reshape(*mode.shape, -1)
    for other in range(1, num_finalists):
        for better in range(other):
            apart = mode[:, other] - mode[:, better]
            same = (apart * times(precision[:, better], apart)).sum(axis=1) < _SAME_MODE
            evidence[same, other] = -np.inf
    found = Candidates(gaussians.take(index), evidence, np.asarray(ordered.converged.reshape(shape)[:, 0]))
    return found, modes.take(index[::num_finalists])
