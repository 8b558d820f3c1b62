"""The `/v1` routes: parse, compute on the inference thread, answer."""

import asyncio
import secrets
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from service.engine.anomaly.detector import DEFAULT_ALPHA
from service.engine.anomaly.explanation import NUM_DRAWS
from service.engine.model import Model
from service.engine.proposal import DEFAULT_NUM_SAMPLES, check_request
from service.web import answer_size, responses, schemas
from service.web.answer_size import Form, check_answer, check_images
from service.web.disconnection import answer_unless_gone
from service.web.documentation import describe_images_body, describe_images_reply, describe_latents_body
from service.web.inputs import admitted, backend_of, model_of, named, pixels_of
from service.web.media_types import JSON, NPY
from service.web.memory import hold, share_of
from service.web.middleware import observe
from service.web.outcome import Done
from service.web.parameters import describe_parameters, read_query, read_timeout_seconds, refuse
from service.web.problems import LimitError
from service.web.rate import Meter
from service.web.requests import read_latents
from service.web.responses import IMAGE_FORMS, images_reply, json_reply, negotiate, npy_reply
from service.web.serving.batching import decoding, encoding
from service.web.timing import decode_seconds, load_seconds, seconds_left, server_timing

router = APIRouter(prefix="/v1", responses={"4XX": {"model": schemas.Problem}, "5XX": {"model": schemas.Problem}})
T = TypeVar("T")


@router.post(
    "/encode",
    response_model=schemas.Latents,
    openapi_extra={**describe_parameters(schemas.ImagesQuery), **describe_images_body()},
)
async def encode(request: Request) -> Response:
    """The latent code of each image: q(z|x) = N(mean, diag exp(log_var)). As npy: float32 [B, 2, D]."""
    query = read_query(request, schemas.ImagesQuery)
    form = negotiate(request, (JSON, NPY))
    timeout = read_timeout_seconds(request, backend_of(request).settings)
    model, pixels = await pixels_of(request, query, timeout)
    backend = backend_of(request)
    size = partial(answer_size.latents_bytes, latent_dim=model.description.latent_dim, media=form)
    answer_bytes = check_answer(size, len(pixels), backend.settings.max_answer_bytes, NPY)
    share = hold(request, pixels.nbytes + 2 * answer_bytes)
    kind = encoding(model, backend.count_batch(model))
    rows, seconds = len(pixels), seconds_left(request, timeout)
    done = await _done(
        request, model, backend.submit(kind, pixels, rows=rows, timeout_seconds=seconds, share=share), rows
    )
    latents = done.result

    def reply() -> Response:
        if form == NPY:
            return npy_reply(np.stack([latents.mean, latents.log_var], axis=1), server_timing(done))  # [B, 2, D]
        return json_reply({**named(model), "mean": latents.mean, "log_var": latents.log_var}, server_timing(done))

    return await _written(request, reply, done, numbers=2 * latents.mean.size, timeout=timeout)


@router.post(
    "/decode",
    response_model=schemas.Images,
    openapi_extra={
        **describe_parameters(schemas.ImagesOutQuery),
        **describe_latents_body(),
        **describe_images_reply(),
    },
)
async def decode(request: Request) -> Response:
    """What the model imagines at each latent: E[x|z], as pixels."""
    query = read_query(request, schemas.ImagesOutQuery)
    media = negotiate(request, IMAGE_FORMS)
    timeout = read_timeout_seconds(request, backend_of(request).settings)
    model = await model_of(request, query, timeout)
    latents = await read_latents(request, model.description.latent_dim, limits=backend_of(request).settings)
    share = hold(request, latents.nbytes + _check_output(request, model, len(latents), media, query.as_))
    backend = backend_of(request)
    kind = decoding(model, backend.count_batch(model))
    rows, seconds = len(latents), seconds_left(request, timeout)
    answer = backend.submit(kind, latents, rows=rows, timeout_seconds=seconds, share=share)
    done = await _done(request, model, answer, rows)
    headers = server_timing(done)

    def reply() -> Response:
        return images_reply(request, named(model), done.result, form=query.as_, headers=headers)

    return await _written(request, reply, done, numbers=done.result.size, timeout=timeout)


@router.get(
    "/samples",
    response_model=schemas.Samples,
    openapi_extra={**describe_parameters(schemas.SamplesQuery), **describe_images_reply()},
)
async def samples(request: Request) -> Response:
    """Images drawn from the prior: z ~ N(0, temperature²·I), then E[x|z]. The header `X-Seed` tells the seed."""
    query = read_query(request, schemas.SamplesQuery)
    media = negotiate(request, IMAGE_FORMS)
    timeout = read_timeout_seconds(request, backend_of(request).settings)
    model = await model_of(request, query, timeout)
    hold(request, _check_output(request, model, query.n, media, query.as_))
    seed = secrets.randbelow(schemas.MAX_SEED + 1) if query.seed is None else query.seed
    chunks = model.sample(query.n, seed=seed, temperature=query.temperature)
    done = await _run(request, model, chunks, rows=query.n, timeout=timeout)
    drawn = done.result
    document = {**named(model), "seed": seed, "temperature": query.temperature, "latents": drawn.latents}
    headers = {**server_timing(done), "X-Seed": str(seed)}

    def reply() -> Response:
        return images_reply(request, document, drawn.images, form=query.as_, headers=headers)

    return await _written(request, reply, done, numbers=drawn.images.size, timeout=timeout)


@router.post(
    "/log-likelihood",
    response_model=schemas.LogLikelihoods,
    openapi_extra={**describe_parameters(schemas.LogLikelihoodQuery), **describe_images_body()},
)
async def log_likelihood(request: Request) -> Response:
    """log P(x) of each image in nats, by importance sampling, with its standard error and diagnostics."""
    query = read_query(request, schemas.LogLikelihoodQuery)
    negotiate(request, (JSON,))
    backend = backend_of(request)
    timeout = read_timeout_seconds(request, backend.settings)
    model, pixels = await pixels_of(request, query, timeout)
    num_samples = query.num_samples or backend.settings.num_samples or DEFAULT_NUM_SAMPLES[query.proposal]
    check_request(query.proposal, num_samples)
    if num_samples > backend.settings.max_num_samples:
        raise LimitError(f"num_samples is {num_samples}; at most {backend.settings.max_num_samples} are taken an image")
    answer_bytes = check_answer(answer_size.log_likelihoods_bytes, len(pixels), backend.settings.max_answer_bytes)
    hold(request, pixels.nbytes + 2 * answer_bytes)
    limit = num_samples
    if query.max_std_error is not None:
        limit = max(num_samples, min(backend.settings.max_num_samples, backend.settings.max_rows // len(pixels)))
    chunks = model.log_likelihood(
        pixels,
        proposal=query.proposal,
        num_samples=num_samples,
        seed=query.seed,
        max_std_error=query.max_std_error,
        max_num_samples=limit,
    )
    kind = "log-likelihood", query.proposal, query.max_std_error is not None
    memory, rows = model.estimates_bytes(len(pixels), limit), len(pixels) * limit
    done = await _run(request, model, chunks, rows=rows, timeout=timeout, kind=kind, memory=memory)
    backend.count_estimates(model, done.result.reliable)

    def reply() -> Response:
        document = {
            **named(model),
            "proposal": query.proposal,
            "seed": query.seed,
            "results": responses.rows_of(done.result),
        }
        return json_reply(document, server_timing(done))

    return await _written(request, reply, done, numbers=10 * len(pixels), timeout=timeout)


@router.post(
    "/anomaly-scores",
    response_model=schemas.Anomalies,
    openapi_extra={**describe_parameters(schemas.AnomalyQuery), **describe_images_body()},
)
async def anomaly_scores(request: Request) -> Response:
    """How strange each image is (higher is stranger), with a conformal p-value against held-out training images."""
    refuse(
        request,
        ("proposal", "num_samples", "seed"),
        "is fixed by the model's calibration, without which a p-value means nothing; for another, make another "
        "calibration: python -m service calibrate",
    )
    query = read_query(request, schemas.AnomalyQuery)
    if query.alpha is not None and query.fdr is not None:
        refuse(request, ("alpha", "fdr"), "alpha and fdr decide in different ways: give one of them")
    negotiate(request, (JSON,))
    backend = backend_of(request)
    timeout = read_timeout_seconds(request, backend.settings)
    model, pixels = await pixels_of(request, query, timeout)
    shape, num_methods = model.description.image, len(query.method)
    size = partial(
        answer_size.anomalies_bytes, shape=shape, num_methods=num_methods, form=query.as_, explain=query.explain
    )
    answer_bytes = check_answer(size, len(pixels), backend.settings.max_answer_bytes)
    maps = (2 * pixels.nbytes + len(pixels) * NUM_DRAWS * model.description.latent_dim * 4) if query.explain else 0
    hold(request, pixels.nbytes + maps + 2 * answer_bytes)
    alpha = (query.alpha or DEFAULT_ALPHA) if query.fdr is None else None
    chunks = model.anomaly_scores(
        pixels, methods=query.method, alpha=alpha or DEFAULT_ALPHA, fdr=query.fdr, explain=query.explain
    )
    num_draws = NUM_DRAWS if query.explain else 0
    num_samples = model.description.calibration.num_samples
    memory, rows = model.estimates_bytes(len(pixels), num_samples), len(pixels) * (num_samples + num_draws)
    done = await _run(request, model, chunks, rows=rows, timeout=timeout, kind=("anomaly-scores",), memory=memory)

    def reply() -> Response:
        for method, judgement in done.result.by_method.items():
            backend.count_p_values(model, method, judgement.p_value)
        document = {
            **named(model),
            "method": next(iter(done.result.by_method)),
            "alpha": alpha,
            "fdr": query.fdr,
            "calibration_size": done.result.calibration_size,
            "results": responses.anomaly_rows(done.result, query.as_),
        }
        return json_reply(document, server_timing(done))

    numbers = 10 * len(pixels) + (pixels.size if query.explain else 0)
    return await _written(request, reply, done, numbers=numbers, timeout=timeout)


@router.get("/models", response_model=schemas.Models)
async def models(request: Request, _: Annotated[schemas.NoQuery, Query()]) -> Response:
    """Every model: its versions in the store and in memory, those refused, and the default one's manifest."""
    found = schemas.Models(models=await admitted(request).registry.summaries())
    return Response(found.model_dump_json(), media_type=JSON)


@router.get("/models/{name}", response_model=schemas.ModelSummary)
async def model(request: Request, name: str, query: Annotated[schemas.VersionQuery, Query()]) -> Response:
    """The same of one model, with the manifest of the version asked for."""
    found = await admitted(request).registry.summary(name, query.version)
    return Response(found.model_dump_json(), media_type=JSON)


def _check_output(request: Request, model: Model, count: int, media: str, form: Form) -> int:
    shape, latent_dim, limits = model.description.image, model.description.latent_dim, backend_of(request).settings
    return check_images(count, shape, latent_dim, media, form, limits.max_pixels, limits.max_answer_bytes)


async def _run(
    request: Request,
    model: Model,
    chunks: Generator[None, None, T],
    *,
    rows: int,
    timeout: float,
    kind: tuple[object, ...] = (),
    memory: int = 0,
) -> Done[T]:
    """Compute by itself. Requests of one `kind` find modes, at a cost that the last ones tell best."""
    meter = Meter((model.manifest.name, model.manifest.version, *kind), lambda: model.decoder_rows) if kind else None
    seconds, share = seconds_left(request, timeout), share_of(request)
    queue = backend_of(request).submit_alone
    answer = queue(chunks, rows=rows, timeout_seconds=seconds, meter=meter, memory=memory, share=share)
    return await _done(request, model, answer, rows)


async def _done(request: Request, model: Model, answer: "asyncio.Future[Done[T]]", rows: int) -> Done[T]:
    """Wait for the answer, and tell the log and the metrics what it took."""
    done = await answer_unless_gone(request, answer)
    done = replace(done, load_seconds=load_seconds(request), decode_seconds=decode_seconds(request))
    queue, compute = round(done.queue_seconds, 6), round(done.compute_seconds, 6)
    taken = {"rows_run": done.rows_run} if done.rows_run else {}
    observe(request, rows=rows, **taken, queue_seconds=queue, compute_seconds=compute)
    backend_of(request).count_done(model, rows, done)
    return done


async def _written(
    request: Request, make: Callable[[], Response], done: Done[Any], *, numbers: int, timeout: float
) -> Response:
    """An answer of so many numbers, within what is left of the request's deadline."""
    seconds = max(0.0, timeout - done.load_seconds - done.queue_seconds - done.compute_seconds)
    return await backend_of(request).writer.write(request, make, numbers=numbers, seconds=seconds)
