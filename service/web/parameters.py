"""Read what a `/v1` request says besides its body: query parameters, the answer's media type, and its deadline.

FastAPI is not used for this: it needs more time for a query model than an encode takes, even if the query is empty.
"""

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, TypeVar, cast

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from service.web.operations.settings import Settings
from service.web.problems import NotAcceptableError

MAX_MEDIA_RANGES = 100
"""Of a request's `Accept`; those behind them do not count. All there is room for would take longer than ten encodes."""
_MAX_RANGE_PARAMETERS = 16  # of one of them, itself included
TIMEOUT = "X-Request-Timeout-Ms"
TIMEOUT_HEADER = TIMEOUT.lower().encode()
TIMEOUT_PARAMETER = {
    "name": TIMEOUT,
    "in": "header",
    "required": False,
    "schema": {"type": "integer", "minimum": 1, "title": TIMEOUT},
    "description": "drop this request when it is not computed after so many milliseconds; "
    "at most `LOGPX_TIMEOUT_SECONDS`",
}
"""Description for OpenAPI."""
Q = TypeVar("Q", bound=BaseModel)


def read_parameters(
    request: Request, query: type[Q], media_types: Sequence[str], settings: Settings
) -> tuple[Q, str, float]:
    """Read the parameters of a request.

    Returns its query, parsed; the media type it prefers, among those that the answer can have; and its deadline in
    seconds, at most the setting's. (A tuple without names: making one with names would be one more call.)

    Raises:
        RequestValidationError: a parameter is unknown or has an invalid value; or the header `X-Request-Timeout-Ms` is
            not a positive whole number.
        NotAcceptableError: the request accepts none of the media types.
    """
    accept, timeout = b"", None
    for name, value in request.scope["headers"]:
        if name == b"accept":
            accept += b"," + value
        elif name == TIMEOUT_HEADER and timeout is None:
            timeout = value
    asked = validated(dict(request.query_params), query) if request.scope["query_string"] else _defaults(query)
    media_type = _preferred(accept[1:], tuple(media_types))
    seconds = settings.timeout_seconds if timeout is None else read_seconds(timeout, settings)
    return asked, media_type, seconds


def validated(given: Mapping[str, str], model: type[Q]) -> Q:
    """The parameters of a request by their names, parsed.

    Raises:
        RequestValidationError: a parameter is unknown or has an invalid value.
    """
    if not given:
        return cast(Q, _defaults(model))
    refused: Mapping[str, str] = getattr(model, "refused", {})
    if found := [name for name in refused if name in given]:
        raise refusal({name: refused[name] for name in found})
    try:
        query = model.model_validate(given)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    for names, problem in getattr(model, "exclusive", {}).items():
        if all(getattr(query, name) is not None for name in names):
            raise refusal(dict.fromkeys(names, problem))
    return query


def refusal(problems: Mapping[str, str]) -> RequestValidationError:
    """The error that tells what is wrong with each of these parameters."""
    return RequestValidationError([{"loc": ("query", name), "msg": problem} for name, problem in problems.items()])


def read_seconds(timeout: bytes, settings: Settings) -> float:
    """The seconds that the header `X-Request-Timeout-Ms` allows; raises what `read_parameters` raises of it."""
    given = timeout.decode("latin-1")
    milliseconds = int(given[:20]) if given.isascii() and given.isdecimal() else 0
    if milliseconds == 0:
        problem = f"{given[:40]!r} is not a positive whole number of milliseconds"
        raise RequestValidationError([{"loc": ("header", TIMEOUT), "msg": problem}])
    return min(milliseconds / 1000, settings.timeout_seconds)


@lru_cache(maxsize=64)
def _preferred(accepted: bytes, offered: Sequence[str]) -> str:
    """The media type that the client prefers among those offered; of equal ones the first (RFC 9110, 12.5.1)."""
    accept = accepted.decode("latin-1")
    if accept in ("", "*/*"):
        return offered[0]
    named = accept.split(",", MAX_MEDIA_RANGES)[:MAX_MEDIA_RANGES]
    wanted = [_preference(item) for item in named if item.strip()]
    best, best_quality = offered[0], 0.0
    for form in offered:
        matching = [entry for entry in wanted if entry[0] in (form, f"{form.split('/')[0]}/*", "*/*")]
        quality = max(matching, key=lambda entry: _specificity(entry[0]), default=("", 0.0))[1]
        if quality > best_quality:
            best, best_quality = form, quality
    if best_quality == 0:
        raise NotAcceptableError(f"Accept is {accept!r}; this route answers in: {', '.join(offered)}")
    return best


def _preference(item: str) -> tuple[str, float]:
    parts = item.split(";", _MAX_RANGE_PARAMETERS)[:_MAX_RANGE_PARAMETERS]
    media_type, *parameters = (part.strip().lower() for part in parts)
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return media_type, float(value)
            except ValueError:
                return media_type, 0.0
    return media_type, 1.0


def _specificity(media_range: str) -> int:
    return 2 - media_range.count("*")


@cache
def _defaults(model: type[BaseModel]) -> Any:
    return model()
