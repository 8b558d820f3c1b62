"""The `mlp` preset: fully connected hidden layers with SiLU, all of one width."""

import torch
from torch import Tensor, nn

from training.layers import linear


class MlpEncoder(nn.Module):
    """Images x [B, C, H, W] to features [B, width], through `depth` hidden layers."""

    def __init__(
        self, image_shape: tuple[int, int, int], *, width: int, depth: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        channels, height, width_in_pixels = image_shape
        self.num_features = width
        self.hidden = _hidden_layers(channels * height * width_in_pixels, width, depth, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Features, [B, width]."""
        features: Tensor = self.hidden(x.flatten(1))
        return features


class MlpDecoder(nn.Module):
    """Latent codes z [N, D] to raw outputs [N, M, C, H, W], through `depth` hidden layers.

    `bias` [M, C, H, W] is what the outputs' own bias starts from.
    """

    def __init__(self, bias: Tensor, latent_dim: int, *, width: int, depth: int, generator: torch.Generator) -> None:
        super().__init__()
        self.output_shape = tuple(bias.shape)
        self.hidden = _hidden_layers(latent_dim, width, depth, generator)
        self.pixels = linear(width, bias.numel(), generator)
        with torch.no_grad():
            self.pixels.bias.copy_(bias.flatten())

    def forward(self, z: Tensor) -> Tensor:
        """Raw outputs, [N, M, C, H, W]."""
        pixels: Tensor = self.pixels(self.hidden(z))  # [N, M·C·H·W]
        return torch.unflatten(pixels, 1, self.output_shape)


def _hidden_layers(inputs: int, width: int, depth: int, generator: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [linear(width if index else inputs, width, generator), nn.SiLU()]
    return nn.Sequential(*layers)
