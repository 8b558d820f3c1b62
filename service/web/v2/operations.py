"""The operations of `/v2`: the same work as `/v1`, with tensors for its result."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import PlainValidator

from model_store import ModelNotFoundError
from service.engine.anomaly.detector import AnomalyScores
from service.engine.posterior.estimate import LogLikelihood
from service.engine.proposal import DiagonalGaussian
from service.images.arrays import AnyArray
from service.web import routes, schemas
from service.web.endpoint import Work
from service.web.v2.requests import InferCount, InferImages, InferLatents, InferRequest

Axes = Literal["images", "decoded", "latents", "rows", "one"]
Answer = tuple[Mapping[str, AnyArray], Mapping[str, Any]]
"""The outputs by name, and the answer's parameters."""


@dataclass(frozen=True)
class Operation:
    """One operation of every model.

    Attributes:
        name: the part of its models' names after the last dot.
        says: what it does, in a sentence.
        request: what it takes.
        query: its parameters.
        work: the function of `/v1` that says what is to be computed.
        outputs: the type and the axes of each output.
        answer: makes the outputs from the result and the query.
        fixed: parameters that are always the same.
    """

    name: str
    says: str
    request: type[InferRequest]
    query: type[schemas.ModelQuery]
    work: Callable[[Any, Any], Work[Any]]
    outputs: Mapping[str, tuple[str, Axes]]
    answer: Callable[[Any, Any], Answer]
    fixed: Mapping[str, str] = field(default_factory=dict)


def _code(code: DiagonalGaussian, _: schemas.ImagesQuery) -> Answer:
    return {"mean": code.mean, "log_var": code.log_var}, {}


def _drawn(drawn: Any, query: schemas.SamplesQuery) -> Answer:
    outputs = {"images": drawn.images, "latents": drawn.latents}
    return outputs, {"seed": query.seed, "temperature": query.temperature}


def _estimates(estimate: LogLikelihood, query: schemas.LogLikelihoodQuery) -> Answer:
    return vars(estimate), {"proposal": query.proposal, "seed": query.seed}


def _judgements(scores: AnomalyScores, query: schemas.AnomalyQuery) -> Answer:
    ((method, judgement),) = scores.by_method.items()
    decided = {"alpha": query.decided_alpha} if query.fdr is None else {"fdr": query.fdr}
    parameters = {"method": method, **decided, "calibration_size": scores.calibration_size}
    return {**vars(scores), **vars(judgement)}, parameters


def _one_method(text: str) -> tuple[str, ...]:
    if "," in text:
        raise ValueError("must be one method: the outputs are those of one; /v1/anomaly-scores answers with several")
    return schemas.split_methods(text)


_OneMethod = Annotated[tuple[str, ...], PlainValidator(_one_method)]


class OneMethodQuery(schemas.AnomalyQuery):
    """Parameters of `M.anomaly-scores`: the outputs are those of one method."""

    method: _OneMethod = ()


_FLOATS = ("log_likelihood", "bits_per_dim", "std_error", "elbo", "posterior_gap", "effective_sample_size", "pareto_k")
OPERATIONS = (
    Operation(
        "encode",
        "The latent code of each image: q(z|x) = N(mean, diag exp(log_var)).",
        InferImages,
        schemas.ImagesQuery,
        routes.encode,
        {"mean": ("FP32", "latents"), "log_var": ("FP32", "latents")},
        _code,
    ),
    Operation(
        "decode",
        "What the model imagines at each latent: E[x|z], as pixels.",
        InferLatents,
        schemas.ImagesOutQuery,
        routes.decode,
        {"images": ("FP32", "decoded")},
        lambda images, _: ({"images": images}, {}),
        {"as": "array"},
    ),
    Operation(
        "samples",
        "Images drawn from the prior: z ~ N(0, temperature²·I), then E[x|z]. The answer's parameter `seed` tells the "
        "seed.",
        InferCount,
        schemas.SamplesQuery,
        routes.samples,
        {"images": ("FP32", "decoded"), "latents": ("FP32", "latents")},
        _drawn,
        {"as": "array"},
    ),
    Operation(
        "log-likelihood",
        "log P(x) of each image in nats, with its standard error, and whether that can be trusted.",
        InferImages,
        schemas.LogLikelihoodQuery,
        routes.log_likelihood,
        {
            **dict.fromkeys(_FLOATS, ("FP64", "rows")),
            "num_samples": ("INT32", "rows"),
            "reliable": ("BOOL", "rows"),
        },
        _estimates,
    ),
    Operation(
        "anomaly-scores",
        "How strange each image is (higher is stranger), with a conformal p-value against held-out training images.",
        InferImages,
        OneMethodQuery,
        routes.anomaly_scores,
        {
            **dict.fromkeys(("score", "p_value", "log_likelihood", "posterior_gap"), ("FP64", "rows")),
            "is_anomaly": ("BOOL", "rows"),
        },
        _judgements,
    ),
)
_BY_NAME = {operation.name: operation for operation in OPERATIONS}


def split_name(name: str) -> tuple[str, Operation]:
    """The model and the operation of a `/v2` model, which are divided by the last dot.

    >>> model, operation = split_name("my.digits.encode")
    >>> model, operation.name
    ('my.digits', 'encode')

    Raises:
        ModelNotFoundError: there is no such operation.
    """
    model, _, found = name.rpartition(".")
    if not model or found not in _BY_NAME:
        raise ModelNotFoundError(
            f"/v2 has models MODEL.OPERATION, of the operations {', '.join(_BY_NAME)}; found {name!r}"
        )
    return model, _BY_NAME[found]
