"""The `resnet` preset: residual convolutions at halved and halved again sizes, without normalisation.

No layer looks at another image of the batch, so an image's densities do not depend on what it came with. What keeps
signals in range without normalisation is that each residual branch starts at zero (Zhang et al. 2019, arXiv
1901.09321; no normalisation in a VAE: Child 2020, arXiv 2011.10650).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.layers import convolution, linear

SMALLEST = 8
"""Pixels: images are halved until neither height nor width is larger."""
_MOST_CHANNELS = 4
"""Times the width."""


class ResidualBlock(nn.Module):
    """h + conv(silu(conv(silu(h)))), [N, channels, H, W]; the identity until the first step of training."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first = convolution(channels, channels, kernel=3, after_silu=True, generator=generator)
        self.second = convolution(channels, channels, kernel=3, after_silu=True, generator=generator)
        nn.init.zeros_(self.second.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """The same shape, [N, channels, H, W]."""
        update: Tensor = self.second(F.silu(self.first(F.silu(hidden))))
        return hidden + update


class Upsampling(nn.Module):
    """Twice the height and width, by sub-pixel convolution (Shi et al. 2016, arXiv 1609.05158), then cut to `size`."""

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int], generator: torch.Generator) -> None:
        super().__init__()
        self.size = size
        self.convolution = convolution(inputs, 4 * outputs, kernel=1, generator=generator)

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, inputs, ⌈H/2⌉, ⌈W/2⌉] → [N, outputs, H, W]."""
        height, width = self.size
        return F.pixel_shuffle(self.convolution(hidden), 2)[:, :, :height, :width]


class ResnetEncoder(nn.Module):
    """Images x [B, C, H, W] to features [B, F]: at each size `depth` residual blocks, then a halving.

    There are `width` channels at the image's own size, twice as many at the next and 4·width from there on.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], *, width: int, depth: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        sizes = halved_sizes(*image_shape[1:])
        channels = _channels(width, len(sizes))
        layers: list[nn.Module] = [convolution(image_shape[0], width, kernel=3, generator=generator)]
        for level in range(len(sizes)):
            if level:
                layers.append(
                    convolution(channels[level - 1], channels[level], kernel=3, stride=2, generator=generator)
                )
            layers += [ResidualBlock(channels[level], generator) for _ in range(depth)]
        self.layers = nn.Sequential(*layers)
        self.num_features = channels[-1] * sizes[-1][0] * sizes[-1][1]

    def forward(self, x: Tensor) -> Tensor:
        """Features, [B, F]."""
        return F.silu(self.layers(x)).flatten(1)


class ResnetDecoder(nn.Module):
    """Latent codes z [N, D] to raw outputs [N, M, C, H, W]: the encoder's sizes and channels in the other direction.

    `bias` [M, C, H, W], one number a pixel, is learned too.
    """

    def __init__(self, bias: Tensor, latent_dim: int, *, width: int, depth: int, generator: torch.Generator) -> None:
        super().__init__()
        outputs, image_channels, *image_size = bias.shape
        sizes = halved_sizes(*image_size)
        channels = _channels(width, len(sizes))
        self.smallest = (channels[-1], *sizes[-1])
        self.latent = linear(latent_dim, channels[-1] * sizes[-1][0] * sizes[-1][1], generator)
        layers: list[nn.Module] = []
        for level in reversed(range(len(sizes))):
            layers += [ResidualBlock(channels[level], generator) for _ in range(depth)]
            if level:
                layers.append(Upsampling(channels[level], channels[level - 1], sizes[level - 1], generator))
        self.layers = nn.Sequential(*layers)
        self.pixels = convolution(width, outputs * image_channels, kernel=3, after_silu=True, generator=generator)
        self.pixels.bias = None  # `bias` is a better one
        self.bias = nn.Parameter(bias.clone())

    def forward(self, z: Tensor) -> Tensor:
        """Raw outputs, [N, M, C, H, W]."""
        hidden = self.layers(self.latent(z).unflatten(1, self.smallest))  # [N, width, H, W]
        pixels: Tensor = self.pixels(F.silu(hidden))  # [N, M·C, H, W]
        return torch.unflatten(pixels, 1, self.bias.shape[:2]) + self.bias


def halved_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """The image's size, and each half of it, rounded up, until none is above 8.

    >>> halved_sizes(28, 20)
    [(28, 20), (14, 10), (7, 5)]
    """
    sizes = [(height, width)]
    while max(sizes[-1]) > SMALLEST:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


def _channels(width: int, levels: int) -> list[int]:
    return [width * min(2**level, _MOST_CHANNELS) for level in range(levels)]
