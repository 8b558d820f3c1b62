"""Binary pixels."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from training.likelihoods.base import IndependentPixels
from training.likelihoods.reductions import dot_pixels, softplus, sum_softplus


class Bernoulli(IndependentPixels):
    """log p(x|z) = Σ x·l - log(1 + exp(l)), with l the `logits` and x in {0, 1}.

    >>> logits, ones = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
    >>> Bernoulli((1, 1, 2)).log_prob(ones, logits).exp()
    tensor([[0.2500]])
    """

    name = "bernoulli"
    pixel = "black or white"
    is_binary = True

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]:
        """The logits."""
        return {"logits": self.image_shape}

    def initial_bias(self, pixel_mean: Tensor, pixel_spread: Tensor) -> Tensor:
        """The logit of the mean, of at most 1 - 1e-3 and at least 1e-3 (Burda et al. 2015, arXiv 1509.00519)."""
        return torch.logit(pixel_mean, eps=1e-3).unsqueeze(0)

    def parameters(self, raw: Tensor) -> tuple[Tensor, ...]:
        """The logits."""
        return (raw[:, 0],)

    def log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """Σ x·l - log(1 + exp(l)); brackets of up to 64 pixels stay below 2^64 in one product."""
        (logits,) = parameters
        return dot_pixels(logits, x) - sum_softplus([logits], most=64, rows=True)

    def pixel_log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """x·l - log(1 + exp(l))."""
        (logits,) = parameters
        return x * logits - softplus(logits)

    def entropy(self, *parameters: Tensor) -> Tensor:
        """log(1 + exp(l)) - p·l, with p = sigmoid(l)."""
        size = torch.abs(parameters[0])  # the entropy of l and -l is the same
        return torch.log1p(torch.exp(-size)) + size * torch.sigmoid(-size)

    def mean(self, *parameters: Tensor) -> Tensor:
        """sigmoid(l)."""
        return torch.sigmoid(parameters[0])

    def sample(self, uniform: Tensor, *parameters: Tensor) -> Tensor:
        """1 where u < sigmoid(l)."""
        return (uniform < torch.sigmoid(parameters[0])).to(uniform.dtype)

    def derivatives(self, x: Tensor, *parameters: Tensor) -> tuple[Sequence[Tensor], Mapping[tuple[int, int], Tensor]]:
        """Score x - p and information p·(1 - p), with p = sigmoid(l)."""
        probability = torch.sigmoid(parameters[0])
        return [x - probability], {(0, 0): probability * (1 - probability)}
