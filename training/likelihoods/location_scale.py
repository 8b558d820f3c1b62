"""What likelihoods share whose decoder gives, for each pixel, a location and the logarithm of a scale."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from training.likelihoods.base import IndependentPixels
from training.likelihoods.reductions import is_exporting

LOC_UNIT = 0.1
"""Of raw outputs that become locations: logits span about ten times what pixels in [0, 1] do, and one learning rate
is to serve both."""
LEAST_INITIAL_SPREAD = 2 / 255
"""Two grey levels. A pixel that no training image changes may change in the next one."""
LOG_SCALE_CEILING = 10.0
"""Some twenty thousand times the range of pixels."""


class LocationScale(IndependentPixels):
    """Outputs `loc` and `log_scale`, each one number a pixel and channel."""

    floor: float
    """Of log_scale."""
    scale_of_spread: float
    """The scale of a density whose standard deviation is 1."""

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]:
        """Location, and logarithm of the scale."""
        return {"loc": self.image_shape, "log_scale": self.image_shape}

    def initial_bias(self, pixel_mean: Tensor, pixel_spread: Tensor) -> Tensor:
        """The mean, and the scale of a density with this spread."""
        scale = initial_scale(pixel_spread, self.scale_of_spread, self.floor)
        return torch.stack([pixel_mean / LOC_UNIT, scale])

    def parameters(self, raw: Tensor) -> tuple[Tensor, ...]:
        """Location, and the logarithm of the scale, bounded."""
        return LOC_UNIT * raw[:, 0], bounded_log_scale(raw[:, 1], self.floor)

    def mean(self, *parameters: Tensor) -> Tensor:
        """The location."""
        return parameters[0]


def initial_scale(pixel_spread: Tensor, scale_of_spread: float, floor: float) -> Tensor:
    """The raw output from which `bounded_log_scale` makes the scale of a density with this standard deviation.

    With t the logarithm of that scale, f + log(exp(t - f) - 1). A scale that began wider would take hundreds of steps
    to become narrow, for Adam moves a bias by no more than the learning rate.

    >>> raw = initial_scale(torch.tensor([0.001, 0.2]), 1.0, -5.5)
    >>> bounded_log_scale(raw, -5.5).exp()
    tensor([0.0078, 0.2000])
    """
    scale = scale_of_spread * pixel_spread.clamp(min=LEAST_INITIAL_SPREAD)
    return floor + torch.log(torch.expm1(torch.log(scale) - floor))


def bounded_log_scale(raw: Tensor, floor: float) -> Tensor:
    """The logarithm of a scale bent so that it stays above the floor, f + softplus(r - f).

    In the same way it stays below a ceiling c. Far from all training images a decoder would give scales beyond
    float32, under which no image has any probability. In all,

        log_scale = -log(exp(-c) + exp(-f) / (1 + exp(r - f)))

    and an exported graph computes it so, with the logarithm of float64: see reductions.py. Training keeps the softplus,
    whose gradient cannot overflow.
    """
    height = raw - floor
    if is_exporting():
        inverse_scale = math.exp(-LOG_SCALE_CEILING) + math.exp(-floor) / (1 + torch.exp(height))
        return -torch.log(inverse_scale.double()).float()
    above_floor = floor + F.softplus(height)
    return LOG_SCALE_CEILING - F.softplus(LOG_SCALE_CEILING - above_floor)
