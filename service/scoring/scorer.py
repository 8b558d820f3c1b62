"""One model with its options: images in, a row of results each out."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from model_store import BUNDLED, StoredModel, open_version
from service.engine.acceptance import accept
from service.engine.anomaly.detector import DEFAULT_ALPHA
from service.engine.anomaly.measurement import Measurement
from service.engine.chunks import complete
from service.engine.model import Model, Pixels
from service.engine.parts import gathered
from service.engine.posterior.estimate import LogLikelihood
from service.engine.proposal import DEFAULT_NUM_SAMPLES, DEFAULT_PROPOSAL, DEFAULT_SEED, Effort, check_request
from service.engine.runtime import RUNTIME_ERRORS, Runtime
from service.images.arrays import AnyArray
from service.images.errors import ImageError
from service.images.fitting import Fitting
from service.images.reader import ImageReader
from service.images.resampler import check_resampler

MAX_PIXELS = 2**25
"""Of one image, before it is resampled."""
MOST_IMAGES, _MOST_NUMBERS = 256, 2**24
COLUMNS: Mapping[str, type[np.generic]] = {
    "log_likelihood": np.float64,
    "bits_per_dim": np.float64,
    "std_error": np.float64,
    "elbo": np.float64,
    "posterior_gap": np.float64,
    "effective_sample_size": np.float64,
    "pareto_k": np.float64,
    "num_samples": np.int64,
    "reliable": np.bool_,
    "score": np.float64,
    "p_value": np.float64,
    "is_anomaly": np.bool_,
}
"""What is found out about an image; docs/log-likelihood.md and docs/anomaly-scores.md say what each number is."""
_OF_ESTIMATE = tuple(name for name in COLUMNS if name not in ("score", "p_value", "is_anomaly"))
_FAILED = {np.float64: np.nan, np.int64: 0, np.bool_: False}


@dataclass(frozen=True)
class Options:
    """What is asked of each image.

    Attributes:
        proposal: of the estimates of log P(x), see engine/proposal.py.
        num_samples: of each image, to begin with.
        seed: of the noise, which all images share.
        resize: for a model of one size, resample images of others instead of refusing them.
        alpha: an image is an anomaly when its p-value is at most this.
    """

    proposal: str
    num_samples: int
    seed: int = DEFAULT_SEED
    resize: bool = False
    alpha: float = DEFAULT_ALPHA

    @staticmethod
    def of(proposal: str = DEFAULT_PROPOSAL, num_samples: int | None = None, **others: Any) -> "Options":
        """With the proposal's own number of samples where none is given.

        Raises:
            UnknownProposalError, TooFewSamplesError: see engine/proposal.py.
        """
        options = Options(proposal, num_samples or DEFAULT_NUM_SAMPLES.get(proposal, 1), **others)
        check_request(options.proposal, options.num_samples)
        return options


def _channels_first(image: Any) -> Any:
    """An array [H, W, 1 or 3] as [C, H, W]; whatever else unchanged."""
    is_last = (
        isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] in (1, 3) and image.shape[0] not in (1, 3)
    )
    return image.transpose(2, 0, 1) if is_last else image


@dataclass(frozen=True)
class Scored:
    """Results of images, in order.

    Attributes:
        columns: arrays [B] by the names of `COLUMNS`; where there is an error NaN, 0 or False.
        errors: why an image has none, else None.
    """

    columns: Mapping[str, NDArray[Any]]
    errors: Sequence[str | None]


class Scorer:
    """Scores images with one version of a model, on one core.

    The estimates are those of `POST /v1/log-likelihood` for the same options; `score`, `p_value` and `is_anomaly` are
    those of `POST /v1/anomaly-scores`, by the protocol that scored the calibration images: p-values hold for no other.
    If that is what `options` ask for, one pass gives both.

    It can be pickled; the model is loaded at the first call after that, and once. Several threads of a process may call
    it: they take turns.

    Args:
        model: its name in the store.
        store: the store's folder, by default the bundled models.
        version: by default the pinned one, or else the latest.
        image: the name of the images in a call.
        options: as `Options.of` takes them.

    Raises:
        StoreError, UnknownProposalError, TooFewSamplesError, ResamplerError.

    >>> scorer = Scorer("mnist", proposal="laplace")
    >>> found = scorer({"image": np.zeros((2, 28, 28), np.uint8), "name": np.array(["a", "b"])})
    >>> found["name"].tolist(), found["reliable"].shape, found["error"].tolist()
    (['a', 'b'], (2,), [None, None])
    """

    _one_at_a_time = threading.Lock()

    def __init__(
        self,
        model: str,
        store: str | Path = BUNDLED,
        version: int | None = None,
        *,
        image: str = "image",
        **options: Any,
    ) -> None:
        self.stored: StoredModel = open_version(Path(store), model, version)
        self.options = Options.of(**options)
        self.warning = check_resampler(self.stored.manifest.preparation)
        self._image = image

    @classmethod
    def of(cls, stored: StoredModel, options: Options) -> "Scorer":
        """With a version that has been read."""
        scorer = cls.__new__(cls)
        scorer.stored, scorer.options = stored, options
        scorer.warning = check_resampler(stored.manifest.preparation)
        scorer._image = "image"
        return scorer

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("model", "_reader")}

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Score a batch, as Ray, Spark, Daft and Dask hand it on.

        Args:
            batch: arrays [B] by name, of which one holds the images: files as bytes, or arrays uint8 or float32 in
                [0, 1], [H, W], [C, H, W] or [H, W, C], also as one array of them.

        Returns:
            The other arrays of the batch, one for each of `COLUMNS`, and `error`, text or None.
        """
        with self._one_at_a_time:
            return self._called(batch)

    def _called(self, batch: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        images = [_channels_first(image) for image in batch[self._image]]
        found: dict[str, list[NDArray[Any]]] = {name: [] for name in (*COLUMNS, "error")}
        for start in range(0, len(images), self.batch_images):
            scored = self.score(images[start : start + self.batch_images])
            for name, array in scored.columns.items():
                found[name].append(array)
            found["error"].append(np.array(scored.errors, object))
        others = {name: array for name, array in batch.items() if name != self._image}
        empty = {name: np.zeros(0, COLUMNS.get(name, np.object_)) for name in found}
        return others | {name: np.concatenate([empty[name], *arrays]) for name, arrays in found.items()}

    @property
    def one_pass(self) -> bool:
        """Whether the estimates and the scores come from one pass."""
        by, options = self.stored.manifest.calibration, self.options
        return (by.proposal, by.num_samples, by.seed) == (options.proposal, options.num_samples, options.seed)

    @property
    def batch_images(self) -> int:
        """Images that are scored together: more would take more memory, and hardly less time."""
        return max(1, min(MOST_IMAGES, _MOST_NUMBERS // self.stored.manifest.image.size))

    @cached_property
    def model(self) -> Model:
        """The loaded model, on one thread.

        Raises:
            InvalidArtifactError: it is not what its manifest says.
        """
        threadpool_limits(1, user_api="blas")
        return accept(self.stored, runtime=Runtime("cpu", 1), max_num_samples=2**63)

    @cached_property
    def _reader(self) -> ImageReader:
        manifest = self.stored.manifest
        fitting = Fitting(manifest.preparation.fit, manifest.preparation.invert)
        return ImageReader(manifest.image, resize=self.options.resize, max_pixels=MAX_PIXELS, fitting=fitting)

    def score(self, contents: Sequence[bytes | AnyArray | str]) -> Scored:
        """Results of images: files' bytes, arrays, or text that says why there is no image."""
        errors: list[str | None] = [content if isinstance(content, str) else None for content in contents]
        read: list[tuple[int, Pixels]] = []  # by index, [1, C, H, W]
        for kind in (bytes, np.ndarray):
            chosen = [index for index, content in enumerate(contents) if isinstance(content, kind)]
            read += self._read(contents, chosen, errors)
        columns: dict[str, NDArray[Any]] = {
            name: np.full(len(contents), _FAILED[kind], kind) for name, kind in COLUMNS.items()
        }
        if read:
            indices = np.array([index for index, _ in read])
            self._score_pixels(np.concatenate([pixels for _, pixels in read]), indices, columns, errors)
        return Scored(columns, errors)

    def _read(
        self, contents: Sequence[Any], chosen: Sequence[int], errors: list[str | None]
    ) -> list[tuple[int, Pixels]]:
        """Pixels of the chosen images, which are all files or all arrays; together, or one by one if one is wrong."""
        if not chosen:
            return []
        try:
            pixels = self._pixels([contents[index] for index in chosen])
            return [(index, pixels[number : number + 1]) for number, index in enumerate(chosen)]
        except (ImageError, ValueError, MemoryError) as error:  # a ValueError of arrays with several shapes
            if len(chosen) > 1:
                return [one for index in chosen for one in self._read(contents, [index], errors)]
            problem = str(error).replace("?resize=true", "--resize").removeprefix("image 0: ")
            errors[chosen[0]] = problem or "there is not enough memory to read it"
            return []

    def _pixels(self, contents: Sequence[Any]) -> Pixels:
        if isinstance(contents[0], bytes):
            return self._reader.read_items(contents)
        return self._reader.read_array(np.stack(contents))

    def _score_pixels(
        self,
        pixels: Pixels,
        indices: NDArray[np.intp],
        columns: Mapping[str, NDArray[Any]],
        errors: list[str | None],
    ) -> None:
        """Fill in the rows of these images [B, C, H, W]; together, or one by one if one cannot be computed."""
        try:
            record, measurement = self._measure(pixels)
        except (*RUNTIME_ERRORS, MemoryError) as error:
            if len(pixels) > 1:
                for number in range(len(pixels)):
                    some = slice(number, number + 1)
                    self._score_pixels(pixels[some], indices[some], columns, errors)
                return
            errors[indices[0]] = f"it cannot be scored ({next(iter(str(error).splitlines()), 'not enough memory')})"
            return
        detector = self.model.detector
        (judged,) = complete(
            detector.judge(measurement.statistics, detector.choose(()), alpha=self.options.alpha, fdr=None)
        ).values()
        for name in _OF_ESTIMATE:
            columns[name][indices] = getattr(record, name)
        columns["score"][indices] = judged.score
        columns["p_value"][indices] = judged.p_value
        columns["is_anomaly"][indices] = judged.is_anomaly

    def _measure(self, pixels: Pixels) -> tuple[LogLikelihood, Measurement]:
        model, options = self.model, self.options
        measurement = complete(gathered(model.measure(pixels, *model.protocol())))
        if self.one_pass:
            return measurement.inference.record, measurement
        effort = Effort(options.num_samples, options.seed, max_num_samples=options.num_samples)
        return complete(gathered(model.infer(pixels, options.proposal, effort))).record, measurement
