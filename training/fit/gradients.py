"""Gradients of a batch, of as many images and samples at once as the memory's bound allows."""

from collections.abc import Callable

import torch
from torch import Tensor

from training.fit.memory import Footprint
from training.fit.objective import log_weight
from training.networks.vae import Vae


def accumulate_gradients(
    objective: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    model: Vae,
    x: Tensor,
    noise: Tensor,
    sizes: Footprint,
    *,
    batch_size: int,
    autocast: torch.autocast,
) -> Tensor:
    """Add the gradients of Σ losses / batch_size to the model's; returns that sum.

    Where images and samples are too many to work on at once, parts of them follow one another, and the sums differ
    from those of all at once by rounding.

    Args:
        objective: losses [B] of images, noise and, where the noise is of some samples alone, `log_weight` of all.
        model: whose parameters get the gradients.
        x: images as the model takes them, [B, C, H, W].
        noise: standard normal numbers, [B, K, D].
        sizes: the model's.
        batch_size: of the whole step, of which these images may be a part.
        autocast: the precision of the networks.
    """
    images, samples = sizes.at_once(noise.shape[1])
    total = torch.zeros((), device=x.device)
    for some, drawn in zip(torch.split(x, images), torch.split(noise, images), strict=True):
        parts = torch.split(drawn, samples, dim=1)
        whole = None
        if len(parts) > 1:
            with autocast:
                whole = log_weight_in_parts(model, some, drawn, sizes)
        for part in parts:
            with autocast:
                losses = objective(some, part, whole)
            loss = losses.sum() / batch_size
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
    return total


@torch.no_grad()
def log_weight_in_parts(model: Vae, x: Tensor, noise: Tensor, sizes: Footprint) -> Tensor:
    """`log_weight` of images [B, C, H, W] and noise [B, K, D] without a gradient, [B, K], as many at once as fit."""
    images, samples = sizes.at_once(noise.shape[1])
    rows = [
        torch.cat([log_weight(model, some, part) for part in torch.split(drawn, samples, dim=1)], dim=1)
        for some, drawn in zip(torch.split(x, images), torch.split(noise, images), strict=True)
    ]
    return torch.cat(rows)
