"""The steps that all computing routes share: parse and admit, then compute, then answer.

A route is a function of its request and its query (routes.py). It is called once the model is loaded and the body is
read. It returns a `Work`: what to compute, and how to make the answer from the result. This file handles keys,
readiness, space in the queue, deadlines, memory, the answer's media type, cancellation, metrics and `Server-Timing`.
"""

import inspect
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar, cast, get_type_hints

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

from service.engine.blocks import CPU_BLOCKS
from service.web.disconnection import answer_unless_gone
from service.web.documentation import describe_images_reply, describe_rows_reply
from service.web.media_types import CSV, NDJSON, PNG
from service.web.memory_budget import FREE_BYTES, MEMORY, Share
from service.web.operations.auth import check_key
from service.web.outcome import DeadlineError, Done
from service.web.parameters import TIMEOUT_PARAMETER, read_parameters
from service.web.problems import answer_of
from service.web.requests import ComputedRequest, ImagesRequest
from service.web.schemas import ModelQuery
from service.web.serving.backend import Backend
from service.web.serving.batch_queue import Computation
from service.web.streaming import StreamedResponse

R = TypeVar("R")
Endpoint = Callable[[Any, Any], "Work[Any]"]
E = TypeVar("E", bound=Endpoint)
_ROWS_A_GROUPED_IMAGE = 4  # so that a group, 64 images on the CPU and 1024 on a GPU, keeps the device busy


@dataclass(frozen=True)
class Work(Generic[R]):
    """What to compute for one request, and how to answer with the result.

    Attributes:
        computation: the computation in the engine; see serving/batching.py for those that requests share.
        payload: the computation's input from this request.
        rows: number of rows that the request asks for.
        held_bytes: memory that the request holds while it is computed, for its input and its answer.
        numbers: how many numbers or pixels the answer has; see serialisation.py.
        answer: makes the answer from the result; called in another thread if the answer is large.
        compute_bytes: most memory that computing takes besides `held_bytes`.
        images: how many images these rows are for; by default one each.
        count: counts the result in the metrics; called before `answer`, in the same thread.
        later: the same for the next images, if the answer is sent in parts.
    """

    computation: Computation[Any, R]
    payload: Any
    rows: int
    held_bytes: int
    numbers: int
    answer: Callable[[R], Response]
    compute_bytes: int = 0
    images: int = 0
    count: Callable[[R], None] | None = None
    later: "Iterator[Work[R]] | None" = None


def in_groups(request: ImagesRequest, work: Callable[[slice], Work[R]]) -> Work[R]:
    """The work for a request's images: as lines of JSON a group of images at a time, in other forms all at once.

    Args:
        request: the request.
        work: makes the work for a range of its images.
    """
    if request.media_type != NDJSON:
        return work(slice(None))
    busy = (request.backend.registry.batch_rows or CPU_BLOCKS.rows) // _ROWS_A_GROUPED_IMAGE
    step = max(1, min(busy, request.settings.max_rows // work(slice(1)).rows))
    first, *others = (slice(start, start + step) for start in range(0, len(request.images), step))
    return replace(work(first), later=map(work, others))


class ComputedRoute(APIRoute):
    """A route whose function returns a `Work`. FastAPI reads the function's signature to describe the API.

    The route has its own handler (FastAPI's hook `get_route_handler`), which reads the same parameters from the same
    signature. FastAPI's handler takes longer than an encode, even if the query is empty.
    """

    media_types: Sequence[str] = ()
    """Media types that the answer can have; the first is the default."""

    request: type[ComputedRequest]
    query: type[ModelQuery]
    work: Endpoint

    def __init__(self, path: str, endpoint: Endpoint, **named: Any) -> None:
        self.declare(endpoint)
        super().__init__(path, endpoint, **named)

    def declare(self, endpoint: Endpoint) -> None:
        """Take from the endpoint which request and query it has."""
        self.request, self.query = _parameters(endpoint)
        self.work = endpoint

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler that FastAPI calls."""

        async def handle(request: Request) -> Response:
            return await self.respond(request.scope, request.receive)

        return handle

    async def respond(self, scope: Scope, receive: Receive) -> Response:
        """Handle one request, from its head to its answer.

        Raises: errors for which the table in problems.py has an answer.
        """
        request = self.request(scope, receive)
        state = scope["app"].state
        auth, backend = state.auth, state.backend
        if auth.closed:
            await check_key(request)
        query, timeout = await self.read(request, backend)

        work = self.work(request, query)
        share: Share = scope[MEMORY]
        if work.held_bytes > FREE_BYTES or share.held:
            share.hold(work.held_bytes)
        seconds = max(0.0, timeout - request.load_seconds - request.decode_seconds)
        deadline = time.monotonic() + seconds
        response, done = await _computed(request, work, seconds)
        # Not functions of their own: a call takes longer than what it would do.
        timing = f"queue;dur={1000 * done.queue_seconds:.3f}, compute;dur={1000 * done.compute_seconds:.3f}"
        if request.decode_seconds:
            timing = f"decode;dur={1000 * request.decode_seconds:.3f}, {timing}"
        if request.load_seconds:
            timing = f"load;dur={1000 * request.load_seconds:.3f}, {timing}"
        response.raw_headers += (
            (b"x-model", request.named["model"].encode()),
            (b"x-model-version", b"%d" % request.named["version"]),
            (b"server-timing", timing.encode()),
        )
        if warning := request.warning():
            response.raw_headers.append((b"x-warning", warning.encode("latin-1")))
            scope["observed"]["warning"] = "brightness"
        if work.later is None:
            return response
        later = (_answered(request, group, deadline) for group in work.later)
        return StreamedResponse(request, response, later, work.images)

    async def read(self, request: ComputedRequest, backend: Backend) -> tuple[ModelQuery, float]:
        """Read a request: its parameters, then its model and its body. Returns its query and its deadline in seconds.

        Raises: as `respond`.
        """
        query, request.media_type, timeout = read_parameters(request, self.query, self.media_types, backend.settings)
        await request.read(backend, query, timeout)
        return query, timeout


def computed(
    router: APIRouter, method: str, path: str, *, answer: type[BaseModel], media_types: Sequence[str]
) -> Callable[[E], E]:
    """Decorator that adds a function to a router as a computing route.

    Args:
        router: the router.
        method: the HTTP method.
        path: the path below the router's.
        answer: model of the JSON answer, for `/docs`.
        media_types: media types that the answer can have; the first is used if the client does not say.
    """

    def add(endpoint: E) -> E:
        described = {"parameters": [TIMEOUT_PARAMETER], **_parameters(endpoint)[0].described_body}
        if PNG in media_types:
            described |= describe_images_reply()
        if CSV in media_types:
            described |= describe_rows_reply()
        router.add_api_route(
            path,
            endpoint,
            methods=[method],
            response_model=answer,
            openapi_extra=described,
            route_class_override=ComputedRoute,
        )
        cast(ComputedRoute, router.routes[-1]).media_types = media_types
        return endpoint

    return add


class Dispatch:
    """Calls computing routes directly. Other requests, and traced ones, go through the app's own router.

    The router takes about as long as an encode. Traced requests need it, because it adds the route to their span.

    Args:
        app: answers everything else.
        routes: the computing routes by method and path.
        root_path: the prefix that a proxy puts before all paths.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[ComputedRoute], root_path: str = "") -> None:
        self._app = app
        self._root_path = root_path
        self._templates = [route for route in routes if "{" in route.path]
        self._routes: dict[tuple[Any, Any], ComputedRoute] = {
            (method, root_path + route.path): route for route in routes for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; lifespan events are passed on."""
        route = self._routes.get((scope.get("method"), scope.get("path"))) or self._templated(scope)
        if route is None or "fastapi.telemetry" in scope:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        try:
            response = await route.respond(scope, receive)
        except Exception as error:  # noqa: BLE001 - raised again, where it is none that has an answer
            response = await answer_of(Request(scope, receive), error)
            # Its frames hold the future that it came with: a cycle, in which all that the request held would stay.
            error.__traceback__ = None
        await response(scope, receive, send)

    def _templated(self, scope: Scope) -> ComputedRoute | None:
        """The route whose path has parameters that this path gives."""
        method = scope.get("method")
        for route in self._templates:
            if method in (route.methods or ()):
                match = route.path_regex.match(scope["path"].removeprefix(self._root_path))
                if match is not None:
                    scope["path_params"] = match.groupdict()
                    return route
        return None


async def _computed(request: ComputedRequest, work: Work[Any], seconds: float) -> tuple[Response, Done[Any]]:
    """Compute, and write the answer; what was measured is added to the request's log line."""
    backend, computation = request.backend, work.computation
    size = {"rows": work.rows, "images": work.images}
    named: dict[str, Any] = {"memory": work.compute_bytes, "share": request.scope[MEMORY]}
    queued = backend.submit(computation, work.payload, **size, timeout_seconds=seconds, **named)
    try:
        done = await answer_unless_gone(request, queued)
    except DeadlineError as error:
        raise backend.too_late(error, computation, **size, seconds=seconds) from None

    observed = request.scope["observed"]
    observed["rows"] = observed.get("rows", 0) + work.rows
    if done.rows_run:
        observed["rows_run"] = observed.get("rows_run", 0) + done.rows_run
    observed["queue_seconds"] = round(observed.get("queue_seconds", 0) + done.queue_seconds, 6)
    observed["compute_seconds"] = round(observed.get("compute_seconds", 0) + done.compute_seconds, 6)
    backend.count_done(request.model, work.rows, done)

    answer = partial(work.answer if work.count is None else _counted(work), done.result)
    left = max(0.0, seconds - done.queue_seconds - done.compute_seconds)
    return await backend.writer.write(request, answer, numbers=work.numbers, seconds=left), done


def _counted(work: Work[R]) -> Callable[[R], Response]:
    def answer(result: R) -> Response:
        if work.count is not None:
            work.count(result)
        return work.answer(result)

    return answer


async def _answered(request: ComputedRequest, work: Work[Any], deadline: float) -> Response:
    try:
        response, _ = await _computed(request, work, max(0.0, deadline - time.monotonic()))
    except DeadlineError:
        raise DeadlineError("the deadline passed before all images were done: send the others again") from None
    return response


def _parameters(endpoint: Endpoint) -> tuple[type[ComputedRequest], type[ModelQuery]]:
    """The types of request and query that a route's function takes, from its signature."""
    hints = get_type_hints(endpoint)
    request, query = (hints[name] for name in inspect.signature(endpoint).parameters)
    return request, query
