"""The parts of the OpenAPI document of an inference that signatures do not show."""

from typing import Any

from service.web.v2.inference import LENGTH_HEADER, MAX_ID_CHARACTERS, PLACED
from service.web.v2.operations import Operation
from service.web.v2.responses import OCTETS

_BINARY = {"type": "string", "format": "binary"}


def describe_inference(operation: Operation) -> dict[str, Any]:
    """The request body of an operation, and the content type of an answer with binary tensors."""
    request = operation.request
    one = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"type": "string", "enum": [request.given]},
            "datatype": {"type": "string", "enum": [*request.accepted]},
            "shape": {
                "type": "array",
                "minItems": 1,
                "maxItems": 4,
                "items": {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
            },
            "data": {"type": "array", "description": "in row-major order, flat or nested; of BYTES base64 texts"},
        },
    }
    wanted = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "enum": [*operation.outputs]},
            "parameters": {"type": "object", "properties": {"binary_data": {"type": "boolean"}}},
        },
    }
    options = sorted({field.alias or name for name, field in operation.query.model_fields.items()} - PLACED.keys())
    schema = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string", "maxLength": MAX_ID_CHARACTERS},
            "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": one},
            "outputs": {"type": "array", "items": wanted},
            "parameters": {"type": "object", "description": f"the parameters of /v1: {', '.join(options) or 'none'}"},
        },
    }
    described = f"JSON, whose length the header {LENGTH_HEADER} tells, and then the bytes of binary tensors"
    octets = {"schema": {**_BINARY, "description": described}}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}, OCTETS: octets}},
        "responses": {"200": {"description": "the outputs", "content": {OCTETS: octets}}},
    }
