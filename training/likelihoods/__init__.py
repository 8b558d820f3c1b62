"""The likelihoods p(x|z), one class each. A new one is a file here and its name below; see base.py."""

from collections.abc import Callable, Mapping
from typing import Any

from training.likelihoods.base import ImageShape, Likelihood
from training.likelihoods.bernoulli import Bernoulli
from training.likelihoods.discretised_logistic import DiscretisedLogistic
from training.likelihoods.discretised_logistic_mixture import DiscretisedLogisticMixture
from training.likelihoods.gaussian import Gaussian, GaussianWithScale

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "DiscretisedLogistic",
    "DiscretisedLogisticMixture",
    "Gaussian",
    "GaussianWithScale",
    "Likelihood",
    "build_likelihood",
]


def _gaussian(image_shape: ImageShape, *, scale: float | None = None) -> Likelihood:
    return GaussianWithScale(image_shape) if scale is None else Gaussian(image_shape, scale)


LIKELIHOODS: Mapping[str, Callable[..., Likelihood]] = {
    Bernoulli.name: Bernoulli,
    Gaussian.name: _gaussian,
    DiscretisedLogistic.name: DiscretisedLogistic,
    DiscretisedLogisticMixture.name: DiscretisedLogisticMixture,
}
"""By the name that configurations and manifests use: what makes one of an image's shape and the options it has."""


def build_likelihood(name: str, image_shape: ImageShape, **options: Any) -> Likelihood:
    """The likelihood of this name, for images of C, H, W.

    >>> list(build_likelihood("gaussian", (1, 2, 3), scale=0.1).outputs)
    ['loc']
    """
    return LIKELIHOODS[name](image_shape, **options)
