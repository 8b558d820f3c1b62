"""Real-valued pixels, with one fixed scale or a scale a pixel."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from training.likelihoods.base import ImageShape, IndependentPixels, Likelihood, Option
from training.likelihoods.location_scale import LOC_UNIT, LocationScale
from training.likelihoods.reductions import sum_pixels

HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)
FLOOR = -math.log(255)
"""Of log_scale: one grey level. Without a floor, pixels that never change would have densities without limit."""
_SMALLEST_UNIFORM = 2.0**-30


class Gaussian(IndependentPixels):
    """log p(x|z) = -Σ (x - loc)² / (2·scale²) - P·log(scale·√(2π)), with one fixed scale.

    Args:
        image_shape: C, H, W.
        scale: in x's unit.

    >>> log_prob = Gaussian((1, 1, 3), 2.0).log_prob(torch.zeros(1, 1, 3), torch.zeros(1, 1, 3))
    >>> torch.isclose(log_prob, torch.tensor(-3 * math.log(2 * math.sqrt(2 * math.pi))))
    tensor([[True]])
    """

    name = "gaussian"
    pixel = "real values"
    configured: ClassVar[Mapping[str, Option]] = {"gaussian_scale": Option("scale", "learned, one for each pixel")}

    def __init__(self, image_shape: ImageShape, scale: float) -> None:
        super().__init__(image_shape)
        self.scale = scale
        self.log_normaliser = math.log(scale) + HALF_LOG_2_PI

    @classmethod
    def build(cls, image_shape: ImageShape, **arguments: Any) -> Likelihood:
        """With a scale that the decoder gives, where none is given here."""
        return cls(image_shape, **arguments) if arguments else GaussianWithScale(image_shape)

    @property
    def options(self) -> Mapping[str, int | float]:
        """The scale."""
        return {"scale": self.scale}

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]:
        """The location."""
        return {"loc": self.image_shape}

    @property
    def num_uniforms(self) -> int:
        """Two a pixel and channel."""
        return 2 * self.num_pixels

    def initial_bias(self, pixel_mean: Tensor, pixel_spread: Tensor) -> Tensor:
        """The mean."""
        return (pixel_mean / LOC_UNIT).unsqueeze(0)

    def parameters(self, raw: Tensor) -> tuple[Tensor, ...]:
        """The location."""
        return (LOC_UNIT * raw[:, 0],)

    def log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """As above; scale and normaliser are applied to the sum."""
        difference = parameters[0] - x
        return -sum_pixels(difference * difference) * (0.5 / self.scale**2) - self.num_pixels * self.log_normaliser

    def pixel_log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """-(x - loc)² / (2·scale²) - log(scale·√(2π))."""
        standardised = (x - parameters[0]) / self.scale
        return -0.5 * standardised * standardised - self.log_normaliser

    def entropy(self, *parameters: Tensor) -> Tensor:
        """log(scale·√(2πe)), which is negative where the scale is small."""
        return 0 * parameters[0] + (self.log_normaliser + 0.5)

    def mean(self, *parameters: Tensor) -> Tensor:
        """The location."""
        return parameters[0]

    def sample(self, uniform: Tensor, *parameters: Tensor) -> Tensor:
        """loc + scale·N(0, 1)."""
        return parameters[0] + self.scale * standard_normal(uniform, self.num_pixels)

    def derivatives(self, x: Tensor, *parameters: Tensor) -> tuple[Sequence[Tensor], Mapping[tuple[int, int], Tensor]]:
        """Score (x - loc)/scale² and information 1/scale²."""
        precision = 1 / self.scale**2
        difference = x - parameters[0]
        return [difference * precision], {(0, 0): 0 * difference + precision}


class GaussianWithScale(LocationScale):
    """log p(x|z) = -Σ ½·((x - loc)·exp(-log_scale))² + log_scale + ½·log(2π): the decoder gives the scale as well.

    >>> x, parameters = torch.ones(1, 1, 3), (torch.zeros(1, 1, 3), torch.full((1, 1, 3), math.log(2)))
    >>> torch.isclose(
    ...     GaussianWithScale((1, 1, 3)).log_prob(x, *parameters), Gaussian((1, 1, 3), 2.0).log_prob(x, parameters[0])
    ... )
    tensor([[True]])
    """

    name = "gaussian"
    pixel = Gaussian.pixel
    floor = FLOOR
    scale_of_spread = 1.0

    @property
    def num_uniforms(self) -> int:
        """Two a pixel and channel."""
        return 2 * self.num_pixels

    def log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """As above, with ½·log(2π) once for all pixels."""
        loc, log_scale = parameters
        standardised = (x - loc) * torch.exp(-log_scale)
        return -sum_pixels(0.5 * (standardised * standardised) + log_scale) - self.num_pixels * HALF_LOG_2_PI

    def pixel_log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """-½·((x - loc)·exp(-log_scale))² - log_scale - ½·log(2π)."""
        loc, log_scale = parameters
        standardised = (x - loc) * torch.exp(-log_scale)
        return -0.5 * standardised * standardised - log_scale - HALF_LOG_2_PI

    def entropy(self, *parameters: Tensor) -> Tensor:
        """log_scale + ½·log(2πe)."""
        return parameters[1] + (0.5 + HALF_LOG_2_PI)

    def sample(self, uniform: Tensor, *parameters: Tensor) -> Tensor:
        """loc + exp(log_scale)·N(0, 1)."""
        loc, log_scale = parameters
        return loc + torch.exp(log_scale) * standard_normal(uniform, self.num_pixels)

    def derivatives(self, x: Tensor, *parameters: Tensor) -> tuple[Sequence[Tensor], Mapping[tuple[int, int], Tensor]]:
        """With u = (x - loc)/scale: scores u/scale and u² - 1, information 1/scale² and 2·u², of both 2·u/scale."""
        loc, log_scale = parameters
        inverse = torch.exp(-log_scale)
        standardised = (x - loc) * inverse
        square, score = standardised * standardised, standardised * inverse
        return [score, square - 1], {(0, 0): inverse * inverse, (0, 1): score * 2, (1, 1): square * 2}


def standard_normal(uniform: Tensor, count: int) -> Tensor:
    """Standard normal numbers [..., count] of twice as many uniform ones in [0, 1) (Box and Muller 1958)."""
    first, second = uniform[..., :count], uniform[..., count:]
    radius = torch.sqrt(-2 * torch.log(1 - first + _SMALLEST_UNIFORM))
    return radius * torch.cos(2 * math.pi * second)
