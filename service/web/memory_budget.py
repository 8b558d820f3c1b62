"""Count the memory of all requests before it is allocated, and limit the total.

Each request is counted by upper bounds: its body as it arrives, the parsed body, the computation, and the answer until
the client has read it. A request for which there is not enough memory is refused with 429. The first `FREE_BYTES` of
each request are not counted, so small requests are never refused for want of memory.
"""

import threading
from collections.abc import Callable

from starlette.requests import Request

from service.web.problems import LimitError, MemoryFullError

FREE_BYTES = 2**17
"""Memory that each request may take without being counted."""
SMALL_BYTES = 2**22
"""Requests up to this size may use the whole budget; larger ones must leave the last eighth of it free."""
SENT_AT_ONCE = 2**16
"""Bytes of a large answer that are handed to the system at once, before the client has taken them."""
MEMORY = "logpx.memory"
"""The key of a request's `Share` in the ASGI scope."""


def computing_bytes(max_memory_bytes: int) -> int:
    """The part of `LOGPX_MAX_MEMORY_BYTES` for running computations; the rest is for what requests hold."""
    return max_memory_bytes // 4


class Budget:
    """The memory that all requests together may hold.

    Args:
        limit: in bytes.
        retry_seconds: gives the seconds after which a refused client should try again.
    """

    def __init__(self, limit: int, retry_seconds: Callable[[], int] = lambda: 1) -> None:
        self.limit = limit
        self.limit_each = limit - limit // 8
        self.held = 0
        self.peak = 0
        """The most bytes held since this was last set."""
        self.retry_seconds = retry_seconds
        self._lock = threading.Lock()

    def check(self, num_bytes: int) -> None:
        """Refuse a request that holds nothing yet if it could not hold this many bytes.

        Raises:
            LimitError, MemoryFullError: as `Share.hold`.
        """
        if num_bytes > FREE_BYTES:
            self._check(num_bytes, num_bytes)

    def move(self, before: int, after: int, *, needed: bool) -> None:
        """Hold `after` bytes in place of `before`. If not `needed`, they exist already and may exceed the limit."""
        with self._lock:
            if needed and after > before:
                self._check(after, after - before)
            self.held += after - before
            self.peak = max(self.peak, self.held)

    def _check(self, total: int, more: int) -> None:
        limit = self.limit if total <= SMALL_BYTES else self.limit_each
        if total > limit:
            raise LimitError(f"the request could take {total} bytes of memory; at most {limit} are given to one")
        if self.held + more > limit:
            seconds = self.retry_seconds()
            problem = f"requests hold {self.held} of {self.limit} bytes of memory, and this one needs {more} more"
            raise MemoryFullError(f"{problem}; try again in {seconds} s", seconds)


class Share:
    """The bytes that one request holds. Can be changed from any thread."""

    __slots__ = ("_budget", "_users", "held")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._users = 1
        self.held = 0

    def hold(self, num_bytes: int) -> None:
        """Set the total bytes that the request holds, before allocating them.

        Raises:
            LimitError: no request may hold this many.
            MemoryFullError: there is not enough memory now; the request holds what it held before.
        """
        held = num_bytes if num_bytes > FREE_BYTES else 0
        if held != self.held:
            self._budget.move(self.held, held, needed=True)
            self.held = held

    def has(self, num_bytes: int) -> None:
        """Set the total bytes that the request really has; the rest is given back, unless it is lent."""
        if self._users == 1 and (self.held or num_bytes > FREE_BYTES):
            self._have(num_bytes)

    def lend(self) -> None:
        """Keep the memory counted for another user besides the request; `end` must then be called once more."""
        self._users += 1

    def end(self) -> None:
        """End one use, by the request or by a borrower; the last one gives all memory back."""
        self._users -= 1
        if self.held and not self._users:
            self._have(0)

    def _have(self, num_bytes: int) -> None:
        held = num_bytes if num_bytes > FREE_BYTES else 0
        self._budget.move(self.held, held, needed=False)
        self.held = held


def share_of(request: Request) -> Share:
    """The request's `Share`."""
    share: Share = request.scope[MEMORY]
    return share


def hold(request: Request, num_bytes: int) -> Share:
    """Call `Share.hold` for this request."""
    share = share_of(request)
    share.hold(num_bytes)
    return share
