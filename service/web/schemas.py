"""Query parameters, and the JSON answers as `/docs` shows them."""

import secrets
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, PositiveFloat, WithJsonSchema

from model_store import Manifest, Space
from service.engine.anomaly.detector import DEFAULT_ALPHA, check_methods
from service.engine.anomaly.scores import ALL_METHODS
from service.engine.proposal import DEFAULT_PROPOSAL, DEFAULT_SEED, Proposal

Count = Annotated[int, Field(ge=1, lt=2**31)]
MAX_SEED = 2**53 - 1  # the largest whole number that every JSON reader keeps


def new_seed() -> int:
    """The seed of samples for a request that names none."""
    return secrets.randbelow(MAX_SEED + 1)


class ModelQuery(BaseModel):
    """Strict: a parameter that does not exist is refused, so that a typing error is not silently ignored."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="model name; default: the configured or only one")
    version: Count | None = Field(None, description="model version; default: the latest")


class VersionQuery(BaseModel):
    """Parameters of `GET /v1/models/{name}`."""

    model_config = ConfigDict(extra="forbid")

    version: Count | None = Field(None, description="default: the latest")


class NoQuery(BaseModel):
    """A route without parameters."""

    model_config = ConfigDict(extra="forbid")


class ImagesQuery(ModelQuery):
    """Parameters of every route that takes images."""

    resize: bool = Field(
        False, description="for models that take one size only: resample other images instead of refusing them"
    )


class LogLikelihoodQuery(ImagesQuery):
    """Parameters of `POST /v1/log-likelihood`."""

    proposal: Proposal = Field(
        DEFAULT_PROPOSAL,
        description="how to estimate: importance samples from the prior, the encoder or the Laplace approximation of "
        "the image's posterior; annealed from that; or auto: laplace, and annealed where that is not reliable",
    )
    num_samples: Count | None = Field(
        None, description="samples per image to begin with; annealing begins with at least 400. Default: a setting"
    )
    seed: int = Field(DEFAULT_SEED, ge=0, le=MAX_SEED, description="seed of the noise that all images share")
    max_std_error: PositiveFloat | None = Field(
        None,
        description="keep sampling, image by image, until the estimate is reliable with at most this standard error, "
        "in nats",
    )


def split_methods(text: str) -> tuple[str, ...]:
    """The methods that a text names; raises UnknownMethodError."""
    methods = tuple(text.split(","))
    check_methods(methods)
    return methods


_ANY_METHOD = f"({'|'.join(ALL_METHODS)})"
_METHODS_DESCRIBED = (
    f"which score, or several, separated by commas: {', '.join(ALL_METHODS)} (docs/anomaly-scores.md); "
    "default: combined, or log_likelihood where the model's calibration is older than the others"
)
Methods = Annotated[
    tuple[str, ...],
    PlainValidator(split_methods),
    WithJsonSchema(
        {"type": "string", "pattern": f"^{_ANY_METHOD}(,{_ANY_METHOD})*$", "description": _METHODS_DESCRIBED}
    ),
]
Share = Annotated[float, Field(gt=0, lt=1)]


class AnomalyQuery(ImagesQuery):
    """Parameters of `POST /v1/anomaly-scores`."""

    refused: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("proposal", "num_samples", "seed"),
        "is fixed by the model's calibration, without which a p-value means nothing; for another, make another "
        "calibration: python -m service calibrate",
    )
    exclusive: ClassVar[Mapping[tuple[str, ...], str]] = {
        ("alpha", "fdr"): "alpha and fdr decide in different ways: give one of them"
    }

    method: Methods = Field((), description=_METHODS_DESCRIBED)
    alpha: Share | None = Field(
        None, description=f"an image is an anomaly if its p-value is at most this; default: {DEFAULT_ALPHA}"
    )
    fdr: Share | None = Field(
        None,
        description="instead of alpha: decide over all images of the request, so that of those called anomalies "
        "at most this share is expected to be none (Benjamini-Hochberg)",
    )
    explain: bool = Field(False, description="add a map of the surprising pixels to each image")
    as_: Literal["png", "array"] = Field(
        "png",
        alias="as",
        description="the map: base64 PNG, the most surprising pixel white, or numbers [C][H][W], nats",
    )

    @property
    def decided_alpha(self) -> float | None:
        """What decides, unless `fdr` does."""
        return (self.alpha or DEFAULT_ALPHA) if self.fdr is None else None


class ImagesOutQuery(ModelQuery):
    """Parameters of every route that answers with images."""

    as_: Literal["png", "array"] = Field(
        "png",
        alias="as",
        description="images in JSON: base64 PNGs, or nested numbers [B][C][H][W]; of a model of features always these",
    )


class SamplesQuery(ImagesOutQuery):
    """Parameters of `GET /v1/samples`."""

    n: Count = Field(16, description="how many images")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="default: a new one, returned in the answer")
    temperature: float = Field(1.0, ge=0, le=100, description="standard deviation of z; below 1, more typical images")


class Answer(BaseModel):
    """Every answer of a model says which it is."""

    model: str
    version: int


class Latents(Answer):
    """Answer of `POST /v1/encode`: q(z|x) = N(mean, diag exp(log_var))."""

    mean: list[list[float]]
    log_var: list[list[float]]


class Images(Answer):
    """Answer of `POST /v1/decode`."""

    images: list[str] | list[list[list[list[float]]]]


class ReconstructQuery(ImagesQuery, ImagesOutQuery):
    """Parameters of `POST /v1/reconstruct`."""


class Reconstructed(Answer):
    """Answer of `POST /v1/reconstruct`."""

    prepared: list[str] | list[list[list[list[float]]]] = Field(description="each image as the model sees it")
    reconstructions: list[str] | list[list[list[list[float]]]] = Field(description="E[x|z] at the encoder's mean")


class Samples(Images):
    """Answer of `GET /v1/samples`."""

    seed: int
    temperature: float
    latents: list[list[float]]


Reason = Literal["mode", "tail", "groups", "budget"]


class LogLikelihoodResult(BaseModel):
    """One image's estimate (docs/log-likelihood.md); nats where there is a unit, null where a value is not finite."""

    log_likelihood: float | None
    bits_per_dim: float | None
    std_error: float | None
    elbo: float | None
    posterior_gap: float | None
    effective_sample_size: float | None = Field(description="of the importance weights; null if annealed")
    pareto_k: float | None = Field(description="tail shape of the importance weights; null if annealed")
    num_samples: int = Field(description="of this image: importance samples, or particles and their moves")
    proposal: str = Field(description="the proposal that was used: never auto")
    reliable: bool = Field(description="whether estimate and standard error can be trusted")
    reason: Reason | None = Field(
        description="why it is not reliable: no mode of the posterior was found (mode), the tail of the importance "
        "weights is too heavy (tail), groups of particles disagree (groups), too few samples (budget); null if it is"
    )


class LogLikelihoods(Answer):
    """Answer of `POST /v1/log-likelihood`."""

    proposal: str
    seed: int
    results: list[LogLikelihoodResult]


class Judgement(BaseModel):
    """One image by one method; null where a value is not finite."""

    score: float | None = Field(description="higher for stranger")
    p_value: float
    is_anomaly: bool


class AnomalyResult(Judgement):
    """One image's score, and the quick estimate of log P(x) from which it is made."""

    log_likelihood: float | None = Field(description="of few samples; for the number itself ask /v1/log-likelihood")
    std_error: float | None = Field(description="of log_likelihood, nats")
    posterior_gap: float | None
    num_samples: int = Field(description="that the estimate took")
    reliable: bool = Field(description="whether log_likelihood and std_error can be trusted; p_value does not need it")
    scores: dict[str, Judgement] | None = Field(None, description="by method, if several are requested")
    explanation: str | list[list[list[float]]] | None = Field(
        None, description="with `explain`; null where log P(x) is not finite"
    )


class Anomalies(Answer):
    """Answer of `POST /v1/anomaly-scores`."""

    method: str
    alpha: float | None = Field(description="null if `fdr` decides")
    fdr: float | None
    calibration_size: int = Field(description="how many images scores are compared with; no p-value is below 1/(n + 1)")
    results: list[AnomalyResult]


class RefusedVersion(BaseModel):
    """A version in the store that did not pass its checks, and the file that failed."""

    version: int | None = Field(description="null: the model's folder cannot be listed, so its versions are not known")
    reason: str


class ModelSummary(BaseModel):
    """One model: which versions are in the store and which are served, and one of them in full."""

    name: str
    default: bool = Field(description="whether this is the model of requests that name none")
    default_version: int | None = Field(
        description="the version of requests that name none; null: no version passes its checks"
    )
    versions: list[int] = Field(description="in the store now; those not in memory are loaded when first requested")
    loaded_versions: list[int] = Field(description="in memory now, verified and warm")
    refused: list[RefusedVersion]
    space: Space | None = Field(
        description="what log P(x) and the codes are of: pixels, or features computed of them; null: not known"
    )
    manifest: Manifest | None = Field(description="of the requested version, by default of the default version")
    execution_provider: str | None = Field(description="what really runs this version")


class Models(BaseModel):
    """Answer of `GET /v1/models`."""

    models: list[ModelSummary]


class ParameterProblem(BaseModel):
    """A query parameter, and what is wrong with it."""

    parameter: str
    problem: str


class Problem(BaseModel):
    """RFC 9457 problem document."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    index: int | None = Field(None, description="the offending image, counted from 0")
    errors: list[ParameterProblem] | None = Field(None, description="the offending parameters")
