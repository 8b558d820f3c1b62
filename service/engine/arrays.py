"""The types of arrays that the engine computes with, each by the precision of its numbers."""

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
"""On the device, and of what the graphs give."""
Float64Array = NDArray[np.float64]
"""Of reductions, and of matrices in the latent space."""
Indices = NDArray[np.intp]
"""Of images in a batch."""


def largest_divisor(number: int, most: int) -> int:
    """The largest number up to `most` that divides another.

    >>> largest_divisor(784, 64)
    56
    """
    return max(size for size in range(1, most + 1) if number % size == 0)
