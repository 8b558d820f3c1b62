"""What can be asked of the service, on any transport."""

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import numpy as np

from logpx import answers
from logpx.chunks import NPY, Chunk, ChunkSize, chunks_of
from logpx.errors import ProblemError
from logpx.exchange import Answer, Request, exchange, is_too_much
from logpx.images import ImagesLike, Item, array_of, count_of, items_of
from logpx.results import (
    AnomalyScores,
    Images,
    Latents,
    LogLikelihoods,
    ModelSummary,
    Reconstructions,
    Result,
    Samples,
    joined,
)
from logpx.runner import Runner
from logpx.settings import Settings

R = TypeVar("R", bound=Result)
Progress: TypeAlias = Callable[[int, int | None], object]
"""Called after each chunk with the number of images that are done, and of all, or None if that is not known."""
_CHUNK_BYTES = 2**24
_JSON = "application/json"


class Operations:
    """The methods of `Client` and `AsyncClient`.

    Images may be any number, also a generator's: they are asked for as they are sent, a few requests at a time, and
    results have their order. All methods raise what errors.py lists.

    Args:
        runner: makes what sends the requests of one call.
        settings: the client's.
    """

    def __init__(self, runner: Callable[[], Runner[Request, Answer]], settings: Settings) -> None:
        self._runner = runner
        self._settings = settings

    async def encode(self, images: ImagesLike, *, resize: bool = False, progress: Progress | None = None) -> Latents:
        """The latent code of each image: q(z|x) = N(mean, diag exp(log_var)).

        Args:
            images: see docs/client.md.
            resize: resample images of another size, where the model takes one size only.
            progress: called after each chunk.
        """
        request = self._request("POST", "/v1/encode", {"resize": resize}, NPY)
        return await self._over_images(request, images, answers.latents, progress)

    async def decode(self, latents: Any, *, progress: Progress | None = None) -> Images:
        """What the model imagines at each latent: E[x|z].

        Args:
            latents: [N, D], of numbers.
            progress: called after each chunk.
        """
        found = array_of(latents)
        array = np.asarray(latents if found is None else found, np.float32)
        if array.ndim != 2:
            raise ValueError(f"the latents have shape {list(array.shape)}; give [N, D]")
        request = self._request("POST", "/v1/decode", {}, NPY)
        return await self._over(request, iter(array), len(array), answers.images, progress)

    async def reconstruct(
        self, images: ImagesLike, *, resize: bool = False, progress: Progress | None = None
    ) -> Reconstructions:
        """Each image as the model sees it, and E[x|z] at the encoder's mean. Arguments as of `encode`."""
        request = self._request("POST", "/v1/reconstruct", {"resize": resize}, NPY)
        return await self._over_images(request, images, answers.reconstructions, progress)

    async def samples(self, n: int = 16, *, seed: int | None = None, temperature: float = 1.0) -> Samples:
        """Images drawn from the prior: z ~ N(0, temperature²·I), then E[x|z]; the same ones for the same seed."""
        named = {"n": n, "seed": seed, "temperature": temperature, "as": "array"}
        return answers.samples(await self._once(self._request("GET", "/v1/samples", named, _JSON)))

    async def log_likelihood(
        self,
        images: ImagesLike,
        *,
        proposal: str | None = None,
        num_samples: int | None = None,
        seed: int | None = None,
        max_std_error: float | None = None,
        resize: bool = False,
        progress: Progress | None = None,
    ) -> LogLikelihoods:
        """log P(x) of each image in nats, with its standard error, and whether that can be trusted.

        Args:
            images: see docs/client.md.
            proposal: how to estimate: docs/log-likelihood.md; default, as of the next two: the service's.
            num_samples: samples an image to begin with.
            seed: of the noise that all images share.
            max_std_error: sample on, image by image, until the standard error is at most this.
            resize: as of `encode`.
            progress: called after each chunk.
        """
        named = {
            "proposal": proposal,
            "num_samples": num_samples,
            "seed": seed,
            "max_std_error": max_std_error,
            "resize": resize,
        }
        request = self._request("POST", "/v1/log-likelihood", named, _JSON)
        return await self._over_images(request, images, answers.log_likelihoods, progress)

    async def anomaly_scores(
        self,
        images: ImagesLike,
        *,
        method: str | Sequence[str] | None = None,
        alpha: float | None = None,
        fdr: float | None = None,
        explain: bool = False,
        resize: bool = False,
        progress: Progress | None = None,
    ) -> AnomalyScores:
        """How strange each image is (higher is stranger), with its p-value.

        Args:
            images: see docs/client.md.
            method: one or several; docs/anomaly-scores.md lists them.
            alpha: an image is an anomaly if its p-value is at most this; default: the service's.
            fdr: instead of alpha: decide over all images, however many requests they are, so that of those called
                anomalies at most this share is expected to be none (Benjamini-Hochberg).
            explain: with a map of the surprising pixels of each image.
            resize: as of `encode`.
            progress: called after each chunk.
        """
        if fdr is not None and (alpha is not None or not 0 < fdr < 1):
            raise ValueError("fdr is between 0 and 1, and given instead of alpha")
        methods = method if method is None or isinstance(method, str) else ",".join(method)
        named = {"method": methods, "alpha": alpha, "explain": explain, "as": "array", "resize": resize}
        request = self._request("POST", "/v1/anomaly-scores", named, _JSON)
        scores = await self._over_images(request, images, answers.anomaly_scores, progress)
        return scores if fdr is None else scores.decided(fdr)

    async def models(self) -> list[ModelSummary]:
        """Every model of the service."""
        return answers.models(await self._once(Request("GET", "/v1/models", {}, self._settings.headers())))

    def _request(self, method: str, path: str, parameters: Mapping[str, Any], accept: str) -> Request:
        named = {"model": self._settings.model, "version": self._settings.version, **parameters}
        return Request(method, path, named, {**self._settings.headers(), "Accept": accept})

    async def _once(self, request: Request) -> Answer:
        runner = self._runner()
        try:
            return await exchange(runner, request, self._settings.retries)
        finally:
            await runner.end()

    async def _over_images(
        self, request: Request, images: ImagesLike, parse: Callable[[Answer], R], progress: Progress | None
    ) -> R:
        return await self._over(request, items_of(images), count_of(images), parse, progress)

    async def _over(
        self,
        request: Request,
        items: Iterator[Item],
        total: int | None,
        parse: Callable[[Answer], R],
        progress: Progress | None,
    ) -> R:
        """Send items in chunks. The first chunk says which version answers, and the others ask for that one."""
        runner, size = self._runner(), ChunkSize(self._settings.chunk_images, _CHUNK_BYTES)
        parts: list[R] = []
        done = 0
        waiting: deque[Callable[[], Awaitable[list[R]]]] = deque()

        def add(found: list[R]) -> None:
            nonlocal done
            parts.extend(found)
            done += sum(len(part) for part in found)
            if progress is not None:
                progress(done, total)

        try:
            for chunk in chunks_of(items, size):
                if not parts:
                    add(await self._parts(runner, request, chunk, size, parse))
                    request = _pinned(request, parts[0])
                    continue
                if len(waiting) == self._settings.concurrency:
                    add(await waiting.popleft()())
                waiting.append(runner.start(self._parts, runner, request, chunk, size, parse))
            while waiting:
                add(await waiting.popleft()())
        finally:
            await runner.end()
        if not parts:
            raise ValueError("there is nothing to send: no image, or no latent")
        return joined(parts)

    async def _parts(
        self,
        runner: Runner[Request, Answer],
        request: Request,
        chunk: Chunk,
        size: ChunkSize,
        parse: Callable[[Answer], R],
    ) -> list[R]:
        """The results of a chunk, of its halves if it is too much for one request."""
        content_type, body = await runner.work(chunk.body)
        whole = replace(request, headers={**request.headers, "Content-Type": content_type}, body=body)
        try:
            answer = await exchange(runner, whole, self._settings.retries)
        except ProblemError as error:
            if len(chunk) == 1 or not is_too_much(error):
                raise error.moved(chunk.start) from None
            size.images = min(size.images, len(chunk) // 2)
        else:
            return [await runner.work(lambda: parse(answer))]
        first, second = chunk.halves()
        found = await self._parts(runner, request, first, size, parse)
        return found + await self._parts(runner, _pinned(request, found[0]), second, size, parse)


def _pinned(request: Request, result: Result) -> Request:
    """The request to the version that gave a result, also if the service has a newer one meanwhile."""
    return replace(request, parameters={**request.parameters, "model": result.model, "version": result.version})
