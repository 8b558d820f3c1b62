"""Computations that answer several requests together: join their arrays, compute, and split the result.

`count` is called on the inference thread with the number of joined rows.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np

from service.engine.arrays import Float32Array
from service.engine.model import Model, Pixels
from service.engine.proposal import DiagonalGaussian
from service.web.serving.batch_queue import Computation


def encoding(model: Model, count: Callable[[int], None]) -> Computation[Pixels, DiagonalGaussian]:
    """Encode for several requests of one model: images [B, C, H, W] → q(z|x) [B, D]."""

    def compute(requests: Sequence[Pixels]) -> Generator[None, None, Sequence[DiagonalGaussian]]:
        images = _join(requests)
        count(len(images))
        latents = yield from model.encode(images)
        mean, log_var = _parted(latents.mean, requests), _parted(latents.log_var, requests)
        return [DiagonalGaussian(*parts) for parts in zip(mean, log_var, strict=True)]

    return Computation(("encode", model), compute)


def decoding(model: Model, count: Callable[[int], None]) -> Computation[Float32Array, Pixels]:
    """Decode for several requests of one model: latents [N, D] → E[x|z] [N, C, H, W]."""

    def compute(requests: Sequence[Float32Array]) -> Generator[None, None, Sequence[Pixels]]:
        latents = _join(requests)
        count(len(latents))
        images = yield from model.decode(latents)
        return list(_parted(images, requests))

    return Computation(("decode", model), compute)


def _join(requests: Sequence[Float32Array]) -> Float32Array:
    return requests[0] if len(requests) == 1 else np.concatenate(requests)


def _parted(result: Float32Array, requests: Sequence[Float32Array]) -> Iterator[Float32Array]:
    """Each request's part. If there are several, a copy, because a view would keep the results of all in memory."""
    if len(requests) == 1:
        yield result
        return
    bounds = accumulate((len(request) for request in requests), initial=0)
    for start, stop in pairwise(bounds):
        yield result[start:stop].copy()
