"""Binary pixels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.builder import GraphBuilder
from service.engine.likelihood.base import Curvature, Likelihood, Parameters


class Bernoulli(Likelihood):
    """log p(x|z) = Σ x·l − log(1 + exp(l)), with l the `logits` and x in {0, 1}.

    >>> Bernoulli().log_prob(np.ones((1, 1, 2)), {"logits": np.zeros((1, 1, 2))}) / np.log(2)
    np.float64(-2.0)
    """

    outputs = ("logits",)

    def pixel_log_prob(self, x: NDArray[Any], parameters: Parameters) -> NDArray[np.float64]:
        """x·l − log(1 + exp(l))."""
        logits = np.asarray(parameters["logits"], np.float64)
        return np.asarray(x * logits - np.logaddexp(0, logits))

    def pixel_entropy(self, parameters: Parameters) -> NDArray[np.float64]:
        """log(1 + exp(l)) − p·l, with p = sigmoid(l)."""
        logits = np.abs(np.asarray(parameters["logits"], np.float64))  # the entropy of l and −l is the same
        return np.asarray(np.log1p(np.exp(-logits)) + logits * np.exp(-logits) / (1 + np.exp(-logits)))

    def mean(self, parameters: Parameters) -> NDArray[Any]:
        """sigmoid(l), written so that no exponential overflows."""
        logits = parameters["logits"]
        return 0.5 + 0.5 * np.tanh(0.5 * logits)

    def sample(self, parameters: Parameters, rng: np.random.Generator) -> NDArray[np.float32]:
        """1 with probability sigmoid(l)."""
        mean = self.mean(parameters)
        return (rng.random(mean.shape) < mean).astype(np.float32)

    def fragment(self, builder: GraphBuilder, x: str, parameters: Mapping[str, str], num_pixels: int) -> str:
        """Σ log(1 + exp(l)) = Σ max(l, 0) + log Π (1 + exp(−|l|)).

        Factors lie in (1, 2], so a product of up to 64 stays below 2^64 in float32: one logarithm for 64 pixels.
        """
        logits = parameters["logits"]
        group = builder.group(num_pixels, 64)
        fit = builder.dot_pixels(logits, x, num_pixels)  # [B, K]
        positive = builder.sum_pixels(builder.add("Relu", logits), num_pixels)  # [B, K]
        decay = builder.add("Exp", builder.add("Neg", builder.add("Abs", logits)))  # [B, K, P]
        factors = builder.add("Add", decay, builder.constant(np.float32(1)))
        groups = builder.constant(np.array([0, 0, num_pixels // group, group], np.int64))
        grouped = builder.add("Reshape", factors, groups)  # [B, K, P/group, group]
        product = builder.add("ReduceProd", grouped, builder.constant(np.array([-1], np.int64)), keepdims=0)
        remainder = builder.sum_double(builder.log(product), num_pixels // group)  # [B, K]
        return builder.add("Sub", fit, builder.add("Add", positive, remainder))

    def curvature(self, builder: GraphBuilder, x: str, parameters: Mapping[str, str]) -> Curvature:
        """Score x − p and information p·(1 − p), with p = sigmoid(l)."""
        probability = builder.add("Sigmoid", parameters["logits"])  # [B, 1, P]
        opposite = builder.add("Sub", builder.constant(np.float32(1)), probability)
        score = builder.add("Sub", x, probability)
        information = builder.add("Mul", probability, opposite)
        return Curvature({"logits": score}, {("logits", "logits"): information})
