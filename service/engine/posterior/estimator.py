"""log P(x) of images, by the proposal asked for: finds modes, draws samples, and stops when the error bar is met."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Float32Array, Float64Array, Indices
from service.engine.blocks import BlockSizes
from service.engine.chunks import Chunks
from service.engine.posterior.estimate import LogLikelihood, estimate, evidence_lower_bound
from service.engine.posterior.laplace import SHARES, Mixture, mixture
from service.engine.posterior.mode_search import ModeSearch
from service.engine.posterior.sampling import Sampler, balanced, part_of
from service.engine.preparation import PreparedImages
from service.engine.proposal import DiagonalGaussian

_BLOCK_NUMBERS = 2**22
"""Entries of the matrices [D, D] held at once; bounds memory where the latent space is large."""
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
class Inference:
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

    def memory(self, num_images: int, num_samples: int, latent_dim: int) -> int:
        """Bytes that `infer` may take beside its arguments and its result, at most.

        Counted while a hundred noise images were estimated: 12 matrices [D, D] of float64 an image while modes are
        found, 80 more where its mode is searched for from several points, and 12 numbers a sample.
        """
        images = min(num_images, self._size(num_samples, latent_dim))
        contested = min(images, self._search.block_size(latent_dim))
        matrices = 8 * latent_dim**2 * (12 * images + 80 * contested)
        rows = 4 * self._num_pixels * (2 * images + 26 * contested)
        return matrices + rows + 96 * images * num_samples

    def _size(self, num_samples: int, latent_dim: int) -> int:
        """Images whose estimates are made together."""
        return max(1, min(self._block_images, _BLOCK_NUMBERS // latent_dim**2, _BLOCK_WEIGHTS // num_samples))

    def infer(
        self,
        x: PreparedImages | Float32Array,
        posterior: DiagonalGaussian,
        *,
        proposal: str,
        num_samples: int,
        seed: int,
        max_std_error: float | None,
        max_num_samples: int,
        num_draws: int = 0,
    ) -> Chunks[Inference]:
        """Prepared images [B, C, H, W] or [B, P], and their q(z|x) → estimates [B] and draws [B, R, D].

        The other arguments are those of `Model.log_likelihood`.
        """
        latent_dim = posterior.mean.shape[1]
        limit = num_samples if max_std_error is None else max(num_samples, max_num_samples)
        size = self._size(limit, latent_dim)
        records, latents = [], []
        for first in range(0, max(1, len(x)), size):
            images = slice(first, first + size)
            block = DiagonalGaussian(posterior.mean[images], posterior.log_var[images])
            flat = x[images].reshape(-1, self._num_pixels)
            plan = yield from self._plan(proposal, flat, block, seed)
            record, drawn = yield from self._sample(
                plan, len(flat), num_samples, limit, max_std_error, num_draws=num_draws
            )
            records.append(record)
            latents.append(plan.latents(drawn))
        return Inference(LogLikelihood.join(records), np.concatenate(latents))

    def _sample(
        self,
        plan: _Plan,
        num_images: int,
        num_samples: int,
        limit: int,
        max_std_error: float | None,
        *,
        num_draws: int,
    ) -> Chunks[tuple[LogLikelihood, Indices]]:
        """Sample until every image is done; one that is not doubles its samples. With R resampled of each: [B, R]."""
        records, draws, order = [], [], []
        pending = np.arange(num_images)
        log_weight = np.empty((num_images, 0))  # [B, K]
        encoder_log_weight = log_weight
        while True:
            start, stop = log_weight.shape[1], min(max(num_samples, 2 * log_weight.shape[1]), limit)
            more, encoder_more = yield from plan.draw(pending, start, stop)
            log_weight = np.concatenate([log_weight, more], axis=1)
            encoder_log_weight = np.concatenate([encoder_log_weight, encoder_more], axis=1)
            elbo = evidence_lower_bound(encoder_log_weight)
            weighted = balanced(log_weight) if plan.mixture else log_weight
            record = estimate(weighted, elbo, self._num_pixels)
            converged = plan.converged[pending]
            record = replace(record, proposal=plan.proposal[pending], reliable=record.reliable & converged)
            done = np.full(len(pending), stop >= limit)
            if max_std_error is not None:
                done |= record.reliable & (record.std_error <= max_std_error)
            done |= ~converged  # more samples would not make it reliable
            records.append(record.take(done))
            draws.append(resample(weighted[done], num_draws))
            order.append(pending[done])
            if done.all():
                back = np.argsort(np.concatenate(order))
                return LogLikelihood.join(records).take(back), np.concatenate(draws)[back]
            pending, log_weight, encoder_log_weight = pending[~done], log_weight[~done], encoder_log_weight[~done]

    def _plan(self, proposal: str, x: Float32Array, posterior: DiagonalGaussian, seed: int) -> Chunks[_Plan]:
        sampler, every = self._sampler, np.ones(len(x), np.bool_)

        def by(gaussian: DiagonalGaussian, images: Indices, start: int, stop: int) -> Chunks[Float64Array]:
            part = DiagonalGaussian(gaussian.mean[images], gaussian.log_var[images])
            return sampler.log_weights(x[images], part, seed=seed, start=start, stop=stop)

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
        around: Mixture = mixture(gaussians, modes.usable, posterior)
        encoder_part = len(SHARES) - 1

        def draw_mixture(images: Indices, start: int, stop: int) -> Chunks[tuple[Float64Array, Float64Array]]:
            part = DiagonalGaussian(posterior.mean[images], posterior.log_var[images])
            by_mixture, by_encoder = yield from sampler.mixture_log_weights(
                x[images], part, around.take(images), seed=seed, start=start, stop=stop
            )
            return by_mixture, by_encoder[:, part_of(np.arange(start, stop)) == encoder_part]

        def mixture_latents(samples: Indices) -> Float32Array:
            noise = sampler.noise(samples, seed=seed)
            return around.latents(noise, part_of(samples), posterior)

        used = np.where(modes.usable, "laplace", "encoder")
        return _Plan(draw_mixture, used, mixture_latents, modes.converged | ~modes.usable, mixture=True)


def resample(log_weight: Float64Array, num_draws: int) -> Indices:
    """Samples by index, each as often as its weight asks for: log weights [B, K] → [B, R], draws from the posterior.

    Systematic resampling from the middle of the first stratum (Carpenter, Clifford, Fearnhead 1999), so that nothing is
    left to chance. A weight that is not a number counts as zero.

    >>> resample(np.log([[1.0, 4.0, 3.0]]), 8).tolist()
    [[0, 1, 1, 1, 1, 2, 2, 2]]
    """
    if not num_draws:
        return np.empty((len(log_weight), 0), np.intp)
    finite = np.nan_to_num(log_weight, nan=-np.inf, posinf=np.inf)
    highest = finite.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        weight = np.nan_to_num(np.exp(finite - np.where(np.isfinite(highest), highest, 0)), posinf=0)
    below = weight.cumsum(axis=1)  # [B, K]
    strata = (np.arange(num_draws) + 0.5) / num_draws * below[:, -1:]  # [B, R]
    drawn = (below[:, None] < strata[..., None]).sum(axis=2)
    return np.asarray(np.minimum(drawn, log_weight.shape[1] - 1))
