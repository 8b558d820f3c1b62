"""Results out of answers."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from logpx.errors import LogpxError
from logpx.exchange import Answer
from logpx.images import AnyArray
from logpx.results import (
    AnomalyScores,
    Images,
    Judgements,
    Latents,
    LogLikelihoods,
    ModelSummary,
    Reconstructions,
    Samples,
)

_JUDGEMENT = {"score": np.float64, "p_value": np.float64, "is_anomaly": np.bool_}
_ESTIMATE = {
    "log_likelihood": np.float64,
    "std_error": np.float64,
    "posterior_gap": np.float64,
    "num_samples": np.int64,
    "reliable": np.bool_,
}
_LOG_LIKELIHOOD = {
    **_ESTIMATE,
    "bits_per_dim": np.float64,
    "elbo": np.float64,
    "effective_sample_size": np.float64,
    "pareto_k": np.float64,
    "proposal": np.str_,
    "reason": np.object_,
}


class Identity(NamedTuple):
    """Which model an answer is of."""

    model: str
    version: int

    @classmethod
    def of(cls, answer: Answer) -> "Identity":
        """From the headers, which answers of all media types have.

        Raises:
            LogpxError: they are missing.
        """
        try:
            return cls(answer.headers["x-model"], int(answer.headers["x-model-version"]))
        except KeyError as error:
            raise LogpxError(f"the answer has no header {error}: logpx did not send it, or is too old") from None


def latents(answer: Answer) -> Latents:
    """q(z|x), from an npy file [B, 2, D]."""
    array = _array(answer)
    return Latents(*Identity.of(answer), mean=array[:, 0], log_var=array[:, 1])


def images(answer: Answer) -> Images:
    """Images, from an npy file [B, C, H, W]."""
    return Images(*Identity.of(answer), images=_array(answer))


def reconstructions(answer: Answer) -> Reconstructions:
    """Pairs, from an npy file [B, 2, C, H, W]."""
    array = _array(answer)
    return Reconstructions(*Identity.of(answer), prepared=array[:, 0], reconstructions=array[:, 1])


def samples(answer: Answer) -> Samples:
    """Images with their latents, from JSON with numbers."""
    document = _document(answer)
    return Samples(
        *Identity.of(answer),
        images=np.array(document["images"], np.float32),
        latents=np.array(document["latents"], np.float32),
        seed=document["seed"],
        temperature=document["temperature"],
    )


def log_likelihoods(answer: Answer) -> LogLikelihoods:
    """Estimates, from JSON."""
    document = _document(answer)
    return LogLikelihoods(*Identity.of(answer), seed=document["seed"], **_columns(document["results"], _LOG_LIKELIHOOD))


def anomaly_scores(answer: Answer) -> AnomalyScores:
    """Scores, from JSON, with maps as numbers."""
    document = _document(answer)
    rows: Sequence[Mapping[str, Any]] = document["results"]
    methods = rows[0].get("scores") or {}
    maps = [row["explanation"] for row in rows if "explanation" in row]
    return AnomalyScores(
        *Identity.of(answer),
        method=document["method"],
        alpha=document["alpha"],
        fdr=document["fdr"],
        calibration_size=document["calibration_size"],
        scores={
            method: Judgements(**_columns([row["scores"][method] for row in rows], _JUDGEMENT)) for method in methods
        },
        explanation=tuple(None if each is None else np.array(each, np.float64) for each in maps),
        **_columns(rows, _JUDGEMENT | _ESTIMATE),
    )


def models(answer: Answer) -> list[ModelSummary]:
    """The models of the service."""
    known = ModelSummary.__dataclass_fields__
    return [ModelSummary(**{name: each.get(name) for name in known}) for each in _document(answer)["models"]]


def _columns(rows: Sequence[Mapping[str, Any]], types: Mapping[str, Any]) -> dict[str, Any]:
    """An array [B] of each name; null is NaN in a column of numbers."""
    return {name: np.array([row[name] for row in rows], dtype) for name, dtype in types.items()}


def _array(answer: Answer) -> AnyArray:
    """The array of an npy file.

    Raises:
        LogpxError: it is none.
    """
    try:
        array: AnyArray = np.lib.format.read_array(io.BytesIO(answer.body), allow_pickle=False)
    except ValueError as error:
        raise LogpxError(f"the answer is no npy file: {error}") from error
    return array


def _document(answer: Answer) -> Any:
    """The JSON document.

    Raises:
        LogpxError: it is none.
    """
    try:
        return json.loads(answer.body)
    except ValueError as error:
        raise LogpxError(f"the answer is not JSON: {error}") from error
