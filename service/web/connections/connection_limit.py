"""How many connections are open at once; each holds a file descriptor, and what it has sent so far.

Where there are as many as may be, idle ones make room for new ones: first those that never asked for anything, and of
these and then of the others those that have been idle for longest. Where none is idle, a new one can ask for probes
only: an orchestrator that cannot reach `/livez` would restart a service that is merely busy.
"""

import resource
from collections.abc import Collection, MutableSet
from enum import Enum
from heapq import nsmallest
from typing import Protocol, TypeVar

import structlog
from prometheus_client import Counter

MAX_RESERVE = 64
_OTHER_FILES = 128  # that a process has open beside connections: the store, libraries, pipes to its children
_SHARE_CLOSED = 32  # one in so many is closed when room is made: looking for them takes longer than closing them
_SECONDS_BETWEEN_LOOKS = 0.1  # where none was idle
_SECONDS_BETWEEN_LINES = 10.0
_log = structlog.get_logger()


class ClosableConnection(Protocol):
    """A connection, as far as it matters here."""

    @property
    def idle_since(self) -> float | None:
        """When its last answer was sent, or it was opened; None while a request is being sent or answered."""

    @property
    def has_unread(self) -> bool:
        """Whether something has come that nobody has looked at: then it is not idle."""

    @property
    def served(self) -> bool:
        """Whether a request of it has ever been answered."""

    def drop(self) -> None:
        """Close it; its client is owed nothing."""


C = TypeVar("C", bound=ClosableConnection)


class Permission(Enum):
    """What a new connection may do."""

    ANY_REQUEST = 1
    PROBES = 2
    NOTHING = 3


class ConnectionLimit:
    """Bounds the open connections.

    Args:
        most: that may be open; beside them `reserve`, for probes.
        closed: counts closed connections by reason: `idle`, to make room, or `full`, for which there was none.
    """

    def __init__(self, most: int, closed: Counter) -> None:
        self.most = most
        self.reserve = min(MAX_RESERVE, most)
        self._closed_idle = closed.labels("idle")
        self._closed_full = closed.labels("full")
        self._look_again_at = 0.0
        self._log_again_at = 0.0

    def permission(self, connections: MutableSet[C], now: float) -> Permission:
        """What a connection may do that has just been opened, and is not one of these; makes room among them.

        Args:
            connections: those that are open; those that are closed here are taken out.
            now: the event loop's time.
        """
        if len(connections) < self.most:
            return Permission.ANY_REQUEST
        if now >= self._log_again_at:
            self._log_again_at = now + _SECONDS_BETWEEN_LINES
            _log.warning("as many connections as may be open", most=self.most)
        reserve_is_full = (
            len(connections) >= self.most + self.reserve
        )  # then some of the reserve are idle: looking is worth it
        if (reserve_is_full or now >= self._look_again_at) and not self._close_idle(connections):
            self._look_again_at = now + _SECONDS_BETWEEN_LOOKS
        if len(connections) < self.most:
            return Permission.ANY_REQUEST
        if len(connections) < self.most + self.reserve:
            return Permission.PROBES
        self._closed_full.inc()
        return Permission.NOTHING

    def _close_idle(self, connections: MutableSet[C]) -> int:
        found = _longest_idle(connections, 1 + self.most // _SHARE_CLOSED)
        found = [connection for connection in found if not connection.has_unread]
        for connection in found:
            connection.drop()
            connections.discard(connection)
        self._closed_idle.inc(len(found))
        return len(found)


def connections_that_fit(most: int) -> int:
    """So many, or as many as the process may have files open; its soft limit is raised if it must be and may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + MAX_RESERVE + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return most
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == wanted:
        return most
    return max(allowed - MAX_RESERVE - _OTHER_FILES, allowed // 4, 1)


def _longest_idle(connections: Collection[C], number: int) -> list[C]:
    idle = [((one.served, since), one) for one in connections if (since := one.idle_since) is not None]
    return [connection for _, connection in nsmallest(number, idle, key=lambda item: item[0])]
