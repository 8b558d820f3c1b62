"""Bits per dimension of 8-bit models, beside PNG and WebP files of the same images and beside a discretised Gaussian.

python benchmarks/bits_per_dim.py runs/fashion-mnist runs/gaussian --data ../shared/data/fashion-mnist

The models are runs' folders or versions of a store, the one to compare with first. A Gaussian likelihood is a density,
and no number of bits; here each level of a pixel gets the Gaussian's mass over the level's bin, the outer two bins
reaching to infinity. The engine has no such likelihood, so the log weights are computed here, in NumPy and float64, by
one function for all models: the engine's Laplace mixture (for a Gaussian around the modes under its density, which a
proposal is free to be) or the encoder, and the engine's reduction with its diagnostics. For a discretised logistic the
engine's own figure stands beside, and must agree.

Files are written one an image, as they would be stored, and again as strips of several hundred images under one
another, where headers (57 bytes of a PNG) cost nothing and a compressor may learn from one image for the next.
"""

import argparse
import io
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.special import log_ndtr, logsumexp
from threadpoolctl import threadpool_limits

from service.engine.arrays import Float64Array
from service.engine.chunks import complete
from service.engine.format1 import likelihood_graph_of
from service.engine.model import DEFAULT_MAX_STEPS, Model
from service.engine.posterior.estimate import LogLikelihood, estimate, evidence_lower_bound
from service.engine.posterior.laplace import SHARES, Mixture, balanced, mixture, part_of
from service.engine.posterior.mode_search import ModeSearch
from service.engine.posterior.sampling import Sampler
from service.engine.proposal import DEFAULT_NUM_SAMPLES, DEFAULT_SEED, standard_normal
from service.engine.runtime import Runtime
from service.engine.verification import read_graphs
from tests.likelihoods import DiscretisedLogistic, Gaussian, GaussianWithScale, Parameters, reference_of
from training.data.download import locate
from training.data.image_sets import Reading
from training.data.preparation import Preparation
from training.data.sources import open_source
from training.data.splits import evenly_spaced
from training.fit.loaded_model import load_model
from training.fit.run import RUN, open_run
from training.publish.evaluation import Protocol
from training.publish.export import export
from training.publish.held_out import held_out_images
from training.publish.publication import describe, open_stored

Bytes = NDArray[np.uint8]
BATCH, ROWS = 50, 512
WEBP_SIDE = 16383
CODECS: dict[str, dict[str, Any]] = {
    "PNG, optimised": {"format": "png", "optimize": True},
    "WebP, lossless": {"format": "webp", "lossless": True, "quality": 100, "method": 6},
}


class DiscretisedGaussian:
    """P(x) = Φ(a) − Φ(b), with a, b = (x ± δ − loc)/s and δ = ½/255; the first level keeps Φ(a), the last Φ(−b)."""

    def __init__(self, scale: float | None) -> None:
        self.scale = scale

    def log_prob(self, x: Float64Array, parameters: Parameters) -> Float64Array:
        """Σ log P(x): [..., C, H, W] → [...]; right of loc a bin's mass is its mirror image's, so no digit is lost."""
        loc = np.asarray(parameters["loc"], np.float64)
        inverse = np.exp(-parameters["log_scale"].astype(np.float64)) if self.scale is None else 1 / self.scale
        above, below = (x + 0.5 / 255 - loc) * inverse, (x - 0.5 / 255 - loc) * inverse
        right = above + below > 0
        log_upper, log_lower = log_ndtr(np.where(right, -below, above)), log_ndtr(np.where(right, -above, below))
        inner = log_upper + np.log(-np.expm1(log_lower - log_upper))
        first, last = x < 0.5 / 255, x > 1 - 0.5 / 255
        values = np.where(first, log_ndtr(above), np.where(last, log_ndtr(-below), inner))
        return np.asarray(values.sum(axis=(-3, -2, -1)))


class EightBitModel:
    """A model whose pixels have 256 levels, or are made to have."""

    def __init__(self, path: Path, runtime: Runtime) -> None:
        self.name = str(path)
        if (path / RUN).is_file():
            run = open_run(path)
            graphs = export(load_model(run)[0])
            description = describe(run.description, "run", Protocol("laplace", 1, DEFAULT_SEED))
            encoder, decoder, likelihood = graphs.encoder, graphs.decoder, graphs.likelihood
        else:
            stored = open_stored(path)
            description, encoder, decoder = stored.manifest, stored.encoder, stored.decoder
            likelihood = likelihood_graph_of(stored)
        trained = reference_of(description.likelihood)
        match trained:
            case DiscretisedLogistic(levels=256):
                self.likelihood: DiscretisedLogistic | DiscretisedGaussian = trained
            case GaussianWithScale():
                self.likelihood = DiscretisedGaussian(None)
            case Gaussian(scale=scale):
                self.likelihood = DiscretisedGaussian(scale)
            case _:
                raise SystemExit(f"{path}: {description.likelihood.kind} pixels have no 256 levels")
        self.kind = description.likelihood.kind
        self.provenance = description.provenance
        self.engine = Model(description, encoder, decoder, likelihood, runtime=runtime)
        self._decoder = runtime.open(decoder, path)
        written = read_graphs(description, encoder, decoder, likelihood, path)
        sampler = Sampler(written, description, runtime=runtime, file=path, chunk_rows=ROWS)
        self._search = ModeSearch(sampler, max_steps=DEFAULT_MAX_STEPS, block_images=runtime.blocks.contested)
        self._latent_dim = description.latent_dim

    def score(self, images: Bytes, *, proposal: str, num_samples: int) -> LogLikelihood:
        """log P(x) of images [N, C, H, W], as the probability of their 256 levels."""
        batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
        return LogLikelihood.join([self._score(batch, proposal, num_samples) for batch in batches])

    def _score(self, images: Bytes, proposal: str, num_samples: int) -> LogLikelihood:
        pixels = images.astype(np.float32) / np.float32(255)
        posterior = complete(self.engine.encode(pixels))
        noise = standard_normal(num_samples, self._latent_dim, seed=DEFAULT_SEED)
        settled = np.ones(len(images), np.bool_)
        if proposal == "laplace":
            modes, gaussians = complete(self._search.fit(pixels.reshape(len(pixels), -1), posterior))
            around, settled = mixture(gaussians, modes.usable, posterior), modes.converged | ~modes.usable
        log_weight, encoder_log_weight = np.empty((2, len(images), num_samples))
        for index, image in enumerate(images):
            mean, scale = posterior.mean[index].astype(np.float64), np.exp(posterior.log_var[index] / 2.0)
            if proposal == "laplace":
                z, log_density, log_encoder = sample_mixture(around, index, mean, scale, noise)
            else:
                z = mean + scale * noise
                log_density = log_encoder = log_normal(z - mean, scale)
            log_joint = self._log_prob(image / 255, z) + log_normal(z, np.ones(len(mean)))
            log_weight[index], encoder_log_weight[index] = log_joint - log_density, log_joint - log_encoder
        if proposal == "laplace":
            log_weight += balanced(np.zeros((1, num_samples), np.float32))
            encoder_log_weight = encoder_log_weight[:, part_of(np.arange(num_samples)) == len(SHARES) - 1]
        record = estimate(log_weight, evidence_lower_bound(encoder_log_weight), images[0].size, proposal)
        return replace(record, reliable=record.reliable & settled, reason=np.where(settled, record.reason, "mode"))

    def _log_prob(self, x: Float64Array, z: Float64Array) -> Float64Array:
        """log P(x|z) of one image [C, H, W] at z [K, D]: [K]."""
        values = np.empty(len(z))
        for start in range(0, len(z), ROWS):
            rows = slice(start, start + ROWS)
            values[rows] = self.likelihood.log_prob(x, self._decoder.run({"z": z[rows].astype(np.float32)}))
        return values


def log_normal(difference: Float64Array, scale: Float64Array) -> Float64Array:
    """log N(difference; 0, diag scale²), but for the −D/2·log(2π) that cancels in a weight: [K, D] → [K]."""
    return np.asarray(-0.5 * np.square(difference / scale).sum(axis=-1) - np.log(scale).sum())


def sample_mixture(
    around: Mixture, index: int, mean: Float64Array, encoder_scale: Float64Array, noise: NDArray[np.float32]
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """One image's samples z [K, D] as the engine's graph draws them, log r(z|x) and log q(z|x), both [K]."""
    mode, basis, scales = (
        values[index].astype(np.float64) for values in (around.mode, around.basis, around.scales)
    )  # [D], [D, D], [J, D]
    part, last = part_of(np.arange(len(noise))), len(scales)
    from_mode = mode + ((noise @ basis) * scales[np.minimum(part, last - 1)]) @ basis.T
    z = np.where((part == last)[:, None], mean + encoder_scale * noise, from_mode)
    along_axes = (z - mode) @ basis
    log_encoder = log_normal(z - mean, encoder_scale)
    log_parts = np.stack([*(log_normal(along_axes, scale) for scale in scales), log_encoder])  # [J + 1, K]
    return z, logsumexp(log_parts + np.log(SHARES)[:, None], axis=0), log_encoder


def file_size(image: Bytes, **how: Any) -> int:
    """Bytes of one image [C, H, W] as a file."""
    stream = io.BytesIO()
    pixels = image[0] if len(image) == 1 else np.ascontiguousarray(np.moveaxis(image, 0, -1))
    Image.fromarray(pixels).save(stream, **how)
    return stream.tell()


def strips(images: Bytes) -> Iterator[Bytes]:
    """Images under one another, as many as a WebP may be high: [C, n·H, W]."""
    most = WEBP_SIDE // images.shape[2]
    for start in range(0, len(images), most):
        some = images[start : start + most].transpose(1, 0, 2, 3)
        yield some.reshape(some.shape[0], -1, some.shape[3])


def quality(record: LogLikelihood) -> str:
    """What a row says of its weights."""
    share = np.median(record.effective_sample_size / record.num_samples)
    return f"{share:6.3f} {100 * record.reliable.mean():6.1f} %"


def main() -> None:
    """Score, compress and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="runs' folders, or store/NAME or store/NAME/VERSION")
    parser.add_argument("--data", required=True, help="as for `python -m training evaluate`")
    parser.add_argument("--images", type=int, default=1000, help="test images, evenly spaced")
    parser.add_argument("--num-samples", type=int, default=DEFAULT_NUM_SAMPLES["laplace"], help="of the Laplace rows")
    parser.add_argument("--encoder-samples", type=int, default=5000, help="of the encoder's rows; 0 leaves them out")
    given = parser.parse_args()
    threadpool_limits(1, user_api="blas")  # as the service does
    models = [EightBitModel(path, Runtime("cpu")) for path in given.models]
    reading = Reading(preparation=Preparation.of_model(models[0].engine.description))
    test, what = held_out_images(open_source(locate(given.data), reading), models[0].provenance)
    images = evenly_spaced(test, given.images)
    if images.dtype != np.uint8:
        raise SystemExit(f"{what}: not 8-bit")
    images = images.astype(np.uint8, copy=False)
    levels = np.arange(256).reshape(-1, 1, 1, 1) / 255
    example = {"loc": np.full((1, 1, 1), 0.1), "log_scale": np.full((1, 1, 1), -4.0)}
    total = np.exp(DiscretisedGaussian(None).log_prob(levels, example)).sum()
    print(f"{len(images)} images of {what}; the discretised Gaussian's 256 levels sum to 1 within {abs(total - 1):.1g}")
    print(f"{'':36} {'bits/dim':>8} {'±':>7} {'× first':>8} {'ESS/K':>6} {'reliable':>8}", flush=True)
    first: list[float] = []

    def row(title: str, values: Float64Array, more: str = "") -> None:
        """A line of the table; `values` are bits per dimension of each image, or one for all of them."""
        first.append(float(values.mean()))
        error = f"{values.std(ddof=1) / math.sqrt(len(values)):7.4f}" if len(values) > 1 else f"{'–':>7}"
        print(f"{title:36} {values.mean():8.4f} {error} {values.mean() / first[0]:8.3f} {more}", flush=True)

    for model in models:
        print(f"{model.name}: {model.kind.replace('_', ' ')}")
        if isinstance(model.likelihood, DiscretisedLogistic):
            pixels = images.astype(np.float32) / np.float32(255)
            record = complete(model.engine.log_likelihood(pixels, proposal="laplace", num_samples=given.num_samples))
            row(f"  engine, laplace, K = {given.num_samples}", record.bits_per_dim, quality(record))
        for proposal, num_samples in (("laplace", given.num_samples), ("encoder", given.encoder_samples)):
            if num_samples:
                record = model.score(images, proposal=proposal, num_samples=num_samples)
                row(f"  256 levels, {proposal}, K = {num_samples}", record.bits_per_dim, quality(record))
    print("files")
    for title, how in CODECS.items():
        sizes = np.array([file_size(image, **how) for image in images])
        row(f"  {title}, a file an image", 8 * sizes / images[0].size)
        row(
            f"  {title}, strips", np.array([8 * sum(file_size(strip, **how) for strip in strips(images)) / images.size])
        )


if __name__ == "__main__":
    main()
