"""The `mlp` preset: fully connected hidden layers with SiLU, all of one width."""

import torch
from torch import Tensor, nn

from training.networks.layers import linear

FULL_RATE_PIXELS = 28 * 28
"""Images of more pixels (times channels) are read at a lower learning rate, see `MlpEncoder.rate_scales`."""


class MlpEncoder(nn.Module):
    """Images x [B, C, H, W] to features [B, width], through `depth` hidden layers."""

    def __init__(
        self, image_shape: tuple[int, int, int], *, width: int, depth: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        channels, height, width_in_pixels = image_shape
        self.num_features = width
        self._num_pixels = channels * height * width_in_pixels
        self.hidden = _hidden_layers(self._num_pixels, width, depth, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Features, [B, width]."""
        features: Tensor = self.hidden(x.flatten(1))
        return features

    def rate_scales(self) -> dict[str, float]:
        """By a weight's name, what the learning rate is multiplied by where it is not 1.

        A step of Adam moves each weight by about the rate r, however small the gradient. The pixels of an image are
        bright or dark together, so one step changes what a unit of the first layer receives by r · Σ|x_i|, which grows
        with the number of pixels P: at 128×128 by 16, where a unit's usual range is 1. So the rate falls as 1/P (Yang
        et al. 2022, arXiv 2203.03466, derive it for any layer whose width grows), from 784 pixels on, for which the
        default rate was found.
        """
        scale = FULL_RATE_PIXELS / self._num_pixels
        return {"hidden.0.weight": scale} if scale < 1 else {}


class MlpDecoder(nn.Module):
    """Latent codes z [N, D] to raw outputs [N, *shape of `bias`], through `depth` hidden layers.

    `bias`, [M, C, H, W] or [M, 1, H, W], is what the outputs' own bias starts from.
    """

    def __init__(self, bias: Tensor, latent_dim: int, *, width: int, depth: int, generator: torch.Generator) -> None:
        super().__init__()
        self.output_shape = tuple(bias.shape)
        self.hidden = _hidden_layers(latent_dim, width, depth, generator)
        self.pixels = linear(width, bias.numel(), generator)
        with torch.no_grad():
            self.pixels.bias.copy_(bias.flatten())

    def forward(self, z: Tensor) -> Tensor:
        """Raw outputs, [N, *shape of the bias]."""
        pixels: Tensor = self.pixels(self.hidden(z))  # [N, numbers of the bias]
        return torch.unflatten(pixels, 1, self.output_shape)


def _hidden_layers(inputs: int, width: int, depth: int, generator: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [linear(width if index else inputs, width, generator), nn.SiLU()]
    return nn.Sequential(*layers)
