"""The steps that all computing routes share: parse and admit, then compute, then answer.

A route is a function of its request and its query (routes.py). It is called once the model is loaded and the body is
read. It returns a `Work`: what to compute, and how to make the answer from the result. This file handles keys,
readiness, space in the queue, deadlines, memory, the answer's media type, cancellation, metrics and `Server-Timing`.
"""

import inspect
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar, cast, get_type_hints

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

from service.web.disconnection import answer_unless_gone
from service.web.documentation import describe_images_reply
from service.web.media_types import PNG
from service.web.memory_budget import FREE_BYTES, MEMORY, Share
from service.web.operations.auth import check_key
from service.web.outcome import Done
from service.web.parameters import TIMEOUT_PARAMETER, read_parameters
from service.web.problems import answer_of
from service.web.requests import ComputedRequest
from service.web.schemas import ModelQuery
from service.web.serving.batch_queue import Computation

R = TypeVar("R")
Endpoint = Callable[[Any, Any], "Work[Any]"]
E = TypeVar("E", bound=Endpoint)


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
    """

    computation: Computation[Any, R]
    payload: Any
    rows: int
    held_bytes: int
    numbers: int
    answer: Callable[[R], Response]
    compute_bytes: int = 0


class ComputedRoute(APIRoute):
    """A route whose function returns a `Work`. FastAPI reads the function's signature to describe the API.

    The route has its own handler (FastAPI's hook `get_route_handler`), which reads the same parameters from the same
    signature. FastAPI's handler takes longer than an encode, even if the query is empty.
    """

    media_types: Sequence[str] = ()
    """Media types that the answer can have; the first is the default."""

    def __init__(self, path: str, endpoint: Endpoint, **named: Any) -> None:
        self.request, self.query = _parameters(endpoint)
        super().__init__(path, endpoint, **named)

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
        query, request.media_type, timeout = read_parameters(request, self.query, self.media_types, backend.settings)
        await request.read(backend, query, timeout)

        work: Work[Any] = self.endpoint(request, query)
        share: Share = scope[MEMORY]
        if work.held_bytes > FREE_BYTES or share.held:
            share.hold(work.held_bytes)
        left = max(0.0, timeout - request.load_seconds - request.decode_seconds)
        queued = backend.submit(
            work.computation,
            work.payload,
            rows=work.rows,
            timeout_seconds=left,
            memory=work.compute_bytes,
            share=share,
        )
        done = await answer_unless_gone(request, queued)

        observed = scope["observed"]
        observed["rows"] = work.rows
        if done.rows_run:
            observed["rows_run"] = done.rows_run
        observed["queue_seconds"] = round(done.queue_seconds, 6)
        observed["compute_seconds"] = round(done.compute_seconds, 6)
        backend.count_done(request.model, work.rows, done)

        left = max(0.0, left - done.queue_seconds - done.compute_seconds)
        response: Response = await backend.writer.write(
            request, partial(work.answer, done.result), numbers=work.numbers, seconds=left
        )
        response.raw_headers += request.model_headers()
        response.raw_headers.append((b"server-timing", _server_timing(request, done)))
        if warning := request.warning():
            response.raw_headers.append((b"x-warning", warning.encode("latin-1")))
            observed["warning"] = "brightness"
        return response


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
        self._routes: dict[tuple[Any, Any], ComputedRoute] = {
            (method, root_path + route.path): route for route in routes for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; lifespan events are passed on."""
        route = self._routes.get((scope.get("method"), scope.get("path")))
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


def _parameters(endpoint: Endpoint) -> tuple[type[ComputedRequest], type[ModelQuery]]:
    """The types of request and query that a route's function takes, from its signature."""
    hints = get_type_hints(endpoint)
    request, query = (hints[name] for name in inspect.signature(endpoint).parameters)
    return request, query


def _server_timing(request: ComputedRequest, done: Done[Any]) -> bytes:
    """The header `Server-Timing`: durations in milliseconds."""
    timing = f"queue;dur={1000 * done.queue_seconds:.3f}, compute;dur={1000 * done.compute_seconds:.3f}"
    if request.decode_seconds:
        timing = f"decode;dur={1000 * request.decode_seconds:.3f}, {timing}"
    if request.load_seconds:
        timing = f"load;dur={1000 * request.load_seconds:.3f}, {timing}"
    return timing.encode()
