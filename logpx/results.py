"""What the client returns: arrays by field name, in the order of the images given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Result:
    """Every result says which model made it."""

    model: str
    version: int

    def __len__(self) -> int:
        """How many images."""
        return next(len(value) for value in vars(self).values() if isinstance(value, np.ndarray))

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row for each image; needs pandas, which the client does not install.

        A field of one value an image is a column of its name. Of a field [B, D], column d is `NAME_d`; of scores by
        method, `scores.METHOD.NAME`. Images and maps are left out.
        """
        import pandas as pd

        return pd.DataFrame(dict(_columns(self)))


@dataclass(frozen=True, eq=False)
class Latents(Result):
    """q(z|x) = N(mean, diag exp(log_var)) of each image."""

    mean: Float32Array
    """[B, D]"""
    log_var: Float32Array
    """[B, D]"""


@dataclass(frozen=True, eq=False)
class LogLikelihoods(Result):
    """log P(x) of each image, in nats; docs/log-likelihood.md explains each field. NaN where a value is not finite."""

    seed: int
    log_likelihood: Float64Array
    bits_per_dim: Float64Array
    std_error: Float64Array
    elbo: Float64Array
    posterior_gap: Float64Array
    effective_sample_size: Float64Array
    pareto_k: Float64Array
    num_samples: NDArray[np.int64]
    proposal: NDArray[np.str_]
    """Which was used."""
    reliable: NDArray[np.bool_]
    reason: NDArray[np.object_]
    """Why an estimate is not reliable; None if it is."""


@dataclass(frozen=True, eq=False)
class Judgements:
    """What one method says of each image."""

    score: Float64Array
    """Higher for stranger; NaN where it is not finite."""
    p_value: Float64Array
    is_anomaly: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class AnomalyScores(Result):
    """How strange each image is; docs/anomaly-scores.md explains each field."""

    method: str
    """The first of those asked for, which made `score`, `p_value` and `is_anomaly`."""
    alpha: float | None
    fdr: float | None
    calibration_size: int
    score: Float64Array
    p_value: Float64Array
    is_anomaly: NDArray[np.bool_]
    log_likelihood: Float64Array
    std_error: Float64Array
    posterior_gap: Float64Array
    num_samples: NDArray[np.int64]
    reliable: NDArray[np.bool_]
    scores: Mapping[str, Judgements]
    """By method, if several were asked for."""
    explanation: tuple[Float64Array | None, ...]
    """With `explain`: surprise of each pixel [C, H, W] in nats, None where log P(x) is not finite. Else empty."""

    def decided(self, fdr: float) -> "AnomalyScores":
        """The same with `is_anomaly` decided over all images by Benjamini-Hochberg, for each method by itself."""
        scores = {
            method: replace(judged, is_anomaly=benjamini_hochberg(judged.p_value, fdr))
            for method, judged in self.scores.items()
        }
        is_anomaly = benjamini_hochberg(self.p_value, fdr)
        return replace(self, alpha=None, fdr=fdr, is_anomaly=is_anomaly, scores=scores)


@dataclass(frozen=True, eq=False)
class Images(Result):
    """Images that the model made."""

    images: Float32Array
    """[B, C, H, W] in [0, 1]"""

    def to_pil(self) -> list[Any]:
        """As PIL images of 8 bits; needs Pillow, which the client does not install."""
        return _pil_images(self.images)


@dataclass(frozen=True, eq=False)
class Samples(Images):
    """Images drawn from the prior."""

    latents: Float32Array
    """[B, D]"""
    seed: int
    temperature: float


@dataclass(frozen=True, eq=False)
class Reconstructions(Result):
    """Each image as the model sees it, and E[x|z] at the encoder's mean."""

    prepared: Float32Array
    """[B, C, H, W] in [0, 1]"""
    reconstructions: Float32Array
    """[B, C, H, W] in [0, 1]"""

    def to_pil(self) -> list[Any]:
        """The reconstructions as PIL images of 8 bits; needs Pillow, which the client does not install."""
        return _pil_images(self.reconstructions)


@dataclass(frozen=True)
class ModelSummary:
    """One model of the service."""

    name: str
    default: bool
    """Whether it answers requests that name no model."""
    default_version: int | None
    versions: Sequence[int]
    loaded_versions: Sequence[int]
    refused: Sequence[Mapping[str, Any]]
    """Versions that did not pass their checks, and why."""
    manifest: Mapping[str, Any] | None
    """Of the default version: model_store/README.md."""
    execution_provider: str | None


R = TypeVar("R", bound=Result | Judgements)


def joined(parts: Sequence[R]) -> R:
    """One result of those of successive images, at least one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    return replace(
        first, **{item.name: _joined([getattr(part, item.name) for part in parts]) for item in fields(first)}
    )


def benjamini_hochberg(p_value: Float64Array, fdr: float) -> NDArray[np.bool_]:
    """Which p-values to reject so that the expected share of false rejections is at most `fdr`: [m] → [m].

    Rejected is every p-value up to the largest p_(k) ≤ fdr·k/m (Benjamini and Hochberg 1995), as the service does
    over the images of one request.

    >>> benjamini_hochberg(np.array([0.01, 0.9, 0.06, 0.02]), 0.1).tolist()
    [True, False, True, True]
    """
    count = len(p_value)
    bound = max((p for k, p in enumerate(np.sort(p_value), start=1) if p <= fdr * k / count), default=-1.0)
    return np.asarray(p_value <= bound)


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, np.ndarray):
        return np.concatenate(values)
    if isinstance(first, tuple):
        return tuple(item for value in values for item in value)
    if isinstance(first, Mapping):
        return {name: joined([value[name] for value in values]) for name in first}
    return first


def _columns(result: Any, prefix: str = "") -> list[tuple[str, Any]]:
    columns: list[tuple[str, Any]] = []
    for item in fields(result):
        value = getattr(result, item.name)
        if isinstance(value, np.ndarray) and value.ndim == 1:
            columns.append((prefix + item.name, value))
        elif isinstance(value, np.ndarray) and value.ndim == 2:
            columns += [(f"{prefix}{item.name}_{d}", value[:, d]) for d in range(value.shape[1])]
        elif isinstance(value, Mapping):
            for method, judged in value.items():
                columns += _columns(judged, f"{item.name}.{method}.")
    return columns


def _pil_images(images: Float32Array) -> list[Any]:
    """[B, C, H, W] in [0, 1] with 1 or 3 channels."""
    from PIL import Image

    levels = np.rint(images * 255).astype(np.uint8)
    return [Image.fromarray(one[0] if len(one) == 1 else np.moveaxis(one, 0, -1)) for one in levels]
