"""How good a model is: log P(x) of images it has never seen, through the serving engine on the exported graphs."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from model_store import Metric
from service.engine.anomaly.statistics import Statistics
from service.engine.calibration import calibrate
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.parts import gathered
from service.engine.posterior.estimate import REASONS, LogLikelihood
from service.engine.proposal import IMPORTANCE_PROPOSALS, Effort
from service.progress import Progress
from training.configuration import Binarisation
from training.data.image_files import Pixels
from training.data.splits import Images
from training.data.streams import ImageStream, in_batches
from training.errors import DataError

_BATCHES = 20  # of a set of images, so that its progress is known; no result depends on it
_FEWEST_IMAGES, _MOST_IMAGES = 16, 100  # of a batch


@dataclass(frozen=True)
class Protocol:
    """How to estimate log P(x): the engine's proposal, the samples an image, and the seed of noise and binarisation."""

    proposal: str
    num_samples: int
    seed: int


@dataclass(frozen=True)
class Evaluation:
    """Means over the images of a set; nats an image but for `bits_per_dim`.

    Attributes:
        log_likelihood: mean estimate of log P(x).
        std_error: of that mean, from the spread between images.
        elbo: mean evidence lower bound, under the encoder.
        elbo_std_error: of that mean, likewise.
        bits_per_dim: -log P(x) / (C·H·W·ln 2).
        bits_per_dim_std_error: of that mean, likewise.
        reliable: share of images whose own estimate the engine calls reliable, 0 to 1.
        unreliable: share of images by the reason why theirs is not, each above 0; with `reliable` they sum to 1.
        annealed: share of images whose estimate is annealed.
        num_images: how many.
        proposal: how log P(x) was estimated.
        num_samples: how many an image, to begin with.
        protocol: how it was measured, in words.
        record: the engine's estimate of each image.
        statistics: what anomaly scores are made of, of each image; None where they were not asked for.
    """

    log_likelihood: float
    std_error: float
    elbo: float
    elbo_std_error: float
    bits_per_dim: float
    bits_per_dim_std_error: float
    reliable: float
    unreliable: Mapping[str, float]
    annealed: float
    num_images: int
    proposal: str
    num_samples: int
    protocol: str
    record: LogLikelihood = field(compare=False, repr=False)
    statistics: Statistics | None = field(default=None, compare=False, repr=False)

    def as_metrics(self) -> tuple[Metric, ...]:
        """The figures as a manifest holds them."""
        figures = (
            ("log_likelihood", self.log_likelihood, self.std_error, "nats/image"),
            ("elbo", self.elbo, self.elbo_std_error, "nats/image"),
            ("bits_per_dim", self.bits_per_dim, self.bits_per_dim_std_error, "bits/dim"),
            ("reliable", self.reliable, None, "share of estimates"),
        )
        return tuple(
            Metric(
                name=name,
                value=value,
                std_error=std_error,
                unit=unit,
                num_images=self.num_images,
                protocol=self.protocol,
            )
            for name, value, std_error, unit in figures
        )


def evaluate(
    model: Model, images: Images, protocol: Protocol, *, statistics: bool = False, progress: bool = False
) -> Evaluation:
    """Score a set of images [N, C, H, W], uint8 in 0..255 or float32 in [0, 1], batch by batch.

    Where the model wants dynamic binarisation, the images are binarised first, once and afresh from the protocol's
    seed, as the literature does (Burda et al. 2015, arXiv 1509.00519); black and white images stay as they are.
    With `statistics`, the same pass also gives what anomaly scores are made of.

    Raises:
        DataError: the images are not of the model's size.
        service.engine.proposal.UnknownProposalError: the engine has no such proposal.
    """
    prepared = describe_preparation(model, images, seed=protocol.seed)
    batches = fresh_batches(model, images, seed=protocol.seed, size=_batch_size(images))
    parts, record = _score(model, images, batches, protocol, statistics=statistics, progress=progress)
    return Evaluation(
        log_likelihood=float(record.log_likelihood.mean()),
        std_error=_standard_error(record.log_likelihood),
        elbo=float(record.elbo.mean()),
        elbo_std_error=_standard_error(record.elbo),
        bits_per_dim=float(record.bits_per_dim.mean()),
        bits_per_dim_std_error=_standard_error(record.bits_per_dim),
        reliable=float(record.reliable.mean()),
        unreliable={reason: share for reason in REASONS if (share := float((record.reason == reason).mean()))},
        annealed=float((record.proposal == "annealed").mean()),
        num_images=len(images),
        proposal=protocol.proposal,
        num_samples=protocol.num_samples,
        protocol=(
            f"{_method(protocol.proposal)} by the serving engine on the exported graphs: "
            f"proposal {protocol.proposal}, {protocol.num_samples} samples, seed {protocol.seed}; "
            f"ELBO under the encoder; images {prepared}; "
            "standard error over images"
        ),
        record=record,
        statistics=Statistics.join(parts) if parts else None,
    )


def _method(proposal: str) -> str:
    """In words."""
    if proposal in IMPORTANCE_PROPOSALS:
        return "importance sampling"
    return "annealing" if proposal == "annealed" else "importance sampling, and annealing where needed,"


def calibration_arrays(
    model: Model, images: Images, protocol: Protocol, *, progress: bool = False
) -> dict[str, NDArray[np.float64]]:
    """The engine's calibration on images [N, C, H, W], handed to it as requests hand them: pixels in [0, 1].

    Raises:
        DataError: the images are not of the model's size.
    """
    _check_size(model, images)
    with _one_blas_thread(), Progress("calibrating", len(images), shown=progress) as bar:
        return calibrate(
            model,
            map(in_unit_interval, image_batches(images, _batch_size(images))),
            proposal=protocol.proposal,
            num_samples=protocol.num_samples,
            seed=protocol.seed,
            on_batch=bar.advance,
            on_chunk=bar.tick,
        )


def fresh_batches(
    model: Model, images: Images, *, seed: int, size: int = _MOST_IMAGES
) -> Iterator[NDArray[np.float32]]:
    """Images [N, C, H, W] in [0, 1] as the model is measured on them, batch by batch; see `fresh_binarisation`."""
    generator = np.random.default_rng(seed)
    for pixels in image_batches(images, size):
        if model.description.preparation.binarisation == "dynamic":
            yield _draw(pixels, generator)
        else:
            yield in_unit_interval(pixels)


def describe_preparation(model: Model, images: Images, *, seed: int) -> str:
    """What becomes of the images' pixels before the model sees them, in words."""
    if _black_and_white(images):
        return "black and white already"
    return {
        "dynamic": f"binarised once, afresh, each pixel with probability equal to its value (seed {seed})",
        "threshold": "binarised at a half",
        "none": "grey values as they are",
    }[model.description.preparation.binarisation]


def image_statistics(
    model: Model, images: Images, protocol: Protocol, what: str, *, progress: bool = False
) -> Statistics:
    """What anomaly scores of images [N, C, H, W] are made of; they are handed over as requests hand them.

    Raises:
        DataError: the images are not of the model's size.
    """
    batches = map(in_unit_interval, image_batches(images, _batch_size(images)))
    parts, _ = _score(model, images, batches, protocol, statistics=True, progress=progress, what=what)
    return Statistics.join(parts)


def _score(
    model: Model,
    images: Images,
    batches: Iterable[NDArray[np.float32]],
    protocol: Protocol,
    *,
    statistics: bool,
    progress: bool,
    what: str = "scoring",
) -> tuple[list[Statistics], LogLikelihood]:
    """The estimates of all batches, and if asked for, the statistics of each."""
    _check_size(model, images)
    measured, records = [], []
    title = f"{what} by {protocol.proposal}, K = {protocol.num_samples}"
    effort: dict[str, Any] = dataclasses.asdict(protocol)
    by = Effort(protocol.num_samples, protocol.seed)
    with _one_blas_thread(), Progress(title, len(images), shown=progress) as bar:
        for batch in batches:
            if statistics:
                found = complete(gathered(model.measure(batch, protocol.proposal, by)), bar.tick)
                measured.append(found.statistics)
                record = found.inference.record
            else:
                record = complete(model.log_likelihood(batch, **effort), bar.tick)
            records.append(record)
            bar.advance(len(batch))
    return measured, LogLikelihood.join(records)


def _one_blas_thread() -> threadpool_limits:
    """For NumPy, as in the service: the engine's matrices are small, and threads would wait for one another."""
    return threadpool_limits(1, user_api="blas")


def _check_size(model: Model, images: Images) -> None:
    if images.shape[1:] != model.description.image.chw:
        raise DataError(
            "images", f"{list(images.shape[1:])} each, but the model takes {list(model.description.image.chw)}"
        )


def _batch_size(images: Images) -> int:
    """Of batches that take long: so many that progress is seen to be made."""
    return min(_MOST_IMAGES, max(_FEWEST_IMAGES, len(images) // _BATCHES))


def image_batches(images: Images, size: int = _MOST_IMAGES) -> Iterator[Pixels]:
    """All images [N, C, H, W], so many at a time."""
    order = in_batches(np.arange(len(images)), size)
    if isinstance(images, ImageStream):
        yield from images.batches(order)
    else:
        yield from (images[places] for places in order)


def _black_and_white(images: Images) -> bool:
    if isinstance(images, ImageStream):
        return images.black_and_white
    white = 255 if images.dtype == np.uint8 else 1
    return not ((images != 0) & (images != white)).any()


def fresh_binarisation(pixels: Pixels, binarisation: Binarisation, *, seed: int) -> Pixels:
    """A seeded draw of 0 or 1 for each pixel where `binarisation` is dynamic; otherwise the pixels themselves.

    >>> grey = np.full((1, 1, 2, 8), 0.5, dtype=np.float32)
    >>> sorted(set(fresh_binarisation(grey, "dynamic", seed=3).ravel().tolist()))
    [0.0, 1.0]
    """
    if binarisation != "dynamic":
        return pixels
    return _draw(pixels, np.random.default_rng(seed))


def _draw(pixels: Pixels, generator: np.random.Generator) -> NDArray[np.float32]:
    drawn = np.empty(pixels.shape, dtype=np.float32)
    for index, image in enumerate(pixels):  # one at a time: the uniform numbers of a whole set would fill the memory
        drawn[index] = generator.random(image.shape, dtype=np.float32) < in_unit_interval(image)
    return drawn


def in_unit_interval(pixels: Pixels) -> NDArray[np.float32]:
    """Pixels as float32 in [0, 1].

    >>> in_unit_interval(np.array([0, 255], dtype=np.uint8)).tolist()
    [0.0, 1.0]
    """
    return pixels.astype(np.float32) / np.float32(255) if pixels.dtype == np.uint8 else pixels.astype(np.float32)


def _standard_error(values: NDArray[np.float64]) -> float:
    """Of the mean; of a single value nothing is known, which is written as 0."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
