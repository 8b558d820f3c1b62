"""One attack: how it is sent, and what the service is documented to answer."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.hostile.harness import ChildService
from tests.hostile.wire import Answer, Headers, request
from tests.web.forms import npy

NPY = {"Content-Type": "application/x-npy"}
AS_JSON = {"Content-Type": "application/json"}
IMAGE = npy(np.zeros((1, 28, 28), np.uint8))
"""One black digit, which every route that takes images takes."""
ENCODE, DECODE, SAMPLES = "/v1/encode", "/v1/decode", "/v1/samples"
SCORE, ANOMALY, MODELS = "/v1/log-likelihood", "/v1/anomaly-scores", "/v1/models"


@dataclass(frozen=True)
class Attack:
    """What one hostile client does, by itself or beside others who do the same.

    Attributes:
        name: unique.
        run: does it, and returns the answers that it got.
        statuses: that the documentation lets an answer have (docs/operations.md, "Answers that are not 200").
        seconds: the deadline within which each answer comes.
        num_answers: how many there are where the service has room; None where that is open.
        is_crowd: it opens many connections by itself; a process has no files for as many again.
    """

    name: str
    run: Callable[[ChildService], list[Answer]]
    statuses: tuple[int, ...]
    seconds: float = 5.0
    num_answers: int | None = 1
    is_crowd: bool = False

    def __str__(self) -> str:
        return self.name


def asks(
    name: str,
    statuses: int | tuple[int, ...],
    method: str,
    path: str,
    body: bytes | Callable[[], bytes] = b"",
    headers: Headers = (),
    *,
    seconds: float = 5.0,
) -> Attack:
    """An attack of one well-formed request; a body that is large is made when it is sent."""

    def run(service: ChildService) -> list[Answer]:
        return [service.ask(method, path, body() if callable(body) else body, headers)]

    return Attack(name, run, statuses if isinstance(statuses, tuple) else (statuses,), seconds)


def scores(name: str, statuses: int | tuple[int, ...], query: str, path: str = SCORE) -> Attack:
    """One digit, and a query that is the attack."""
    return asks(f"{name} of {path}", statuses, "POST", f"{path}?{query}", IMAGE, NPY)


def gets(name: str, statuses: int | tuple[int, ...], path: str, headers: Headers = ()) -> Attack:
    """One GET."""
    return asks(name, statuses, "GET", path, headers=headers)


def whole(method: str, path: str, body: bytes = b"", headers: Headers = ()) -> bytes:
    """A request that keeps its connection."""
    return request(method, path, body, headers, close=False)
