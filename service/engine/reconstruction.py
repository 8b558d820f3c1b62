"""What a model keeps of an image: E[x|z] at the encoder's mean, beside the image as the model sees it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Reconstructions:
    """Of each image, [B, C, H, W], pixels in [0, 1]."""

    prepared: NDArray[np.float32]
    """The image as the model sees it: binarised, or moved to the nearest of its levels, if the model does that."""
    reconstructed: NDArray[np.float32]
    """E[x|z] at z = E[q(z|x)]."""
