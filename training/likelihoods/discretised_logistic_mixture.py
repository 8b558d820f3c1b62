"""8-bit pixels whose channels depend on one another: mixtures of discretised logistics."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from training.likelihoods.base import ImageShape, Likelihood, Option
from training.likelihoods.discretised_logistic import FAR, FLOOR, standard_logistic, to_levels
from training.likelihoods.location_scale import INITIAL_LOG_SCALE, LOC_UNIT, bounded_log_scale
from training.likelihoods.reductions import magnitude, positive_part, split, sum_pixels

NUM_COMPONENTS = 10
_SPREAD = 0.5
"""Of the components' locations in an untrained model, about the average image's: they begin apart."""


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
    configured = {"num_components": Option("num_components", str(NUM_COMPONENTS))}

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

    def initial_bias(self, pixel_mean: Tensor) -> Tensor:
        """Components spread about the mean, with scales for which every pixel is possible: [C, H, W] → [M, 1, H, W]."""
        n, size = self.num_components, self.image_shape[1:]
        offsets = torch.linspace(-_SPREAD, _SPREAD, n) if n > 1 else torch.zeros(1)
        loc = (pixel_mean + offsets.reshape(n, 1, 1, 1)) / LOC_UNIT  # [n, C, H, W]
        scale = torch.full_like(loc, INITIAL_LOG_SCALE)
        parts = [torch.zeros(n, *size), loc, scale, torch.zeros(n * self._num_coefficients, *size)]
        return torch.cat([part.reshape(-1, *size) for part in parts]).unsqueeze(1)

    def parameters(self, raw: Tensor) -> tuple[Tensor, ...]:
        """Logits; locations; logarithms of scales, bounded; tanh of coefficients."""
        n, channels = self.num_components, self._channels
        logits, loc, scale, coefficients = torch.split(
            raw.squeeze(2), [n, n * channels, n * channels, n * self._num_coefficients], dim=1
        )
        found = [logits]
        found.append(LOC_UNIT * loc.unflatten(1, (n, channels)))
        found.append(bounded_log_scale(scale.unflatten(1, (n, channels)), FLOOR))
        if self._num_coefficients:
            found.append(torch.tanh(coefficients).unflatten(1, (n, self._num_coefficients)))
        return tuple(found)

    def log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """Sum over places of the logarithm of the mixture."""
        logits = split(parameters[0], self.num_components, self._places)
        exponent, bracket = logits, torch.ones((), dtype=x.dtype)
        for cost, factor in self._channel_terms(x, parameters):
            exponent, bracket = exponent - cost, bracket * factor
        return sum_pixels(_log_mixture(exponent, bracket) - _log_mixture(logits))

    def pixel_log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """log P(x_c | x_1 … x_{c-1}) at each place."""
        exponent, bracket = split(parameters[0], self.num_components, self._places), torch.ones((), dtype=x.dtype)
        before, found = _log_mixture(exponent), []
        for cost, factor in self._channel_terms(x, parameters):
            exponent, bracket = exponent - cost, bracket * factor
            after = _log_mixture(exponent, bracket)
            found.append(after - before)
            before = after
        return torch.cat(found, dim=-1)

    def mean(self, *parameters: Tensor) -> Tensor:
        """Σ_k π_k times the component's mean before it is binned, where it depends on earlier channels' such means."""
        weight = torch.softmax(self._split(parameters[0], 1), dim=2)  # [B, K, n, 1, places]
        locs = self._split(parameters[1], self._channels).unbind(-2)
        means: list[Tensor] = []  # [B, K, n, places] each
        for channel in range(self._channels):
            means.append(torch.clamp(self._location(channel, locs[channel], parameters, means), 0, 1))
        expected = (weight * torch.stack(means, dim=3)).sum(2)  # [B, K, C, places]
        return expected.flatten(2)

    def sample(self, uniform: Tensor, *parameters: Tensor) -> Tensor:
        """A component at each place, then its channels one after another."""
        weight = torch.softmax(split(parameters[0], self.num_components, self._places), dim=2)  # [B, K, n, places]
        chosen, below = [], torch.zeros((), dtype=uniform.dtype)
        first = uniform[..., : self._places]
        for component in range(self.num_components):
            above = below + weight[..., component, :]
            is_last = component == self.num_components - 1
            chosen.append((first >= below) & ((first < above) | is_last))
            below = above
        one_hot = torch.stack(chosen, dim=2).to(uniform.dtype)  # [B, K, n, places]
        locs, log_scales = (self._split(parameter, self._channels).unbind(-2) for parameter in parameters[1:3])
        drawn: list[Tensor] = []  # [B, K, places] each
        for channel in range(self._channels):
            earlier = [value.unsqueeze(2) for value in drawn]
            centre = (one_hot * self._location(channel, locs[channel], parameters, earlier)).sum(2)
            scale = (one_hot * torch.exp(log_scales[channel])).sum(2)
            start = (channel + 1) * self._places
            noise = standard_logistic(uniform[..., start : start + self._places])
            drawn.append(to_levels(centre + scale * noise, self.levels - 1))
        return torch.cat(drawn, dim=-1)

    def _channel_terms(self, x: Tensor, parameters: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each channel, cost and bracket of P(x_c) = exp(-cost)/bracket for every component: [B, K, n, places].

        As in `DiscretisedLogistic`, cost = max(-a, 0) + max(b, 0) ≥ 0, and the bracket is at least 1.
        """
        locs, log_scales = (self._split(parameter, self._channels).unbind(-2) for parameter in parameters[1:3])
        values = [value.unsqueeze(2) for value in split(x, self._channels, self._places).unbind(-2)]
        for channel, value in enumerate(values):
            centre = self._location(channel, locs[channel], parameters, values[:channel])
            first, last = value < self._half_step, value > 1 - self._half_step
            upper = torch.where(last, FAR, value + self._half_step)
            lower = torch.where(first, -FAR, value - self._half_step)
            half = torch.where(first | last, FAR, self._half_step)
            inverse = torch.exp(-log_scales[channel])
            above, below = (upper - centre) * inverse, (lower - centre) * inverse
            h = torch.tanh(half * inverse)
            bracket = (h + 1) / (h + h) * (torch.exp(-magnitude(above)) + 1) * (torch.exp(-magnitude(below)) + 1)
            yield positive_part(-above) + positive_part(below), bracket

    def _location(self, channel: int, loc: Tensor, parameters: tuple[Tensor, ...], earlier: list[Tensor]) -> Tensor:
        """A channel's loc, [B, K, n, places], moved by the earlier channels' values, [B, K, 1 or n, places] each."""
        if channel:
            coefficients = self._split(parameters[3], self._num_coefficients).unbind(-2)
            for coefficient, value in zip(coefficients[channel * (channel - 1) // 2 :], earlier, strict=False):
                loc = loc + coefficient * value
        return loc

    def _split(self, parameter: Tensor, count: int) -> Tensor:
        """[B, K, n·count·places] → [B, K, n, count, places]."""
        return split(parameter, self.num_components, count, self._places)


def _log_mixture(exponent: Tensor, bracket: Tensor | None = None) -> Tensor:
    """log Σ_k exp(exponent_k)/bracket_k over components, [B, K, n, places] → [B, K, places].

    One logarithm a place, of float64: the largest term is at least 1/bracket, which float32 holds.
    """
    largest = torch.amax(exponent, dim=2, keepdim=True).detach()
    terms = torch.exp(exponent - largest)
    total = (terms if bracket is None else terms / bracket).sum(2)
    return largest.squeeze(2) + torch.log(total.double()).to(exponent.dtype)
