"""Run the engine's graphs in chunks, over images and samples of any number, within a fixed memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store import Description
from service.engine import graphs
from service.engine.arrays import Float32Array, Float64Array, Indices
from service.engine.blocks import Tile, pieces, tiles
from service.engine.chunks import Chunks, complete
from service.engine.graphs import DecoderGraphs
from service.engine.posterior.laplace import SHARES, Mixture, part_of
from service.engine.posterior.newton import Slopes
from service.engine.posterior.newton_state import Evaluation
from service.engine.proposal import DEFAULT_SEED, DiagonalGaussian, NoiseCache, standard_normal
from service.engine.runtime import Runtime, Session
from service.engine.team import Inputs, Outputs
from service.engine.verification import CURVATURE_TOLERANCE

GRADIENT_ROWS = 3
"""What a gradient by one pass back through the decoder is counted as, in decoder rows."""
_IGNORED_INFORMATION = 0.01
_NUM_DRAWN = 32
"""Images that a model draws when it is loaded."""
_NUM_JUDGED = 16
"""Of them, those by which dimensions are judged."""


@dataclass(frozen=True)
class Samples:
    """Images drawn from the model: z ~ N(0, temperature²·I) [N, D], and E[x|z] as pixels [N, C, H, W]."""

    latents: NDArray[np.float32]
    images: Float32Array


class Sampler:
    """The graphs around one decoder, as functions of arrays; each yields after every run, or runs made at once.

    Args:
        written: the graphs.
        description: of the model.
        runtime: where they run.
        file: what an error names.
        chunk_rows: decoder rows of one run of an estimate, at most.
    """

    def __init__(
        self, written: DecoderGraphs, description: Description, *, runtime: Runtime, file: Path, chunk_rows: int
    ) -> None:
        self.chunk_rows = chunk_rows
        """Decoder rows of one run of an estimate, at most."""
        self.rows_run = 0
        """Decoder rows that have been run so far."""
        self.latent_dim = description.latent_dim
        self.team = runtime.team
        self._noise = NoiseCache(description.latent_dim, runtime)
        self._mean = runtime.open(written.mean(), file)
        self._surprise = runtime.open(written.surprise(), file)
        self._pixel_log_prob = None
        if description.features is not None:
            self._pixel_log_prob = runtime.open(written.pixel_log_prob(), file)
        self._log_weight = runtime.open(written.log_weight(), file, for_team=True)
        self._mixture = runtime.open(written.mixture_log_weight(SHARES), file, for_team=True)
        every = np.arange(description.latent_dim)
        self._curvature = runtime.open(written.curvature(every), file, for_team=True)
        self._familiar_curvature = self._curvature
        gradient = written.gradient()
        self._gradient = None if gradient is None else runtime.open(gradient, file, for_team=True)
        self.drawn = self._imagine(runtime.open(written.sample(), file), written.num_uniforms)
        """Images that the model draws at the prior's mean and at draws from the prior, in x's unit: [N, P]."""
        self.familiar_dimensions = self._used_dimensions()
        """The latent dimensions that the decoder takes notice of for familiar images, [A]; see `_used_dimensions`."""
        if len(self.familiar_dimensions) < len(every):
            self._familiar_curvature = runtime.open(written.curvature(self.familiar_dimensions), file, for_team=True)
        inputs = {
            **self._rows(np.full((2, description.x_shape.size), 0.5, np.float32), description.latent_dim + 1),
            graphs.LATENTS: standard_normal(2, description.latent_dim, seed=DEFAULT_SEED)[:, None],
        }
        runtime.verify(written.curvature(every), self._curvature, inputs, file, tolerance=CURVATURE_TOLERANCE)

    def decode(self, latents: Float32Array) -> Float32Array:
        """E[x|z] in x's unit, by one run: latents [N, D] → [N, C, H, W]."""
        images: Float32Array = self._mean.run({"z": np.asarray(latents, np.float32)})[graphs.IMAGES]
        return images

    def surprise(self, x: Float32Array, latents: Float32Array) -> Float64Array:
        """−log p(x_i|z) − H[p(x_i|z)] of each pixel, nats: one image x [P], latents [R, D] → [R, P]."""
        self._count(len(latents))
        found: Float64Array = self._surprise.run({"z": latents, graphs.X: x[None, None]})[graphs.SURPRISE]
        return found[:, 0]

    def pixel_log_prob(self, x: Float32Array, latents: Float32Array) -> Float64Array:
        """log p(x_i|z) of each number of maps x [N, P], by one run: latents [N, D] → [N, P], nats.

        Raises:
            TypeError: the model is of pixels.
        """
        if self._pixel_log_prob is None:
            raise TypeError("a model of pixels has no such graph")
        self._count(len(latents))
        found: Float64Array = self._pixel_log_prob.run({"z": latents, graphs.X: x[:, None]})[graphs.PIXEL_LOG_PROB]
        return found[:, 0]

    def log_weights(
        self, x: Float32Array, gaussian: DiagonalGaussian, *, seed: int, start: int, stop: int
    ) -> Chunks[Float64Array]:
        """Log weights under the Gaussian, of noise rows start to stop: x [B, P] → [B, stop − start]."""
        log_weight = np.empty((len(x), stop - start))

        def inputs(tile: Tile) -> Inputs:
            images, samples = tile
            return {
                **self._rows(x[images], samples.stop - samples.start),
                graphs.MEAN: gaussian.mean[images, None],
                graphs.LOG_VAR: gaussian.log_var[images, None],
                graphs.NOISE: self._noise.rows(seed, samples.start, samples.stop),
            }

        def keep(tile: Tile, outputs: Outputs) -> None:
            log_weight[tile[0], _shift(tile[1], start)] = outputs[graphs.LOG_WEIGHT]

        yield from self.team.each(self._log_weight.run, self._tiles(len(x), start, stop), inputs, keep)
        return log_weight

    def mixture_log_weights(
        self, x: Float32Array, encoder: DiagonalGaussian, mixture: Mixture, *, seed: int, start: int, stop: int
    ) -> Chunks[tuple[Float64Array, Float64Array]]:
        """Log weights under the whole mixture and under its encoder part: x [B, P] → twice [B, stop − start]."""
        by_mixture = np.empty((len(x), stop - start))
        by_encoder = np.empty_like(by_mixture)
        half_precisions = (0.5 / mixture.scales**2).transpose(0, 2, 1)  # [B, D, J]
        log_dets = np.log(mixture.scales).sum(axis=2)[:, None]  # [B, 1, J]

        def inputs(tile: Tile) -> Inputs:
            images, samples = tile
            return {
                **self._rows(x[images], samples.stop - samples.start),
                graphs.MEAN: encoder.mean[images, None],
                graphs.LOG_VAR: encoder.log_var[images, None],
                graphs.MODE: mixture.mode[images, None],
                graphs.BASIS: mixture.basis[images],
                graphs.SCALES: mixture.scales[images],
                graphs.HALF_PRECISIONS: half_precisions[images],
                graphs.LOG_DETS: log_dets[images],
                graphs.NOISE: self._noise.rows(seed, samples.start, samples.stop),
                graphs.CHOSEN: np.eye(len(SHARES), dtype=np.float32)[
                    None, part_of(np.arange(samples.start, samples.stop))
                ],
            }

        def keep(tile: Tile, outputs: Outputs) -> None:
            images, samples = tile[0], _shift(tile[1], start)
            by_mixture[images, samples] = outputs[graphs.LOG_WEIGHT]
            by_encoder[images, samples] = outputs[graphs.ENCODER_LOG_WEIGHT]

        yield from self.team.each(self._mixture.run, self._tiles(len(x), start, stop), inputs, keep)
        return by_mixture, by_encoder

    def evaluate(self, x: Float32Array, points: Float64Array) -> Chunks[Evaluation]:
        """Log likelihood, gradient and information at points [B, D], or [B, A] of the familiar dimensions: x [B, P]."""
        count = points.shape[1]
        curvature = self._curvature if count == self.latent_dim else self._familiar_curvature
        values, gradients, informations = np.empty(len(x)), np.empty((len(x), count)), np.empty((len(x), count, count))

        def inputs(images: slice) -> Inputs:
            return {**self._rows(x[images], count + 1), graphs.LATENTS: self._embed(points[images, None])}

        def keep(images: slice, outputs: Outputs) -> None:
            values[images] = outputs[graphs.LOG_LIKELIHOOD][:, 0]
            gradients[images], informations[images] = outputs[graphs.GRADIENT], outputs[graphs.INFORMATION]

        yield from self.team.each(curvature.run, self._pieces(len(x), count + 1), inputs, keep)
        return Evaluation(values, gradients, informations)

    def slopes_of(self, x: Float32Array) -> Slopes | None:
        """`slopes` of images [B, P]; None where the graphs have no gradient."""
        return None if self._gradient is None else lambda images, points: self.slopes(x[images], points)

    def slopes(self, x: Float32Array, points: Float64Array) -> Chunks[tuple[Float64Array, Float64Array]]:
        """Log likelihoods [B] and exact gradients at points [B, D], or [B, A] of the familiar dimensions: x [B, P]."""
        if self._gradient is None:
            raise TypeError("this model's graphs have no gradient")
        count = points.shape[1]
        values, gradients = np.empty(len(x)), np.empty((len(x), self.latent_dim))

        def inputs(images: slice) -> Inputs:
            self._count(GRADIENT_ROWS * (images.stop - images.start))
            return {"z": self._embed(points[images]), graphs.X: x[images, None]}

        def keep(images: slice, outputs: Outputs) -> None:
            values[images], gradients[images] = outputs[graphs.LOG_LIKELIHOOD][:, 0], outputs[graphs.GRADIENT]

        yield from self.team.each(self._gradient.run, self._pieces(len(x), GRADIENT_ROWS), inputs, keep)
        return values, gradients if count == self.latent_dim else gradients[:, self.familiar_dimensions]

    def log_likelihoods(self, x: Float32Array, points: Float64Array) -> Chunks[Float64Array]:
        """log p(x|z) at points [B, K, D], or [B, K, A] of the familiar dimensions: x [B, P] → [B, K]."""
        values = np.empty(points.shape[:2])

        def inputs(tile: Tile) -> Inputs:
            images, samples = tile
            zeros = np.zeros((images.stop - images.start, 1, self.latent_dim), np.float32)
            return {
                **self._rows(x[images], samples.stop - samples.start),
                graphs.MEAN: zeros,
                graphs.LOG_VAR: zeros,
                graphs.NOISE: self._embed(points[images, samples]),
            }

        def keep(tile: Tile, outputs: Outputs) -> None:
            values[tile] = outputs[graphs.LOG_WEIGHT]

        yield from self.team.each(self._log_weight.run, self._tiles(len(x), 0, points.shape[1]), inputs, keep)
        return values

    def noise(self, samples: NDArray[np.intp], *, seed: int) -> Float32Array:
        """The noise that samples were drawn with, by index: [...] → [..., D]."""
        return self._noise.at(seed, samples)

    @np.errstate(
        over="ignore"
    )  # a step may lead anywhere; what float32 cannot hold has no finite value, and is refused
    def _embed(self, points: Float64Array) -> Float32Array:
        """Points [..., A] or [..., D] as latents [..., D], zero in the dimensions left out."""
        if points.shape[-1] == self.latent_dim:
            return points.astype(np.float32)
        latents = np.zeros((*points.shape[:-1], self.latent_dim), np.float32)
        latents[..., self.familiar_dimensions] = points
        return latents

    def _rows(self, x: Float32Array, count: int) -> dict[str, NDArray[np.float32] | NDArray[np.int64]]:
        """The inputs that every graph takes, for images [B, P] and `count` decoder rows each, which are counted."""
        self._count(len(x) * count)
        return {graphs.X: x[:, None], graphs.SHAPE: np.array([len(x), count, -1], np.int64)}

    def _count(self, rows: int) -> None:
        self.team.note(lambda: self._add(rows))

    def _add(self, rows: int) -> None:
        self.rows_run += rows

    def _tiles(self, num_images: int, start: int, stop: int) -> Iterator[Tile]:
        return tiles(num_images, slice(start, stop), self.chunk_rows, self.team.size)

    def _pieces(self, num_images: int, rows_each: int) -> Iterator[slice]:
        return pieces(num_images, rows_each, self.chunk_rows, self.team.size)

    def _imagine(self, sample: Session, num_uniforms: int) -> Float32Array:
        """x ~ p(x|z) at the points of `_prior_points`: [N, P]."""
        points = self._prior_points()
        uniform = np.random.default_rng(DEFAULT_SEED).random((len(points), 1, num_uniforms), np.float32)
        images: Float32Array = sample.run({"z": points.astype(np.float32), graphs.UNIFORM: uniform})[graphs.IMAGES]
        return images[:, 0]

    def _prior_points(self) -> Float64Array:
        """The prior's mean, and draws from the prior: [N, D]."""
        draws = standard_normal(_NUM_DRAWN - 1, self.latent_dim, seed=DEFAULT_SEED)
        return np.concatenate([np.zeros((1, self.latent_dim)), draws])

    def _used_dimensions(self) -> NDArray[np.intp]:
        """Dimensions that images tell of, judged by images the model draws, at the origin and some draws of the prior.

        A trained decoder often ignores many (posterior collapse). For a familiar image the posterior there is the
        prior, to within 1 % of its variance, and a forward difference would be a decoder row for nothing. Far from the
        training set they may wake up, so an image that does not converge at once goes on in all dimensions.
        """
        evaluation = complete(self.evaluate(self.drawn[:_NUM_JUDGED], self._prior_points()[:_NUM_JUDGED]))
        diagonal = np.diagonal(evaluation.information, axis1=1, axis2=2)  # [N, D]
        used = np.flatnonzero(~(diagonal.max(axis=0) < _IGNORED_INFORMATION))  # a NaN counts as used
        return used if len(used) else np.arange(1)


def _shift(samples: slice, start: int) -> slice:
    return slice(samples.start - start, samples.stop - start)


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
