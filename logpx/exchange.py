"""Requests and answers as plain data, and when a request is sent again."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from logpx.errors import ProblemError, UnreachableError
from logpx.runner import Runner

_TRIED_AGAIN = (429, 502, 503)
_BROKEN_MODEL = "urn:logpx:problem:broken-model"  # 503, and will be until somebody mends the store
_TOO_MUCH = (413, 504)
_OUT_OF_DEVICE_MEMORY = "urn:logpx:problem:out-of-device-memory"
_MOST_UNREACHABLE = 4  # times that a request is sent again after a connection failed: 8 s in all
_FIRST_SECONDS, _MOST_SECONDS = 0.5, 8.0
_LONGEST_SECONDS = 120.0
_JITTER = 0.25


@dataclass(frozen=True)
class Request:
    """One request; `parameters` that are None are left out."""

    method: str
    path: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def query(self) -> dict[str, str]:
        """The parameters as the service reads them."""
        return {name: _written(value) for name, value in self.parameters.items() if value is not None}


@dataclass(frozen=True)
class Answer:
    """One answer; the names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def exchange(runner: Runner[Request, Answer], request: Request, retries: int) -> Answer:
    """Send a request until there is an answer with status 200. Every request of this client may be sent twice.

    Args:
        runner: sends and waits.
        request: the request.
        retries: how often it is sent again.

    Raises:
        ProblemError: the answer has another status.
        UnreachableError: no answer came, at most four times.
        SlowServiceError: no answer came in time.
    """
    tried = 0
    while True:
        try:
            answer = await runner.send(request)
        except UnreachableError:
            if tried >= min(retries, _MOST_UNREACHABLE):
                raise
            seconds = backoff_seconds(tried)
        else:
            if answer.status == 200:
                return answer
            error = ProblemError.of(answer.status, answer.body)
            if tried >= retries or answer.status not in _TRIED_AGAIN or error.type == _BROKEN_MODEL:
                raise error
            asked = retry_after(answer.headers.get("retry-after"), datetime.now(UTC))
            seconds = backoff_seconds(tried) if asked is None else asked
        tried += 1
        await runner.sleep(seconds * (1 + _JITTER * random.random()))  # noqa: S311 (so that clients do not return together)


def is_too_much(error: ProblemError) -> bool:
    """Whether fewer images in a request could have an answer."""
    return error.status in _TOO_MUCH or error.type == _OUT_OF_DEVICE_MEMORY


def backoff_seconds(tried: int) -> float:
    """How long to wait after so many further tries, if the service does not say.

    >>> [backoff_seconds(tried) for tried in range(6)]
    [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    """
    return float(min(_FIRST_SECONDS * 2 ** min(tried, 10), _MOST_SECONDS))


def retry_after(header: str | None, now: datetime) -> float | None:
    """The seconds that `Retry-After` asks for, at most two minutes; None if it is missing or no such header.

    >>> now = datetime(2026, 11, 27, 12, tzinfo=UTC)
    >>> retry_after("7", now), retry_after("Fri, 27 Nov 2026 12:00:30 GMT", now), retry_after("3600", now)
    (7.0, 30.0, 120.0)
    >>> retry_after(None, now), retry_after("soon", now), retry_after("Fri, 27 Nov 2026 11:00:00 GMT", now)
    (None, None, 0.0)
    """
    if header is None:
        return None
    if header.strip().isdecimal():
        return min(float(header), _LONGEST_SECONDS)
    try:
        then = parsedate_to_datetime(header)
    except ValueError:
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return min(max(0.0, (then - now).total_seconds()), _LONGEST_SECONDS)


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
