"""Real-valued pixels, with one fixed scale or a scale a pixel."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.builder import GraphBuilder
from service.engine.likelihood.base import Curvature, Likelihood, Parameters


class Gaussian(Likelihood):
    """log p(x|z) = −Σ (x − loc)² / (2·scale²) − P·log(scale·√(2π)), with a fixed `scale` in x's unit.

    >>> log_prob = Gaussian(scale=2.0).log_prob(np.zeros((1, 1, 3)), {"loc": np.zeros((1, 1, 3))})
    >>> bool(np.isclose(log_prob, -3 * np.log(2 * np.sqrt(2 * np.pi))))
    True
    """

    outputs = ("loc",)

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def pixel_log_prob(self, x: NDArray[Any], parameters: Parameters) -> NDArray[np.float64]:
        """−(x − loc)² / (2·scale²) − log(scale·√(2π))."""
        standardised = (x - np.asarray(parameters["loc"], np.float64)) / self.scale
        return np.asarray(-0.5 * standardised**2 - self._log_normaliser)

    def pixel_entropy(self, parameters: Parameters) -> NDArray[np.float64]:
        """log(scale·√(2πe)), which is negative where the scale is small."""
        return np.full(parameters["loc"].shape, self._log_normaliser + 0.5)

    def mean(self, parameters: Parameters) -> NDArray[Any]:
        """The decoder's `loc`."""
        return parameters["loc"]

    def sample(self, parameters: Parameters, rng: np.random.Generator) -> NDArray[np.float32]:
        """loc + scale·N(0, 1)."""
        loc = parameters["loc"]
        return np.asarray(loc + self.scale * rng.standard_normal(loc.shape), np.float32)

    def fragment(self, builder: GraphBuilder, x: str, parameters: Mapping[str, str], num_pixels: int) -> str:
        """The same, with scale and normaliser applied to the sum, in float64."""
        difference = builder.add("Sub", parameters["loc"], x)  # [B, K, P]
        squares = builder.sum_pixels(builder.add("Mul", difference, difference), num_pixels)  # [B, K]
        cost = builder.add("Mul", squares, builder.constant(np.float64(0.5 / self.scale**2)))
        normaliser = builder.constant(np.float64(-num_pixels * self._log_normaliser))
        return builder.add("Sub", normaliser, cost)

    def curvature(self, builder: GraphBuilder, x: str, parameters: Mapping[str, str]) -> Curvature:
        """Score (x − loc)/scale² and information 1/scale²."""
        precision = builder.constant(np.float32(1 / self.scale**2))
        difference = builder.add("Sub", x, parameters["loc"])  # [B, 1, P]
        score = builder.add("Mul", difference, precision)
        return Curvature({"loc": score}, {("loc", "loc"): builder.fill_like(difference, precision)})

    @property
    def _log_normaliser(self) -> float:
        return math.log(self.scale) + 0.5 * math.log(2 * math.pi)


class GaussianWithScale(Likelihood):
    """log p(x|z) = −Σ ½·((x − loc)·exp(−log_scale))² + log_scale + ½·log(2π): the decoder gives the scale as well.

    >>> parameters = {"loc": np.zeros((1, 1, 3)), "log_scale": np.full((1, 1, 3), np.log(2))}
    >>> x = np.ones((1, 1, 3))
    >>> bool(np.isclose(GaussianWithScale().log_prob(x, parameters), Gaussian(2.0).log_prob(x, parameters)))
    True
    """

    outputs = ("loc", "log_scale")

    def pixel_log_prob(self, x: NDArray[Any], parameters: Parameters) -> NDArray[np.float64]:
        """−½·((x − loc)·exp(−log_scale))² − log_scale − ½·log(2π)."""
        log_scale = np.asarray(parameters["log_scale"], np.float64)
        standardised = (x - np.asarray(parameters["loc"], np.float64)) * np.exp(-log_scale)
        return np.asarray(-0.5 * standardised**2 - log_scale - 0.5 * math.log(2 * math.pi))

    def pixel_entropy(self, parameters: Parameters) -> NDArray[np.float64]:
        """log_scale + ½·log(2πe)."""
        return np.asarray(parameters["log_scale"], np.float64) + 0.5 + 0.5 * math.log(2 * math.pi)

    def mean(self, parameters: Parameters) -> NDArray[Any]:
        """The decoder's `loc`."""
        return parameters["loc"]

    def sample(self, parameters: Parameters, rng: np.random.Generator) -> NDArray[np.float32]:
        """loc + exp(log_scale)·N(0, 1)."""
        loc, log_scale = parameters["loc"], parameters["log_scale"]
        return np.asarray(loc + np.exp(log_scale) * rng.standard_normal(loc.shape), np.float32)

    def fragment(self, builder: GraphBuilder, x: str, parameters: Mapping[str, str], num_pixels: int) -> str:
        """The same, with ½·log(2π) once for all pixels."""
        standardised = _standardise(builder, x, parameters)  # [B, K, P]
        half_square = builder.add(
            "Mul", builder.add("Mul", standardised, standardised), builder.constant(np.float32(0.5))
        )
        cost = builder.sum_pixels(builder.add("Add", half_square, parameters["log_scale"]), num_pixels)  # [B, K]
        normaliser = builder.constant(np.float64(-0.5 * num_pixels * math.log(2 * math.pi)))
        return builder.add("Sub", normaliser, cost)

    def curvature(self, builder: GraphBuilder, x: str, parameters: Mapping[str, str]) -> Curvature:
        """With u = (x − loc)/scale: scores u/scale and u² − 1, information 1/scale² and 2·u², of both 2·u/scale."""
        standardised = _standardise(builder, x, parameters)  # [B, 1, P]
        inverse = builder.add("Exp", builder.add("Neg", parameters["log_scale"]))
        one, two = builder.constant(np.float32(1)), builder.constant(np.float32(2))
        square = builder.add("Mul", standardised, standardised)
        loc_score = builder.add("Mul", standardised, inverse)
        return Curvature(
            {"loc": loc_score, "log_scale": builder.add("Sub", square, one)},
            {
                ("loc", "loc"): builder.add("Mul", inverse, inverse),
                ("loc", "log_scale"): builder.add("Mul", loc_score, two),
                ("log_scale", "log_scale"): builder.add("Mul", square, two),
            },
        )


def _standardise(builder: GraphBuilder, x: str, parameters: Mapping[str, str]) -> str:
    """(x − loc)·exp(−log_scale)."""
    inverse = builder.add("Exp", builder.add("Neg", parameters["log_scale"]))
    return builder.add("Mul", builder.add("Sub", x, parameters["loc"]), inverse)
