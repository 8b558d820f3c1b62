"""The likelihoods p(x|z): one class each. A new likelihood is a spec in model_store/manifest.py and a class here.

A class states the same density twice: `log_prob` in NumPy (float64, the reference) and `fragment` as ONNX nodes (what
serves); tests hold the two against each other.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from model_store import BernoulliSpec, GaussianSpec, LikelihoodSpec
from service.engine.builder import GraphBuilder

Parameters = Mapping[str, NDArray[Any]]
"""The decoder's outputs by name, each [..., C, H, W]."""


class Likelihood(ABC):
    """A density over images x [..., C, H, W], whose pixels are independent given the decoder's outputs."""

    outputs: ClassVar[tuple[str, ...]]
    """Names of the decoder's outputs, in order."""

    @abstractmethod
    def log_prob(self, x: NDArray[Any], parameters: Parameters) -> NDArray[np.float64]:
        """log p(x|z) in nats, summed over C, H, W: [..., C, H, W] → [...]."""

    @abstractmethod
    def mean(self, parameters: Parameters) -> NDArray[Any]:
        """E[x|z], [..., C, H, W], in x's unit."""

    @abstractmethod
    def fragment(self, builder: GraphBuilder, x: str, parameters: Mapping[str, str], num_pixels: int) -> str:
        """Append nodes that compute log p(x|z) and return the name of their result.

        `x` names a tensor [B, 1, P] and each parameter one [B, K, P], P = C·H·W; the result is [B, K], in nats.
        """


class Bernoulli(Likelihood):
    """log p(x|z) = Σ x·l − log(1 + exp(l)), with l the `logits` and x in {0, 1}.

    >>> Bernoulli().log_prob(np.ones((1, 1, 2)), {"logits": np.zeros((1, 1, 2))}) / np.log(2)
    np.float64(-2.0)
    """

    outputs = ("logits",)

    def log_prob(self, x: NDArray[Any], parameters: Parameters) -> NDArray[np.float64]:
        """Σ x·l − log(1 + exp(l))."""
        logits = np.asarray(parameters["logits"], np.float64)
        return _sum_pixels(x * logits - np.logaddexp(0, logits))

    def mean(self, parameters: Parameters) -> NDArray[Any]:
        """sigmoid(l), written so that no exponential overflows."""
        logits = parameters["logits"]
        return 0.5 + 0.5 * np.tanh(0.5 * logits)

    def fragment(self, builder: GraphBuilder, x: str, parameters: Mapping[str, str], num_pixels: int) -> str:
        """Σ log(1 + exp(l)) = Σ max(l, 0) + log Π (1 + exp(−|l|)).

        Factors lie in (1, 2], so a product of up to 64 stays below 2^64 in float32: one logarithm for 64 pixels.
        """
        logits = parameters["logits"]
        group = max(size for size in range(1, 65) if num_pixels % size == 0)
        columns = builder.add("Reshape", x, builder.constant(np.array([0, num_pixels, 1], np.int64)))  # [B, P, 1]
        fit = builder.add("MatMul", logits, columns)  # [B, K, 1]
        fit = builder.add("Squeeze", fit, builder.constant(np.array([-1], np.int64)))  # [B, K]
        positive = builder.sum_last(builder.add("Relu", logits))  # [B, K]
        decay = builder.add("Exp", builder.add("Neg", builder.add("Abs", logits)))  # [B, K, P]
        factors = builder.add("Add", decay, builder.constant(np.float32(1)))
        groups = builder.constant(np.array([0, 0, num_pixels // group, group], np.int64))
        grouped = builder.add("Reshape", factors, groups)  # [B, K, P/group, group]
        product = builder.add("ReduceProd", grouped, builder.constant(np.array([-1], np.int64)), keepdims=0)
        remainder = builder.sum_last(builder.add("Log", product))  # [B, K]
        return builder.add("Sub", fit, builder.add("Add", positive, remainder))


class Gaussian(Likelihood):
    """log p(x|z) = −Σ (x − loc)² / (2·scale²) − P·log(scale·√(2π)), with a fixed `scale` in x's unit.

    >>> log_prob = Gaussian(scale=2.0).log_prob(np.zeros((1, 1, 3)), {"loc": np.zeros((1, 1, 3))})
    >>> bool(np.isclose(log_prob, -3 * np.log(2 * np.sqrt(2 * np.pi))))
    True
    """

    outputs = ("loc",)

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def log_prob(self, x: NDArray[Any], parameters: Parameters) -> NDArray[np.float64]:
        """−Σ (x − loc)² / (2·scale²) − P·log(scale·√(2π))."""
        standardised = (x - np.asarray(parameters["loc"], np.float64)) / self.scale
        return _sum_pixels(-0.5 * standardised**2 - self._log_normaliser)

    def mean(self, parameters: Parameters) -> NDArray[Any]:
        """The decoder's `loc`."""
        return parameters["loc"]

    def fragment(self, builder: GraphBuilder, x: str, parameters: Mapping[str, str], num_pixels: int) -> str:
        """The same, with the normaliser as one constant."""
        difference = builder.add("Sub", parameters["loc"], x)  # [B, K, P]
        standardised = builder.add("Mul", difference, builder.constant(np.float32(math.sqrt(0.5) / self.scale)))
        squares = builder.sum_last(builder.add("Mul", standardised, standardised))  # [B, K]
        normaliser = builder.constant(np.float32(-num_pixels * self._log_normaliser))
        return builder.add("Sub", normaliser, squares)

    @property
    def _log_normaliser(self) -> float:
        return math.log(self.scale) + 0.5 * math.log(2 * math.pi)


def likelihood_of(spec: LikelihoodSpec) -> Likelihood:
    """The class that a manifest's likelihood names.

    >>> likelihood_of(GaussianSpec(scale=0.1)).outputs
    ('loc',)
    """
    match spec:
        case BernoulliSpec():
            return Bernoulli()
        case GaussianSpec(scale=scale):
            return Gaussian(scale)


def _sum_pixels(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(values.sum(axis=(-3, -2, -1), dtype=np.float64))
