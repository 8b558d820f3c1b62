"""How many nats a lossless codec needs for an image: a model of all images at once, that no training has narrowed."""

import io
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.engine.chunks import Chunks

_PIXELS_AT_ONCE = 2**14  # coded in a few milliseconds


def complexity(images: Iterable[NDArray[np.float32]]) -> Chunks[NDArray[np.float64]]:
    """Size of each image as lossless WebP, 8 bits a pixel and channel: B times [C, H, W] in [0, 1] → [B], nats.

    The file's length in bits, times ln 2; its 20 bytes of header are in it, for every image the same. A number of
    channels that is neither 1 nor 3 is coded channel by channel.
    """
    nats = []
    for index, image in enumerate(images):
        if index % max(1, _PIXELS_AT_ONCE // image.size) == 0:
            yield
        nats.append(_coded_bytes(np.rint(image * 255).astype(np.uint8)) * 8 * math.log(2))
    return np.array(nats, np.float64)


def _coded_bytes(image: NDArray[np.uint8]) -> int:
    if len(image) == 3:
        return _file_bytes(image.transpose(1, 2, 0))
    return sum(_file_bytes(plane) for plane in image)


def _file_bytes(pixels: NDArray[np.uint8]) -> int:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "WEBP", lossless=True, quality=75, method=4)
    return stream.tell()
