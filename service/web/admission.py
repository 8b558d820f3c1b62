"""How many requests are inside, over all connections.

For more requests than the event loop can even read. A refusal by the application costs a good part of what an answer
does; by the head alone, little. So under any load the time goes to those that are let in.
"""

from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PLACE = "logpx.place"


class Door:
    """How many requests are inside, over all connections: their body is there, and their answer has not begun.

    Neither clients that send slowly nor clients that read slowly take room, or a few could shut all others out.

    Args:
        max_inside: requests that are let in; further ones get a 429.
    """

    def __init__(self, max_inside: int) -> None:
        self.max_inside = max_inside
        self.inside = 0

    @property
    def is_full(self) -> bool:
        """Whether no further request is let in."""
        return self.inside >= self.max_inside


class Place:
    """One request's place, from its whole body to its answer's head."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._inside = False
        self._left = False

    def enter(self) -> None:
        """The body is there. An answer may have come before it."""
        if not self._left:
            self._inside = True
            self._door.inside += 1

    def leave(self) -> None:
        """The answer begins, or never will."""
        self._left = True
        if self._inside:
            self._inside = False
            self._door.inside -= 1


def leaving(app: ASGIApp, wait_until_sent: Callable[[], Awaitable[None]]) -> ASGIApp:
    """The app, which gives a request's place back when its answer begins, and is done when its answer is sent.

    So whoever counts what a request holds, from its call to its return, counts an answer that its client does not read.

    Args:
        app: what answers.
        wait_until_sent: returns once all that was written has left, or the connection is lost.
    """

    async def left(scope: Scope, receive: Receive, send: Send) -> None:
        place: Place | None = scope.get(PLACE)

        async def send_and_leave(message: Message) -> None:
            if place is not None:
                place.leave()
            await send(message)
            if message["type"] == "http.response.body":
                await wait_until_sent()

        try:
            await app(scope, receive, send_and_leave)
        finally:
            if place is not None:
                place.leave()

    return left


def is_work(path: str) -> bool:
    """Whether requests to it are computed; probes and admin calls always come in."""
    return path.startswith("/v1/") and not path.startswith("/v1/admin/")
