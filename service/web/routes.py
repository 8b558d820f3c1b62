"""The routes: what each takes, computes and answers. endpoint.py has what computing routes share."""

from collections.abc import Hashable
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_LATEST

from service.engine.anomaly.detector import DEFAULT_ALPHA, AnomalyScores
from service.engine.anomaly.explanation import NUM_DRAWS
from service.engine.model import Model
from service.engine.proposal import DEFAULT_NUM_SAMPLES, DiagonalGaussian, Effort, check_request
from service.engine.reconstruction import Reconstructions
from service.web import answer_size, descriptions, schemas
from service.web.answer_size import check_answer, check_images
from service.web.endpoint import Work, computed, in_groups
from service.web.media_types import CSV, JSON, NDJSON, NPY
from service.web.problems import LimitError, NotAcceptableError
from service.web.rate import Meter
from service.web.requests import ComputedRequest, ImagesRequest, LatentsRequest
from service.web.responses import (
    IMAGE_FORMS,
    anomaly_rows,
    estimate_rows,
    image_form,
    images_reply,
    json_reply,
    npy_reply,
    pairs_reply,
)
from service.web.serving.batch_queue import alone
from service.web.serving.batching import Judged, decoding, encoding, estimating, explaining, reconstructing, scoring
from service.web.tables import ROW_FORMS, anomaly_columns, estimate_columns, rows_reply

_PROBLEMS: dict[int | str, dict[str, Any]] = {"4XX": {"model": schemas.Problem}, "5XX": {"model": schemas.Problem}}
router = APIRouter(prefix="/v1", responses=_PROBLEMS)
admin_router = APIRouter(prefix="/v1/admin", responses=_PROBLEMS)
"""Routes for operators. They need an admin key; if the settings have none, they are off."""
probes_router = APIRouter()
metrics_router = APIRouter(responses={"4XX": {"model": schemas.Problem}})


@computed(router, "POST", "/encode", answer=schemas.Latents, media_types=(JSON, NPY))
def encode(request: ImagesRequest, _: Annotated[schemas.ImagesQuery, Query()]) -> Work[DiagonalGaussian]:
    """The latent code of each image: q(z|x) = N(mean, diag exp(log_var)). As npy: float32 [B, 2, D]."""
    model, images, media = request.model, request.images, request.media_type
    size = partial(answer_size.latents_bytes, latent_dim=model.description.latent_dim, media=media)
    answer_bytes = check_answer(size, len(images), request.settings.max_answer_bytes, request.shorter_answer)

    def answer(latents: DiagonalGaussian) -> Response:
        if media == NPY:
            return npy_reply(np.stack([latents.mean, latents.log_var], axis=1))  # [B, 2, D]
        return json_reply({**request.named, "mean": latents.mean, "log_var": latents.log_var})

    count = len(images)
    return Work(
        encoding(model, request.count_batch),
        images,
        rows=count,
        held_bytes=images.nbytes + 2 * answer_bytes,
        numbers=2 * count * model.description.latent_dim,
        answer=answer,
        compute_bytes=count * model.map_bytes,
    )


@computed(router, "POST", "/decode", answer=schemas.Images, media_types=IMAGE_FORMS)
def decode(request: LatentsRequest, query: Annotated[schemas.ImagesOutQuery, Query()]) -> Work[NDArray[np.float32]]:
    """What the model imagines at each latent: E[x|z], as pixels; of a model of features, as maps."""
    model, latents = request.model, request.latents
    form = image_form(model.description, request.media_type, query)

    def answer(images: NDArray[np.float32]) -> Response:
        return images_reply(request.named, images, media=request.media_type, form=form)

    return Work(
        decoding(model, request.count_batch),
        latents,
        rows=len(latents),
        held_bytes=latents.nbytes + _check_output(request, len(latents), form),
        numbers=len(latents) * model.description.x_shape.size,
        answer=answer,
    )


@computed(router, "POST", "/reconstruct", answer=schemas.Reconstructed, media_types=IMAGE_FORMS)
def reconstruct(request: ImagesRequest, query: Annotated[schemas.ReconstructQuery, Query()]) -> Work[Reconstructions]:
    """Each image as the model sees it, and E[x|z] at the encoder's mean. As npy: float32 [B, 2, C, H, W]."""
    images = request.images
    form = image_form(request.model.description, request.media_type, query)

    def answer(found: Reconstructions) -> Response:
        pairs = {"prepared": found.prepared, "reconstructions": found.reconstructed}
        return pairs_reply(request.named, pairs, media=request.media_type, form=form)

    return Work(
        reconstructing(request.model),
        images,
        rows=2 * len(images),
        images=len(images),
        held_bytes=images.nbytes + _check_output(request, 2 * len(images), form),
        numbers=2 * len(images) * request.model.description.x_shape.size,
        answer=answer,
        compute_bytes=len(images) * request.model.map_bytes,
    )


@computed(router, "GET", "/samples", answer=schemas.Samples, media_types=IMAGE_FORMS)
def samples(request: ComputedRequest, query: Annotated[schemas.SamplesQuery, Query()]) -> Work[Any]:
    """Images drawn from the prior: z ~ N(0, temperature²·I), then E[x|z]. The header `X-Seed` tells the seed."""
    form = image_form(request.model.description, request.media_type, query)
    held_bytes = _check_output(request, query.n, form)
    seed = schemas.new_seed() if query.seed is None else query.seed

    def answer(drawn: Any) -> Response:
        document = {**request.named, "seed": seed, "temperature": query.temperature, "latents": drawn.latents}
        headers = {"X-Seed": str(seed)}
        return images_reply(document, drawn.images, media=request.media_type, form=form, headers=headers)

    return Work(
        alone(request.model.sample(query.n, seed=seed, temperature=query.temperature)),
        None,
        rows=query.n,
        held_bytes=held_bytes,
        numbers=query.n * request.model.description.x_shape.size,
        answer=answer,
    )


@computed(router, "POST", "/log-likelihood", answer=schemas.LogLikelihoods, media_types=ROW_FORMS)
def log_likelihood(request: ImagesRequest, query: Annotated[schemas.LogLikelihoodQuery, Query()]) -> Work[Any]:
    """log P(x) of each image in nats, with its standard error, and whether that can be trusted."""
    model, settings = request.model, request.settings
    num_samples = query.num_samples or settings.num_samples or DEFAULT_NUM_SAMPLES[query.proposal]
    check_request(query.proposal, num_samples)
    if num_samples > settings.max_num_samples:
        raise LimitError(f"num_samples is {num_samples}; at most {settings.max_num_samples} are taken an image")
    meter = _meter(model, "log-likelihood", query.proposal, query.max_std_error is not None)

    def work(part: slice) -> Work[Any]:
        images = request.images[part]
        answer_bytes = check_answer(answer_size.log_likelihoods_bytes, len(images), settings.max_answer_bytes)
        limit = num_samples
        if query.max_std_error is not None:
            limit = max(num_samples, min(settings.max_num_samples, settings.max_rows // len(images)))
        effort = Effort(num_samples, query.seed, query.max_std_error, limit)

        def answer(estimate: Any) -> Response:
            document = {**request.named, "proposal": query.proposal, "seed": query.seed}
            return rows_reply(request.media_type, document, estimate_rows(estimate), estimate_columns(estimate))

        return Work(
            estimating(model, query.proposal, effort, meter),
            images,
            rows=len(images) * limit,
            held_bytes=request.images.nbytes + 2 * answer_bytes,
            numbers=10 * len(images),
            answer=answer,
            compute_bytes=model.estimates_bytes(len(images), num_samples, limit),
            images=len(images),
            count=lambda estimate: request.backend.count_estimates(model, estimate.reason),
        )

    return in_groups(request, work)


@computed(router, "POST", "/anomaly-scores", answer=schemas.Anomalies, media_types=ROW_FORMS)
def anomaly_scores(request: ImagesRequest, query: Annotated[schemas.AnomalyQuery, Query()]) -> Work[AnomalyScores]:
    """How strange each image is (higher is stranger), with a conformal p-value against held-out training images."""
    model = request.model
    size = partial(
        answer_size.anomalies_bytes,
        shape=model.description.image,
        num_methods=len(query.method),
        form=query.as_,
        explain=query.explain,
    )
    num_samples = model.description.calibration.num_samples
    meter = _meter(model, "anomaly-scores")
    if query.explain and request.media_type in (CSV, NPY):
        raise NotAcceptableError(f"maps of pixels are no columns; with explain=true ask for {JSON} or {NDJSON}")

    def work(part: slice) -> Work[AnomalyScores]:
        images = request.images[part]
        answer_bytes = check_answer(size, len(images), request.settings.max_answer_bytes)
        drawn = len(images) * NUM_DRAWS * model.description.latent_dim * 4
        maps = 2 * images.nbytes + 2 * len(images) * model.map_bytes + drawn if query.explain else 0
        methods = model.detector.choose(query.method)
        judged = Judged(images, methods, query.decided_alpha or DEFAULT_ALPHA, query.fdr)

        def answer(scores: AnomalyScores) -> Response:
            document = {
                **request.named,
                "method": next(iter(scores.by_method)),
                "alpha": query.decided_alpha,
                "fdr": query.fdr,
                "calibration_size": scores.calibration_size,
            }
            return rows_reply(request.media_type, document, anomaly_rows(scores, query.as_), anomaly_columns(scores))

        return Work(
            explaining(model, judged, meter) if query.explain else scoring(model, meter),
            judged,
            rows=len(images) * (num_samples + (NUM_DRAWS if query.explain else 0)),
            held_bytes=request.images.nbytes + maps + 2 * answer_bytes,
            numbers=10 * len(images) + (images.size if query.explain else 0),
            answer=answer,
            compute_bytes=model.estimates_bytes(len(images), num_samples),
            images=len(images),
            count=partial(request.backend.count_judgements, model),
        )

    return in_groups(request, work) if query.fdr is None else work(slice(None))  # which decides over all images


@router.get("/models", response_model=schemas.Models)
async def models(request: Request, _: Annotated[schemas.NoQuery, Query()]) -> Response:
    """Every model: its versions in the store and in memory, those refused, and the default one's manifest."""
    registry = request.app.state.backend.require_ready().registry
    found = schemas.Models(models=await registry.summaries())
    return Response(found.model_dump_json(), media_type=JSON)


@router.get("/models/{name}", response_model=schemas.ModelSummary)
async def model(request: Request, name: str, query: Annotated[schemas.VersionQuery, Query()]) -> Response:
    """The same of one model, with the manifest of the version asked for."""
    found = await request.app.state.backend.require_ready().registry.summary(name, query.version)
    return Response(found.model_dump_json(), media_type=JSON)


@router.get("/models/{name}/calibration", response_model=descriptions.Calibration)
async def calibration(request: Request, name: str, query: Annotated[schemas.VersionQuery, Query()]) -> Response:
    """The scores that p-values compare with, as quantiles by method, and the codes of the calibration images."""
    backend = request.app.state.backend.require_ready()
    found, _ = await backend.registry.model(name, query.version, timeout_seconds=backend.settings.timeout_seconds)
    described = await run_in_threadpool(descriptions.Calibration.of, found)
    return Response(described.model_dump_json(), media_type=JSON)


@router.get("/limits", response_model=descriptions.Limits)
async def limits(request: Request, _: Annotated[schemas.NoQuery, Query()]) -> Response:
    """Every limit that a client must respect, and what the models run on."""
    backend = request.app.state.backend.require_ready()
    described = descriptions.Limits.of(backend.settings, backend.registry.execution_provider)
    return Response(described.model_dump_json(), media_type=JSON)


@admin_router.post("/reload", response_model=schemas.Models)
async def reload(request: Request, _: Annotated[schemas.NoQuery, Query()]) -> Response:
    """Serve what the store holds now; answers, when that is done, as `GET /v1/models` does."""
    registry = request.app.state.backend.require_ready().registry
    await registry.reload(retry=True)
    return Response(schemas.Models(models=await registry.summaries()).model_dump_json(), media_type=JSON)


@probes_router.get("/livez")
async def livez() -> Response:
    """The process answers; it says nothing of models."""
    return json_reply({"status": "alive"})


@probes_router.get("/readyz", responses={503: {"model": schemas.Problem}})
async def readyz(request: Request) -> Response:
    """Models are loaded and warm, the inference thread runs, and the service is not shutting down."""
    request.app.state.backend.require_ready()
    return json_reply({"status": "ready"})


@metrics_router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus text format."""
    return Response(await request.app.state.metrics_text.get(), media_type=CONTENT_TYPE_LATEST)


def _check_output(request: ComputedRequest, count: int, form: answer_size.Form) -> int:
    """Refuse too many images; returns the most bytes that images and answer can take."""
    described, limits = request.model.description, request.settings
    return check_images(
        count,
        described.x_shape,
        described.latent_dim,
        request.media_type,
        form,
        limits.max_pixels,
        limits.max_answer_bytes,
        request.shorter_images,
    )


def _meter(model: Model, *kind: Hashable) -> Meter:
    """Requests with the same key search for posterior modes, at a cost that is estimated from recent ones."""
    return Meter((model.manifest.name, model.manifest.version, *kind), lambda: model.decoder_rows)
