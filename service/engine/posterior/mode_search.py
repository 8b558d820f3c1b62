"""Find the mode of p(z|x): from the encoder's mean for familiar images, from several starting points for strange ones.

The posterior of an image unlike the training set has many modes. The one nearest to the encoder's mean, or to any
other starting point, may be tens of nats below the best. So Newton's method starts from several points. After some
iterations the worse half is dropped, and the two best continue to the end. If they do not end at the same mode, there
may be a better one, and the search does not count as converged.
"""

from dataclasses import replace

import numpy as np

from service.engine.arrays import Float32Array, Float64Array, Indices
from service.engine.chunks import Chunks
from service.engine.matrices import times
from service.engine.posterior.laplace import Gaussians, approximate
from service.engine.posterior.newton import TOLERANCE, Evaluate, Modes, Values, find_modes
from service.engine.posterior.sampling import Sampler
from service.engine.proposal import DEFAULT_SEED, DiagonalGaussian, standard_normal

_FAMILIAR_STEPS = 5
_FAMILIAR_TOLERANCE = 0.5
"""Nats, as `newton.TOLERANCE`: near the encoder's mean what is left is a Gaussian's, and the last step exact enough."""
_NUM_STARTS = 12
_ROUND = 16
"""Iterations after which the worse half of the starting points is dropped; the others get as many again."""
_SAME_MODE = 4.0
"""Squared distance, in standard deviations, below which two searches ended at the same mode."""
_BLOCK_NUMBERS = 2**22
"""Entries of the matrices [D, D] held at once; bounds memory where the latent space is large."""


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

    def block_size(self, latent_dim: int) -> int:
        """Images whose modes are searched for from several starting points at once."""
        return max(1, min(self._block_images, _BLOCK_NUMBERS // (_NUM_STARTS * latent_dim**2)))

    def fit(self, x: Float32Array, encoder: DiagonalGaussian) -> Chunks[tuple[Modes, Gaussians]]:
        """Images [B, P] and their q(z|x) → the mode and the Gaussian of each, in all D dimensions.

        First from the encoder's mean, in the dimensions that familiar images need. An image that has not converged in
        a few iterations is strange: it gets several starting points, and the two best continue in all dimensions.
        """
        dimensions, latent_dim = self._sampler.familiar_dimensions, encoder.mean.shape[1]
        tries = min(_FAMILIAR_STEPS, self._max_steps)
        start = encoder.mean[:, dimensions].astype(np.float64)
        reached = yield from self._find_from(x, start, tries, _FAMILIAR_TOLERANCE)
        done = reached.converged | (tries == self._max_steps)
        familiar, strange = np.flatnonzero(done), np.flatnonzero(~done)
        fitted = yield from approximate(reached.take(familiar), self._values(x[familiar]))
        found = [reached.take(familiar).spread(dimensions, latent_dim)]
        gaussians = [fitted.spread(dimensions, latent_dim)]
        size = self.block_size(latent_dim)
        for first in range(0, len(strange), size):
            images = strange[first : first + size]
            modes = yield from self._search_from_several(x[images], reached.take(images))
            found.append(modes)
            gaussians.append((yield from approximate(modes, self._values(x[images]))))
        order = np.argsort(np.concatenate([familiar, strange]))
        return Modes.join(found).take(order), Gaussians.join(gaussians).take(order)

    def _search_from_several(self, x: Float32Array, reached: Modes) -> Chunks[Modes]:
        """Continue from where the first search ended, from the prior's mean, and from some draws from the prior."""
        dimensions, latent_dim = self._sampler.familiar_dimensions, self._sampler.latent_dim
        draws = standard_normal(_NUM_STARTS - 2, latent_dim, seed=DEFAULT_SEED)[:, dimensions]
        starts = np.zeros((len(x), _NUM_STARTS, len(dimensions)))
        starts[:, 0], starts[:, 2:] = reached.mode, draws

        def keep(step: int, value: Float64Array, active: Indices) -> Indices:
            if step != _ROUND:
                return active
            rank = np.argsort(np.argsort(-value.reshape(-1, _NUM_STARTS), axis=1, kind="stable"), axis=1).ravel()
            return active[rank[active] < _NUM_STARTS // 2]

        left = self._max_steps - _FAMILIAR_STEPS
        owner = np.repeat(np.arange(len(x)), _NUM_STARTS)
        candidates = yield from find_modes(
            starts.reshape(len(owner), -1),
            evaluate=self._evaluate(x[owner]),
            values=self._values(x[owner]),
            max_steps=min(2 * _ROUND, left),
            keep=keep,
        )
        value = np.where(candidates.usable, candidates.value, -np.inf).reshape(-1, _NUM_STARTS)
        best = np.argsort(-value, axis=1, kind="stable")[:, :2] + _NUM_STARTS * np.arange(len(x))[:, None]  # [n, 2]
        finalists = candidates.take(best.ravel()).spread(dimensions, latent_dim)
        # Without an iteration left for all dimensions, what was found in some is kept, though it may not be the mode.
        further = replace(
            finalists, converged=np.zeros(2 * len(x), np.bool_), num_steps=np.zeros_like(finalists.num_steps)
        )
        if left > 2 * _ROUND:
            further = yield from self._find_from(np.repeat(x, 2, axis=0), finalists.mode, left - 2 * _ROUND)
        winner = np.argmax(np.nan_to_num(further.value, nan=-np.inf).reshape(-1, 2), axis=1) + 2 * np.arange(len(x))
        won, other = further.take(winner), further.take(winner ^ 1)
        apart = won.mode - other.mode
        met = (apart * times(won.precision, apart)).sum(axis=1) < _SAME_MODE
        steps = reached.num_steps + finalists.take(winner).num_steps + won.num_steps
        return replace(won, converged=won.converged & other.converged & met, num_steps=steps)

    def _evaluate(self, x: Float32Array) -> Evaluate:
        return lambda images, points: self._sampler.evaluate(x[images], points)

    def _values(self, x: Float32Array) -> Values:
        return lambda images, points: self._sampler.log_likelihoods(x[images], points)

    def _find_from(
        self, x: Float32Array, start: Float64Array, max_steps: int, tolerance: float = TOLERANCE
    ) -> Chunks[Modes]:
        evaluate, values = self._evaluate(x), self._values(x)
        return find_modes(start, evaluate=evaluate, values=values, max_steps=max_steps, tolerance=tolerance)
