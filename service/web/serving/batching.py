"""Computations that answer several requests together: join their arrays, compute, and split the result.

`count` is called on the inference thread with the number of joined rows.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeVar

import numpy as np

from service.engine.anomaly.detector import AnomalyScores
from service.engine.anomaly.measurement import Measurement
from service.engine.arrays import Float32Array
from service.engine.chunks import Chunks
from service.engine.model import Model, Pixels
from service.engine.parts import Part, Parts, Results, in_order
from service.engine.posterior.estimate import LogLikelihood
from service.engine.posterior.estimator import Inference
from service.engine.proposal import DiagonalGaussian, Effort
from service.engine.reconstruction import Reconstructions
from service.web.rate import Meter
from service.web.serving.batch_queue import Computation, alone

_MAX_IMAGES = 64
"""Of estimates and scores that are computed together: more would hardly be faster, and keep the first ones waiting."""
T = TypeVar("T", bound=Results)
R = TypeVar("R")


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


def reconstructing(model: Model) -> Computation[Pixels, Reconstructions]:
    """Reconstruct for several requests of one model: images [B, C, H, W] → as prepared, and E[x|z]."""

    def compute(requests: Sequence[Pixels]) -> Generator[None, None, Sequence[Reconstructions]]:
        found = yield from model.reconstruct(_join(requests))
        parts = _parted(found.prepared, requests), _parted(found.reconstructed, requests)
        return [Reconstructions(*pair) for pair in zip(*parts, strict=True)]

    return Computation(("reconstruct", model), compute)


def estimating(model: Model, proposal: str, effort: Effort, meter: Meter) -> Computation[Pixels, LogLikelihood]:
    """Estimate log P(x) for several requests with the same options: images [B, C, H, W] → a record of arrays [B]."""

    def compute(requests: Sequence[Pixels]) -> "_Early[LogLikelihood]":
        def record_of(_: int, inference: Inference) -> Chunks[LogLikelihood]:
            yield from ()  # no chunk
            return inference.record

        return (yield from _finished(requests, model.infer(_join(requests), proposal, effort), record_of))

    key = ("log-likelihood", model, proposal, effort)
    return Computation(key, compute, meter, max_rows=_MAX_IMAGES * effort.limit)


@dataclass(frozen=True)
class Judged:
    """A request for anomaly scores, see `Model.anomaly_scores`; its methods are those that `Detector.choose` gave."""

    pixels: Pixels
    methods: Sequence[str]
    alpha: float
    fdr: float | None


def scoring(model: Model, meter: Meter) -> Computation[Judged, AnomalyScores]:
    """Score for several requests of one model. Each decides by its own methods and rates, over its own images."""

    def compute(requests: Sequence[Judged]) -> "_Early[AnomalyScores]":
        def scores_of(index: int, measurement: Measurement) -> Chunks[AnomalyScores]:
            by = requests[index]
            return (yield from model.detector.scores(measurement, by.methods, alpha=by.alpha, fdr=by.fdr))

        images = [request.pixels for request in requests]
        return (yield from _finished(images, model.measure(_join(images), *model.protocol()), scores_of))

    rows = model.description.calibration.num_samples
    return Computation(("anomaly-scores", model), compute, meter, max_rows=_MAX_IMAGES * rows)


def explaining(model: Model, judged: Judged, meter: Meter) -> Computation[None, AnomalyScores]:
    """The same for one request alone, with maps of surprising pixels."""
    by = judged.methods, judged.alpha, judged.fdr
    return alone(model.anomaly_scores(judged.pixels, methods=by[0], alpha=by[1], fdr=by[2], explain=True), meter)


_Early = Generator[Mapping[int, R] | None, None, Sequence[R]]


def _finished(requests: Sequence[Pixels], parts: Parts[T], finish: Callable[[int, T], Chunks[R]]) -> _Early[R]:
    """Each request's result, made by `finish` of its index and its images' results, once all of these are there."""
    sizes = [len(request) for request in requests]
    request_of = np.repeat(np.arange(len(sizes)), sizes)
    found: list[list[Part[T]]] = [[] for _ in sizes]
    results: dict[int, R] = {}
    for part in parts:
        if part is None:
            yield None
            continue
        early = {}
        for index in np.unique(request_of[part.images]).tolist():
            found[index].append(part.of(request_of[part.images] == index))
            if sum(len(some.images) for some in found[index]) == sizes[index]:
                early[index] = results[index] = yield from finish(index, in_order(found[index]))
        yield early
    return [results[index] for index in range(len(sizes))]


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
