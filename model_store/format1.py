"""Format version 1 of the store, whose manifest says with numbers what `likelihood.onnx` says in version 2.

It knew three likelihoods. What it says of one becomes a `LikelihoodSpec`; the engine has the graphs that they were.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from model_store.manifest import LikelihoodSpec, Scale


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Bernoulli(_Record):
    """The decoder's output is `logits`."""

    kind: Literal["bernoulli"]


class _Gaussian(_Record):
    """With `scale` in x's unit the decoder's output is `loc`; with null, `loc` and `log_scale`."""

    kind: Literal["gaussian"]
    scale: Scale | None


class _DiscretisedLogistic(_Record):
    """The decoder's outputs are `loc` and `log_scale`."""

    kind: Literal["discretised_logistic"]
    levels: Annotated[int, Field(ge=2, le=65536)] = 256


_Likelihood = TypeAdapter[_Bernoulli | _Gaussian | _DiscretisedLogistic](
    Annotated[_Bernoulli | _Gaussian | _DiscretisedLogistic, Field(discriminator="kind")]
)


def likelihood_of(said: Any) -> LikelihoodSpec:
    """What a manifest of format version 1 says of its likelihood.

    Raises:
        pydantic.ValidationError: it is not what that format allows.

    >>> likelihood_of({"kind": "gaussian", "scale": 0.1}).options
    {'scale': 0.1}
    """
    match _Likelihood.validate_python(said):
        case _DiscretisedLogistic(levels=levels):
            return LikelihoodSpec(kind="discretised_logistic", levels=levels)
        case _Gaussian(scale=float(scale)):
            return LikelihoodSpec(kind="gaussian", options={"scale": scale})
        case likelihood:
            return LikelihoodSpec(kind=likelihood.kind)
