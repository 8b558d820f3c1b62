"""Find the mode of p(z|x): from the encoder's mean for familiar images, from several starting points for strange ones.

The posterior of an image unlike the training set has many modes. The one nearest to the encoder's mean, or to any
other starting point, may be tens of nats below the best. So Newton's method starts from several points:

- For one mode (`fit`), from twelve. The two best continue to the end in all dimensions. If they do not end at the same
  mode, there may be a better one, and the search does not count as converged.
- For the best few (`candidates`), from four at a time, until the best mode was reached often enough (multistart.py).
  Nothing is dropped for being behind: the best mode is often reached by a search that was not ahead in between.
- Of a familiar image whose posterior is sharp (`candidates`, near), from four beside the known mode and two more, once.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Float32Array, Float64Array, Indices
from service.engine.chunks import Chunks
from service.engine.posterior.bank import Bank
from service.engine.posterior.candidates import Candidates, best_of_each, distinct, is_same
from service.engine.posterior.gaussians import Gaussians
from service.engine.posterior.laplace import approximate
from service.engine.posterior.multistart import NEAR, NUM_KEPT, FoundModes
from service.engine.posterior.newton import TOLERANCE, Keep, Values, find_modes
from service.engine.posterior.newton_state import Modes
from service.engine.posterior.sampling import Sampler
from service.engine.posterior.starts import IS_INDEPENDENT, NUM_HOPS, Starts
from service.engine.proposal import DiagonalGaussian

_FAMILIAR_STEPS = 5
MORE_STEPS = 32
"""The same where images that the model draws need more."""
_FAMILIAR_TOLERANCE = 0.5
"""Nats, as `newton.TOLERANCE`: near the encoder's mean what is left is a Gaussian's, and the last step exact enough."""


_STARTS, _STEPS, _FINALISTS = 12, 32, 2
"""Where one mode is to be the best, its curvature exact: an image's searches, their iterations, and how many go on."""
_SEVERAL_STEPS = 32
_SEVERAL_TOLERANCE = 0.05
"""Of searches where annealing corrects what is left."""
_MAX_ROUNDS = 10
"""Of four searches each, until an image's best modes are confirmed."""
_FROM_BANK = 2
"""Draws of the bank that the first round starts from; each further round takes the next one."""
_HOPELESS, _OVER = 6, 3
"""A search is given up if six times what it gained over the last three iterations does not bring it near the best."""
_LAST_STEPS = 20
"""Iterations in all dimensions, at most."""
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
        self.familiar_steps = _FAMILIAR_STEPS  # from the encoder's mean; more than a few are made by gradients alone
        self._bank = Bank(sampler)
        self._starts = Starts(sampler.latent_dim, sampler.familiar_dimensions)

    @property
    def num_bytes(self) -> int:
        """Memory that it keeps once it has searched."""
        return self._bank.num_bytes

    def block_size(self, latent_dim: int) -> int:
        """Images whose modes are searched for from several starting points at once."""
        return max(1, min(self._block_images, _BLOCK_NUMBERS // (_STARTS * latent_dim**2)))

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

    def candidates(
        self, x: Float32Array, reached: Modes, far: NDArray[np.bool_], near: NDArray[np.bool_]
    ) -> Chunks[Candidates]:
        """Images [B, P] and where the search from the encoder's mean ended → up to four modes of each.

        Searches start from several points until the best mode is confirmed. Those of an image that is `far` go on in
        all dimensions; of one that is `near`, six begin once, most beside it.
        """
        size = self.block_size(self._sampler.latent_dim)
        parts, order = [], []
        ways = (
            (near, False, self._search_beside),
            (~near & ~far, False, self._search),
            (~near & far, True, self._search),
        )
        for way, in_all, search in ways:
            chosen = np.flatnonzero(way)
            for first in range(0, len(chosen), size):
                some = chosen[first : first + size]
                searched = yield from search(x[some], reached.take(some))
                modes = self._spread(searched.modes)
                if in_all:
                    modes = yield from self._finish(np.repeat(x[some], NUM_KEPT, axis=0), modes, searched.is_mode)
                found, best = distinct(modes, NUM_KEPT)
                if in_all:
                    fitted = yield from approximate(best, self._values(x[some]), self._sampler.slopes_of(x[some]))
                    found = found.with_first(fitted)
                parts.append(found)
                order.append(some)
        return Candidates.join(parts).take(np.argsort(np.concatenate(order)))

    def _search(self, x: Float32Array, reached: Modes) -> Chunks[FoundModes]:
        """Search from several points for the best modes of each image, in rounds: [n, P] → n."""
        bank = yield from self._bank.nearest(x, _FROM_BANK + _MAX_ROUNDS - 1)  # [n, C, A]
        starts = self._starts.of_round(reached.mode[:, None], bank[:, :_FROM_BANK], 0)
        found = FoundModes.of((yield from self._from(x, starts, information=reached.information[:, None])), len(x))
        pending = np.arange(len(x))
        parts, order = [], []
        for number in range(1, _MAX_ROUNDS):
            done = found.is_confirmed
            parts.append(found.take(np.flatnonzero(done)))
            order.append(pending[done])
            pending, found = pending[~done], found.take(np.flatnonzero(~done))
            if not len(pending):
                break
            from_bank = bank[pending, _FROM_BANK + number - 1]
            starts = self._starts.of_round(self._starts.around(found.best, number), from_bank[:, None], number)
            near_best = np.repeat(found.information[:, None], NUM_HOPS, axis=1)
            modes = yield from self._from(x[pending], starts, found, near_best)
            found = found.add(modes, is_independent=IS_INDEPENDENT)
        return FoundModes.join([*parts, found]).take(np.argsort(np.concatenate([*order, pending])))

    def _search_beside(self, x: Float32Array, reached: Modes) -> Chunks[FoundModes]:
        """Search from four points beside the mode that is known, and from draws of the bank: [n, P] → n."""
        bank = yield from self._bank.nearest(x, _FROM_BANK)
        starts = np.concatenate([self._starts.beside(reached.mode), bank], axis=1)
        near_mode = np.repeat(reached.information[:, None], 1 + NUM_HOPS, axis=1)
        return FoundModes.of((yield from self._from(x, starts, information=near_mode)), len(x))

    def _from(
        self,
        x: Float32Array,
        starts: Float64Array,
        found: FoundModes | None = None,
        information: Float64Array | None = None,
    ) -> Chunks[Modes]:
        """Search from each of an image's starts: [n, P] and [n, S, A] → [n·S].

        Of the first starts it may be known what information there is, roughly, [n, C, A, A]; it is evaluated elsewhere.
        A search ends early where it has come to a mode that was found before, which is then its end, or will not come
        near the best one; that end counts for nothing.
        """
        num_images, count, dimensions = starts.shape
        owner = np.repeat(np.arange(num_images), count)
        known, hopeless = np.full(len(owner), -1), np.zeros(len(owner), np.bool_)
        history: list[Float64Array] = []

        def keep(step: int, points: Float64Array, value: Float64Array, active: Indices) -> Indices:
            history.append(value.copy())
            if step < _OVER:
                return active
            gained = value - history.pop(0)
            best = np.fmax.reduce(value.reshape(num_images, count), axis=1)
            if found is not None:
                best = np.fmax(best, found.height)
                known[active] = found.know(owner[active], points[active])
                active = active[known[active] < 0]
            hopeless[active] = (value + _HOPELESS * gained < best[owner] - NEAR)[active]
            return np.asarray(active[~hopeless[active]])

        steps = min(_SEVERAL_STEPS, max(0, self._max_steps - _FAMILIAR_STEPS))
        start = starts.reshape(len(owner), dimensions)
        expected = np.full((num_images, count, dimensions, dimensions), np.nan)
        if information is not None:
            expected[:, : information.shape[1]] = information
        of_starts = expected.reshape(len(owner), dimensions, dimensions)
        modes = yield from self._find_from(x[owner], start, steps, _SEVERAL_TOLERANCE, keep, of_starts)
        if found is not None:
            again = np.flatnonzero(known >= 0)
            modes = modes.put(again, found.modes.take(owner[again] * found.hits.shape[1] + known[again]))
        return replace(modes, usable=modes.usable & ~hopeless)

    def _finish(self, x: Float32Array, modes: Modes, is_mode: NDArray[np.bool_]) -> Chunks[Modes]:
        """Go on in all dimensions from those that are modes: [n] → [n].

        Far from the training set the dimensions that familiar images do not need may matter too. Of noise they can make
        a mode the best that was tens of nats behind without them.
        """
        steps = min(_LAST_STEPS, max(0, self._max_steps - _FAMILIAR_STEPS - _SEVERAL_STEPS))
        if not steps:
            return modes
        some, others = np.flatnonzero(is_mode), np.flatnonzero(~is_mode)
        expected = modes.take(some).information
        further = yield from self._find_from(x[some], modes.mode[some], steps, _SEVERAL_TOLERANCE, expected=expected)
        left = replace(modes.take(others), value=np.full(len(others), -np.inf))
        return Modes.join([further, left]).take(np.argsort(np.concatenate([some, others])))

    def _spread(self, modes: Modes) -> Modes:
        return modes.spread(self._sampler.familiar_dimensions, self._sampler.latent_dim)

    def _compete(self, x: Float32Array, starts: Float64Array) -> Chunks[Modes]:
        """Search from each of the starts [n, S, A]; returns the two best of each image, in order: [n·2]."""
        owner = np.repeat(np.arange(len(x)), starts.shape[1])
        steps = min(_STEPS, max(0, self._max_steps - _FAMILIAR_STEPS))
        found = yield from self._find_from(x[owner], starts.reshape(len(owner), -1), steps)
        return best_of_each(found, owner, _FINALISTS)

    def _search_to_the_end(self, x: Float32Array, reached: Modes) -> Chunks[Modes]:
        """Of several starting points, follow the two best to the end in all dimensions, and take the better."""
        starts = self._starts.of_competition(reached.mode, _STARTS)
        finalists = self._spread((yield from self._compete(x, starts)))
        left = self._max_steps - _FAMILIAR_STEPS - _STEPS
        # Without an iteration left for all dimensions, what was found in some is kept, though it may not be the mode.
        further = replace(
            finalists, converged=np.zeros(2 * len(x), np.bool_), num_steps=np.zeros_like(finalists.num_steps)
        )
        if left > 0:
            twice = np.repeat(x, 2, axis=0)
            further = yield from self._find_from(twice, finalists.mode, left, expected=finalists.information)
        winner = np.argmax(np.nan_to_num(further.value, nan=-np.inf).reshape(-1, 2), axis=1) + 2 * np.arange(len(x))
        won, other = further.take(winner), further.take(winner ^ 1)
        met = is_same(won.mode, other.mode, won.precision)
        steps = reached.num_steps + finalists.take(winner).num_steps + won.num_steps
        return replace(won, converged=won.converged & other.converged & met, num_steps=steps)

    def _values(self, x: Float32Array) -> Values:
        return lambda images, points: self._sampler.log_likelihoods(x[images], points)

    def _find_from(
        self,
        x: Float32Array,
        start: Float64Array,
        max_steps: int,
        tolerance: float = TOLERANCE,
        keep: Keep | None = None,
        expected: Float64Array | None = None,
    ) -> Chunks[Modes]:
        return find_modes(
            start,
            evaluate=lambda images, points: self._sampler.evaluate(x[images], points),
            values=self._values(x),
            # in a few iterations gradients of their own win nothing
            slopes=self._sampler.slopes_of(x) if max_steps > _FAMILIAR_STEPS else None,
            expected=expected,
            max_steps=max_steps,
            tolerance=tolerance,
            keep=keep,
        )
