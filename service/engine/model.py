"""One loaded model: encode, decode, sample, log_likelihood, anomaly_scores. This is the engine's whole interface.

Each is a computation in chunks: a generator that yields between two runs on the device and returns its result, so that
whoever drives it can let others take their turn, or give up. `complete` drives one to its end.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from model_store import CALIBRATION, DECODER, ENCODER, Description, InvalidArtifactError, Manifest, StoredModel
from service.engine.anomaly import DEFAULT_METHOD, AnomalyScores, UncalibratedModelError, conformal_p_value, strangeness
from service.engine.estimate import LogLikelihood, estimate, evidence_lower_bound
from service.engine.graphs import LOG_VAR, LOG_WEIGHT, MEAN, NOISE, SHAPE, X, log_weight_graph, read_graph
from service.engine.likelihood import likelihood_of
from service.engine.preparation import Preparation
from service.engine.proposal import (
    DEFAULT_PROPOSAL,
    DEFAULT_SEED,
    PROPOSALS,
    DiagonalGaussian,
    NoiseCache,
    choose,
    standard_normal,
)
from service.engine.runtime import RUNTIME_ERRORS, Runtime

Pixels = NDArray[np.float32]
"""Images [B, C, H, W], each pixel in [0, 1]."""

T = TypeVar("T")
Chunks = Generator[None, None, T]

DEFAULT_NUM_SAMPLES = 1000


def complete(chunks: Chunks[T]) -> T:
    """Run a chunked computation to its end."""
    while True:
        try:
            next(chunks)
        except StopIteration as stop:
            result: T = stop.value
            return result


@dataclass(frozen=True)
class Samples:
    """Images drawn from the model: z ~ N(0, temperature²·I) [N, D], and E[x|z] as pixels [N, C, H, W]."""

    latents: NDArray[np.float32]
    images: Pixels


class Model:
    """An encoder and a decoder with the manifest's word for what they are.

    Args:
        description: the manifest, or what will become one.
        encoder, decoder: the graphs' bytes, as the store's format wants them.
        runtime: where they run.
        calibration: scores of held-out training images; without them there are no anomaly scores.
        folder: where the files came from, for error messages.
        chunk_rows: decoder rows (images × samples) of one run; bounds memory and how long others wait.

    Raises:
        InvalidArtifactError: a graph is not what the description says; the message names the file.
    """

    def __init__(
        self,
        description: Description,
        encoder: bytes,
        decoder: bytes,
        *,
        runtime: Runtime,
        calibration: Mapping[str, NDArray[np.float64]] | None = None,
        folder: Path = Path(),
        chunk_rows: int = 512,
    ) -> None:
        self.description = description
        self.provider = runtime.provider
        self._chunk_rows = chunk_rows
        self._calibration = calibration
        self._likelihood = likelihood_of(description.likelihood)
        self._preparation = Preparation(description.preparation, description.image)
        self._noise = NoiseCache(description.latent_dim, runtime)
        chw, latent = description.image.chw, (description.latent_dim,)
        read_graph(encoder, folder / ENCODER, inputs={"x": chw}, outputs={"mean": latent, "log_var": latent})
        parameters = dict.fromkeys(self._likelihood.outputs, chw)
        decoder_graph = read_graph(decoder, folder / DECODER, inputs={"z": latent}, outputs=parameters)
        log_weight = log_weight_graph(decoder_graph, self._likelihood, description)
        self._encoder = runtime.open(encoder, folder / ENCODER)
        self._decoder = runtime.open(decoder, folder / DECODER)
        self._log_weight = runtime.open(log_weight, folder / DECODER)
        self._try_out(folder)
        if calibration is not None and description.calibration.proposal not in PROPOSALS:
            problem = f"made with the proposal {description.calibration.proposal!r}; known here: {', '.join(PROPOSALS)}"
            raise InvalidArtifactError(folder / CALIBRATION, problem)

    @classmethod
    def open(cls, stored: StoredModel, *, runtime: Runtime, chunk_rows: int = 512) -> "Model":
        """Load one version of the store."""
        return cls(
            stored.manifest,
            stored.encoder,
            stored.decoder,
            runtime=runtime,
            calibration=stored.calibration,
            folder=stored.path,
            chunk_rows=chunk_rows,
        )

    @property
    def manifest(self) -> Manifest:
        """The manifest of a model that came from the store."""
        if not isinstance(self.description, Manifest):
            raise TypeError("this model has not been published")
        return self.description

    def encode(self, pixels: Pixels) -> Chunks[DiagonalGaussian]:
        """q(z|x): images [B, C, H, W] → mean and log_var [B, D]."""
        return self._encode(self._preparation.prepare(pixels))

    def decode(self, latents: NDArray[np.float32]) -> Chunks[Pixels]:
        """E[x|z] as pixels in [0, 1]: latents [N, D] → [N, C, H, W]."""
        images = np.empty((len(latents), *self.description.image.chw), np.float32)
        for start in range(0, len(latents), self._chunk_rows):
            rows = slice(start, start + self._chunk_rows)
            parameters = self._decoder.run({"z": np.asarray(latents[rows], np.float32)})
            images[rows] = self._preparation.restore(self._likelihood.mean(parameters))
            yield
        return images

    def sample(self, num_images: int, *, seed: int, temperature: float = 1.0) -> Chunks[Samples]:
        """What the model imagines: z ~ N(0, temperature²·I), then `decode`."""
        noise = standard_normal(num_images, self.description.latent_dim, seed=seed)
        latents = noise * np.float32(temperature)
        return Samples(latents=latents, images=(yield from self.decode(latents)))

    def log_likelihood(
        self,
        pixels: Pixels,
        *,
        proposal: str = DEFAULT_PROPOSAL,
        num_samples: int = DEFAULT_NUM_SAMPLES,
        seed: int = DEFAULT_SEED,
        max_std_error: float | None = None,
        max_num_samples: int | None = None,
    ) -> Chunks[LogLikelihood]:
        """log P(x) by importance sampling, in nats: images [B, C, H, W] → one record of arrays [B].

        All images share the seed's noise [K, D], so an image's estimate does not depend on its batch. With
        `max_std_error`, an image keeps doubling its samples until its estimate is reliable with a standard error at
        most that, or until `max_num_samples` (default: no more than `num_samples`).

        Raises:
            UnknownProposalError: see proposal.py.
        """
        x = self._preparation.prepare(pixels)
        posterior = yield from self._encode(x)
        gaussian = choose(proposal, posterior)
        encoder_is_proposal = gaussian is posterior
        limit = num_samples if max_std_error is None else max(max_num_samples or 0, num_samples)

        records: list[LogLikelihood] = []
        order: list[NDArray[np.intp]] = []
        pending = np.arange(len(x))
        log_weight = np.empty((len(x), 0), np.float32)  # [B, K]
        elbo_log_weight = log_weight
        while True:
            start, stop = log_weight.shape[1], min(max(num_samples, 2 * log_weight.shape[1]), limit)
            more = yield from self._log_weights(x, gaussian, pending, seed, start, stop)
            log_weight = np.concatenate([log_weight, more], axis=1)
            if encoder_is_proposal:
                elbo_log_weight = log_weight
            elif start == 0:
                elbo_log_weight = yield from self._log_weights(x, posterior, pending, seed, 0, stop)
            elbo = evidence_lower_bound(elbo_log_weight)
            record = estimate(log_weight, elbo, self.description.image.size)
            done = np.full(len(pending), stop >= limit)
            if max_std_error is not None:
                done |= record.reliable & (record.std_error <= max_std_error)
            records.append(record.take(done))
            order.append(pending[done])
            if done.all():
                return LogLikelihood.join(records).take(np.argsort(np.concatenate(order)))
            pending, log_weight, elbo_log_weight = pending[~done], log_weight[~done], elbo_log_weight[~done]

    def anomaly_scores(
        self, pixels: Pixels, *, method: str = DEFAULT_METHOD, alpha: float = 0.05
    ) -> Chunks[AnomalyScores]:
        """How strange each image is, with a conformal p-value: images [B, C, H, W] → one record of arrays [B].

        Scored with the proposal, sample count and seed that scored the calibration images: p-values hold for no other.

        Raises:
            UnknownMethodError: see anomaly.py.
            UncalibratedModelError: the model came without calibration scores.
        """
        if self._calibration is None:
            raise UncalibratedModelError("this model has no calibration scores")
        calibration_score = strangeness(method, self._calibration["log_likelihood"])
        protocol = self.description.calibration
        record = yield from self.log_likelihood(
            pixels, proposal=protocol.proposal, num_samples=protocol.num_samples, seed=protocol.seed
        )
        score = strangeness(method, record.log_likelihood)
        p_value = conformal_p_value(score, calibration_score)
        return AnomalyScores(
            score=score,
            p_value=p_value,
            is_anomaly=p_value <= alpha,
            log_likelihood=record.log_likelihood,
            posterior_gap=record.posterior_gap,
            calibration_size=len(calibration_score),
        )

    def _encode(self, x: NDArray[np.float32]) -> Chunks[DiagonalGaussian]:
        mean = np.empty((len(x), self.description.latent_dim), np.float32)
        log_var = np.empty_like(mean)
        for start in range(0, len(x), self._chunk_rows):
            rows = slice(start, start + self._chunk_rows)
            outputs = self._encoder.run({"x": x[rows]})
            mean[rows], log_var[rows] = outputs["mean"], outputs["log_var"]
            yield
        return DiagonalGaussian(mean=mean, log_var=log_var)

    def _log_weights(
        self,
        x: NDArray[np.float32],
        gaussian: DiagonalGaussian,
        images: NDArray[np.intp],
        seed: int,
        start: int,
        stop: int,
    ) -> Chunks[NDArray[np.float32]]:
        """Log weights [B, stop − start] of the images at these indices, under noise rows start to stop."""
        flat = x[images].reshape(len(images), 1, self.description.image.size)  # [B, 1, P]
        mean, log_var = gaussian.mean[images, None], gaussian.log_var[images, None]  # [B, 1, D]
        log_weight = np.empty((len(images), stop - start), np.float32)
        columns = min(self._chunk_rows, stop - start)
        rows = max(1, self._chunk_rows // columns)
        for row in range(0, len(images), rows):
            batch = slice(row, min(row + rows, len(images)))
            for column in range(start, stop, columns):
                end = min(column + columns, stop)
                shape = np.array([batch.stop - row, end - column, flat.shape[2]], np.int64)
                noise = self._noise.rows(seed, column, end)
                inputs = {X: flat[batch], MEAN: mean[batch], LOG_VAR: log_var[batch], NOISE: noise, SHAPE: shape}
                log_weight[batch, column - start : end - start] = self._log_weight.run(inputs)[LOG_WEIGHT]
                yield
        return log_weight

    def _try_out(self, folder: Path) -> None:
        """Run every graph once on two images: a shape that only shows at run time is refused here, and not later."""
        pixels = np.zeros((2, *self.description.image.chw), np.float32)
        latent_shape = (2, self.description.latent_dim)
        with _blaming(folder / ENCODER):
            outputs = self._encoder.run({"x": self._preparation.prepare(pixels)})
        for name in ("mean", "log_var"):
            _check_shape(folder / ENCODER, name, outputs[name].shape, latent_shape)
        with _blaming(folder / DECODER):
            outputs = self._decoder.run({"z": np.zeros(latent_shape, np.float32)})
        for name in self._likelihood.outputs:
            _check_shape(folder / DECODER, name, outputs[name].shape, pixels.shape)
        with _blaming(folder / DECODER):
            complete(self.log_likelihood(pixels, num_samples=2))


@contextmanager
def _blaming(file: Path) -> Iterator[None]:
    try:
        yield
    except RUNTIME_ERRORS as error:
        raise InvalidArtifactError(file, f"cannot be run ({error})") from error


def _check_shape(file: Path, output: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise InvalidArtifactError(file, f"output {output!r} came out as {list(found)}, expected {list(expected)}")
