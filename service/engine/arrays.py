"""The types of arrays that the engine computes with, each by the precision of its numbers."""

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
"""On the device, and of what the graphs give."""
Float64Array = NDArray[np.float64]
"""Of reductions, and of matrices in the latent space."""
Indices = NDArray[np.intp]
"""Of images in a batch."""
