"""How many requests are inside, over all connections.

For more requests than the event loop can even read. A refusal by the application costs a good part of what an answer
does; by the head alone, little. So under any load the time goes to those that are let in.
"""

from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

ADMISSION = "logpx.admission"


class AdmissionLimit:
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


class Admission:
    """One request's admission, from its whole body to its answer's head."""

    def __init__(self, admission_limit: AdmissionLimit) -> None:
        self._admission_limit = admission_limit
        self._inside = False
        self._left = False

    def enter(self) -> None:
        """The body is there. An answer may have come before it."""
        if not self._left:
            self._inside = True
            self._admission_limit.inside += 1

    def leave(self) -> None:
        """The answer begins, or never will."""
        self._left = True
        if self._inside:
            self._inside = False
            self._admission_limit.inside -= 1


def releasing(app: ASGIApp, wait_until_sent: Callable[[], Awaitable[None]]) -> ASGIApp:
    """The app, which gives a request's admission back when its answer begins, and is done when its answer is sent.

    So whoever counts what a request holds, from its call to its return, counts an answer that its client does not read.

    Args:
        app: what answers.
        wait_until_sent: returns once all that was written has left, or the connection is lost.
    """

    async def left(scope: Scope, receive: Receive, send: Send) -> None:
        admission: Admission | None = scope.get(ADMISSION)

        async def send_and_leave(message: Message) -> None:
            if admission is not None:
                admission.leave()
            await send(message)
            if message["type"] == "http.response.body":
                await wait_until_sent()

        try:
            await app(scope, receive, send_and_leave)
        finally:
            if admission is not None:
                admission.leave()

    return left


def is_work(path: str) -> bool:
    """Whether requests to it are computed; probes and admin calls always come in."""
    return path.startswith("/v1/") and not path.startswith("/v1/admin/")
