"""The `linear` preset: one layer each way and nothing between, whose best weights follow from the data at once."""

import math

import torch
from torch import Tensor, nn

from training.networks.layers import linear
from training.networks.mlp import MlpDecoder


class LinearEncoder(nn.Module):
    """Images x [B, C, H, W] to features [B, width], which are linear in x; `depth` is nothing here."""

    def __init__(
        self, image_shape: tuple[int, int, int], *, width: int, depth: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        del depth
        self.num_features = width
        self.axes = linear(math.prod(image_shape), width, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Features, [B, width]."""
        features: Tensor = self.axes(x.flatten(1))
        return features

    def rate_scales(self) -> dict[str, float]:
        """All weights learn at the same rate."""
        return {}


class LinearDecoder(MlpDecoder):
    """Latent codes z [N, D] to raw outputs [N, *shape of `bias`], which are linear in z."""

    def __init__(self, bias: Tensor, latent_dim: int, *, width: int, depth: int, generator: torch.Generator) -> None:
        del width, depth
        super().__init__(bias, latent_dim, width=latent_dim, depth=0, generator=generator)
