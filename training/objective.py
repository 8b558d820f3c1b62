"""What training minimises: negative lower bounds of log P(x), in nats, and the log weights that they are made of."""

import math
from typing import Protocol

import torch
from torch import Tensor

_LOG_2_PI = math.log(2 * math.pi)


class LatentVariableModel(Protocol):
    """What the objectives need of a model with prior N(0, I)."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), [B, D] each."""
        ...

    def conditional_log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) in nats, [B, K], for z [B, K, D]."""
        ...


def log_normal(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(z; mean, diag exp(log_var)) in nats, summed over the last axis.

    >>> round(log_normal(torch.zeros(2), torch.zeros(2), torch.zeros(2)).item(), 6)
    -1.837877
    """
    return -0.5 * (_LOG_2_PI + log_var + (z - mean).square() * torch.exp(-log_var)).sum(-1)


def log_prior(z: Tensor) -> Tensor:
    """log N(z; 0, I) in nats, summed over the last axis."""
    return -0.5 * (_LOG_2_PI + z.square()).sum(-1)


def kl_to_prior(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL[N(mean, diag exp(log_var)) ‖ N(0, I)] in nats: ½ Σ_d (mean² + exp(log_var) - log_var - 1), [B].

    >>> kl_to_prior(torch.tensor([[3.0, 0.0]]), torch.zeros(1, 2)).item()
    4.5
    """
    return 0.5 * (mean.square() + torch.exp(log_var) - log_var - 1).sum(-1)


def log_weight(model: LatentVariableModel, x: Tensor, noise: Tensor) -> Tensor:
    """log p(x|z) + log p(z) - log q(z|x) in nats, [B, K], at z = mean + exp(log_var / 2) · noise.

    The mean of a row estimates the ELBO, its logsumexp minus log K estimates log P(x) from below. No gradient reaches
    the parameters of log q other than through z (see `negative_iwae_bound`).

    Args:
        model: encoder and likelihood.
        x: images as the model takes them, [B, C, H, W].
        noise: standard normal numbers, [B, K, D].
    """
    mean, log_var = model.encode(x)
    return _log_weight_at(model, x, _draw(mean, log_var, noise), mean, log_var)


def negative_elbo(model: LatentVariableModel, x: Tensor, noise: Tensor) -> Tensor:
    """KL[q(z|x) ‖ p(z)] - mean over k of log p(x|z_k), [B], in nats: a loss.

    The Kullback-Leibler term is analytic (Kingma and Welling 2013, arXiv 1312.6114, appendix B).

    Args:
        model: encoder and likelihood.
        x: images as the model takes them, [B, C, H, W].
        noise: standard normal numbers, [B, K, D].
    """
    mean, log_var = model.encode(x)
    z = _draw(mean, log_var, noise)  # [B, K, D]
    return kl_to_prior(mean, log_var) - model.conditional_log_likelihood(x, z).mean(1)


def negative_iwae_bound(model: LatentVariableModel, x: Tensor, noise: Tensor) -> Tensor:
    """-(logsumexp over k of log w_k - log K), [B], in nats: a loss, whose gradient is the doubly reparameterised one.

    The value is the importance weighted bound (Burda et al. 2015, arXiv 1509.00519). Its gradient (DReG: Tucker et al.
    2018, arXiv 1810.04152) is Σ_k w̃_k ∂log w_k for the decoder and Σ_k w̃_k² ∂log w_k/∂z_k · ∂z_k for the encoder, with
    w̃ the normalised weights: unbiased as the ordinary gradient is, and without the noise that drowns the latter as K
    grows.

    Args:
        model: encoder and likelihood.
        x: images as the model takes them, [B, C, H, W].
        noise: standard normal numbers, [B, K, D].
    """
    mean, log_var = model.encode(x)
    z = _draw(mean, log_var, noise)  # [B, K, D]
    log_weights = _log_weight_at(model, x, z, mean, log_var)  # [B, K]
    normalised = torch.softmax(log_weights.detach(), dim=1)
    if z.requires_grad:
        # What flows back into z already carries one factor w̃; the encoder's gradient takes a second one.
        z.register_hook(lambda gradient: gradient * normalised.unsqueeze(-1))  # type: ignore[no-untyped-call]
    surrogate = (normalised * log_weights).sum(1)  # its gradient is the wanted one, its value is not the bound
    bound = torch.logsumexp(log_weights.detach(), dim=1) - math.log(noise.shape[1])
    return (surrogate.detach() - bound) - surrogate


def _draw(mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    return mean.unsqueeze(1) + torch.exp(0.5 * log_var).unsqueeze(1) * noise  # [B, K, D]


def _log_weight_at(model: LatentVariableModel, x: Tensor, z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    log_q = log_normal(z, mean.detach().unsqueeze(1), log_var.detach().unsqueeze(1))  # [B, K]
    return model.conditional_log_likelihood(x, z) + log_prior(z) - log_q
