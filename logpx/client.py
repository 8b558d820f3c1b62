"""`Client` and `AsyncClient`: the same methods, which `Operations` has, on two transports."""

from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

import httpx2

from logpx.operations import Operations
from logpx.settings import Options, Settings
from logpx.transports import Tasks, Threads, run, timeouts

P = ParamSpec("P")
R = TypeVar("R")
_CLOSE_SECONDS = 5.0


class AsyncClient(Operations):
    """The client whose methods are coroutines: `await client.encode(…)`. Use it in one event loop.

    Args:
        url: where the service is, with a proxy's prefix if there is one: `http://127.0.0.1:8000`.
        http_client: instead of `url`: a client of httpx2 with its own base address, proxies and certificates. It is not
            closed with this one, and its own timeouts hold.
        options: see `logpx.settings.Settings`.

    Raises:
        ValueError: an argument makes no sense.
    """

    def __init__(
        self, url: str | None = None, *, http_client: httpx2.AsyncClient | None = None, **options: Unpack[Options]
    ) -> None:
        settings = Settings(**options)
        _check(url, http_client)
        client = http_client or httpx2.AsyncClient(base_url=url or "", timeout=timeouts(settings.timeout))
        self._owned = client if http_client is None else None
        super().__init__(partial(Tasks, client, settings.timeout), settings)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._owned is not None:
            await self._owned.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _blocking(
    method: Callable[Concatenate[Operations, P], Coroutine[Any, Any, R]],
) -> "Callable[Concatenate[Client, P], R]":
    """The same method, which returns when it has its result."""

    @wraps(method)
    def call(self: "Client", /, *arguments: P.args, **named: P.kwargs) -> R:
        return run(method(self._operations, *arguments, **named))

    return call


class Client:
    """The client whose methods return when they have their results. Threads may share it.

    Args:
        url: where the service is, with a proxy's prefix if there is one: `http://127.0.0.1:8000`.
        http_client: instead of `url`: a client of httpx2 with its own base address, proxies and certificates. It is not
            closed with this one, and its own timeouts hold.
        options: see `logpx.settings.Settings`.

    Raises:
        ValueError: an argument makes no sense.
    """

    def __init__(
        self, url: str | None = None, *, http_client: httpx2.Client | None = None, **options: Unpack[Options]
    ) -> None:
        settings = Settings(**options)
        _check(url, http_client)
        client = http_client or httpx2.Client(base_url=url or "", timeout=timeouts(settings.timeout))
        self._owned = client if http_client is None else None
        self._unfinished: set[Future[Any]] = set()
        runner = partial(Threads, client, settings.timeout, settings.concurrency, self._unfinished)
        self._operations = Operations(runner, settings)

    encode = _blocking(Operations.encode)
    decode = _blocking(Operations.decode)
    reconstruct = _blocking(Operations.reconstruct)
    samples = _blocking(Operations.samples)
    log_likelihood = _blocking(Operations.log_likelihood)
    anomaly_scores = _blocking(Operations.anomaly_scores)
    models = _blocking(Operations.models)

    def close(self) -> None:
        """Close the connections. Requests of a call that has failed may end first, but for a few seconds only."""
        wait(list(self._unfinished), _CLOSE_SECONDS)
        if self._owned is not None:
            self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check(url: str | None, http_client: object | None) -> None:
    """Refuse both an address and a client, or neither, or what is no address.

    Raises:
        ValueError: that is so.
    """
    if (url is None) == (http_client is None):
        raise ValueError("give either url or http_client")
    if url is not None and not url.startswith(("http://", "https://")):
        raise ValueError(f"url is {url!r}; it begins with http:// or https://")
