"""The approximate posterior q(z|x), all that training knows of it.

A richer one (a flow, say) is a class with these methods here, what the encoder must tell it in networks/vae.py, and,
before it can be served, a place in the store's format, whose encoders give `mean` and `log_var`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_2_PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class DiagonalGaussian:
    """q(z|x) = N(mean, diag exp(log_var)), of B images; `mean` and `log_var` are [B, D].

    >>> q = DiagonalGaussian(torch.tensor([[3.0, 0.0]]), torch.zeros(1, 2))
    >>> q.kl_to_prior().tolist()
    [[4.5, 0.0]]
    >>> round(q.log_prob(torch.tensor([[[3.0, 0.0]]])).item(), 6)
    -1.837877
    """

    mean: Tensor
    log_var: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """z = mean + exp(log_var / 2) · noise, [B, K, D], for standard normal noise [B, K, D]."""
        return self.mean.unsqueeze(1) + torch.exp(0.5 * self.log_var).unsqueeze(1) * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z|x) in nats, [B, K], at z [B, K, D]."""
        mean, log_var = self.mean.unsqueeze(1), self.log_var.unsqueeze(1)
        return -0.5 * (LOG_2_PI + log_var + (z - mean).square() * torch.exp(-log_var)).sum(-1)

    def kl_to_prior(self) -> Tensor:
        """KL[q(z|x) ‖ N(0, I)] in nats, dimension by dimension: ½ (mean² + exp(log_var) - log_var - 1), [B, D]."""
        return 0.5 * (self.mean.square() + torch.exp(self.log_var) - self.log_var - 1)

    def detach(self) -> "DiagonalGaussian":
        """The same distribution, through whose parameters no gradient flows."""
        return DiagonalGaussian(self.mean.detach(), self.log_var.detach())
