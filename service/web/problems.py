"""The errors of requests, and the table of their HTTP statuses and problem documents (RFC 9457).

RequestError
├── InvalidBodyError            the body cannot be parsed, or is not what the route takes
│   └── InvalidLatentError      one latent of the body is wrong; `index` says which
├── UnsupportedMediaTypeError   the route does not take this content type
├── NotAcceptableError          the route cannot answer with any media type in `Accept`
├── LimitError                  more bytes, pixels or rows than the settings allow
├── SlowBodyError               the body took too long to arrive
├── UnauthorizedError           there is no key, or a wrong one
├── ForbiddenError              the key is valid, but not for this route
├── TooManyLoadsError           too much time goes into loading versions that are requested by number
├── MemoryFullError             other requests hold the memory that this one needs
└── NotReadyError               the service is loading, draining, or its inference thread is dead

Errors of images that cannot be read are in service/images/errors.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar

import orjson
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from model_store import InvalidArtifactError, ModelNotFoundError, StoreError
from service.engine.anomaly.detector import UncalibratedModelError, UnknownMethodError
from service.engine.features import NoImagesError
from service.engine.proposal import TooFewSamplesError, UnknownProposalError
from service.engine.runtime import DeviceLostError, OutOfDeviceMemoryError
from service.images.errors import InvalidArrayError, InvalidImageError, PixelLimitError
from service.web.outcome import DeadlineError, QueueFullError, StoppedError
from service.web.problem_format import own_path, problem_form, shortened

MAX_DETAIL = 1000
"""Most characters of a problem's detail, because it can quote the request, which can be long."""
_MAX_ERRORS = 10
_MAX_QUOTED = 200
_log = structlog.get_logger()


class RequestError(Exception):
    """A request cannot be answered; the message is written for its sender."""

    headers: ClassVar[Mapping[str, str]] = {}


class InvalidBodyError(RequestError):
    """The body cannot be parsed, or is not what the route takes."""


class InvalidLatentError(InvalidBodyError):
    """One latent of the body is wrong."""

    def __init__(self, detail: str, index: int) -> None:
        super().__init__(detail)
        self.index = index


class UnsupportedMediaTypeError(RequestError):
    """The route does not take this content type."""

    def __init__(self, content_type: str, accepted: Sequence[str]) -> None:
        found = f"content type {content_type!r} is not accepted" if content_type else "the content type is missing"
        super().__init__(f"{found}; accepted: {', '.join(accepted)}")


class NotAcceptableError(RequestError):
    """The route cannot answer with any media type in `Accept`."""


class LimitError(RequestError):
    """There are more bytes, pixels or rows than the settings allow."""


class SlowBodyError(RequestError):
    """The body was not complete in time."""

    headers: ClassVar[Mapping[str, str]] = {"Connection": "close"}


class UnauthorizedError(RequestError):
    """The request has no key, or no valid one."""

    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": 'Bearer realm="logpx"'}


class ForbiddenError(RequestError):
    """The request's key is not valid for this route."""


class TooManyLoadsError(RequestError):
    """Too much time goes into loading versions requested by number; try again after `retry_after` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"versions asked for by number are loaded too often; try again in {retry_after} s")
        self.retry_after = retry_after


class MemoryFullError(RequestError):
    """Other requests hold the memory that this one needs; try again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotReadyError(RequestError):
    """The service is loading models, is draining, or its inference thread is dead."""


@dataclass(frozen=True)
class ProblemType:
    """One type of problem: its HTTP status and the last part of its `type`, which never changes."""

    status: HTTPStatus
    slug: str
    title: str


INVALID_PARAMETER = ProblemType(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-parameter", "A parameter is not valid")
INVALID_BODY = ProblemType(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-body", "The body is not valid")
LIMIT_EXCEEDED = ProblemType(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "limit-exceeded", "The request exceeds a limit")
BROKEN_MODEL = ProblemType(HTTPStatus.SERVICE_UNAVAILABLE, "broken-model", "The model's files are broken")
NOT_READY = ProblemType(HTTPStatus.SERVICE_UNAVAILABLE, "not-ready", "The service is not ready")
BAD_REQUEST = ProblemType(HTTPStatus.BAD_REQUEST, "bad-request", "The request is not HTTP")
HEADER_TOO_LARGE = ProblemType(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "header-too-large", "The request's headers are too large"
)
TARGET_TOO_LONG = ProblemType(HTTPStatus.REQUEST_URI_TOO_LONG, "target-too-long", "Path and query are too long")
METHOD_NOT_ALLOWED = ProblemType(HTTPStatus.METHOD_NOT_ALLOWED, "method-not-allowed", "Method Not Allowed")
NOT_IMPLEMENTED = ProblemType(HTTPStatus.NOT_IMPLEMENTED, "not-implemented", "The service does not implement this")
HTTP_VERSION = ProblemType(
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED,
    "http-version-not-supported",
    "The service does not know this version of HTTP",
)
RANGE_NOT_SATISFIABLE = ProblemType(
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "range-not-satisfiable", "The file has no such range"
)
REQUEST_TIMEOUT = ProblemType(HTTPStatus.REQUEST_TIMEOUT, "request-timeout", "The request took too long to arrive")
TOO_MANY_CONNECTIONS = ProblemType(
    HTTPStatus.SERVICE_UNAVAILABLE, "too-many-connections", "As many connections are open as may be"
)
INTERNAL = ProblemType(HTTPStatus.INTERNAL_SERVER_ERROR, "internal-error", "The service failed")

PROBLEM_TYPES: Mapping[type[Exception], ProblemType] = {
    InvalidImageError: ProblemType(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-image", "An image is not valid"),
    InvalidLatentError: ProblemType(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-latent", "A latent is not valid"),
    InvalidBodyError: INVALID_BODY,
    InvalidArrayError: INVALID_BODY,
    RequestValidationError: INVALID_PARAMETER,
    UnknownProposalError: INVALID_PARAMETER,
    TooFewSamplesError: INVALID_PARAMETER,
    UnknownMethodError: INVALID_PARAMETER,
    UncalibratedModelError: ProblemType(
        HTTPStatus.UNPROCESSABLE_ENTITY, "uncalibrated-model", "The model is not calibrated"
    ),
    UnsupportedMediaTypeError: ProblemType(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "The content type is not accepted"
    ),
    NoImagesError: ProblemType(HTTPStatus.CONFLICT, "no-images", "The model makes no images"),
    NotAcceptableError: ProblemType(HTTPStatus.NOT_ACCEPTABLE, "not-acceptable", "No form in Accept can be given"),
    ModelNotFoundError: ProblemType(HTTPStatus.NOT_FOUND, "unknown-model", "No such model or version"),
    InvalidArtifactError: BROKEN_MODEL,
    StoreError: BROKEN_MODEL,
    LimitError: LIMIT_EXCEEDED,
    PixelLimitError: LIMIT_EXCEEDED,
    SlowBodyError: REQUEST_TIMEOUT,
    UnauthorizedError: ProblemType(HTTPStatus.UNAUTHORIZED, "unauthorized", "The request needs a key"),
    ForbiddenError: ProblemType(HTTPStatus.FORBIDDEN, "forbidden", "The key does not open this route"),
    QueueFullError: ProblemType(HTTPStatus.TOO_MANY_REQUESTS, "queue-full", "No room in the queue"),
    MemoryFullError: ProblemType(HTTPStatus.TOO_MANY_REQUESTS, "memory-full", "No memory for the request now"),
    TooManyLoadsError: ProblemType(HTTPStatus.TOO_MANY_REQUESTS, "too-many-loads", "Versions are loaded too often"),
    DeadlineError: ProblemType(HTTPStatus.GATEWAY_TIMEOUT, "deadline-exceeded", "The deadline has passed"),
    OutOfDeviceMemoryError: ProblemType(
        HTTPStatus.SERVICE_UNAVAILABLE, "out-of-device-memory", "The GPU has no room for this request"
    ),
    NotReadyError: NOT_READY,
    StoppedError: NOT_READY,
    DeviceLostError: NOT_READY,
}


def install(app: FastAPI) -> None:
    """Answer every error of the table, and Starlette's errors, with a problem document."""
    for error_type in (*PROBLEM_TYPES, HTTPException, ClientDisconnect):
        app.add_exception_handler(error_type, answer_of)


async def answer_of(request: Request, error: Exception) -> Response:
    """The answer to a request that raised this error.

    Raises:
        Exception: the error itself, if it is neither in the table nor Starlette's.
    """
    if isinstance(error, ClientDisconnect):
        return _gone(request)
    if isinstance(error, HTTPException):
        return _http_exception(request, error)
    for error_type in type(error).__mro__:
        if error_type in PROBLEM_TYPES:
            return _refusal(request, error, PROBLEM_TYPES[error_type])
    raise error


def problem(request: Request, problem_type: ProblemType, detail: str, **members: Any) -> Response:
    """The answer with one problem document. `members` that are None are left out; a long detail is shortened."""
    headers = members.pop("headers", None)
    detail = shortened(detail, MAX_DETAIL)
    media_type, more = problem_form(own_path(request.scope), detail)
    members |= more
    document = problem_document(problem_type, detail, request.scope.get("state", {}).get("request_id"), **members)
    request.scope["problem"] = {"problem": problem_type.slug, "detail": detail}
    return Response(document, int(problem_type.status), headers, media_type)


def problem_document(problem_type: ProblemType, detail: str, request_id: str | None, **members: Any) -> bytes:
    """One problem document; `members` that are None are left out."""
    return orjson.dumps(
        {
            "type": f"urn:logpx:problem:{problem_type.slug}",
            "title": problem_type.title,
            "status": int(problem_type.status),
            "detail": detail,
            "request_id": request_id,
            **{key: value for key, value in members.items() if value is not None},
        }
    )


def foreign_problem(scope: Scope, status: int, text: str) -> bytes:
    """The problem document that replaces a library's own refusal with this text."""
    found = HTTPStatus(status)
    problem_type = RANGE_NOT_SATISFIABLE if found == RANGE_NOT_SATISFIABLE.status else _type_of(found)
    return bytes(problem(Request(scope), problem_type, text or problem_type.title).body)


def _refusal(request: Request, error: Exception, problem_type: ProblemType) -> Response:
    if isinstance(error, RequestValidationError):
        return problem(request, problem_type, _sentence(error), errors=_located(error))
    if isinstance(error, StoreError) and problem_type is BROKEN_MODEL:
        _log.error("the store is broken", reason=str(error))  # for the operator; clients are not told paths
        return problem(request, problem_type, "the model's files are broken or gone; the service's log says which")
    headers = getattr(error, "headers", None)
    if problem_type is NOT_READY:
        headers = {"Connection": "close"}  # the service may be about to end
    if isinstance(error, QueueFullError | MemoryFullError | TooManyLoadsError):
        headers = {"Retry-After": str(error.retry_after)}
    return problem(request, problem_type, str(error), index=getattr(error, "index", None), headers=headers)


def _http_exception(request: Request, error: HTTPException) -> Response:
    """The answer to Starlette's own errors: no such path, no such method."""
    status = HTTPStatus(error.status_code)
    problem_type = _type_of(status)
    path = shortened(request.scope["path"], _MAX_QUOTED)
    detail = f"{request.method} {path}: {error.detail}; the routes are listed at /docs"
    headers = dict(error.headers or {})
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = set(headers.get("Allow", "GET").split(", "))  # static files of /docs do not say
        headers["Allow"] = ", ".join(sorted(allowed | {"HEAD"} if "GET" in allowed else allowed))
    return problem(request, problem_type, detail, headers=headers)


def _type_of(status: HTTPStatus) -> ProblemType:
    """The problem type of a status for which the table has no name."""
    return ProblemType(status, status.phrase.lower().replace(" ", "-"), status.phrase)


def _gone(request: Request) -> Response:
    """The answer after a client disconnected. Nobody reads it; 499 is the usual status for this in logs."""
    request.scope["problem"] = {"problem": "client-gone"}
    return Response(status_code=499)


def _located(error: RequestValidationError) -> list[dict[str, str]]:
    """The first few errors, quoting only as much of the request as helps to find them."""
    return [
        {"parameter": shortened(str(item["loc"][-1]), _MAX_QUOTED), "problem": shortened(str(item["msg"]), MAX_DETAIL)}
        for item in error.errors()[:_MAX_ERRORS]
    ]


def _sentence(error: RequestValidationError) -> str:
    shown = [f"{item['parameter']}: {item['problem']}" for item in _located(error)]
    more = len(error.errors()) - len(shown)
    return "; ".join([*shown, *([f"and {more} more"] if more else [])])
