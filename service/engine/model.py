"""One loaded model, the engine's whole interface: encode, decode, reconstruct, sample, log_likelihood, anomaly_scores.

Each is a computation in chunks, see chunks.py: `complete(model.encode(pixels))` gives the result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store import CALIBRATION, DECODER, ENCODER, Description, InvalidArtifactError, Manifest, StoredModel
from service.engine.anomaly.detector import DEFAULT_ALPHA, AnomalyScores, Detector, UncalibratedModelError
from service.engine.anomaly.explanation import NUM_DRAWS, surprise_maps
from service.engine.anomaly.local import statistic_of_space
from service.engine.anomaly.measurement import Measurement
from service.engine.anomaly.statistics import Statistics, divergence
from service.engine.blocks import BYTES_A_PIXEL
from service.engine.chunks import Chunks, complete
from service.engine.features import FirstStage
from service.engine.format1 import likelihood_graph_of
from service.engine.parts import Part, Parts, gathered
from service.engine.posterior.estimate import LogLikelihood
from service.engine.posterior.estimator import Estimator, Inference
from service.engine.posterior.sampling import Sampler, Samples
from service.engine.preparation import PreparedImages
from service.engine.proposal import (
    DEFAULT_NUM_SAMPLES,
    DEFAULT_PROPOSAL,
    DEFAULT_SEED,
    IMPORTANCE_PROPOSALS,
    PROPOSALS,
    DiagonalGaussian,
    Effort,
    check_request,
    standard_normal,
)
from service.engine.reconstruction import Reconstructions
from service.engine.runtime import CPU, Runtime, blaming
from service.engine.verification import read_graphs, try_out

DEFAULT_MAX_STEPS = 100
_DRAWN_NUMBERS = 2**20
"""Of the decoder's outputs for the images that it draws to tell strange ones by; bounds the time that loading takes."""
_LEAST_DRAWN = 4
_GRAPHS_BESIDE_EACH_OTHER = 5
"""That keep memory for intermediate results of their own, beside those that are run at once; an upper bound."""

Pixels = NDArray[np.float32]
"""Images [B, C, H, W], each pixel in [0, 1]."""


class Model:
    """The graphs of one version.

    Args:
        description: the manifest, or what will become one.
        encoder, decoder, likelihood, features: the graphs' bytes, as the store's format wants them; the last one of a
            model of features alone.
        runtime: where they run.
        calibration: scores of held-out training images; without them there are no anomaly scores.
        folder: where the files came from, for error messages.
        chunk_rows: decoder rows (images × samples) of one run; bounds memory and how long others wait. None: what suits
            the runtime's device and the size of the images.
        max_steps: tries after which the search for an image's posterior mode ends; see posterior/laplace.py.
        tried: the graphs have been run on a CPU, and need not be tried out on one again.

    Attributes:
        graph_bytes: of its graphs' files, of which most are weights.
        run_bytes: of memory that it keeps once its graphs have run as many rows as they may, and modes were contested.

    Raises:
        InvalidArtifactError: a graph is not what the description says; the message names the file.
    """

    def __init__(
        self,
        description: Description,
        encoder: bytes,
        decoder: bytes,
        likelihood: bytes,
        *,
        runtime: Runtime,
        features: bytes | None = None,
        calibration: Mapping[str, NDArray[np.float64]] | None = None,
        folder: Path = Path(),
        chunk_rows: int | None = None,
        max_steps: int = DEFAULT_MAX_STEPS,
        tried: bool = False,
    ) -> None:
        self.description = description
        self.provider = runtime.provider
        self._detector = None if calibration is None else Detector(calibration)
        chw, trusted = description.x_shape.chw, tried and runtime.provider == CPU
        self._first = FirstStage(description, features, runtime=runtime, folder=folder, trusted=trusted)
        self.map_bytes = self._first.map_bytes
        """Of memory that the feature maps of an image take; 0 of a model of pixels."""
        written = read_graphs(description, encoder, decoder, likelihood, folder)
        self.graph_bytes = sum(map(len, (encoder, decoder, likelihood, features or b"")))
        self._chunk_rows = chunk_rows or runtime.blocks.chunk_rows(written.numbers_a_row)
        estimate_rows = chunk_rows or runtime.blocks.estimate_rows(written.numbers_a_row)
        self._encoder = runtime.open(encoder, folder / ENCODER)
        if not trusted:
            try_out(runtime, encoder, self._encoder, decoder, self._first.of_x, description, written.outputs, folder)
        with blaming(folder / DECODER):
            self._sampler = Sampler(
                written, description, runtime=runtime, file=folder / DECODER, chunk_rows=estimate_rows
            )
            self._estimator = Estimator(
                self._sampler, num_pixels=description.x_shape.size, max_steps=max_steps, blocks=runtime.blocks
            )
            runs = _GRAPHS_BESIDE_EACH_OTHER + runtime.team.size
            of_graphs = runs * self._chunk_rows * BYTES_A_PIXEL * written.numbers_a_row
            self.run_bytes = of_graphs + self._estimator.num_bytes + self._first.run_bytes
            drawn = self._sampler.drawn[: max(_LEAST_DRAWN, _DRAWN_NUMBERS // written.numbers_a_row)]
            encoded = complete(self._encode(drawn.reshape(-1, *chw)))
            complete(self._estimator.ladder.learn_familiar(drawn, encoded))
            for proposal in () if trusted else IMPORTANCE_PROPOSALS:  # the others run the same graphs
                black = np.zeros((2, *description.image.chw), np.float32)
                complete(self.log_likelihood(black, proposal=proposal, num_samples=4))
        if calibration is not None and description.calibration.proposal not in PROPOSALS:
            problem = f"made with the proposal {description.calibration.proposal!r}; known here: {', '.join(PROPOSALS)}"
            raise InvalidArtifactError(folder / CALIBRATION, problem)

    @classmethod
    def open(
        cls,
        stored: StoredModel,
        *,
        runtime: Runtime,
        chunk_rows: int | None = None,
        max_steps: int = DEFAULT_MAX_STEPS,
        tried: bool = False,
    ) -> "Model":
        """Load one version of the store."""
        return cls(
            stored.manifest,
            stored.encoder,
            stored.decoder,
            likelihood_graph_of(stored),
            runtime=runtime,
            features=stored.features,
            calibration=stored.calibration,
            folder=stored.path,
            chunk_rows=chunk_rows,
            max_steps=max_steps,
            tried=tried,
        )

    @property
    def manifest(self) -> Manifest:
        """The manifest of a model that came from the store."""
        if not isinstance(self.description, Manifest):
            raise TypeError("this model has not been published")
        return self.description

    @property
    def decoder_rows(self) -> int:
        """Decoder rows that estimates and scores have run so far: samples, and what finding modes takes."""
        return self._sampler.rows_run

    @property
    def detector(self) -> Detector:
        """Scores images against the calibration; an UncalibratedModelError where there is none."""
        if self._detector is None:
            raise UncalibratedModelError("this model has no calibration scores")
        return self._detector

    def estimates_bytes(self, num_images: int, num_samples: int, limit: int | None = None) -> int:
        """Bytes of memory that `log_likelihood` may take beside images and results; `anomaly_scores` takes no more."""
        estimating = self._estimator.memory(
            num_images, num_samples, self.description.latent_dim, limit=limit or num_samples
        )
        return estimating + num_images * self.map_bytes

    def encode(self, pixels: Pixels) -> Chunks[DiagonalGaussian]:
        """q(z|x): images [B, C, H, W] → mean and log_var [B, D]."""
        return (yield from self._encode((yield from self._first.observe(pixels))))

    def decode(self, latents: NDArray[np.float32]) -> Chunks[Pixels]:
        """E[x|z] as pixels in [0, 1]: latents [N, D] → [N, C, H, W]; of a model of features, maps [N, F, h, w]."""
        images = np.empty((len(latents), *self.description.x_shape.chw), np.float32)
        for start in range(0, len(latents), self._chunk_rows):
            rows = slice(start, start + self._chunk_rows)
            images[rows] = self._first.of_x.restore(self._sampler.decode(latents[rows]))
            yield
        return images

    def reconstruct(self, pixels: Pixels) -> Chunks[Reconstructions]:
        """What the model keeps of each image: images [B, C, H, W] → E[x|z] at the encoder's mean."""
        x = yield from self._first.observe(pixels)
        code = yield from self._encode(x)
        return Reconstructions(np.stack([*x.restored()]), (yield from self.decode(code.mean)))

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
        num_samples: int | None = None,
        seed: int = DEFAULT_SEED,
        max_std_error: float | None = None,
        max_num_samples: int | None = None,
    ) -> Chunks[LogLikelihood]:
        """log P(x), in nats: images [B, C, H, W] → one record of arrays [B].

        All images share the seed's noise [K, D], so an image's estimate does not depend on its batch. `num_samples` is
        the proposal's default where it is None. With `max_std_error`, an image keeps adding samples until its
        estimate is reliable with a standard error at most that, or until `max_num_samples` (default: no more).

        Raises:
            UnknownProposalError, TooFewSamplesError: see proposal.py.
        """
        num_samples = num_samples or DEFAULT_NUM_SAMPLES.get(proposal, 1)
        effort = Effort(num_samples, seed, max_std_error, max_num_samples or num_samples)
        return (yield from gathered(self.infer(pixels, proposal, effort))).record

    def infer(self, pixels: Pixels, proposal: str, effort: Effort) -> Parts[Inference]:
        """`log_likelihood`, and draws from each posterior, in parts: familiar images come before strange ones."""
        check_request(proposal, effort.num_samples)
        x = yield from self._first.observe(pixels)
        posterior = yield from self._encode(x)
        yield from self._estimator.infer(x, posterior, proposal=proposal, effort=effort)

    def statistics(self, pixels: Pixels, *, proposal: str, num_samples: int, seed: int) -> Chunks[Statistics]:
        """What anomaly scores are made of, by one pass: images [B, C, H, W] → one record of arrays [B]."""
        return (yield from gathered(self.measure(pixels, proposal, Effort(num_samples, seed)))).statistics

    def measure(self, pixels: Pixels, proposal: str, effort: Effort) -> Parts[Measurement]:
        """What anomaly scores are made of, and draws from each posterior, in parts: see `infer`."""
        check_request(proposal, effort.num_samples)
        yield from self.measure_x((yield from self._first.observe(pixels)), proposal, effort)

    def measure_x(self, x: PreparedImages, proposal: str, effort: Effort) -> Parts[Measurement]:
        """`measure` of what the encoder takes: prepared images, or feature maps [B, F, h, w]."""
        posterior = yield from self._encode(x)
        of_space = yield from statistic_of_space(x, posterior.mean, self._sampler, self.description.space)
        kl, mean = divergence(posterior), posterior.mean.astype(np.float64)
        for part in self._estimator.infer(x, posterior, proposal=proposal, effort=effort):
            if part is None:
                yield None
                continue
            images, record = part.images, part.results.record
            chosen = {name: values[images] for name, values in of_space.items()}
            statistics = Statistics(record.log_likelihood, record.elbo, kl[images], mean[images], **chosen)
            yield Part(images, Measurement(statistics, part.results))

    def anomaly_scores(
        self,
        pixels: Pixels,
        *,
        methods: Sequence[str] = (),
        alpha: float = DEFAULT_ALPHA,
        fdr: float | None = None,
        explain: bool = False,
    ) -> Chunks[AnomalyScores]:
        """How strange each image is, with a conformal p-value: images [B, C, H, W] → one record of arrays [B].

        Scored with the proposal, sample count and seed that scored the calibration images: p-values hold for no other.
        All methods come from one pass.

        Args:
            pixels: [B, C, H, W], each in [0, 1].
            methods: see anomaly/scores.py; by default `combined`, where the calibration has what that needs.
            alpha: an image is an anomaly when its p-value is at most this.
            fdr: decide by Benjamini-Hochberg's procedure at this rate instead, over all images of the call.
            explain: with a map of each image's surprising pixels; of a model of features, of surprising positions.

        Raises:
            UnknownMethodError, UncalibratedModelError: see anomaly/detector.py.
        """
        chosen, x = self.detector.choose(methods), (yield from self._first.observe(pixels))
        measurement = yield from gathered(self.measure_x(x, *self.protocol(explain=explain)))
        scores = yield from self.detector.scores(measurement, chosen, alpha=alpha, fdr=fdr)
        if not explain:
            return scores
        maps = yield from surprise_maps(x, measurement.inference.latents, self._sampler)
        return replace(scores, explanation=self._first.map_of(maps))

    def protocol(self, *, explain: bool = False) -> tuple[str, Effort]:
        """The proposal and the effort by which calibration images were scored, and so all others are."""
        by = self.description.calibration
        return by.proposal, Effort(by.num_samples, by.seed, num_draws=NUM_DRAWS if explain else 0)

    def _encode(self, x: PreparedImages | Pixels) -> Chunks[DiagonalGaussian]:
        mean = np.empty((len(x), self.description.latent_dim), np.float32)
        log_var = np.empty_like(mean)
        for start in range(0, len(x), self._chunk_rows):
            rows = slice(start, start + self._chunk_rows)
            outputs = self._encoder.run({"x": x[rows]})
            mean[rows], log_var[rows] = outputs["mean"], outputs["log_var"]
            yield
        return DiagonalGaussian(mean=mean, log_var=log_var)
