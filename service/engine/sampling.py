"""Run the engine's graphs in chunks, over images and samples of any number, within a fixed memory."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from model_store import Description
from service.engine import graphs
from service.engine.chunks import Chunks, complete
from service.engine.graphs import DecoderGraphs
from service.engine.laplace import Array, Evaluation, GaussianFactors
from service.engine.likelihood import Likelihood
from service.engine.proposal import DEFAULT_SEED, DiagonalGaussian, NoiseCache, standard_normal
from service.engine.runtime import Runtime

Floats = NDArray[np.float32]

_IGNORED_INFORMATION = 0.01
_ENCODER_EVERY = round(1 / graphs.ENCODER_SHARE)


class Sampler:
    """The graphs around one decoder, as functions of arrays; each yields after every run on the device.

    Args:
        decoder: the decoder's graph, checked.
        chunk_rows: decoder rows of one run.
    """

    def __init__(
        self,
        decoder: ModelProto,
        likelihood: Likelihood,
        description: Description,
        *,
        runtime: Runtime,
        file: Path,
        chunk_rows: int,
    ) -> None:
        self._chunk_rows = chunk_rows
        self._latent_dim = description.latent_dim
        self._num_pixels = description.image.size
        self._noise = NoiseCache(description.latent_dim, runtime)
        written = DecoderGraphs(decoder, likelihood, description)
        self._log_weight = runtime.open(written.log_weight(), file)
        self._mixture = runtime.open(written.mixture_log_weight(), file)
        everything = np.arange(description.latent_dim)
        self._curvature = runtime.open(written.curvature(everything), file)
        self.dimensions = everything
        """The latent dimensions that the decoder takes notice of, [A]."""
        used = self._used_dimensions()
        if len(used) < len(everything):
            self.dimensions = used
            self._curvature = runtime.open(written.curvature(used), file)

    def log_weights(self, x: Floats, gaussian: DiagonalGaussian, *, seed: int, start: int, stop: int) -> Chunks[Floats]:
        """Log weights under the Gaussian, of noise rows start to stop: x [B, P] → [B, stop − start]."""
        log_weight = np.empty((len(x), stop - start), np.float32)
        for images, samples in self._tiles(len(x), start, stop):
            inputs = {
                **self._rows(x[images], samples.stop - samples.start),
                graphs.MEAN: gaussian.mean[images, None],
                graphs.LOG_VAR: gaussian.log_var[images, None],
                graphs.NOISE: self._noise.rows(seed, samples.start, samples.stop),
            }
            log_weight[images, _shift(samples, start)] = self._log_weight.run(inputs)[graphs.LOG_WEIGHT]
            yield
        return log_weight

    def mixture_log_weights(
        self, x: Floats, encoder: DiagonalGaussian, laplace: GaussianFactors, *, seed: int, start: int, stop: int
    ) -> Chunks[tuple[Floats, Floats]]:
        """Log weights under the defensive mixture and under its encoder part: x [B, P] → twice [B, stop − start]."""
        mixture = np.empty((len(x), stop - start), np.float32)
        by_encoder = np.empty_like(mixture)
        for images, samples in self._tiles(len(x), start, stop):
            inputs = {
                **self._rows(x[images], samples.stop - samples.start),
                graphs.MEAN: encoder.mean[images, None],
                graphs.LOG_VAR: encoder.log_var[images, None],
                graphs.MODE: laplace.mode[images, None],
                graphs.FACTOR: laplace.factor[images],
                graphs.INVERSE: laplace.inverse[images],
                graphs.LOG_DET: laplace.log_det[images],
                graphs.NOISE: self._noise.rows(seed, samples.start, samples.stop),
                graphs.MASK: from_encoder(samples.start, samples.stop).astype(np.float32)[None, :, None],
            }
            outputs = self._mixture.run(inputs)
            mixture[images, _shift(samples, start)] = outputs[graphs.LOG_WEIGHT]
            by_encoder[images, _shift(samples, start)] = outputs[graphs.ENCODER_LOG_WEIGHT]
            yield
        return mixture, by_encoder

    def evaluate(self, x: Floats, points: Array) -> Chunks[Evaluation]:
        """Log likelihood, gradient and information at points [B, A] of the used dimensions: x [B, P]."""
        count = len(self.dimensions)
        values, gradients, informations = np.empty(len(x)), np.empty((len(x), count)), np.empty((len(x), count, count))
        batch = max(1, self._chunk_rows // (count + 1))
        for first in range(0, len(x), batch):
            images = slice(first, min(first + batch, len(x)))
            inputs = {**self._rows(x[images], count + 1), graphs.LATENTS: self._embed(points[images, None])}
            outputs = self._curvature.run(inputs)
            values[images] = outputs[graphs.LOG_LIKELIHOOD][:, 0]
            gradients[images], informations[images] = outputs[graphs.GRADIENT], outputs[graphs.INFORMATION]
            yield
        return Evaluation(values, gradients, informations)

    def log_likelihoods(self, x: Floats, points: Array) -> Chunks[Array]:
        """log p(x|z) at points [B, K, A]: x [B, P] → [B, K]."""
        values = np.empty(points.shape[:2])
        batch = max(1, self._chunk_rows // points.shape[1])
        for first in range(0, len(x), batch):
            images = slice(first, min(first + batch, len(x)))
            zeros = np.zeros((images.stop - first, 1, self._latent_dim), np.float32)
            inputs = {
                **self._rows(x[images], points.shape[1]),
                graphs.MEAN: zeros,
                graphs.LOG_VAR: zeros,
                graphs.NOISE: self._embed(points[images]),
            }
            values[images] = self._log_weight.run(inputs)[graphs.LOG_WEIGHT]
            yield
        return values

    def _embed(self, points: Array) -> Floats:
        """Points in the used dimensions as latents, zero elsewhere: [..., A] → [..., D]."""
        latents = np.zeros((*points.shape[:-1], self._latent_dim), np.float32)
        latents[..., self.dimensions] = points
        return latents

    def _rows(self, x: Floats, count: int) -> dict[str, NDArray[np.float32] | NDArray[np.int64]]:
        """The inputs that every graph takes, for images [B, P] and `count` decoder rows each."""
        return {graphs.X: x[:, None], graphs.SHAPE: np.array([len(x), count, self._num_pixels], np.int64)}

    def _tiles(self, num_images: int, start: int, stop: int) -> Iterator[tuple[slice, slice]]:
        """Cut images × samples start to stop into tiles of at most `chunk_rows`, samples first."""
        columns = max(1, min(self._chunk_rows, stop - start))
        rows = max(1, self._chunk_rows // columns)
        for row in range(0, num_images, rows):
            for column in range(start, stop, columns):
                yield slice(row, min(row + rows, num_images)), slice(column, min(column + columns, stop))

    def _used_dimensions(self) -> NDArray[np.intp]:
        """Dimensions that change the decoder's outputs, judged at the origin and some draws from the prior.

        A trained decoder often ignores many (posterior collapse): there the posterior is the prior, to within 1 % of
        its variance, and a forward difference would be a decoder row for nothing.
        """
        points = np.concatenate(
            [np.zeros((1, self._latent_dim)), standard_normal(15, self._latent_dim, seed=DEFAULT_SEED)]
        )
        x = np.zeros((len(points), self._num_pixels), np.float32)
        evaluation = complete(self.evaluate(x, points.astype(np.float64)))
        diagonal = np.diagonal(evaluation.information, axis1=1, axis2=2)  # [N, D]
        used = np.flatnonzero(~(diagonal.max(axis=0) < _IGNORED_INFORMATION))  # a NaN counts as used
        return used if len(used) else np.arange(1)


def from_encoder(start: int, stop: int) -> NDArray[np.bool_]:
    """Which samples of the mixture are the encoder's: every tenth, the second one first."""
    return np.asarray(np.arange(start, stop) % _ENCODER_EVERY == 1)


def balanced(log_weight: Floats) -> Floats:
    """Mixture log weights [B, K] so that their plain mean is unbiased whatever K is.

    The mixture's density has shares α and 1 − α exactly; of K samples n are the encoder's. Each part's mean counts with
    its exact share when its weights are multiplied by share·K/count.
    """
    num_samples = log_weight.shape[1]
    mask = from_encoder(0, num_samples)
    count = int(mask.sum())
    encoder = np.log(graphs.ENCODER_SHARE * num_samples / count)
    laplace = np.log((1 - graphs.ENCODER_SHARE) * num_samples / (num_samples - count))
    balance: Floats = np.where(mask, encoder, laplace).astype(np.float32)
    return log_weight + balance


def _shift(samples: slice, start: int) -> slice:
    return slice(samples.start - start, samples.stop - start)
