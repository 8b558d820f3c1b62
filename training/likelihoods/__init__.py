"""The likelihoods p(x|z), one class each. A new one is a file here and its class in the list below; see base.py."""

from collections.abc import Mapping
from typing import Any

from model_store import LikelihoodSpec
from training.errors import LikelihoodError
from training.likelihoods.base import ImageShape, Likelihood
from training.likelihoods.bernoulli import Bernoulli
from training.likelihoods.discretised_logistic import DiscretisedLogistic
from training.likelihoods.discretised_logistic_interlaced import DiscretisedLogisticInterlaced
from training.likelihoods.discretised_logistic_mixture import DiscretisedLogisticMixture
from training.likelihoods.discretised_logistic_neighbours import DiscretisedLogisticNeighbours
from training.likelihoods.gaussian import Gaussian, GaussianWithScale

__all__ = [
    "BLACK_AND_WHITE",
    "FROM_OTHER_PIXELS",
    "GREY",
    "LIKELIHOODS",
    "PHOTOGRAPHS",
    "Bernoulli",
    "DiscretisedLogistic",
    "DiscretisedLogisticInterlaced",
    "DiscretisedLogisticMixture",
    "DiscretisedLogisticNeighbours",
    "Gaussian",
    "GaussianWithScale",
    "Likelihood",
    "build_likelihood",
    "likelihood_of",
    "spec_of",
]

_CLASSES: tuple[type[Likelihood], ...] = (
    Bernoulli,
    DiscretisedLogistic,
    DiscretisedLogisticMixture,
    DiscretisedLogisticNeighbours,
    DiscretisedLogisticInterlaced,
    Gaussian,
)
LIKELIHOODS: Mapping[str, type[Likelihood]] = {kind.name: kind for kind in _CLASSES}
"""By the name that configurations and manifests use."""
BLACK_AND_WHITE, GREY = Bernoulli.name, DiscretisedLogistic.name
"""What images get by default: those that are nearly black and white, or not 8-bit, and 8-bit ones that are grey."""
PHOTOGRAPHS = DiscretisedLogisticNeighbours.name
"""And those of the latter that are large."""
FROM_OTHER_PIXELS = (PHOTOGRAPHS, DiscretisedLogisticInterlaced.name)
"""They predict a pixel from others of the image, so that z says less."""


def build_likelihood(name: str, image_shape: ImageShape, **options: Any) -> Likelihood:
    """The likelihood of this name, for images of C, H, W.

    >>> list(build_likelihood("gaussian", (1, 2, 3), scale=0.1).outputs)
    ['loc']
    """
    return LIKELIHOODS[name].build(image_shape, **options)


def spec_of(likelihood: Likelihood) -> LikelihoodSpec:
    """What the manifest says of it.

    >>> spec_of(build_likelihood("discretised_logistic", (1, 2, 3))).levels
    256
    """
    return LikelihoodSpec(kind=likelihood.name, levels=likelihood.levels, options=dict(likelihood.options))


def likelihood_of(spec: LikelihoodSpec, image_shape: ImageShape) -> Likelihood:
    """The likelihood that a manifest names.

    Raises:
        LikelihoodError: no class here has that name, or none of that name has these levels and options; or it has
            weights of its own.

    >>> likelihood_of(LikelihoodSpec(kind="gaussian", options={"scale": 0.1}), (1, 2, 3)).scale
    0.1
    >>> likelihood_of(LikelihoodSpec(kind="poisson"), (1, 2, 3))
    Traceback (most recent call last):
    training.errors.LikelihoodError: there is no likelihood poisson; known are bernoulli, discretised_logistic, ...
    """
    if spec.kind not in LIKELIHOODS:
        raise LikelihoodError(f"there is no likelihood {spec.kind}; known are {', '.join(LIKELIHOODS)}")
    levels = {} if spec.levels is None else {"levels": spec.levels}
    try:
        likelihood = build_likelihood(spec.kind, image_shape, **spec.options, **levels)
    except (TypeError, ValueError) as error:
        raise LikelihoodError(f"the likelihood {spec.kind} cannot be {_in_words(spec)}") from error
    if spec_of(likelihood) != spec:
        raise LikelihoodError(f"the likelihood {spec.kind} cannot be {_in_words(spec)}")
    if likelihood.network is not None:
        raise LikelihoodError(f"the likelihood {spec.kind} has weights of its own, which no manifest holds")
    return likelihood


def _in_words(spec: LikelihoodSpec) -> str:
    said = spec.options | {"levels": spec.levels}
    return "made with " + ", ".join(f"{name} {value}" for name, value in said.items())
