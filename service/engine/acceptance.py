"""Check the answers of a version before it is served: a wrong version may run without errors.

The store has no calibration images, only their scores. So the checks use latent codes and images that the model draws
itself: a sound model passes them, however unusual its calibration images were. Another check compares the decoder with
the stored scores.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store import (
    CALIBRATION,
    DECODER,
    ENCODER,
    LATENT,
    LIKELIHOOD,
    MANIFEST,
    Description,
    InvalidArtifactError,
    StoredModel,
)
from service.engine import graphs
from service.engine.anomaly.statistics import restored
from service.engine.arrays import Float32Array, Float64Array
from service.engine.builder import PREFIX
from service.engine.chunks import complete
from service.engine.features import preparation_of_x
from service.engine.format1 import likelihood_graph_of
from service.engine.graph_check import check_rows, check_shape
from service.engine.graphs import DecoderGraphs
from service.engine.model import DEFAULT_MAX_STEPS, Model, Pixels
from service.engine.parts import gathered
from service.engine.preparation import Preparation, PreparedImages
from service.engine.proposal import DEFAULT_SEED, IMPORTANCE_PROPOSALS, MIN_NUM_SAMPLES, Effort, standard_normal
from service.engine.runtime import Runtime, Session, blaming
from service.engine.verification import read_graphs

DEFAULT_MAX_NUM_SAMPLES = 100_000
_LARGEST = 1e6
"""Of a decoder's output, or a code: neither logits nor codes under a standard normal prior come near it."""
_LARGEST_LOG_VAR = 87.0
"""float32 holds exp(±87), and not much beyond."""
_SCORED_IMAGES = 4
_SCORED_SAMPLES = 400
_CODES = 64
_FEWEST_CODES = 8
_CHECKED_IMAGES, _DISAGREEMENT = 4, 1e-3
_DRAWS = 4
"""Among which a likely image is looked for: the mean of a distribution with two peaks is none."""
_SLACK, _RELATIVE_SLACK = 10.0, 0.1  # nats, and of the larger figure


def accept(
    stored: StoredModel,
    *,
    runtime: Runtime,
    chunk_rows: int | None = None,
    max_steps: int = DEFAULT_MAX_STEPS,
    max_num_samples: int = DEFAULT_MAX_NUM_SAMPLES,
) -> Model:
    """Load a version as `Model.open` does, and ask it.

    Raises:
        InvalidArtifactError: it is not what the manifest says, or one of its answers cannot be a model's.
    """
    description, folder = stored.manifest, stored.path
    check_description(description, folder / MANIFEST, max_num_samples=max_num_samples)
    pixels = _check_graphs(stored, runtime, chunk_rows)
    model = Model.open(stored, runtime=runtime, chunk_rows=chunk_rows, max_steps=max_steps)
    with blaming(folder / DECODER):
        _check_scores(model, pixels[:_SCORED_IMAGES], folder / DECODER)
    return model


def check_description(description: Description, file: Path, *, max_num_samples: int) -> None:
    """Refuse numbers of a manifest with which no request could be answered; `file` is what the error names.

    Raises:
        InvalidArtifactError.
    """
    if description.calibration.num_samples > max_num_samples:
        raise InvalidArtifactError(
            file,
            f"calibration.num_samples is {description.calibration.num_samples}, as many as every image would take; "
            f"at most {max_num_samples} are taken (LOGPX_MAX_NUM_SAMPLES)",
        )


def _check_graphs(stored: StoredModel, runtime: Runtime, chunk_rows: int | None) -> Pixels:
    """Run all graphs on as many rows as requests make them run at once; the images [N, C, H, W] they were asked of.

    Latent codes are the origin and draws from the prior; the images are what the decoder makes of them.
    """
    description, folder = stored.manifest, stored.path
    likelihood = likelihood_graph_of(stored)
    written = read_graphs(description, stored.encoder, stored.decoder, likelihood, folder)
    preparation = preparation_of_x(description)
    num_rows = chunk_rows or runtime.blocks.chunk_rows(written.numbers_a_row)
    latents = standard_normal(max(2, num_rows), description.latent_dim, seed=DEFAULT_SEED)
    latents[0] = 0
    file = folder / DECODER
    parameters = _run(runtime.open(stored.decoder, file), {"z": latents}, written.outputs, file)
    for name, values in parameters.items():
        _check_finite(file, name, values, "latent codes drawn from the prior", allowed=0)
        _check_range(file, name, values, _LARGEST)

    density = _Density(written, description, preparation, runtime, folder / LIKELIHOOD)
    x = density.mean(latents)
    _check_finite(density.file, "mean", x, "latent codes drawn from the prior", allowed=0)
    density.check(latents[:_CHECKED_IMAGES])
    _check_codes(stored, density)

    pixels = preparation.restore(x)
    file, codes = folder / ENCODER, {"mean": description.latent_dim, "log_var": description.latent_dim}
    posterior = _run(runtime.open(stored.encoder, file), {"x": preparation.prepare(pixels)}, codes, file)
    for name, largest in (("mean", _LARGEST), ("log_var", _LARGEST_LOG_VAR)):
        _check_finite(file, name, posterior[name], "images that the model draws", allowed=len(pixels) // 2)
        _check_range(file, name, posterior[name], largest)
    return pixels


class _Density:
    """p(x|z), asked by the graphs that are built of decoder.onnx and likelihood.onnx; `file` is what errors name."""

    def __init__(
        self, written: DecoderGraphs, description: Description, preparation: Preparation, runtime: Runtime, file: Path
    ) -> None:
        self.file = file
        self._description = description
        self._preparation = preparation
        self._num_uniforms = written.num_uniforms
        self._mean = runtime.open(written.mean(), file)
        self._sample = runtime.open(written.sample(), file)
        self._pixel_log_prob = runtime.open(written.pixel_log_prob(), file)
        self._surprise = runtime.open(written.surprise(), file)
        self._log_weight = runtime.open(written.log_weight(), file)

    def mean(self, latents: Float32Array) -> Float32Array:
        """E[x|z]: [N, D] → [N, C, H, W]."""
        images: Float32Array = self._ask(self._mean, graphs.IMAGES, self._description.x_shape.chw, {"z": latents})
        return images

    def check(self, latents: Float32Array) -> None:
        """Refuse a graph whose outputs have other shapes, or contradict one another.

        Raises:
            InvalidArtifactError.
        """
        count, size = len(latents), self._description.x_shape.size
        x = self.draw(latents, seed=DEFAULT_SEED)
        with np.errstate(all="ignore"):
            by_pixel = self._by_pixel(latents, x)
            self._ask(self._surprise, graphs.SURPRISE, (1, size), {"z": latents, graphs.X: x})
            zeros = np.zeros((count, 1, self._description.latent_dim), np.float32)
            inputs = {graphs.X: x, graphs.MEAN: zeros, graphs.LOG_VAR: zeros, graphs.NOISE: latents[:, None]}
            shape = np.array([count, 1, -1], np.int64)
            found = self._ask(self._log_weight, graphs.LOG_WEIGHT, (1,), {**inputs, graphs.SHAPE: shape})[:, 0]
            allowed = _DISAGREEMENT * (1 + np.abs(by_pixel).sum(axis=1))
            wrong = int((np.abs(found - by_pixel.sum(axis=1)) > allowed).sum())
        if wrong:
            problem = f"log_prob is not the sum of pixel_log_prob for {wrong} of {count} images that the model draws"
            raise InvalidArtifactError(self.file, problem)

    def draw(self, latents: Float32Array, *, seed: int) -> Float32Array:
        """x ~ p(x|z): [N, D] → [N, 1, P]."""
        uniform = np.random.default_rng(seed).random((len(latents), 1, self._num_uniforms), np.float32)
        shape = (1, self._description.x_shape.size)
        x: Float32Array = self._ask(self._sample, graphs.IMAGES, shape, {"z": latents, graphs.UNIFORM: uniform})
        return x

    def highest_log_prob(self, latents: Float32Array) -> Float64Array:
        """max over x of log p(x|z), nats [N]: pixel by pixel the best of black, white, the mean, and some draws."""
        nearest = self._preparation.prepare(self._preparation.restore(self.mean(latents)))
        nearest = nearest.reshape(len(latents), 1, -1)
        white = np.full_like(nearest, self._description.preparation.scale)
        candidates = [np.zeros_like(nearest), white, nearest]
        candidates += [self.draw(latents, seed=seed) for seed in range(_DRAWS)]
        best = np.maximum.reduce([self._by_pixel(latents, x) for x in candidates])  # [N, P]
        return np.asarray(best.sum(axis=1))

    def _by_pixel(self, latents: Float32Array, x: Float32Array) -> Float64Array:
        """log p(x_i|z): x [N, 1, P] → [N, P], nats."""
        shape = (1, self._description.x_shape.size)
        inputs = {"z": latents, graphs.X: x}
        found: Float64Array = self._ask(self._pixel_log_prob, graphs.PIXEL_LOG_PROB, shape, inputs)
        return found[:, 0]

    def _ask(self, session: Session, name: str, shape: tuple[int, ...], inputs: Mapping[str, NDArray[Any]]) -> Any:
        with blaming(self.file):
            found = session.run(inputs)[name]
        rows = len(next(value for key, value in inputs.items() if key in ("z", graphs.X)))
        check_shape(self.file, name.removeprefix(PREFIX), found.shape, (rows, *shape))
        return found


def _run(
    session: Session, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, int], file: Path
) -> dict[str, NDArray[Any]]:
    """Run a graph: outputs, each with its numbers of a row, by name."""
    with blaming(file):
        found = session.run(inputs)
    (given,) = inputs.values()
    for name, size in outputs.items():
        check_rows(file, name, found[name].shape, len(given), size)
    return {name: found[name] for name in outputs}


def _check_finite(file: Path, name: str, values: NDArray[Any], of_what: str, *, allowed: int) -> None:
    """Refuse an output with more rows than are allowed in which something is infinite or not a number."""
    bad = int((~np.isfinite(values.reshape(len(values), -1)).all(axis=1)).sum())
    if bad > allowed:
        raise InvalidArtifactError(file, f"output {name!r} is not finite for {bad} of {len(values)} {of_what}")


def _check_range(file: Path, name: str, values: NDArray[Any], largest: float) -> None:
    """Refuse an output of which most numbers are beyond all sense; a few may be, as of an unused dimension."""
    finite = values[np.isfinite(values)]
    if np.count_nonzero(np.abs(finite) > largest) > finite.size / 2:
        raise InvalidArtifactError(file, f"output {name!r} is beyond ±{largest:g} in most places")


def _check_codes(stored: StoredModel, density: _Density) -> None:
    """Compare the decoder with the calibration, if that has its images' codes.

    No image x has a higher log p(x|z) than the likeliest image at z. Stored is E_q[log p(x|z)] = ELBO + KL of each
    calibration image and the mean of its q(z|x); there the likeliest image must not be much less likely. This is true
    of all calibration images, even if they are very unlike the training images.
    """
    description, scores = stored.manifest, restored(stored.calibration)
    names = [f"{LATENT}{d}" for d in range(description.latent_dim)]
    if not {"kl", *names} <= scores.keys():
        return
    expected = scores["elbo"] + scores["kl"]
    codes = np.stack([scores[name] for name in names], axis=1)  # [n, D]
    usable = np.flatnonzero(np.isfinite(expected) & (np.abs(codes) < _LARGEST).all(axis=1))
    if len(usable) < _FEWEST_CODES:
        return
    chosen = usable[:: -(-len(usable) // _CODES)]
    file = stored.path / DECODER
    with np.errstate(all="ignore"):
        highest = density.highest_log_prob(codes[chosen].astype(np.float32))
        slack = _SLACK + _RELATIVE_SLACK * np.maximum(np.abs(highest), np.abs(expected[chosen]))
        worse = int((~(expected[chosen] <= highest + slack)).sum())
    if worse > len(chosen) / 2:
        raise InvalidArtifactError(
            file,
            f"cannot have given the scores in {CALIBRATION}: at the codes of {worse} of {len(chosen)} calibration "
            "images no image is as likely as those are said to be",
        )


def _check_scores(model: Model, pixels: Pixels, file: Path) -> None:
    """Score images that the model draws, by the calibration's proposal, or by `laplace` where that would anneal."""
    protocol = model.description.calibration
    proposal = protocol.proposal if protocol.proposal in IMPORTANCE_PROPOSALS else "laplace"
    num_samples = max(min(protocol.num_samples, _SCORED_SAMPLES), MIN_NUM_SAMPLES.get(proposal, 1))
    with np.errstate(all="ignore"):
        x = PreparedImages(pixels, preparation_of_x(model.description))
        measured = gathered(model.measure_x(x, proposal, Effort(num_samples, protocol.seed)))
        statistics = complete(measured).statistics
    bad = int((~np.isfinite(statistics.log_likelihood)).sum())
    if bad > len(pixels) / 2:
        raise InvalidArtifactError(
            file, f"log P(x) is not finite for {bad} of {len(pixels)} images that the model draws"
        )
