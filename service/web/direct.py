"""The busy routes, reached without what FastAPI does on the way: that takes as long as an encode.

FastAPI's own routes of the same paths come after these. They describe the service, and are never reached.
"""

from collections.abc import Awaitable, Callable, Iterator

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service.web.operations.auth import check_key


class Direct:
    """A route's function as an ASGI app. What it raises, the app's exception handlers answer.

    Args:
        endpoint: takes the request and nothing else.
        closed: whether requests need a key.
    """

    def __init__(self, endpoint: Callable[[Request], Awaitable[Response]], *, closed: bool) -> None:
        self._endpoint = endpoint
        self._closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        request = Request(scope, receive, send)
        if self._closed:
            await check_key(request)
        await (await self._endpoint(request))(scope, receive, send)


def direct_routes(router: APIRouter, *, closed: bool) -> Iterator[Route]:
    """A direct route for each of the router's POST routes, all of which read the request themselves."""
    for route in router.routes:
        if isinstance(route, APIRoute) and route.methods == {"POST"}:
            yield Route(route.path, Direct(route.endpoint, closed=closed), methods=["POST"])
