"""How many bits lossless image formats need for images: what any model of their pixels should stay under."""

import io
import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training.configuration import Configuration
from training.data.splits import derive_seed, evenly_spaced
from training.fit.loop import prepare
from training.networks.vae import Vae

FORMATS: Mapping[str, Mapping[str, object]] = {
    "PNG": {"optimize": True},
    "WebP": {"lossless": True, "quality": 100, "method": 4},
}
"""The options that Pillow writes each with."""
_NUMBERS_CODED = 2**21  # pixels times channels, coded in a second or two
_LONGEST_STRIP = 4096  # pixels; WebP has no side above 16383
_COMPRESSED = 6  # a stream of random numbers


def lossless_bits_per_dim(
    levels: NDArray[np.uint8], formats: Mapping[str, Mapping[str, object]] = FORMATS
) -> dict[str, float]:
    """Bits a pixel and channel by format, of images [N, C, H, W] whose levels are whole numbers, C being 1 or 3.

    Images are joined into strips, one below the other, so that a file's header counts for little. Levels that are 0
    and 255 alone are written as black and white, one bit a pixel, where a format has that.
    """
    _, channels, height, width = levels.shape
    some = evenly_spaced(levels, max(1, _NUMBERS_CODED // levels[0].size))
    each = max(1, _LONGEST_STRIP // height)
    size = dict.fromkeys(formats, 0)
    for start in range(0, len(some), each):
        strip = some[start : start + each].transpose(0, 2, 3, 1).reshape(-1, width, channels)
        picture = Image.fromarray(np.ascontiguousarray(strip if channels == 3 else strip[..., 0]))
        if channels == 1 and ((strip == 0) | (strip == 255)).all():
            picture = picture.convert("1", dither=Image.Dither.NONE)
        for name, options in formats.items():
            stream = io.BytesIO()
            picture.save(stream, name, **options)
            size[name] += stream.tell()
    return {name: 8 * num_bytes / some.size for name, num_bytes in size.items()}


def comparable_bits_per_dim(vae: Vae, images: Tensor, configuration: Configuration) -> dict[str, float] | None:
    """Of images [N, C, H, W] with the pixels that the model is trained on, which binarisation changes.

    None where log P(x) is a density, which no number of bits compares with, or images have neither 1 nor 3 channels.
    """
    levels = 2 if vae.likelihood.is_binary else vae.likelihood.levels
    if levels is None or levels > 256 or vae.image_shape[0] not in (1, 3):
        return None
    generator = torch.Generator().manual_seed(derive_seed(configuration.seed, _COMPRESSED))
    most = max(1, _NUMBERS_CODED // math.prod(vae.image_shape))
    some = torch.from_numpy(evenly_spaced(images.numpy(), most))
    x = prepare(some, configuration, vae, generator=generator)
    scale = 255 if levels == 2 else levels - 1
    if vae.likelihood.is_binary and not torch.all((x == 0) | (x == 1)):
        return None
    return lossless_bits_per_dim((x * scale).round().to(torch.uint8).numpy())
