"""What training minimises: negative lower bounds of log P(x), in nats, and the log weights that they are made of."""

import math
from typing import Protocol

import torch
from torch import Tensor

from training.posterior import LOG_2_PI, DiagonalGaussian


class LatentVariableModel(Protocol):
    """What the objectives need of a model with prior N(0, I)."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), [B, D] each."""
        ...

    def conditional_log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) in nats, [B, K], for z [B, K, D]."""
        ...


def log_prior(z: Tensor) -> Tensor:
    """log N(z; 0, I) in nats, summed over the last axis."""
    return -0.5 * (LOG_2_PI + z.square()).sum(-1)


def log_weight(model: LatentVariableModel, x: Tensor, noise: Tensor) -> Tensor:
    """log p(x|z) + log p(z) - log q(z|x) in nats, [B, K], at z = mean + exp(log_var / 2) · noise.

    The mean of a row estimates the ELBO, its logsumexp minus log K estimates log P(x) from below. No gradient reaches
    the parameters of log q other than through z (see `negative_iwae_bound`).

    Args:
        model: encoder and likelihood.
        x: images as the model takes them, [B, C, H, W].
        noise: standard normal numbers, [B, K, D].
    """
    q = DiagonalGaussian(*model.encode(x))
    return _log_weight_at(model, x, q.draw(noise), q)


def negative_elbo(
    model: LatentVariableModel, x: Tensor, noise: Tensor, *, kl_weight: float = 1.0, free_bits: float = 0.0
) -> Tensor:
    """KL[q(z|x) ‖ p(z)] - mean over k of log p(x|z_k), [B], in nats: a loss.

    The Kullback-Leibler term is analytic (Kingma and Welling 2013, arXiv 1312.6114, appendix B). `kl_weight` and
    `free_bits` change the gradient alone, to that of kl_weight · Σ_d max(KL_d, free_bits) - log p(x|z); the value is
    always the bound itself. The maximum is taken image by image, so that no image's loss depends on its batch (Kingma
    et al. 2016, arXiv 1606.04934, take it of the batch's mean).

    Args:
        model: encoder and likelihood.
        x: images as the model takes them, [B, C, H, W].
        noise: standard normal numbers, [B, K, D].
        kl_weight: of the Kullback-Leibler term; less than 1 while training warms up.
        free_bits: nats of each latent dimension's term that cost nothing.
    """
    q = DiagonalGaussian(*model.encode(x))
    kl = q.kl_to_prior()  # [B, D]
    bound = model.conditional_log_likelihood(x, q.draw(noise)).mean(1) - kl.sum(1)
    cost = kl_weight * kl.clamp(min=free_bits).sum(1) - kl.sum(1)  # what training minimises beyond -bound
    return cost - cost.detach() - bound


def negative_iwae_bound(
    model: LatentVariableModel, x: Tensor, noise: Tensor, *, all_log_weights: Tensor | None = None
) -> Tensor:
    """-(logsumexp over k of log w_k - log K), [B], in nats: a loss, whose gradient is the doubly reparameterised one.

    The value is the importance weighted bound (Burda et al. 2015, arXiv 1509.00519). Its gradient (DReG: Tucker et al.
    2018, arXiv 1810.04152) is Σ_k w̃_k ∂log w_k for the decoder and Σ_k w̃_k² ∂log w_k/∂z_k · ∂z_k for the encoder,
    with w̃ the normalised weights: unbiased as the ordinary gradient is, and without the noise that drowns the latter
    as K grows.

    Where there are too many samples for the memory, each part of them is given in turn as `noise`, with
    `all_log_weights` of all; the sums of values and of gradients over the parts are then those of all samples.

    Args:
        model: encoder and likelihood.
        x: images as the model takes them, [B, C, H, W].
        noise: standard normal numbers, [B, K, D].
        all_log_weights: `log_weight` of all samples, where `noise` is a part of them, [B, more than K].
    """
    q = DiagonalGaussian(*model.encode(x))
    z = q.draw(noise)  # [B, K, D]
    log_weights = _log_weight_at(model, x, z, q)  # [B, K]
    whole = log_weights.detach() if all_log_weights is None else all_log_weights
    log_sum = torch.logsumexp(whole, dim=1)  # [B]
    if all_log_weights is None:
        normalised = torch.softmax(whole, dim=1)
    else:
        normalised = torch.exp(log_weights.detach() - log_sum.unsqueeze(1))
    if z.requires_grad:
        # What flows back into z already carries one factor w̃; the encoder's gradient takes a second one.
        z.register_hook(lambda gradient: gradient * normalised.unsqueeze(-1))  # type: ignore[no-untyped-call]
    surrogate = (normalised * log_weights).sum(1)  # its gradient is the wanted one, its value is not the bound
    bound = (log_sum - math.log(whole.shape[1])) * (noise.shape[1] / whole.shape[1])  # this part's share of it
    return (surrogate.detach() - bound) - surrogate


def _log_weight_at(model: LatentVariableModel, x: Tensor, z: Tensor, q: DiagonalGaussian) -> Tensor:
    return model.conditional_log_likelihood(x, z) + log_prior(z) - q.detach().log_prob(z)  # [B, K]
