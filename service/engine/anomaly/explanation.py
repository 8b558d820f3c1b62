"""Which pixels does the likelihood find surprising, seen from the posterior?"""

import numpy as np
from numpy.typing import NDArray

from service.engine.likelihood import Likelihood, Parameters

NUM_DRAWS = 8
"""Latents an image, drawn from p(z|x) by resampling."""


def surprise(x: NDArray[np.float32], parameters: Parameters, likelihood: Likelihood) -> NDArray[np.float64]:
    """−log p(x_i|z) − H[p(x_i|z)] of each pixel, nats, averaged over latents: x [C, H, W], parameters [R, C, H, W].

    A pixel's cost less the cost it is expected to have at that z: one that the model is unsure of anyway is no
    surprise. On average over x ~ p(x|z) it is zero, and negative where x is more ordinary than most.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        cost = -likelihood.pixel_log_prob(x.astype(np.float64), parameters)  # [R, C, H, W]
        return np.asarray((cost - likelihood.pixel_entropy(parameters)).mean(axis=0))
