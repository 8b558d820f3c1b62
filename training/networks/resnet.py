"""The `resnet` preset: residual convolutions at halved and halved again sizes, without normalisation.

No layer looks at another image of the batch, so an image's densities do not depend on what it came with. What keeps
signals in range without normalisation is that each residual branch starts at zero (Zhang et al. 2019, arXiv
1901.09321; no normalisation in a VAE: Child 2020, arXiv 2011.10650).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.networks.layers import convolution, linear

SMALLEST = 8
"""Pixels: images are halved until neither height nor width is larger."""
_MOST_CHANNELS = 4
"""Times the width."""
LARGEST = 40
"""Patches: larger images are read and written in patches, so that convolutions never see more than 40×40 places."""


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


class Patches(nn.Module):
    """Images [N, C, H, W] to `outputs` channels of each patch of `patch`×`patch` pixels, [N, outputs, ⌈H/p⌉, ⌈W/p⌉].

    What a patch at the bottom or to the right lacks is 0.
    """

    def __init__(self, image_shape: tuple[int, int, int], outputs: int, patch: int, generator: torch.Generator) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.missing = (0, -width % patch, 0, -height % patch)
        self.convolution = convolution(channels, outputs, kernel=patch, stride=patch, padding=0, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, outputs, ⌈H/p⌉, ⌈W/p⌉]."""
        patches: Tensor = self.convolution(F.pad(x, self.missing))
        return patches


class ResnetEncoder(nn.Module):
    """Images x [B, C, H, W] to features [B, F]: at each size `depth` residual blocks, then a halving.

    There are `width` channels at the first size, twice as many at the next and 4·width from there on. The first size is
    the image's own, or that of its patches where it is large (see `patch_size`).
    """

    def __init__(
        self, image_shape: tuple[int, int, int], *, width: int, depth: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        patch = patch_size(*image_shape[1:])
        sizes = halved_sizes(*_in_patches(image_shape[1:], patch))
        channels = _channels(width, len(sizes))
        layers: list[nn.Module] = [
            convolution(image_shape[0], width, kernel=3, generator=generator)
            if patch == 1
            else Patches(image_shape, width, patch, generator)
        ]
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

    def rate_scales(self) -> dict[str, float]:
        """None: no unit here reads more than one place and its neighbours, whatever the size of the image."""
        return {}


class ResnetDecoder(nn.Module):
    """Latent codes z [N, D] to raw outputs [N, *shape of `bias`]: the encoder's sizes and channels the other way.

    `bias`, [M, C, H, W] or [M, 1, H, W], one number a pixel, is learned too.
    """

    def __init__(self, bias: Tensor, latent_dim: int, *, width: int, depth: int, generator: torch.Generator) -> None:
        super().__init__()
        outputs, channels_each, *image_size = bias.shape
        self.patch = patch_size(*image_size)
        sizes = halved_sizes(*_in_patches(image_size, self.patch))
        channels = _channels(width, len(sizes))
        self.smallest = (channels[-1], *sizes[-1])
        self.latent = linear(latent_dim, channels[-1] * sizes[-1][0] * sizes[-1][1], generator)
        layers: list[nn.Module] = []
        for level in reversed(range(len(sizes))):
            layers += [ResidualBlock(channels[level], generator) for _ in range(depth)]
            if level:
                layers.append(Upsampling(channels[level], channels[level - 1], sizes[level - 1], generator))
        self.layers = nn.Sequential(*layers)
        self.pixels = convolution(
            width,
            outputs * channels_each * self.patch**2,
            kernel=3 if self.patch == 1 else 1,
            after_silu=True,
            generator=generator,
        )
        self.pixels.bias = None  # `bias` is a better one
        self.bias = nn.Parameter(bias.clone())

    def forward(self, z: Tensor) -> Tensor:
        """Raw outputs, [N, *shape of the bias]."""
        hidden = self.layers(self.latent(z).unflatten(1, self.smallest))  # [N, width, ⌈H/p⌉, ⌈W/p⌉]
        pixels: Tensor = self.pixels(F.silu(hidden))  # [N, M·C·p², ⌈H/p⌉, ⌈W/p⌉]
        if self.patch > 1:
            height, width = self.bias.shape[2:]
            pixels = F.pixel_shuffle(pixels, self.patch)[:, :, :height, :width]  # [N, M·C, H, W]
        return torch.unflatten(pixels, 1, self.bias.shape[:2]) + self.bias


def patch_size(height: int, width: int) -> int:
    """Pixels of a patch's side: the least power of two that leaves at most 40 patches across and down.

    >>> [patch_size(size, size) for size in (28, 40, 41, 64, 128, 256, 300, 512)]
    [1, 1, 2, 2, 4, 8, 8, 16]
    """
    patch = 1
    while max(height, width) > LARGEST * patch:
        patch *= 2
    return patch


def _in_patches(image_size: Sequence[int], patch: int) -> tuple[int, int]:
    height, width = image_size
    return -(-height // patch), -(-width // patch)


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
