"""What OpenAPI cannot read off a signature: bodies and answers in several content types."""

from typing import Any

from service.web.bodies import IMAGE_TYPES, JSON, MULTIPART, NPY

_FILE = {"type": "string", "format": "binary"}
_NUMBERS = {"type": "array", "items": {}}


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
    """The forms beside JSON in which images are given."""
    forms = {
        "image/png": {"schema": {**_FILE, "description": "one image, or several as a grid"}},
        NPY: {"schema": {**_FILE, "description": "float32 [B, C, H, W]"}},
    }
    return {"responses": {"200": {"description": "images, in the form that Accept asks for", "content": forms}}}


def _object(key: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": [key], "properties": {key: value}, "additionalProperties": False}
