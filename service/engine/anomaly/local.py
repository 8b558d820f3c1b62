"""Where in a feature map is an image least likely? A small defect is lost in the sum over all positions."""

import numpy as np
from numpy.typing import NDArray

from model_store import Space
from service.engine.anomaly.complexity import complexity
from service.engine.arrays import Float32Array, Float64Array
from service.engine.chunks import Chunks
from service.engine.posterior.sampling import Sampler
from service.engine.preparation import PreparedImages

_SHARE = 16
"""Of the positions, one in so many counts: on 8×8 maps four. Chosen on images that are in no benchmark here."""
_EDGE = 0.5
"""A pixel's centre, in pixels from its corner; a position's, likewise."""


def least_likely(x: PreparedImages, latents: Float32Array, sampler: Sampler) -> Chunks[Float64Array]:
    """How unlikely the least likely positions are: maps [B, F, h, w], codes [B, D] → [B], nats a position.

    Of −Σ_channels log p(x_channel,position|z) the mean over the sixteenth of all positions where it is largest, at
    least one. The sum over all positions has the noise of those that are ordinary; a single one has more noise than a
    few, and a defect seldom lies in one alone.
    """
    _, _, height, width = x.shape
    count = max(1, height * width // _SHARE)
    found = np.empty(len(x))
    for start in range(0, len(x), sampler.chunk_rows):
        rows = slice(start, start + sampler.chunk_rows)
        maps = x[rows]
        log_prob = sampler.pixel_log_prob(maps.reshape(len(maps), -1), latents[rows])  # [b, P]
        with np.errstate(invalid="ignore", over="ignore"):
            by_position = -log_prob.reshape(*maps.shape[:2], -1).sum(axis=1)  # [b, F, h·w] → [b, h·w]
            found[rows] = np.sort(by_position, axis=1)[:, -count:].mean(axis=1)
        yield
    return found


def statistic_of_space(
    x: PreparedImages, codes: Float32Array, sampler: Sampler, space: Space
) -> Chunks[dict[str, Float64Array]]:
    """What scores of models of this space alone are made of: by name, each [B]."""
    if space == "pixels":
        return {"complexity": (yield from complexity(x.restored()))}
    return {"local": (yield from least_likely(x, codes, sampler))}


def at_image_size(maps: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Values at positions [B, F, h, w] as one map of an image's size, [B, 1, H, W].

    Summed over the channels, then interpolated linearly between the positions' centres; beyond the outermost centres
    they stay as they are. A value is the nats of its position, not of a pixel.

    >>> at_image_size(np.array([[[[0.0, 4.0]]]]), 1, 4).ravel().tolist()
    [0.0, 1.0, 3.0, 4.0]
    """
    summed = maps.sum(axis=1)  # [B, h, w]
    rows, columns = _weights(summed.shape[1], height), _weights(summed.shape[2], width)
    with np.errstate(invalid="ignore"):
        return np.asarray((rows @ summed @ columns.T)[:, None])


def _weights(count: int, size: int) -> Float64Array:
    """Linear interpolation from `count` centres to `size` centres over the same length: [size, count]."""
    places = np.clip((np.arange(size) + _EDGE) * count / size - _EDGE, 0, count - 1)
    below = np.minimum(places.astype(np.int64), max(count - 2, 0))
    weights = np.zeros((size, count))
    weights[np.arange(size), below] = 1 - (places - below)
    if count > 1:
        weights[np.arange(size), below + 1] = places - below
    return weights
