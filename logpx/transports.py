"""The two ways to send requests: with threads, or with asyncio's tasks. Nothing else in the client knows of httpx2."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx2

from logpx.errors import SlowServiceError, UnreachableError
from logpx.exchange import Answer, Request

T = TypeVar("T")
_CONNECT_SECONDS = 10.0
_MOST_SPARE_SECONDS = 5.0


def timeouts(seconds: float) -> httpx2.Timeout:
    """Those of a client whose requests may take so long, after which the service itself gives up.

    Its answer to that (504) is waited for a little longer.
    """
    whole = seconds + min(_MOST_SPARE_SECONDS, seconds / 4)
    return httpx2.Timeout(whole, connect=min(_CONNECT_SECONDS, whole), pool=None)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing but a `Threads`, which never suspends it."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise RuntimeError("the coroutine waits for something else than its runner")


class Threads:
    """A runner whose methods block. What is started runs in threads of its own.

    Args:
        client: sends.
        seconds: that a request may take.
        concurrency: how many threads there are.
        unfinished: has what is started, by any runner, until it has ended.
    """

    def __init__(self, client: httpx2.Client, seconds: float, concurrency: int, unfinished: "set[Future[Any]]") -> None:
        self._client = client
        self._seconds = seconds
        self._unfinished = unfinished
        self._executor = ThreadPoolExecutor(concurrency, thread_name_prefix="logpx")
        self._ended = threading.Event()

    async def send(self, request: Request) -> Answer:
        """See `Runner`."""
        if self._ended.is_set():
            raise UnreachableError("the call has ended")
        deadline = time.monotonic() + timeouts(self._seconds).read  # type: ignore[operator]  # is always set
        with _translated(request, self._seconds), self._client.stream(**_arguments(request)) as response:
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                _check(deadline)
            return _answer(response, bytes(body))

    async def sleep(self, seconds: float) -> None:
        """See `Runner`."""
        self._ended.wait(seconds)

    async def work(self, function: Callable[[], T]) -> T:
        """See `Runner`."""
        return function()

    def start(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> Callable[[], Awaitable[T]]:
        """See `Runner`."""
        future: Future[T] = self._executor.submit(lambda: run(function(*arguments)))
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)

        async def join() -> T:
            return future.result()

        return join

    async def end(self) -> None:
        """See `Runner`. A request that is being answered ends by itself."""
        self._ended.set()
        self._executor.shutdown(wait=False, cancel_futures=True)


class Tasks:
    """A runner on the running event loop. What is started is a task."""

    def __init__(self, client: httpx2.AsyncClient, seconds: float) -> None:
        self._client = client
        self._seconds = seconds
        self._tasks: set[asyncio.Task[Any]] = set()

    async def send(self, request: Request) -> Answer:
        """See `Runner`."""
        deadline = time.monotonic() + timeouts(self._seconds).read  # type: ignore[operator]  # is always set
        with _translated(request, self._seconds):
            async with self._client.stream(**_arguments(request)) as response:
                body = bytearray()
                async for piece in response.aiter_bytes():
                    body += piece
                    _check(deadline)
                return _answer(response, bytes(body))

    async def sleep(self, seconds: float) -> None:
        """See `Runner`."""
        await asyncio.sleep(seconds)

    async def work(self, function: Callable[[], T]) -> T:
        """See `Runner`."""
        return await asyncio.to_thread(function)

    def start(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> Callable[[], Awaitable[T]]:
        """See `Runner`."""
        task = asyncio.create_task(function(*arguments))
        self._tasks.add(task)
        task.add_done_callback(self._forget)

        async def join() -> T:
            return await task

        return join

    async def end(self) -> None:
        """See `Runner`."""
        left = list(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        """Let go of what has ended; of several errors only the first is raised, and asyncio complains of none."""
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()


@contextmanager
def _translated(request: Request, seconds: float) -> Iterator[None]:
    """Raise the client's own errors instead of httpx2's."""
    try:
        yield
    except (httpx2.ConnectTimeout, httpx2.NetworkError, httpx2.ProtocolError) as error:
        told = str(error) or type(error).__name__
        raise UnreachableError(f"{request.method} {request.path}: no answer came: {told}") from error
    except httpx2.TimeoutException as error:
        raise SlowServiceError(f"{request.method} {request.path}: no answer within {seconds:g} s") from error


def _arguments(request: Request) -> dict[str, Any]:
    return {
        "method": request.method,
        "url": request.path,
        "params": request.query,
        "headers": dict(request.headers),
        "content": request.body,
    }


def _answer(response: httpx2.Response, body: bytes) -> Answer:
    return Answer(response.status_code, {name.lower(): value for name, value in response.headers.items()}, body)


def _check(deadline: float) -> None:
    """An answer that arrives piece by piece has no longer than one that arrives at once."""
    if time.monotonic() > deadline:
        raise httpx2.ReadTimeout("the answer takes too long")
