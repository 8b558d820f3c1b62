"""Photographs that are made, not taken: shading, objects with edges, texture and grain, in 8 bits."""

import numpy as np
from numpy.typing import NDArray


def photographs(
    count: int, height: int, width: int, *, channels: int = 1, contrast: float = 1.0, seed: int = 0
) -> NDArray[np.uint8]:
    """Images [N, C, H, W], uint8, of one kind of scene: their spectrum falls as 1/f, as that of photographs does.

    Each has its own brightness, direction of light, disc and half-plane; `contrast` 3 drives most pixels to black or
    white.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    images = np.empty((count, channels, height, width), np.uint8)
    for image in images:
        spectrum = (rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)) / frequency
        texture = np.fft.irfft2(spectrum, s=(height, width))
        angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.3)
        disc = np.hypot(y - rng.uniform(0.2, 0.6), x - rng.uniform(0.2, 0.6)) < radius
        half_plane = np.cos(angle) * (y - 0.4) + np.sin(angle) * (x - 0.4) > rng.uniform(-0.2, 0.2)
        light = rng.uniform(-0.3, 0.3) * y + rng.uniform(-0.3, 0.3) * x
        scene = (
            0.1 * texture / texture.std() + light + rng.uniform(-0.3, 0.3) * disc + rng.uniform(-0.2, 0.2) * half_plane
        )
        tint = rng.uniform(0.7, 1.0, (channels, 1, 1))
        grain = 0.01 * rng.standard_normal((channels, height, width))
        image[:] = np.clip(255 * (0.5 + contrast * tint * (scene + rng.uniform(-0.1, 0.1)) + grain), 0, 255)
    return images
