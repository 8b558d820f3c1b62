"""The parts of the OpenAPI document that signatures do not show: bodies, answers and errors by content type."""

import threading
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.routing import Route

from service.web.media_types import CSV, IMAGE_TYPES, JSON, MULTIPART, NDJSON, NPY
from service.web.problem_format import PROBLEM_JSON, is_open_inference

_FILE = {"type": "string", "format": "binary"}
_NUMBERS = {"type": "array", "items": {}}


def openapi_route(app: FastAPI) -> Route:
    """The route `/openapi.json`. The document is made at the first request, in another thread (a tenth of a second)."""
    made: list[bytes] = []
    making = threading.Lock()

    def make() -> bytes:
        with making:
            if not made:
                made.append(orjson.dumps(app.openapi()))
        return made[0]

    async def openapi(_: Request) -> Response:
        return Response(made[0] if made else await run_in_threadpool(make), media_type=JSON)

    return Route(str(app.openapi_url), openapi)


def describe_problems(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document with the real content type of errors."""
    for path, operations in document["paths"].items():
        for operation in [] if is_open_inference(path) else operations.values():
            for status, answer in operation["responses"].items():
                if status[0] in "45" and JSON in answer["content"]:
                    answer["content"][PROBLEM_JSON] = answer["content"].pop(JSON)
    return document


def describe_images_body() -> dict[str, Any]:
    """The request body of every route that takes images."""
    item = {"anyOf": [{"type": "string", "format": "byte", "description": "base64 PNG, JPEG or WebP"}, _NUMBERS]}
    forms = {
        **{image_type: {"schema": _FILE} for image_type in IMAGE_TYPES},
        MULTIPART: {"schema": _object("images", {"type": "array", "items": _FILE})},
        JSON: {"schema": _object("images", {"type": "array", "minItems": 1, "items": item})},
        NPY: {"schema": {**_FILE, "description": "float32 in [0, 1] or uint8, [B, H, W] or [B, C, H, W]"}},
    }
    return {"requestBody": {"required": True, "content": forms}}


def describe_latents_body() -> dict[str, Any]:
    """The request body of `decode`."""
    rows = {"type": "array", "minItems": 1, "items": {"type": "array", "items": {"type": "number"}}}
    forms = {
        JSON: {"schema": _object("latents", rows)},
        NPY: {"schema": {**_FILE, "description": "float32 or float64 [N, D]"}},
    }
    return {"requestBody": {"required": True, "content": forms}}


def describe_images_reply() -> dict[str, Any]:
    """The content types of images other than JSON."""
    forms = {
        "image/png": {"schema": {**_FILE, "description": "one image, or several as a grid"}},
        NPY: {"schema": {**_FILE, "description": "float32 [B, C, H, W]"}},
    }
    return {"responses": {"200": {"description": "images, in the form that Accept asks for", "content": forms}}}


def describe_rows_reply() -> dict[str, Any]:
    """The content types of results, a row an image, other than JSON."""
    forms = {
        NDJSON: {
            "schema": {**_FILE, "description": "a line an image, sent as images are done; a failure is the last line"}
        },
        CSV: {"schema": {**_FILE, "description": "a line of names, then a line an image"}},
        NPY: {"schema": {**_FILE, "description": "one record an image"}},
    }
    return {"responses": {"200": {"description": "results, in the form that Accept asks for", "content": forms}}}


def _object(key: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": [key], "properties": {key: value}, "additionalProperties": False}
