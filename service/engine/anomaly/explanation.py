"""Which pixels does the likelihood find surprising, seen from the posterior?"""

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Float32Array
from service.engine.chunks import Chunks
from service.engine.posterior.sampling import Sampler
from service.engine.preparation import PreparedImages

NUM_DRAWS = 8
"""Latents an image, drawn from p(z|x) by resampling."""


def surprise_maps(x: PreparedImages, latents: Float32Array, sampler: Sampler) -> Chunks[NDArray[np.float64]]:
    """−log p(x_i|z) − H[p(x_i|z)] of each pixel, nats, averaged over latents: x [B, C, H, W], latents [B, R, D] → x's.

    A pixel's cost less the cost it is expected to have at that z: one that the model is unsure of anyway is no
    surprise. On average over x ~ p(x|z) it is zero, and negative where x is more ordinary than most.
    """
    maps = np.empty(x.shape)
    for index in range(len(x)):
        image = x[index : index + 1][0]
        with np.errstate(invalid="ignore", over="ignore"):
            maps[index] = sampler.surprise(image.reshape(-1), latents[index]).mean(axis=0).reshape(image.shape)
        yield
    return maps
