"""8-bit pixels: a proper probability for each of the 256 values."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from training.likelihoods.base import NUMBERS_AT_ONCE, ImageShape
from training.likelihoods.location_scale import LocationScale
from training.likelihoods.reductions import softplus, sum_softplus

FLOOR = -7.0
"""Of log_scale: a fifth of a grey level, of 256, which then has 90 % of the probability."""
SCALE_OF_SPREAD = math.sqrt(3) / math.pi
"""A logistic's scale in standard deviations."""
FAR = 1e38
_FEWEST_LEVELS_AT_ONCE = 16
_SMALLEST = 1e-37  # of float32, which export writes constants in
_MOST_LEVELS = 256
"""Up to which an entropy is summed level by level."""


class DiscretisedLogistic(LocationScale):
    """A logistic density integrated over each level's bin (Kingma et al. 2016, arXiv 1606.04934; PixelCNN++).

    x lies on L levels k/(L - 1) in [0, 1]; a bin reaches half a step δ = ½/(L - 1) to either side, the first and the
    last one to infinity. With a = (x + δ - loc)/s, b = (x - δ - loc)/s and s = exp(log_scale):

        P(x) = sigmoid(a) - sigmoid(b) = sigmoid(a)·sigmoid(-b)·(1 - exp(-2δ/s))

    The product form loses no digit however far x is from loc; the first level keeps only sigmoid(a), the last only
    sigmoid(-b).

    Args:
        image_shape: C, H, W.
        levels: L.

    >>> levels = (torch.arange(4) / 3).reshape(4, 1, 1)
    >>> parameters = torch.full((1, 1, 1), 0.4), torch.full((1, 1, 1), -2.0)
    >>> torch.isclose(DiscretisedLogistic((1, 1, 1), 4).log_prob(levels, *parameters).exp().sum(), torch.tensor(1.0))
    tensor(True)
    """

    name = "discretised_logistic"
    pixel = "256 levels"
    floor = FLOOR
    scale_of_spread = SCALE_OF_SPREAD

    def __init__(self, image_shape: ImageShape, levels: int = 256) -> None:
        super().__init__(image_shape)
        self.levels: int = levels
        self.top: float | Tensor = levels - 1
        self.half_step: float | Tensor = 0.5 / (levels - 1)

    def log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """-Σ log(1 + exp(-a)) + log(1 + exp(b)) + log 1/(1 - exp(-2δ/s)).

        The first level's b and the last one's a are moved out of reach, to where their terms vanish, as is the width of
        both. Brackets of a pixel multiply to at most 4 / (1 - exp(-2δ/s)): four pixels' stay within float32 up to
        s = 10⁶.
        """
        loc, log_scale = parameters
        upper, lower, half = self._bounds(x)
        inverse = torch.exp(-log_scale)
        above, below = (upper - loc) * inverse, (lower - loc) * inverse
        h = torch.tanh(half * inverse)  # exact for the widest s: 1 - exp(-t) = 2h/(1 + h)
        return -sum_softplus([-above, below], factor=(h + 1) / (h + h), most=4)

    def pixel_log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """log P(x), in the product form."""
        loc, log_scale = parameters
        return bin_log_prob(x, loc, log_scale, self.half_step)

    def entropy(self, *parameters: Tensor) -> Tensor:
        """-Σ P(level)·log P(level); a P too small to be told as a difference of sigmoids adds nothing."""
        if self.levels > _MOST_LEVELS:
            return super().entropy(*parameters)
        loc, log_scale = (parameter.unsqueeze(-1) for parameter in parameters)  # [B, K, P, 1]
        half_inverse = 0.5 * torch.exp(-log_scale)
        entropy, below = 0 * parameters[0], 0 * loc
        at_once = _FEWEST_LEVELS_AT_ONCE
        if isinstance(self.num_pixels, int):  # else it is a symbol, for any
            at_once = max(at_once, NUMBERS_AT_ONCE // self.num_pixels)
        for first in range(0, self.levels, at_once):
            after = torch.arange(first, min(first + at_once, self.levels), dtype=loc.dtype) + 0.5
            edges = torch.where(after > self.top, FAR, after / self.top)  # the last reaches to infinity
            above = 0.5 + 0.5 * torch.tanh((edges - loc) * half_inverse)  # [B, K, P, levels]
            probability = above - torch.cat([below, above[..., :-1]], dim=-1)
            cost = probability * torch.log(torch.clamp(probability, min=_SMALLEST))
            entropy = entropy - cost.sum(-1)
            below = above[..., -1:]
        return entropy

    def sample(self, uniform: Tensor, *parameters: Tensor) -> Tensor:
        """loc + s·logit(u), moved to the nearest level."""
        loc, log_scale = parameters
        return to_levels(loc + torch.exp(log_scale) * standard_logistic(uniform), self.top)

    def derivatives(self, x: Tensor, *parameters: Tensor) -> tuple[Sequence[Tensor], Mapping[tuple[int, int], Tensor]]:
        """Exact: see `bin_derivatives`."""
        loc, log_scale = parameters
        return bin_derivatives(x, loc, log_scale, self.half_step)

    def _bounds(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x + δ, x - δ and δ, those out of reach that have no term: [B, 1, P] each."""
        first, last = x < self.half_step, x > 1 - self.half_step
        upper = torch.where(last, FAR, x + self.half_step)
        lower = torch.where(first, -FAR, x - self.half_step)
        return upper, lower, torch.where(first | last, FAR, torch.as_tensor(self.half_step, dtype=x.dtype))


def bin_log_prob(x: Tensor, loc: Tensor, log_scale: Tensor, half_step: float | Tensor) -> Tensor:
    """log P(x) of a logistic over the bin x ± δ, in the product form; the outer bins of [0, 1] reach to infinity."""
    inverse = torch.exp(-log_scale)
    difference = x - loc
    first, last = x < half_step, x > 1 - half_step
    zero = torch.zeros((), dtype=difference.dtype)
    above = torch.where(last, zero, -softplus((-half_step - difference) * inverse))  # log sigmoid(a)
    below = torch.where(first, zero, -softplus((difference - half_step) * inverse))  # log sigmoid(-b)
    h = torch.tanh(half_step * inverse)  # 1 - exp(-2δ/s) = 2h/(1 + h)
    width = torch.where(first | last, zero, torch.log((h + h) / (h + 1)))
    return above + below + width


def bin_derivatives(
    x: Tensor, loc: Tensor, log_scale: Tensor, half_step: float | Tensor
) -> tuple[tuple[Tensor, Tensor], Mapping[tuple[int, int], Tensor]]:
    """Scores of log P(x) in loc and log_scale, and information; the outer levels lack what stems from one edge.

    With up = sigmoid(-a), down = sigmoid(b), p = up·(1 - up), q = down·(1 - down), t = 2δ/s and r = t/(exp(t) - 1),
    scores are (down - up)/s and b·down - a·up - r. Information is (p + q)/s² in loc, (down - up + a·p + b·q)/s between
    the two, and b·down - a·up + a²·p + b²·q + r·(r + t - 1) in log_scale.
    """
    inverse = torch.exp(-log_scale)
    difference = x - loc
    above, below = (difference + half_step) * inverse, (difference - half_step) * inverse
    width = inverse * (2 * half_step)
    first, last = x < half_step, x > 1 - half_step
    zero = torch.zeros((), dtype=x.dtype)
    up = torch.where(last, zero, torch.sigmoid(-above))
    down = torch.where(first, zero, torch.sigmoid(below))
    slope, above_up, below_down = down - up, above * up, below * down
    pull = below_down - above_up
    p, q = up * (1 - up), down * (1 - down)
    h = torch.tanh(width * 0.5)
    spread = torch.where(first | last, zero, width * ((1 - h) / (h + h)))  # t/(exp(t) - 1)
    # a²·p as (a·sigmoid(-a))·(a·sigmoid(a)): the square of a alone may be beyond float32.
    squares = above_up * (above * (1 - up)) + below_down * (below * (1 - down))
    in_scale = pull + squares + spread * (spread + width - 1)
    in_both = slope + (above_up * (1 - up) + below_down * (1 - down))
    return (slope * inverse, pull - spread), {
        (0, 0): (p + q) * inverse * inverse,
        (0, 1): in_both * inverse,
        (1, 1): in_scale,
    }


def standard_logistic(uniform: Tensor) -> Tensor:
    """logit(u), of u in [0, 1)."""
    inside = uniform + torch.finfo(torch.float32).tiny
    return torch.log(inside) - torch.log(1 - uniform)


def to_levels(x: Tensor, top: float | Tensor) -> Tensor:
    """The nearest of the levels k/top in [0, 1]."""
    return torch.round(torch.clamp(x, 0, 1) * top) / top
