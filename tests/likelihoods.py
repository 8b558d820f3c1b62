"""The densities once more, in NumPy and float64, and the graphs by which a toy brings them.

The reference shares nothing with the classes under training/likelihoods but the formulas.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from model_store import LikelihoodSpec
from service.engine import likelihood_graph as of_likelihood
from service.engine.builder import GraphBuilder
from service.engine.format1 import likelihood_of_format_1
from service.engine.likelihood_graph import LikelihoodGraph

AnyArray = NDArray[Any]
Parameters = Mapping[str, AnyArray]
"""The decoder's outputs by name, each [..., C, H, W]."""
BERNOULLI = LikelihoodSpec(kind="bernoulli")
GAUSSIAN_WITH_SCALE = LikelihoodSpec(kind="gaussian")


def gaussian(scale: float) -> LikelihoodSpec:
    """With one fixed scale."""
    return LikelihoodSpec(kind="gaussian", options={"scale": scale})


def discretised_logistic(levels: int = 256) -> LikelihoodSpec:
    """Over bins of so many levels."""
    return LikelihoodSpec(kind="discretised_logistic", levels=levels)


def graph_of(spec: LikelihoodSpec, num_pixels: int) -> bytes:
    """A likelihood.onnx for a toy, exported before."""
    return likelihood_of_format_1(spec, num_pixels, Path("toy"))


class Reference(ABC):
    """A density over images x [..., C, H, W], whose pixels are independent given the decoder's outputs."""

    outputs: tuple[str, ...]
    levels: int | None = None

    def log_prob(self, x: AnyArray, parameters: Parameters) -> NDArray[np.float64]:
        """log p(x|z) in nats: [..., C, H, W] → [...]."""
        return np.asarray(self.pixel_log_prob(x, parameters).sum(axis=(-3, -2, -1)))

    @abstractmethod
    def pixel_log_prob(self, x: AnyArray, parameters: Parameters) -> NDArray[np.float64]:
        """log p(x_i|z) of each pixel and channel, nats: [..., C, H, W]."""


class Bernoulli(Reference):
    """x·l − log(1 + exp(l))."""

    outputs = ("logits",)

    def pixel_log_prob(self, x: AnyArray, parameters: Parameters) -> NDArray[np.float64]:
        """As above."""
        logits = np.asarray(parameters["logits"], np.float64)
        return np.asarray(x * logits - np.logaddexp(0, logits))


class Gaussian(Reference):
    """−(x − loc)² / (2·scale²) − log(scale·√(2π)), with a fixed scale."""

    outputs = ("loc",)

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def pixel_log_prob(self, x: AnyArray, parameters: Parameters) -> NDArray[np.float64]:
        """As above."""
        standardised = (x - np.asarray(parameters["loc"], np.float64)) / self.scale
        return np.asarray(-0.5 * standardised**2 - math.log(self.scale) - 0.5 * math.log(2 * math.pi))


class GaussianWithScale(Reference):
    """−½·((x − loc)·exp(−log_scale))² − log_scale − ½·log(2π)."""

    outputs = ("loc", "log_scale")

    def pixel_log_prob(self, x: AnyArray, parameters: Parameters) -> NDArray[np.float64]:
        """As above."""
        log_scale = np.asarray(parameters["log_scale"], np.float64)
        standardised = (x - np.asarray(parameters["loc"], np.float64)) * np.exp(-log_scale)
        return np.asarray(-0.5 * standardised**2 - log_scale - 0.5 * math.log(2 * math.pi))


class DiscretisedLogistic(Reference):
    """log sigmoid(a) + log sigmoid(−b) + log(1 − exp(−2δ/s)), with a, b = (x ± δ − loc)/s; edges reach to infinity."""

    outputs = ("loc", "log_scale")

    def __init__(self, levels: int = 256) -> None:
        self.levels: int = levels
        self._half_step = 0.5 / (levels - 1)

    def pixel_log_prob(self, x: AnyArray, parameters: Parameters) -> NDArray[np.float64]:
        """As above."""
        loc, log_scale = (np.asarray(parameters[name], np.float64) for name in self.outputs)
        inverse = np.exp(-log_scale)
        above = -np.logaddexp(0, -(x + self._half_step - loc) * inverse)  # log sigmoid(a)
        below = -np.logaddexp(0, (x - self._half_step - loc) * inverse)  # log sigmoid(−b)
        with np.errstate(divide="ignore"):
            width = np.log(-np.expm1(-2 * self._half_step * inverse))
        first, last = x < self._half_step, x > 1 - self._half_step
        inner = ~(first | last)
        return np.asarray(np.where(last, 0, above) + np.where(first, 0, below) + np.where(inner, width, 0))


def reference_of(spec: LikelihoodSpec) -> Reference:
    """The density that a manifest names."""
    match spec.kind, spec.options.get("scale"), spec.levels:
        case "bernoulli", _, _:
            return Bernoulli()
        case "gaussian", float(scale), _:
            return Gaussian(scale)
        case "gaussian", _, _:
            return GaussianWithScale()
        case _, _, int(levels):
            return DiscretisedLogistic(levels)
    raise AssertionError(spec)


def spec_of(likelihood: Reference) -> LikelihoodSpec:
    """What a manifest says of it."""
    match likelihood:
        case Bernoulli():
            return BERNOULLI
        case Gaussian():
            return gaussian(likelihood.scale)
        case DiscretisedLogistic():
            return discretised_logistic(likelihood.levels)
    return GAUSSIAN_WITH_SCALE


def run_likelihood(content: bytes, wanted: Sequence[str], inputs: Mapping[str, AnyArray]) -> list[AnyArray]:
    """Some outputs of a likelihood.onnx alone, from inputs [B, rows, size] by name."""
    num_pixels = inputs["x"].shape[-1]
    likelihood = LikelihoodGraph(content, Path("likelihood.onnx"), num_pixels=num_pixels)
    builder = GraphBuilder()
    results = likelihood.append(builder, wanted, {name: name for name in inputs})
    single = (of_likelihood.MEAN, of_likelihood.SAMPLE, of_likelihood.INFORMATION)
    types = {name: TensorProto.FLOAT if name in single else TensorProto.DOUBLE for name in wanted}
    graph = helper.make_graph(
        builder.nodes,
        "likelihood",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", f"rows of {name}", value.shape[-1]])
            for name, value in inputs.items()
        ],
        [
            helper.make_tensor_value_info(result, types[name], None)
            for name, result in zip(wanted, results, strict=True)
        ],
        initializer=builder.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[AnyArray] = session.run(
        results, {name: np.ascontiguousarray(value, np.float32) for name, value in inputs.items()}
    )
    return found
