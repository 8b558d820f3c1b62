"""What a `/v1` request says beside its body: query parameters, and its own deadline.

Read here and not by FastAPI: reading a query model takes it longer than an encode, even where the query is empty.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from service.web.operations.settings import Settings

TIMEOUT = "X-Request-Timeout-Ms"
_TIMEOUT = TIMEOUT.lower().encode()
TIMEOUT_PARAMETER = {
    "name": TIMEOUT,
    "in": "header",
    "required": False,
    "schema": {"type": "integer", "minimum": 1, "title": TIMEOUT},
    "description": "drop this request when it is not computed after so many milliseconds; "
    "at most `LOGPX_TIMEOUT_SECONDS`",
}
"""For OpenAPI."""
Q = TypeVar("Q", bound=BaseModel)


def read_query(request: Request, model: type[Q]) -> Q:
    """The query string as a model's instance.

    Raises:
        RequestValidationError: a parameter is unknown, is refused by the model, or has no such value.
    """
    if not request.scope["query_string"]:
        found: Any = _defaults(model)
        return found  # type: ignore[no-any-return]
    given = dict(request.query_params)
    refused: Mapping[str, str] = getattr(model, "refused", {})
    if found := [name for name in refused if name in given]:
        raise _refusal({name: refused[name] for name in found})
    try:
        query = model.model_validate(given)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    for names, problem in getattr(model, "exclusive", {}).items():
        if all(getattr(query, name) is not None for name in names):
            raise _refusal(dict.fromkeys(names, problem))
    return query


def _refusal(problems: Mapping[str, str]) -> RequestValidationError:
    return RequestValidationError([{"loc": ("query", name), "msg": problem} for name, problem in problems.items()])


def read_timeout_seconds(request: Request, settings: Settings) -> float:
    """The seconds after which a request is dropped: its own, and never more than the setting.

    Raises:
        RequestValidationError: the header is not a positive whole number.
    """
    for name, value in request.scope["headers"]:
        if name == _TIMEOUT:
            given = value.decode("latin-1")
            break
    else:
        return settings.timeout_seconds
    milliseconds = int(given[:20]) if given.isascii() and given.isdecimal() else 0
    if milliseconds == 0:
        problem = f"{given[:40]!r} is not a positive whole number of milliseconds"
        raise RequestValidationError([{"loc": ("header", TIMEOUT), "msg": problem}])
    return min(milliseconds / 1000, settings.timeout_seconds)


@cache
def _defaults(model: type[BaseModel]) -> BaseModel:
    return model()
