"""8-bit pixels whose channels depend on one another: mixtures of discretised logistics."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from training.likelihoods.base import ImageShape, Likelihood, Option
from training.likelihoods.discretised_logistic import (
    FAR,
    FLOOR,
    SCALE_OF_SPREAD,
    bin_derivatives,
    standard_logistic,
    to_levels,
)
from training.likelihoods.location_scale import LOC_UNIT, bounded_log_scale, initial_scale
from training.likelihoods.reductions import join, magnitude, positive_part, split, sum_pixels

NUM_COMPONENTS = 10
_APART = 2.0
"""Standard deviations of the pixel: how far from the average image an untrained model's outermost components lie."""


class DiscretisedLogisticMixture(Likelihood):
    """At each place a mixture of logistics over the bins of all its channels (Salimans et al. 2017, arXiv 1701.05517).

    With x_1 … x_C the channels at one place, each on L levels k/(L - 1) in [0, 1], and n components of weights π:

        P(x_1 … x_C) = Σ_k π_k Π_c P(x_c | loc_kc + Σ_{j<c} coefficient_kcj · x_j, scale_kc)

    whose factors are those of `DiscretisedLogistic`: a component's location of green moves with red, and of blue with
    both. Outputs: `logits` [n, H, W] with π = softmax, `loc` and `log_scale` [n, C, H, W], and with several channels
    `coefficients` [n, C·(C - 1)/2, H, W], in (-1, 1), ordered (green, red), (blue, red), (blue, green).

    Args:
        image_shape: C, H, W.
        num_components: n.
        levels: L.
    """

    name = "discretised_logistic_mixture"
    pixel = "256 levels, by several logistics under which channels depend on one another"
    configured: ClassVar[Mapping[str, Option]] = {"num_components": Option("num_components", str(NUM_COMPONENTS))}

    def __init__(self, image_shape: ImageShape, num_components: int = NUM_COMPONENTS, levels: int = 256) -> None:
        super().__init__(image_shape)
        self.levels: int = levels
        self.num_components = num_components
        self._half_step = 0.5 / (levels - 1)
        self._channels = image_shape[0]
        self._places = image_shape[1] * image_shape[2]
        self._num_coefficients = self._channels * (self._channels - 1) // 2

    @property
    def options(self) -> Mapping[str, int | float]:
        """The number of components."""
        return {"num_components": self.num_components}

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]:
        """Weights, locations, logarithms of scales, and coefficients where there are several channels."""
        n, size = self.num_components, self.image_shape[1:]
        shapes = {"logits": (n, *size), "loc": (n, self._channels, *size), "log_scale": (n, self._channels, *size)}
        if self._num_coefficients:
            shapes["coefficients"] = (n, self._num_coefficients, *size)
        return shapes

    @property
    def num_uniforms(self) -> int:
        """One a place for the component, and one a pixel and channel."""
        return self._places + self.num_pixels

    def initial_bias(self, pixel_mean: Tensor, pixel_spread: Tensor) -> Tensor:
        """Components apart from one another about the mean, each as wide as the pixel's spread: [M, 1, H, W]."""
        n, size = self.num_components, self.image_shape[1:]
        offsets = torch.linspace(-_APART, _APART, n) if n > 1 else torch.zeros(1)
        loc = (pixel_mean + pixel_spread * offsets.reshape(n, 1, 1, 1)) / LOC_UNIT  # [n, C, H, W]
        scale = initial_scale(pixel_spread, SCALE_OF_SPREAD, FLOOR).expand(loc.shape)
        parts = [torch.zeros(n, *size), loc, scale, torch.zeros(n * self._num_coefficients, *size)]
        return torch.cat([part.reshape(-1, *size) for part in parts]).unsqueeze(1)

    def parameters(self, raw: Tensor) -> tuple[Tensor, ...]:
        """Logits; locations; logarithms of scales, bounded; tanh of coefficients."""
        n, channels = self.num_components, self._channels
        logits, loc, scale, coefficients = torch.split(
            raw.squeeze(2), [n, n * channels, n * channels, n * self._num_coefficients], dim=1
        )
        found = [logits]
        found.append(LOC_UNIT * torch.unflatten(loc, 1, (n, channels)))
        found.append(bounded_log_scale(torch.unflatten(scale, 1, (n, channels)), FLOOR))
        if self._num_coefficients:
            found.append(torch.unflatten(torch.tanh(coefficients), 1, (n, self._num_coefficients)))
        return tuple(found)

    def log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """Sum over places of the logarithm of the mixture."""
        logits = split(parameters[0], self.num_components, self._places)
        cost, bracket = self._terms(x, parameters)
        return sum_pixels(_log_mixture(logits - cost.sum(3), bracket.prod(3)) - _log_mixture(logits))

    def pixel_log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """log P(x_c | x_1 … x_{c-1}) at each place."""
        exponent, product = split(parameters[0], self.num_components, self._places), torch.ones((), dtype=x.dtype)
        cost, bracket = self._terms(x, parameters)
        before, found = _log_mixture(exponent), []
        for channel in range(self._channels):
            exponent, product = exponent - cost[..., channel, :], product * bracket[..., channel, :]
            after = _log_mixture(exponent, product)
            found.append(after - before)
            before = after
        return torch.cat(found, dim=-1)

    def mean(self, *parameters: Tensor) -> Tensor:
        """Σ_k π_k times the component's mean before it is binned, where it depends on earlier channels' such means."""
        means: list[Tensor] = []  # [B, K, n, 1, places] each
        located = self._located(parameters)
        while len(means) < self._channels:
            means.append(torch.clamp(self._centre(means, located), 0, 1))
        weight = torch.softmax(self._split(parameters[0], 1), dim=2)  # [B, K, n, 1, places]
        return join((weight * torch.cat(means, dim=3)).sum(2))

    def sample(self, uniform: Tensor, *parameters: Tensor) -> Tensor:
        """A component at each place, then its channels one after another."""
        weight = torch.softmax(self._split(parameters[0], 1), dim=2)  # [B, K, n, 1, places]
        edges, outside = torch.cumsum(weight, dim=2)[:, :, :-1], 0 * weight[:, :, :1]
        numbers = self._split_channels(uniform, 1 + self._channels)  # [B, K, 1, 1 + C, places]
        first = numbers.narrow(3, 0, 1)
        below, above = torch.cat([outside, edges], dim=2), torch.cat([edges, outside + 2], dim=2)
        chosen = ((first >= below) & (first < above)).to(uniform.dtype)  # one of n is 1
        logits, loc, log_scale, *coefficients = (
            join((chosen * self._split(parameter, count)).sum(2, keepdim=True))  # as of one component
            for parameter, count in zip(parameters, self._counts, strict=True)
        )
        one = DiscretisedLogisticMixture(self.image_shape, 1, self.levels)
        located = one._located((logits, loc, log_scale, *coefficients))
        noise = torch.exp(one._split(log_scale, self._channels)) * standard_logistic(
            numbers.narrow(3, 1, self._channels)
        )
        drawn: list[Tensor] = []  # [B, K, 1, 1, places] each
        while len(drawn) < self._channels:
            this = one._centre(drawn, located) + noise.narrow(3, len(drawn), 1)
            drawn.append(to_levels(this, self.levels - 1))
        return join(torch.cat(drawn, dim=3))

    def curvature(self, x: Tensor, parameters: Sequence[Tensor], tangents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Exact, by the law of total covariance over components.

        With r_k = P(component k | x), d_k the change of log(π_k P_k), and q_k its second derivative:

            slope = Σ_k r_k d_k - Σ_k π_k u_k
            information = -Σ_k r_k (q_k + d_k d_kᵀ) + (Σ r d)(Σ r d)ᵀ + Σ_k π_k u_k u_kᵀ - (Σ π u)(Σ π u)ᵀ

        summed over places, where u_k is the tangent of a component's logit.
        """
        channels, values = self._channels, self._split_channels(x, self._channels)
        logits = self._split(parameters[0], 1)
        logit_tangent, scale_tangent = self._split(tangents[0], 1), self._split(tangents[2], channels)
        loc_tangent, loc = self._centres(values, tangents), self._centres(values, parameters)
        scores, informations = bin_derivatives(values, loc, self._split(parameters[2], channels), self._half_step)
        cost, bracket = self._terms(x, parameters)
        exponent = logits - cost.sum(3, keepdim=True)
        terms = torch.exp(exponent - torch.amax(exponent, dim=2, keepdim=True)) / bracket.prod(3, keepdim=True)
        share, weight = (
            terms / terms.sum(2, keepdim=True),
            torch.softmax(logits, dim=2),
        )  # r and π: [B, 1, n, 1, places]
        change = logit_tangent + (scores[0] * loc_tangent + scores[1] * scale_tangent).sum(3, keepdim=True)  # d
        mean_change, mean_tangent = (share * change).sum(2), (weight * logit_tangent).sum(2)  # [B, A, 1, places]
        slopes = sum_pixels(join(mean_change - mean_tangent))

        def product(first: Tensor, second: Tensor) -> Tensor:
            return torch.bmm(join(first), join(second).mT)  # [B, A, A]

        crossed = product(loc_tangent * (share * informations[0, 1]), scale_tangent)
        # Deviations from the means and not products of means: what is left of a difference of these is rounding.
        within = product((change - mean_change.unsqueeze(2)) * share, change - mean_change.unsqueeze(2))
        between = product(
            (logit_tangent - mean_tangent.unsqueeze(2)) * weight, logit_tangent - mean_tangent.unsqueeze(2)
        )
        information = product(loc_tangent * (share * informations[0, 0]), loc_tangent) + crossed + crossed.mT
        information = information + product(scale_tangent * (share * informations[1, 1]), scale_tangent)
        return slopes, information + between - within

    @property
    def _counts(self) -> list[int]:
        """Numbers of a component at a place, of each output."""
        return [1, self._channels, self._channels, *([self._num_coefficients] if self._num_coefficients else [])]

    def _terms(self, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Cost and bracket of P(x_c) = exp(-cost)/bracket for every component: [B, K, n, C, places].

        As in `DiscretisedLogistic`, cost = max(-a, 0) + max(b, 0) ≥ 0, and the bracket is at least 1.
        """
        values = self._split_channels(x, self._channels)
        centre = self._centres(values, parameters)
        first, last = values < self._half_step, values > 1 - self._half_step
        upper = torch.where(last, FAR, values + self._half_step)
        lower = torch.where(first, -FAR, values - self._half_step)
        half = torch.where(first | last, torch.full((), FAR, dtype=x.dtype), self._half_step)
        inverse = torch.exp(-self._split(parameters[2], self._channels))
        above, below = (upper - centre) * inverse, (lower - centre) * inverse
        h = torch.tanh(half * inverse)
        bracket = (h + 1) / (h + h) * (torch.exp(-magnitude(above)) + 1) * (torch.exp(-magnitude(below)) + 1)
        return positive_part(-above) + positive_part(below), bracket

    def _centres(self, values: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """All channels' locations under values [B, K, 1, C, places]: [B, K, n, C, places]. Linear in the parameters."""
        located, earlier = self._located(parameters), torch.split(values, 1, dim=3)
        centres = [self._centre(earlier[:channel], located) for channel in range(self._channels)]
        centres[0] = centres[0] + 0 * earlier[0]  # as many rows as the others
        return torch.cat(centres, dim=3)

    def _located(self, parameters: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """What `_centre` takes: the channels' locations and the coefficients, [B, K, n, 1, places] each."""
        coefficients = [self._split(parameter, self._num_coefficients) for parameter in parameters[3:]]
        return [torch.split(part, 1, dim=3) for part in (self._split(parameters[1], self._channels), *coefficients)]

    def _centre(self, earlier: Sequence[Tensor], located: Sequence[Sequence[Tensor]]) -> Tensor:
        """The next channel's location after others' values x_j [B, K, 1 or n, 1, places]: [B, K, n, 1, places]."""
        channel = len(earlier)
        centre = located[0][channel]
        for index, value in enumerate(earlier, start=channel * (channel - 1) // 2):
            centre = centre + located[1][index] * value
        return centre

    def _split(self, parameter: Tensor, count: int) -> Tensor:
        """[B, K, n·count·places] → [B, K, n, count, places]."""
        return split(parameter, self.num_components, count, self._places)

    def _split_channels(self, x: Tensor, count: int) -> Tensor:
        """[B, K, count·places] → [B, K, 1, count, places]."""
        return split(x, 1, count, self._places)


def _log_mixture(exponent: Tensor, bracket: Tensor | None = None) -> Tensor:
    """log Σ_k exp(exponent_k)/bracket_k over components, [B, K, n, places] → [B, K, places].

    One logarithm a place, of float64: the largest term is at least 1/bracket, which float32 holds.
    """
    largest = torch.amax(exponent, dim=2, keepdim=True).detach()
    terms = torch.exp(exponent - largest)
    total = (terms if bracket is None else terms / bracket).sum(2)
    return largest.squeeze(2) + torch.log(total.double()).to(exponent.dtype)
