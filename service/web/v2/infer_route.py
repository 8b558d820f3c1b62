"""The route of one operation: the same steps as `/v1`'s (endpoint.py), with the protocol's request and answer."""

import re
from dataclasses import replace
from typing import Any, cast

from fastapi import APIRouter, Request, Response

from model_store import ModelNotFoundError
from service.web.endpoint import ComputedRoute, Endpoint, Work
from service.web.media_types import JSON, NPY
from service.web.parameters import TIMEOUT_PARAMETER, read_seconds, validated
from service.web.requests import ComputedRequest
from service.web.schemas import ModelQuery
from service.web.serving.backend import Backend
from service.web.v2.documentation import describe_inference
from service.web.v2.operations import Operation
from service.web.v2.requests import InferRequest
from service.web.v2.responses import inference_reply
from service.web.v2.schemas import InferenceAnswer

_VERSION = re.compile("0*([1-9][0-9]{0,9})")


class InferRoute(ComputedRoute):
    """A computing route whose model is in its path and whose parameters are in its body."""

    operation: Operation

    def declare(self, endpoint: Endpoint) -> None:
        """The operation is set later, by `add_operation`; the endpoint only describes the path."""

    async def read(self, request: ComputedRequest, backend: Backend) -> tuple[ModelQuery, float]:
        """Find the model that the path names, then read the body.

        Raises: as `respond`.
        """
        assert isinstance(request, InferRequest)  # noqa: S101 (what `add_operation` set)
        operation, path = self.operation, request.scope["path_params"]
        headers = request.read_headers()
        settings = backend.settings
        seconds = settings.timeout_seconds if headers.timeout is None else read_seconds(headers.timeout, settings)
        await request.admit(backend, path["name"], version_of(path.get("version")), seconds)
        inference = await request.read_inference(headers, tuple(operation.outputs))
        query = validated({**request.options(inference), **operation.fixed}, operation.query)
        if inference.timeout_seconds is not None:
            seconds = min(seconds, inference.timeout_seconds)
        tensor = inference.tensor
        del inference  # its data, which are counted only until they are read
        # What the functions of `/v1` go by: how large the answer can be.
        request.media_type = NPY if all(request.outputs.values()) else JSON
        return await request.take(tensor, query, seconds), seconds

    def _work(self, request: Any, query: Any) -> Work[Any]:
        operation = self.operation

        def answer(result: Any) -> Response:
            outputs, parameters = operation.answer(result, query)
            document = {
                "model_name": f"{request.named['model']}.{operation.name}",
                "model_version": str(request.named["version"]),
                **({} if request.id is None else {"id": request.id}),
                **({"parameters": parameters} if parameters else {}),
            }
            return inference_reply(document, outputs, self._types, request.outputs)

        return replace(operation.work(request, query), answer=answer)

    def serve(self, operation: Operation) -> None:
        """Set the operation."""
        self.operation, self.request, self.query, self.work = operation, operation.request, operation.query, self._work
        self._types = {name: datatype for name, (datatype, _) in operation.outputs.items()}


async def _infer(request: Request, name: str) -> None:
    """Describes the path; `InferRoute` answers."""


async def _infer_version(request: Request, name: str, version: str) -> None:
    """Describes the path; `InferRoute` answers."""


def add_operation(router: APIRouter, operation: Operation) -> None:
    """Add the two routes of an operation: of the default version, and of a version."""
    for path, endpoint in (("", _infer), ("/versions/{version}", _infer_version)):
        router.add_api_route(
            f"/models/{{name}}.{operation.name}{path}/infer",
            cast(Endpoint, endpoint),
            methods=["POST"],
            response_model=InferenceAnswer,
            summary=f"Infer {operation.name}",
            description=operation.says,
            name=f"infer {operation.name}{' of a version' if path else ''}",
            openapi_extra={"parameters": [TIMEOUT_PARAMETER], **describe_inference(operation)},
            route_class_override=InferRoute,
        )
        cast(InferRoute, router.routes[-1]).serve(operation)


def version_of(text: str | None) -> int | None:
    """The version that a path names.

    >>> version_of("2"), version_of(None)
    (2, None)

    Raises:
        ModelNotFoundError: it is not a number from 1.
    """
    if text is None:
        return None
    if (match := _VERSION.fullmatch(text)) is None:
        raise ModelNotFoundError(f"a version is a whole number from 1, not {text[:40]!r}")
    return int(match[1])
