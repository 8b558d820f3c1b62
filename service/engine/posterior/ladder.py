"""`annealed` and `auto`: what importance sampling cannot answer goes on to contested modes and to annealing.

`auto` draws importance samples around the mode that the encoder's mean leads to, unless the image looks strange: the
first search found no mode, or log p(x, z) rises further from the encoder's mean to the mode than for images that the
model draws itself. A strange image's modes are searched for from several starting points, and importance samples are
drawn around up to four. So are those of an image that looks doubtful only (it rises further than for four in ten of the
model's own), if the weights of importance samples around one mode have a very heavy tail. What is not reliable then is
annealed, from the same samples. `annealed` anneals every image, and contests the modes of strange and doubtful ones.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Float32Array, Float64Array
from service.engine.chunks import Chunks
from service.engine.posterior.annealing import Annealed, Population, anneal, start
from service.engine.posterior.estimate import LogLikelihood, annealed_estimate, estimate, evidence_lower_bound
from service.engine.posterior.mode_search import MORE_STEPS, ModeSearch
from service.engine.posterior.newton import Values
from service.engine.posterior.newton_state import Modes
from service.engine.posterior.reference import GROUP, Reference, drawn_by_encoder
from service.engine.posterior.sampling import Sampler, resample
from service.engine.proposal import DiagonalGaussian, Effort

NUM_PARTICLES = 400
"""Of one round, at least; a hundred make a group."""
FAMILIAR_SHARE = 0.9
"""Of the images that the model draws, those that do not look strange."""
COMMON_SHARE = 0.4
"""Of the images that the model draws, those that do not even look doubtful."""
_HEAVY_TAIL = 0.85
"""Pareto k of importance samples around one mode, from which on a doubtful image's modes are contested. Of those for
choosing whose weights were not reliable, none of 58 below had a mode more than a nat better, and one of 25 above."""
_LARGE = 2048
"""Pixels and channels, from which on the posterior is so sharp that few searches end in a few iterations, and that it
has several modes where an image looks ordinary, too: of 24 photographs of 64×64 that were looked at, three had a mode
one to six nats better than the one that the encoder's mean leads to. No sign tells which."""
_UNSEEN = 0.15
"""Nats of standard error for what the search has missed of an image that is strange: beside its best modes are smaller
ones. Of images for choosing without a better mode, reliable estimates were 0.2 off in the root mean square
where their samples said 0.1."""
_UNSEEN_OF_LARGE = 0.3
"""The same for an image that has several modes without looking strange. Of 71 photographs of 64×64 for choosing, whose
estimates lay 0.3 nats low in the mean, 0.95 are covered with it, and 0.87 with half of it."""
_TOO_FAR, _LEAST_FAMILIAR = 300.0, 10.0
"""Times what is familiar (or nats, if that is less): where the search rises further, the modes that it finds are often
not the best. So it was with half of the noise images for choosing, which are nearly all that rise so far."""
_MAX_ROUNDS = 3
"""Of one image whose groups disagree, where no standard error is asked for."""
_FAR = 1.5
"""Times what is familiar: how far the search rises for an image whose modes may lie anywhere."""
_BLOCK_NUMBERS = 2**20
"""Coordinates of particles held at once; bounds memory."""


class Ladder:
    """Anneals images with one model's sampler.

    Args:
        num_pixels: C·H·W.
    """

    def __init__(self, sampler: Sampler, search: ModeSearch, *, num_pixels: int) -> None:
        self._sampler = sampler
        self._search = search
        self._num_pixels = num_pixels
        self._familiar_gain = np.inf
        self._common_gain = np.inf

    def learn_familiar(self, drawn: Float32Array, encoder: DiagonalGaussian) -> Chunks[None]:
        """Take note of how far the search rises from the encoder's mean, for images [N, P] that the model drew."""
        reached = yield from self._search.from_encoder(drawn, encoder)
        if self._num_pixels >= _LARGE and reached.converged.mean() < FAMILIAR_SHARE:
            self._search.familiar_steps = MORE_STEPS
            reached = yield from self._search.from_encoder(drawn, encoder)
        gain = np.sort(np.where(reached.usable, reached.gain, np.inf))
        self._familiar_gain = float(gain[int(FAMILIAR_SHARE * (len(gain) - 1))])
        self._common_gain = float(gain[int(COMMON_SHARE * (len(gain) - 1))])

    def is_strange(self, reached: Modes) -> NDArray[np.bool_]:
        """Whether an image's modes are to be contested: [B]."""
        return ~reached.converged | ~(reached.gain <= self._familiar_gain)

    def is_near(self, reached: Modes) -> NDArray[np.bool_]:
        """Whether other modes are to be searched for beside the one that is known only: [B].

        So it is with images of a large model that do not look strange, unless the search rose by a few nats only.
        """
        is_large = self._num_pixels >= _LARGE
        return np.asarray(is_large & ~self.is_strange(reached) & (reached.gain > _LEAST_FAMILIAR))

    def is_doubtful(self, reached: Modes) -> NDArray[np.bool_]:
        """Whether they are to be contested if samples around the one mode have a very heavy tail: [B]."""
        return ~reached.converged | ~(reached.gain <= self._common_gain)

    def is_far(self, reached: Modes) -> NDArray[np.bool_]:
        """Whether they are to be searched for in all dimensions: [B]."""
        return ~reached.converged | ~(reached.gain <= _FAR * self._familiar_gain)

    def judge(self, record: LogLikelihood, reached: Modes) -> LogLikelihood:
        """The same record [B] with what the search for modes may have missed.

        It counts in the standard error of images whose modes are contested from the start, unless the search from the
        encoder's mean rose by a few nats only; of those for which it rose too far, nothing is reliable.
        """
        unseen = np.where(self.is_near(reached), _UNSEEN_OF_LARGE, np.where(self.is_strange(reached), _UNSEEN, 0))
        unseen = np.where(reached.gain <= _LEAST_FAMILIAR, 0, unseen)
        std_error = np.where(unseen > 0, np.hypot(record.std_error, unseen), record.std_error)
        lost = reached.gain > _TOO_FAR * max(self._familiar_gain, _LEAST_FAMILIAR)
        reason = np.where(lost, "mode", record.reason)
        return replace(record, std_error=std_error, reliable=record.reliable & ~lost, reason=reason)

    @staticmethod
    def has_heavy_tail(record: LogLikelihood) -> NDArray[np.bool_]:
        """Whether importance samples around one mode say that there may be a better one: [B]."""
        return np.asarray(~record.reliable & ~(record.pareto_k < _HEAVY_TAIL))

    def block_size(self, num_samples: int, latent_dim: int) -> int:
        """Images that are annealed together."""
        return max(1, _BLOCK_NUMBERS // (num_particles(num_samples) * latent_dim))

    def memory(self, num_images: int, num_samples: int, latent_dim: int) -> int:
        """Bytes that `anneal` may take: counted, 7 points [D] of float64 a particle and 32 numbers."""
        images = min(num_images, self.block_size(num_samples, latent_dim))
        return 8 * images * num_particles(num_samples) * (7 * latent_dim + 32)

    def anneal(
        self,
        x: Float32Array,
        around: Reference,
        found: NDArray[np.bool_],
        effort: Effort,
        log_weight: Float64Array | None = None,
    ) -> Chunks[tuple[LogLikelihood, Float32Array]]:
        """Images [B, P] → estimates [B], and draws from each posterior [B, R, D].

        Args:
            x: the images.
            around: the references to start from.
            found: whether an image's modes were found, [B].
            effort: an image that is not reliable, or whose standard error is too large, gets further rounds of as many
                particles each.
            log_weight: of importance samples that were drawn from the same references with the same seed, [B, K]: they
                are the first round's particles.
        """
        size = self.block_size(effort.num_samples, self._sampler.latent_dim)
        records, draws = [], []
        for first in range(0, max(1, len(x)), size):
            images = np.arange(first, min(first + size, len(x)))
            weights = None if log_weight is None else log_weight[images]
            record, drawn = yield from self._anneal_block(
                x[images], around.take(images), found[images], effort, weights
            )
            records.append(record)
            draws.append(drawn)
        return LogLikelihood.join(records), np.concatenate(draws)

    def _anneal_block(
        self,
        x: Float32Array,
        around: Reference,
        found: NDArray[np.bool_],
        effort: Effort,
        log_weight: Float64Array | None,
    ) -> Chunks[tuple[LogLikelihood, Float32Array]]:
        pending, rounds = np.arange(len(x)), 0
        estimates, variance = np.empty((len(x), 0)), np.empty((len(x), 0))
        total, num_rows, finished = np.zeros(len(x)), np.zeros(len(x), np.int64), np.ones(len(x), np.bool_)
        draws = np.empty((len(x), effort.num_draws, around.mode.shape[2]), np.float32)
        records, order = [], []
        while True:
            annealed, lower = yield from self._round(
                x[pending], around.take(pending), rounds, effort, None if rounds else log_weight
            )
            estimates = np.concatenate([estimates, annealed.log_estimates], axis=1)
            variance = np.concatenate([variance, annealed.inner_variance[:, None]], axis=1)
            num_rows = num_rows + annealed.num_rows
            with np.errstate(invalid="ignore"):  # ∞ − ∞
                total = total + lower
            finished = finished & annealed.finished
            draws[pending] = _draws(annealed, effort.num_draws)
            record = annealed_estimate(
                estimates.reshape(len(estimates), rounds + 1, -1),
                _of_mean(estimates, variance),
                total / (rounds + 1),
                num_rows,
                self._num_pixels,
                found=found,
                finished=finished,
            )
            if effort.max_std_error is None:
                done = (record.reason != "groups") | (rounds + 1 >= _MAX_ROUNDS)
            else:
                enough = num_rows >= effort.limit // GROUP * GROUP  # a round has whole hundreds
                done = enough | (record.reliable & (record.std_error <= effort.max_std_error))
            records.append(record.take(done))
            order.append(pending[done])
            if done.all():
                return LogLikelihood.join(records).take(np.argsort(np.concatenate(order))), draws
            pending, found, finished, total = pending[~done], found[~done], finished[~done], total[~done]
            estimates, variance, num_rows = estimates[~done], variance[~done], num_rows[~done]
            rounds += 1

    def importance(
        self, x: Float32Array, around: Reference, found: NDArray[np.bool_], effort: Effort
    ) -> Chunks[tuple[LogLikelihood, Float32Array, Float64Array]]:
        """Images [B, P] → estimates [B] by samples from the references alone, draws [B, R, D], and log weights [B, K].

        Arguments are those of `anneal`, which takes the log weights.
        """
        size = self.block_size(effort.num_samples, self._sampler.latent_dim)
        records, draws, log_weights = [], [], []
        for first in range(0, max(1, len(x)), size):
            images = np.arange(first, min(first + size, len(x)))
            population = yield from self._population(x[images], around.take(images), 0, effort, None)
            with np.errstate(invalid="ignore"):  # ∞ − ∞
                log_weight = population.log_joint - population.log_reference
            record = estimate(log_weight, _elbo(population, around.take(images)), self._num_pixels, "laplace")
            reason = np.where(found[images], record.reason, "mode")
            records.append(replace(record, reliable=record.reliable & found[images], reason=reason))
            drawn = resample(log_weight, effort.num_draws)
            draws.append(population.points[np.arange(len(images))[:, None], drawn].astype(np.float32))
            log_weights.append(log_weight)
        return LogLikelihood.join(records), np.concatenate(draws), np.concatenate(log_weights)

    def _round(
        self, x: Float32Array, around: Reference, number: int, effort: Effort, log_weight: Float64Array | None
    ) -> Chunks[tuple[Annealed, Float64Array]]:
        """One population of each image, with noise of its own; and the ELBO by what the encoder drew of it, [B]."""
        population = yield from self._population(x, around, number, effort, log_weight)
        annealed = yield from anneal(
            population,
            around,
            self._values(x),
            lambda temperature: np.random.default_rng([effort.seed, number, temperature]),
        )
        return annealed, _elbo(population, around)

    def _population(
        self, x: Float32Array, around: Reference, number: int, effort: Effort, log_weight: Float64Array | None
    ) -> Chunks[Population]:
        count = num_particles(effort.num_samples)
        noise = self._sampler.noise(np.arange(number * count, (number + 1) * count), seed=effort.seed)
        if log_weight is None:
            return (yield from start(around, self._values(x), noise))
        points = around.draw(noise)
        density = around.log_density(points)
        return Population(points, log_weight[:, :count] + density, density)

    def _values(self, x: Float32Array) -> Values:
        return lambda images, points: self._sampler.log_likelihoods(x[images], points)


def _elbo(population: Population, around: Reference) -> Float64Array:
    """By the particles that the encoder drew: [B]."""
    by_encoder = drawn_by_encoder(population.points.shape[1])
    points = np.ascontiguousarray(population.points[:, by_encoder])  # sums over strides depend on the batch
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        return evidence_lower_bound(population.log_joint[:, by_encoder] - around.encoder_log_density(points))


def num_particles(num_samples: int) -> int:
    """Of one round: whole hundreds, four at least."""
    return max(NUM_PARTICLES, num_samples // GROUP * GROUP)


def _of_mean(log_estimates: Float64Array, variance: Float64Array) -> Float64Array:
    """Relative variance of the mean over rounds, by theirs: log estimates [B, R·G] and variances [B, R] → [B]."""
    rounds = variance.shape[1]
    highest = log_estimates.max(axis=1, keepdims=True)
    estimates = np.exp(log_estimates - np.where(np.isfinite(highest), highest, 0))
    with np.errstate(invalid="ignore"):  # none of them is possible
        share = estimates.reshape(len(estimates), rounds, -1).sum(axis=2) / estimates.sum(axis=1, keepdims=True)
    return np.asarray((share**2 * variance).sum(axis=1))


def _draws(annealed: Annealed, num_draws: int) -> Float32Array:
    """From each posterior: [B, R, D]."""
    drawn = resample(annealed.log_weight, num_draws)
    return annealed.points[np.arange(len(drawn))[:, None], drawn].astype(np.float32)
