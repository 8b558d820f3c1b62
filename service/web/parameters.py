"""What a `/v1` request says beside its body: query parameters, and its own deadline.

Read here and not by FastAPI: reading a query model takes it longer than an encode, even where the query is empty.
"""

from collections.abc import Collection
from functools import cache
from typing import Any, TypeVar, cast

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from service.web.operations.settings import Settings

TIMEOUT = "X-Request-Timeout-Ms"
Q = TypeVar("Q", bound=BaseModel)


def read_query(request: Request, model: type[Q]) -> Q:
    """The query string as a model's instance.

    Raises:
        RequestValidationError: a parameter is unknown, or has no such value.
    """
    if not request.scope["query_string"]:
        return cast(Q, _defaults(model))
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def refuse(request: Request, names: Collection[str], problem: str) -> None:
    """Refuse a query for each of these parameters that it has.

    Raises:
        RequestValidationError.
    """
    found = [{"loc": ("query", name), "msg": problem} for name in names if name in request.query_params]
    if found:
        raise RequestValidationError(found)


def read_timeout_seconds(request: Request, settings: Settings) -> float:
    """The seconds after which a request is dropped: its own, and never more than the setting.

    Raises:
        RequestValidationError: the header is not a positive whole number.
    """
    given = request.headers.get(TIMEOUT)
    if given is None:
        return settings.timeout_seconds
    milliseconds = int(given[:20]) if given.isascii() and given.isdecimal() else 0
    if milliseconds == 0:
        problem = f"{given[:40]!r} is not a positive whole number of milliseconds"
        raise RequestValidationError([{"loc": ("header", TIMEOUT), "msg": problem}])
    return min(milliseconds / 1000, settings.timeout_seconds)


def describe_parameters(model: type[BaseModel]) -> dict[str, Any]:
    """The same for OpenAPI."""
    query = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": schema,
            **({"description": schema["description"]} if "description" in schema else {}),
        }
        for name, schema in model.model_json_schema(by_alias=True)["properties"].items()
    ]
    described = "drop this request if it is not computed after this many milliseconds; at most `LOGPX_TIMEOUT_SECONDS`"
    timeout = {"type": "integer", "minimum": 1, "title": TIMEOUT}
    header = {"name": TIMEOUT, "in": "header", "required": False, "schema": timeout, "description": described}
    return {"parameters": [*query, header]}


@cache
def _defaults(model: type[BaseModel]) -> BaseModel:
    return model()
