"""The likelihoods p(x|z): one class each. A new one is a spec in model_store/manifest.py, a file here, a case below."""

from model_store import BernoulliSpec, DiscretisedLogisticSpec, GaussianSpec, LikelihoodSpec
from service.engine.likelihood.base import Curvature, Likelihood, Parameters
from service.engine.likelihood.bernoulli import Bernoulli
from service.engine.likelihood.discretised_logistic import DiscretisedLogistic
from service.engine.likelihood.gaussian import Gaussian, GaussianWithScale

__all__ = [
    "Bernoulli",
    "Curvature",
    "DiscretisedLogistic",
    "Gaussian",
    "GaussianWithScale",
    "Likelihood",
    "Parameters",
    "likelihood_of",
]


def likelihood_of(spec: LikelihoodSpec) -> Likelihood:
    """The class that a manifest's likelihood names.

    >>> likelihood_of(GaussianSpec(scale=0.1)).outputs
    ('loc',)
    """
    match spec:
        case BernoulliSpec():
            return Bernoulli()
        case GaussianSpec(scale=None):
            return GaussianWithScale()
        case GaussianSpec(scale=float(scale)):
            return Gaussian(scale)
        case DiscretisedLogisticSpec(levels=levels):
            return DiscretisedLogistic(levels)
    raise TypeError(f"no class for {spec!r}")
