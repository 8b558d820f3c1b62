"""The likelihoods p(x|z) as training needs them: differentiable densities of the engine's classes, which state them."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from model_store import BernoulliSpec, DiscretisedLogisticSpec, GaussianSpec, LikelihoodSpec
from service.engine.likelihood import likelihood_of
from training.configuration import Configuration
from training.posterior import LOG_2_PI

LOC_UNIT = 0.1
"""Of raw outputs that become locations: logits span about ten times what pixels in [0, 1] do, and one learning rate
is to serve both."""
INITIAL_LOG_SCALE = -1.5
LOGISTIC_FLOOR = -7.0
"""Of log_scale: a fifth of a grey level, of 256, which then has 90 % of the probability."""
GAUSSIAN_FLOOR = -math.log(255)
"""Of log_scale: one grey level. Without a floor, pixels that never change would have densities without limit."""
LOG_SCALE_CEILING = 10.0
"""Some twenty thousand times the range of pixels."""


class Likelihood(ABC):
    """A density over images whose pixels are independent given the decoder's outputs.

    Attributes:
        spec: what the manifest says of it.
        outputs: names of the decoder's outputs, in order; there are M of them.
        levels: how many values a pixel can take, k/(levels - 1); None where it is not bound to levels.
    """

    def __init__(self, spec: LikelihoodSpec) -> None:
        self.spec = spec
        stated = likelihood_of(spec)
        self.outputs, self.levels = stated.outputs, stated.levels

    @abstractmethod
    def initial_bias(self, pixel_mean: Tensor) -> Tensor:
        """What raw outputs are for an average image: [C, H, W] → [M, C, H, W]."""

    @abstractmethod
    def parameters(self, raw: Tensor) -> tuple[Tensor, ...]:
        """A network's raw outputs as the density's parameters: [N, M, C, H, W] → M tensors [N, C, H, W]."""

    @abstractmethod
    def log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """log p(x|z) in nats, [B, K], of pixels x [B, 1, P] under parameters [B, K, P], all float32."""

    @abstractmethod
    def mean(self, *parameters: Tensor) -> Tensor:
        """E[x|z], in the parameters' shape."""


class Bernoulli(Likelihood):
    """log p(x|z) = Σ x·l - log(1 + exp(l)), with l the logits: exact for x in {0, 1}."""

    def __init__(self) -> None:
        super().__init__(BernoulliSpec())

    def initial_bias(self, pixel_mean: Tensor) -> Tensor:
        """The logit of the mean, of at most 1 - 1e-3 and at least 1e-3 (Burda et al. 2015, arXiv 1509.00519)."""
        return torch.logit(pixel_mean, eps=1e-3).unsqueeze(0)

    def parameters(self, raw: Tensor) -> tuple[Tensor, ...]:
        """The logits."""
        return (raw[:, 0],)

    def log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """Σ x·l - log(1 + exp(l))."""
        (logits,) = parameters
        agreement = torch.bmm(logits, x.mT).squeeze(-1)  # [B, K]
        return agreement - F.softplus(logits).sum(-1)

    def mean(self, *parameters: Tensor) -> Tensor:
        """sigmoid(l)."""
        return torch.sigmoid(parameters[0])


class Gaussian(Likelihood):
    """log p(x|z) = -Σ (x - loc)² / (2·scale²) - P·log(scale·√(2π)), with a fixed scale in x's unit."""

    def __init__(self, scale: float) -> None:
        super().__init__(GaussianSpec(scale=scale))
        self.scale = scale

    def initial_bias(self, pixel_mean: Tensor) -> Tensor:
        """The mean."""
        return (pixel_mean / LOC_UNIT).unsqueeze(0)

    def parameters(self, raw: Tensor) -> tuple[Tensor, ...]:
        """The location."""
        return (LOC_UNIT * raw[:, 0],)

    def log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """-Σ (x - loc)² / (2·scale²) - P·log(scale·√(2π))."""
        standardised = (x - parameters[0]) / self.scale
        return -(0.5 * standardised.square() + (math.log(self.scale) + 0.5 * LOG_2_PI)).sum(-1)

    def mean(self, *parameters: Tensor) -> Tensor:
        """The location."""
        return parameters[0]


class _LocationAndScale(Likelihood):
    """What likelihoods share whose decoder gives a location and the logarithm of a scale."""

    floor: float

    def initial_bias(self, pixel_mean: Tensor) -> Tensor:
        """The mean, and a scale for which every pixel is possible."""
        return torch.stack([pixel_mean / LOC_UNIT, torch.full_like(pixel_mean, INITIAL_LOG_SCALE)])

    def parameters(self, raw: Tensor) -> tuple[Tensor, ...]:
        """Location, and the logarithm of the scale bent so that it stays above the floor, f + softplus(r - f).

        In the same way it stays below a ceiling c. Far from all training images a decoder would give scales beyond
        float32, under which no image has any probability. In all,

            log_scale = -log(exp(-c) + exp(-f) / (1 + exp(r - f)))

        and an exported graph computes it so: ONNX Runtime's Softplus is six times as slow. Its logarithm of float32
        depends, in the last bit, on where a tensor is cut between threads; of float64, float32 does not show it.
        Training keeps the softplus, whose gradient cannot overflow.
        """
        loc, height = LOC_UNIT * raw[:, 0], raw[:, 1] - self.floor
        if torch.compiler.is_exporting():
            inverse_scale = math.exp(-LOG_SCALE_CEILING) + math.exp(-self.floor) / (1 + torch.exp(height))
            return loc, -torch.log(inverse_scale.double()).float()
        above_floor = self.floor + F.softplus(height)
        return loc, LOG_SCALE_CEILING - F.softplus(LOG_SCALE_CEILING - above_floor)

    def mean(self, *parameters: Tensor) -> Tensor:
        """The location."""
        return parameters[0]


class GaussianWithScale(_LocationAndScale):
    """log p(x|z) = -Σ ½·((x - loc)·exp(-log_scale))² + log_scale + ½·log(2π)."""

    floor = GAUSSIAN_FLOOR

    def __init__(self) -> None:
        super().__init__(GaussianSpec(scale=None))

    def log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """-Σ ½·((x - loc)·exp(-log_scale))² + log_scale + ½·log(2π)."""
        loc, log_scale = parameters
        standardised = (x - loc) * torch.exp(-log_scale)
        return -(0.5 * standardised.square() + log_scale + 0.5 * LOG_2_PI).sum(-1)


class DiscretisedLogistic(_LocationAndScale):
    """P(x) = sigmoid(a)·sigmoid(-b)·(1 - exp(-2δ/s)), with a, b = (x ± δ - loc)/s: see the engine's class."""

    floor = LOGISTIC_FLOOR

    def __init__(self, levels: int = 256) -> None:
        super().__init__(DiscretisedLogisticSpec(levels=levels))
        self.half_step = 0.5 / (levels - 1)

    def log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """Σ log P(x), in the product form, which loses no digit however far x is from loc."""
        loc, log_scale = parameters
        inverse = torch.exp(-log_scale)
        difference = x - loc  # [B, K, P]
        first, last = x < self.half_step, x > 1 - self.half_step  # [B, 1, P]
        above = F.softplus((-self.half_step - difference) * inverse).masked_fill(last, 0)  # -log sigmoid(a)
        below = F.softplus((difference - self.half_step) * inverse).masked_fill(first, 0)  # -log sigmoid(-b)
        width = torch.log(-torch.expm1(-2 * self.half_step * inverse)).masked_fill(first | last, 0)
        return (width - above - below).sum(-1)


def build_likelihood(configuration: Configuration) -> Likelihood:
    """The configured likelihood."""
    match configuration.likelihood:
        case "bernoulli":
            return Bernoulli()
        case "discretised_logistic":
            return DiscretisedLogistic()
        case "gaussian":
            return (
                GaussianWithScale() if configuration.gaussian_scale is None else Gaussian(configuration.gaussian_scale)
            )
