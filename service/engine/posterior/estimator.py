"""log P(x) of images, by the proposal asked for: finds modes, draws samples, and stops when the error bar is met."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Float32Array, Float64Array, Indices
from service.engine.blocks import BlockSizes, blocks_at_once, side_block_size, side_blocks
from service.engine.chunks import Chunks
from service.engine.parts import Part, Parts, Results
from service.engine.posterior.candidates import Candidates, alone
from service.engine.posterior.estimate import LogLikelihood, estimate, evidence_lower_bound
from service.engine.posterior.gaussians import Gaussians
from service.engine.posterior.ladder import NUM_PARTICLES, Ladder
from service.engine.posterior.laplace import SHARES, Mixture, balanced, mixture, part_of
from service.engine.posterior.mode_search import ModeSearch
from service.engine.posterior.newton_state import Modes
from service.engine.posterior.reference import is_usable, reference
from service.engine.posterior.sampling import Sampler, resample
from service.engine.preparation import PreparedImages
from service.engine.proposal import IMPORTANCE_PROPOSALS, DiagonalGaussian, Effort
from service.engine.side_by_side import side_by_side

_BLOCK_NUMBERS = 2**22
"""Entries of the matrices [D, D] held at once; bounds memory where the latent space is large."""
_MANY_SAMPLES = 1000
"""An image, from which on all threads have runs of one block to make, and little is computed between."""
_BLOCK_WEIGHTS = 2**20
"""Log weights held at once; bounds memory where samples are many."""


@dataclass(frozen=True)
class _Plan:
    """How a block of images is sampled, and what was found out before."""

    draw: Callable[[Indices, int, int], Chunks[tuple[Float64Array, Float64Array]]]
    """Images by index, first and last sample → log weights of the proposal, and of the encoder, for the ELBO."""
    proposal: NDArray[np.str_]
    """The proposal really used, image by image."""
    latents: Callable[[Indices], Float32Array]
    """Samples of each image by index [B, R] → their latents [B, R, D]."""
    converged: NDArray[np.bool_]
    """Where it is the right one: for `laplace`, where the mode was found."""
    mixture: bool


@dataclass(frozen=True)
class _Sampled:
    """Estimates [B], the samples to draw from each posterior [B, R], and the first log weights [B, K]."""

    record: LogLikelihood
    drawn: Indices
    first: Float64Array


@dataclass(frozen=True)
class Inference(Results):
    """Estimates, and draws from the posterior."""

    record: LogLikelihood
    latents: Float32Array
    """R draws from p(z|x) for each image, see `resample`: [B, R, D]."""


class Estimator:
    """Estimates log P(x) with one model's sampler.

    Args:
        num_pixels: C·H·W.
        max_steps: tries after which the search for an image's posterior mode ends, converged or not.
        blocks: how many images to compute with at once.
    """

    def __init__(self, sampler: Sampler, *, num_pixels: int, max_steps: int, blocks: BlockSizes) -> None:
        self._sampler = sampler
        self._num_pixels = num_pixels
        self._search = ModeSearch(sampler, max_steps=max_steps, block_images=blocks.contested)
        self._block_images = blocks.images
        self.ladder = Ladder(sampler, self._search, num_pixels=num_pixels)

    @property
    def num_bytes(self) -> int:
        """Memory that it keeps once modes have been contested."""
        return self._search.num_bytes

    def memory(self, num_images: int, num_samples: int, latent_dim: int, *, limit: int) -> int:
        """Bytes that `infer` may take beside its arguments and its result, at most.

        Of so many samples an image to begin with, and `limit` in the end: annealing holds those of one round.

        Counted while a hundred noise images were estimated: 12 matrices [D, D] of float64 an image while modes are
        found, 80 more where its mode is searched for from several points, and 12 numbers a sample.
        """
        at_once = self._blocks_at_once(num_images, num_samples)
        images = side_block_size(num_images, self._size(limit, latent_dim), at_once)
        contested = min(images, self._search.block_size(latent_dim))
        matrices = 8 * latent_dim**2 * (12 * images + 80 * contested)
        rows = 4 * self._num_pixels * (2 * images + 26 * contested)
        annealing = self.ladder.memory(images, num_samples, latent_dim)
        return at_once * (matrices + rows + 96 * images * limit + annealing)

    def _blocks_at_once(self, num_images: int, num_samples: int) -> int:
        return 1 if num_samples >= _MANY_SAMPLES else blocks_at_once(num_images, self._sampler.team.size)

    def _size(self, num_samples: int, latent_dim: int) -> int:
        """Images whose estimates are made together."""
        return max(1, min(self._block_images, _BLOCK_NUMBERS // latent_dim**2, _BLOCK_WEIGHTS // num_samples))

    def infer(
        self, x: PreparedImages | Float32Array, posterior: DiagonalGaussian, *, proposal: str, effort: Effort
    ) -> Parts[Inference]:
        """Prepared images [B, C, H, W] or [B, P], and their q(z|x) → estimates [B] and draws [B, R, D], in parts."""
        most = self._size(effort.limit, posterior.mean.shape[1])
        at_once = self._blocks_at_once(len(x), effort.num_samples)
        blocks = side_blocks(len(x), most, at_once)
        computations = (self._infer_of(x, posterior, images, proposal, effort) for images in blocks)
        yield from side_by_side(self._sampler.team, computations, at_once)

    def _infer_of(
        self,
        x: PreparedImages | Float32Array,
        posterior: DiagonalGaussian,
        images: slice,
        proposal: str,
        effort: Effort,
    ) -> Parts[Inference]:
        block = DiagonalGaussian(posterior.mean[images], posterior.log_var[images])
        for part in self._infer_block(x[images].reshape(-1, self._num_pixels), block, proposal, effort):
            yield None if part is None else Part(images.start + part.images, part.results)

    def _infer_block(
        self, x: Float32Array, posterior: DiagonalGaussian, proposal: str, effort: Effort
    ) -> Parts[Inference]:
        every = np.arange(len(x))
        if proposal in IMPORTANCE_PROPOSALS or not len(x):
            plan = yield from self._plan(proposal, x, posterior, effort.seed)
            sampled = yield from self._sample(plan, len(x), effort)
            yield Part(every, Inference(sampled.record, plan.latents(sampled.drawn)))
            return
        reached = yield from self._search.from_encoder(x, posterior)
        is_doubtful = self.ladder.is_doubtful(reached)
        is_strange = self.ladder.is_strange(reached) | ~is_usable(posterior) | (is_doubtful & (proposal == "annealed"))
        is_near = self.ladder.is_near(reached) & ~is_strange
        strange, familiar = np.flatnonzero(is_strange | is_near), np.flatnonzero(~(is_strange | is_near))

        def final(some: Indices, record: LogLikelihood, drawn: Float32Array) -> Part[Inference]:
            return Part(some, Inference(self.ladder.judge(record, reached.take(some)), drawn))

        def anneal(some: Indices, modes: Candidates, weights: Float64Array | None = None) -> Parts[Inference]:
            if len(some):
                around = reference(modes.gaussians, modes.log_evidence, posterior.take(some))
                record, drawn = yield from self.ladder.anneal(x[some], around, modes.found, effort, weights)
                yield final(some, record, drawn)

        if len(familiar):
            gaussians = yield from self._search.approximate(x[familiar], reached.take(familiar))
            if proposal == "annealed":
                yield from anneal(familiar, alone(gaussians))
            else:
                part = posterior.take(familiar)
                plan = self._around_modes(x[familiar], part, gaussians, reached.take(familiar), effort.seed)
                sampled = yield from self._sample(plan, len(familiar), effort, persistent=False)
                done = sampled.record.reliable
                contested = is_doubtful[familiar] & self.ladder.has_heavy_tail(sampled.record)
                yield final(familiar, sampled.record, plan.latents(sampled.drawn)).of(done)
                strange = np.sort(np.concatenate([strange, familiar[contested]]))
                again = np.flatnonzero(~done & ~contested)
                weights = sampled.first[again] if effort.num_samples >= NUM_PARTICLES else None
                yield from anneal(familiar[again], alone(gaussians.take(again)), weights)
        if len(strange):
            far = self.ladder.is_far(reached)[strange]
            modes = yield from self._search.candidates(x[strange], reached.take(strange), far, is_near[strange])
            if proposal == "annealed":
                yield from anneal(strange, modes)
                return
            around = reference(modes.gaussians, modes.log_evidence, posterior.take(strange))
            record, drawn, weights = yield from self.ladder.importance(x[strange], around, modes.found, effort)
            wide = effort.max_std_error is not None and record.std_error > effort.max_std_error
            again = np.flatnonzero(~record.reliable | wide)
            yield final(strange, record, drawn).of(np.delete(np.arange(len(strange)), again))
            yield from anneal(strange[again], modes.take(again), weights[again])

    def _sample(self, plan: _Plan, num_images: int, effort: Effort, *, persistent: bool = True) -> Chunks[_Sampled]:
        """Sample until every image is done; one that is not doubles its samples.

        Without `persistent`, an image whose samples are not reliable is done too.
        """
        records: list[LogLikelihood] = []
        draws, order = [], []
        pending = np.arange(num_images)
        log_weight = np.empty((num_images, 0))  # [B, K]
        encoder_log_weight, first = log_weight, log_weight
        while True:
            start, stop = log_weight.shape[1], min(max(effort.num_samples, 2 * log_weight.shape[1]), effort.limit)
            more, encoder_more = yield from plan.draw(pending, start, stop)
            log_weight = np.concatenate([log_weight, more], axis=1)
            encoder_log_weight = np.concatenate([encoder_log_weight, encoder_more], axis=1)
            first = first if first.size else log_weight
            elbo = evidence_lower_bound(encoder_log_weight)
            weighted = balanced(log_weight) if plan.mixture else log_weight
            record = estimate(weighted, elbo, self._num_pixels)
            converged = plan.converged[pending]
            reason = np.where(converged, record.reason, "mode")
            record = replace(
                record, proposal=plan.proposal[pending], reliable=record.reliable & converged, reason=reason
            )
            done = np.full(len(pending), stop >= effort.limit)
            if effort.max_std_error is not None:
                done |= record.reliable & (record.std_error <= effort.max_std_error)
            done |= ~converged  # more samples would not make it reliable
            done |= ~record.reliable & (not persistent)
            if done.all() and not records:  # most often
                return _Sampled(record, resample(weighted, effort.num_draws), first)
            records.append(record.take(done))
            draws.append(resample(weighted[done], effort.num_draws))
            order.append(pending[done])
            if done.all():
                back = np.argsort(np.concatenate(order))
                return _Sampled(LogLikelihood.join(records).take(back), np.concatenate(draws)[back], first)
            pending, log_weight, encoder_log_weight = pending[~done], log_weight[~done], encoder_log_weight[~done]

    def _plan(self, proposal: str, x: Float32Array, posterior: DiagonalGaussian, seed: int) -> Chunks[_Plan]:
        sampler, every = self._sampler, np.ones(len(x), np.bool_)

        def by(gaussian: DiagonalGaussian, images: Indices, start: int, stop: int) -> Chunks[Float64Array]:
            return sampler.log_weights(x[images], gaussian.take(images), seed=seed, start=start, stop=stop)

        def draw_encoder(images: Indices, start: int, stop: int) -> Chunks[tuple[Float64Array, Float64Array]]:
            log_weight = yield from by(posterior, images, start, stop)
            return log_weight, log_weight

        def draw_prior(images: Indices, start: int, stop: int) -> Chunks[tuple[Float64Array, Float64Array]]:
            log_weight = yield from by(DiagonalGaussian(zeros, zeros), images, start, stop)
            return log_weight, (yield from by(posterior, images, start, stop))

        @np.errstate(over="ignore")  # an encoder may be sure of nothing
        def latents_of(gaussian: DiagonalGaussian, samples: Indices) -> Float32Array:
            noise = sampler.noise(samples, seed=seed)
            return np.asarray(gaussian.mean[:, None] + np.exp(gaussian.log_var / 2)[:, None] * noise, np.float32)

        if proposal == "encoder":
            latents = partial(latents_of, posterior)
            return _Plan(draw_encoder, np.full(len(x), proposal), latents, every, mixture=False)
        if proposal == "prior":
            zeros = np.zeros_like(posterior.mean)
            latents = partial(latents_of, DiagonalGaussian(zeros, zeros))
            return _Plan(draw_prior, np.full(len(x), proposal), latents, every, mixture=False)

        modes, gaussians = yield from self._search.fit(x, posterior)
        return self._around_modes(x, posterior, gaussians, modes, seed)

    def _around_modes(
        self, x: Float32Array, posterior: DiagonalGaussian, gaussians: Gaussians, modes: Modes, seed: int
    ) -> _Plan:
        """Sample from the mixture of laplace.py."""
        around: Mixture = mixture(gaussians, modes.usable, posterior)
        encoder_part = len(SHARES) - 1

        def draw(images: Indices, start: int, stop: int) -> Chunks[tuple[Float64Array, Float64Array]]:
            by_mixture, by_encoder = yield from self._sampler.mixture_log_weights(
                x[images], posterior.take(images), around.take(images), seed=seed, start=start, stop=stop
            )
            return by_mixture, by_encoder[:, part_of(np.arange(start, stop)) == encoder_part]

        def latents(samples: Indices) -> Float32Array:
            noise = self._sampler.noise(samples, seed=seed)
            return around.latents(noise, part_of(samples), posterior)

        used = np.where(modes.usable, "laplace", "encoder")
        return _Plan(draw, used, latents, modes.converged | ~modes.usable, mixture=True)
