"""Memory that requests take, counted over all of them before it is allocated, and the most that the process can have.

A request is counted by upper bounds: its body as it arrives, what the body becomes, what is computed from it, and its
answer until the client has read it. One for which there is no room gets a 429. What nearly every request takes is not
counted one by one (`FREE_BYTES`), so small requests need no room and are never refused by this.
"""

import threading
from collections.abc import Callable

from starlette.requests import Request

from service.web.problems import LimitError, MemoryFullError

FREE_BYTES = 2**17
"""What each request may take uncounted."""
SMALL_BYTES = 2**22
"""A request that takes no more may use the whole budget; larger ones leave the last eighth of it free."""
SENT_AT_ONCE = 2**16
"""What is sent of a large answer before the client has taken what came before."""
MEMORY = "logpx.memory"
"""The key of a request's `Share` in its ASGI scope."""


def computing_bytes(max_memory_bytes: int) -> int:
    """Of `LOGPX_MAX_MEMORY_BYTES`, what is for computations that have begun; the rest is for what requests hold."""
    return max_memory_bytes // 4


class Budget:
    """Bytes that all requests together may hold.

    Args:
        limit: that many.
        retry_seconds: how long a client should wait that is refused.
    """

    def __init__(self, limit: int, retry_seconds: Callable[[], int] = lambda: 1) -> None:
        self.limit = limit
        self.limit_each = limit - limit // 8
        self.held = 0
        self.peak = 0
        """The most that was held since somebody set it."""
        self.retry_seconds = retry_seconds
        self._lock = threading.Lock()

    def check(self, num_bytes: int) -> None:
        """Refuse what a request without memory yet would be refused for.

        Raises:
            LimitError, MemoryFullError: as `Share.hold`.
        """
        if num_bytes > FREE_BYTES:
            self._check(num_bytes, num_bytes)

    def move(self, before: int, after: int, *, needed: bool) -> None:
        """Hold `after` bytes in place of `before`; beyond the limit only where they are not `needed`, but there."""
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
    """What one request holds. Any thread may tell."""

    __slots__ = ("_budget", "_users", "held")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._users = 1
        self.held = 0

    def hold(self, num_bytes: int) -> None:
        """From now on the request may have so many bytes, all together.

        Raises:
            LimitError: more than is ever given to one request.
            MemoryFullError: more than there is room for now; it goes on holding what it held.
        """
        held = num_bytes if num_bytes > FREE_BYTES else 0
        if held != self.held:
            self._budget.move(self.held, held, needed=True)
            self.held = held

    def has(self, num_bytes: int) -> None:
        """The request has so many bytes, and what it held beyond is given back, unless it is lent."""
        if self._users == 1 and (self.held or num_bytes > FREE_BYTES):
            self._have(num_bytes)

    def lend(self) -> None:
        """Something else than the request's answering keeps what it holds: `end` is to be called once more."""
        self._users += 1

    def end(self) -> None:
        """The request is answered, or what it was lent to is over; the last of them gives all back."""
        self._users -= 1
        if self.held and not self._users:
            self._have(0)

    def _have(self, num_bytes: int) -> None:
        held = num_bytes if num_bytes > FREE_BYTES else 0
        self._budget.move(self.held, held, needed=False)
        self.held = held


def share_of(request: Request) -> Share:
    """A request's share."""
    share: Share = request.scope[MEMORY]
    return share


def hold(request: Request, num_bytes: int) -> Share:
    """`Share.hold`, in place of what the request held before."""
    share = share_of(request)
    share.hold(num_bytes)
    return share
