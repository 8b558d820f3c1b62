"""Limit the number of open connections. Each needs a file descriptor, and memory for what it has sent.

If the limit is reached, idle connections are closed for new ones: first those that never sent a request, then the
others, each time those that have been idle for longest. If none is idle, a new connection can only ask for probes,
because an orchestrator that cannot reach `/livez` would restart a service that is merely busy.
"""

import resource
from collections.abc import MutableSet
from enum import Enum
from heapq import nsmallest
from operator import itemgetter
from typing import Protocol, TypeVar

import structlog
from prometheus_client import Counter

MAX_RESERVE = 64
_OTHER_FILES = 128  # files other than connections: the store, libraries, pipes to child processes
_SHARE_CLOSED = 32  # this share is closed at once, because finding them takes longer than closing them
_SECONDS_BETWEEN_LOOKS = 0.1  # after a search that found none idle
_SECONDS_BETWEEN_LINES = 10.0
_log = structlog.get_logger()


class ClosableConnection(Protocol):
    """The interface of a connection that is needed here."""

    @property
    def idle_since(self) -> float | None:
        """When its last answer was sent or it was opened; None while a request arrives or is answered."""

    @property
    def has_unread(self) -> bool:
        """Whether bytes have arrived that were not read yet; then it is not idle."""

    @property
    def served(self) -> bool:
        """Whether any of its requests has been answered."""

    def drop(self) -> None:
        """Close it; its client is not waiting for anything."""


C = TypeVar("C", bound=ClosableConnection)


class Permission(Enum):
    """What a new connection may do."""

    ANY_REQUEST = 1
    PROBES = 2
    NOTHING = 3


class ConnectionLimit:
    """Limits the open connections.

    Args:
        most: most open connections, in addition to `reserve` for probes.
        closed: counts closed connections by reason: `idle` to make room, or `full` if there was no room.
    """

    def __init__(self, most: int, closed: Counter) -> None:
        self.most = most
        self.reserve = min(MAX_RESERVE, most)
        self._closed_idle = closed.labels("idle")
        self._closed_full = closed.labels("full")
        self._look_again_at = 0.0
        self._log_again_at = 0.0

    def permission(self, connections: MutableSet[C], now: float) -> Permission:
        """Decide what a new connection may do; closes idle ones of the others if necessary.

        Args:
            connections: the other open connections; those closed here are removed.
            now: the event loop's time.
        """
        if len(connections) < self.most:
            return Permission.ANY_REQUEST
        if now >= self._log_again_at:
            self._log_again_at = now + _SECONDS_BETWEEN_LINES
            _log.warning("as many connections as may be open", most=self.most)
        reserve_is_full = len(connections) >= self.most + self.reserve  # then some may be idle, even in the reserve
        if (reserve_is_full or now >= self._look_again_at) and not self._close_idle(connections):
            self._look_again_at = now + _SECONDS_BETWEEN_LOOKS
        if len(connections) < self.most:
            return Permission.ANY_REQUEST
        if len(connections) < self.most + self.reserve:
            return Permission.PROBES
        self._closed_full.inc()
        return Permission.NOTHING

    def _close_idle(self, connections: MutableSet[C]) -> int:
        number = 1 + self.most // _SHARE_CLOSED
        idle = [(since, one) for one in connections if (since := one.idle_since) is not None]
        found: list[C] = []
        for served in (False, True):
            of_these = [(since, one) for since, one in idle if one.served == served]
            longest = nsmallest(number - len(found), of_these, key=itemgetter(0))
            found += [one for _, one in longest if not one.has_unread]
        for connection in found:
            connection.drop()
            connections.discard(connection)
        self._closed_idle.inc(len(found))
        return len(found)


def connections_that_fit(most: int) -> int:
    """The limit, lowered if the process may not open so many files; its soft limit is raised if possible."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + MAX_RESERVE + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return most
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == wanted:
        return most
    return max(allowed - MAX_RESERVE - _OTHER_FILES, allowed // 4, 1)
