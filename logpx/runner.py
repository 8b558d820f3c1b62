"""What one call of the client needs from outside: something that sends, waits, and does several things at once."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Sent = TypeVar("Sent", contravariant=True)
Received = TypeVar("Received", covariant=True)


class Runner(Protocol[Sent, Received]):
    """One call's connection to the service: transports.py has one of threads, and one of asyncio's tasks."""

    async def send(self, request: Sent) -> Received:
        """Send a request and read the whole answer.

        Raises:
            UnreachableError, SlowServiceError: there is none.
        """

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    async def work(self, function: Callable[[], T]) -> T:
        """Call a function that takes milliseconds, or reads files."""

    def start(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> Callable[[], Awaitable[T]]:
        """Begin a coroutine function; what is returned waits for its result."""

    async def end(self) -> None:
        """Drop whatever was started and has not ended."""
