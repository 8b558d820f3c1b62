"""Clients that take their answers slowly, and many connections, by a clock that is set: which are closed, and when."""

import asyncio
import resource
from collections.abc import Callable
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry, Counter

from service.web.connections.connection_limit import ConnectionLimit, Permission, connections_that_fit
from service.web.connections.slow_readers import MIN_BYTES_PER_SECOND, SlowReaders

SECONDS = 10.0


class Loop:
    """Stands in for an event loop whose time passes when it is told to, in steps of a second or less."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[..., None], *arguments: Any) -> Callable[..., None]:
        self._due.append((self.now + delay, call, arguments))
        return call

    def wait(self, seconds: float) -> None:
        self.now += seconds
        due = [item for item in self._due if item[0] <= self.now]
        self._due = [item for item in self._due if item[0] > self.now]
        for _, call, arguments in due:
            call(*arguments)

    @property
    def is_asleep(self) -> bool:
        return not self._due


class Client:
    """Stands in for a connection whose client takes so many bytes a second."""

    def __init__(self, unsent: int, rate: float, to_come: int = 0) -> None:
        self.unsent, self.rate, self.to_come = unsent, rate, to_come
        self.taken = 0
        self.closed = False

    def take(self, seconds: float) -> None:
        taken = min(self.unsent, int(self.rate * seconds))
        self.taken, self.unsent = self.taken + taken, self.unsent - taken

    def abort(self) -> None:
        self.closed = True


class Scene:
    """Some clients, watched over."""

    def __init__(self, *clients: Client, max_bytes: int = 2**40) -> None:
        self.loop, self.clients = Loop(), clients
        registry = CollectorRegistry()
        counter = Counter("closed", "connections", ["reason"], registry=registry)
        self._registry = registry
        self.readers = SlowReaders(SECONDS, max_bytes, counter)
        for client in clients:
            self.add(client)

    def add(self, client: Client) -> None:
        loop = cast(asyncio.AbstractEventLoop, self.loop)
        self.readers.add(client, loop, to_come=lambda: client.to_come, about={"client": "here", "path": "/"})

    def wait(self, seconds: float, step: float = 1.0) -> None:
        for _ in range(round(seconds / step)):
            for client in self.clients:
                client.take(step)
            self.loop.wait(step)

    def count(self, reason: str) -> float | None:
        return self._registry.get_sample_value("closed_total", {"reason": reason})

    @property
    def closed(self) -> list[bool]:
        return [client.closed for client in self.clients]


def test_who_takes_nothing_is_closed_in_time_and_nobody_before() -> None:
    scene = Scene(Client(2**30, 0), Client(2**30, 2 * MIN_BYTES_PER_SECOND))
    scene.wait(SECONDS - 1)
    assert scene.closed == [False, False]
    scene.wait(1)
    assert scene.closed == [True, False]
    assert (scene.count("stalled"), scene.count("slow"), scene.count("memory")) == (1, 0, 0)
    scene.wait(1000)
    assert scene.closed == [True, False]


def test_who_takes_too_little_is_closed_however_steadily_it_does() -> None:
    scene = Scene(Client(2**30, MIN_BYTES_PER_SECOND / 2), Client(2**30, MIN_BYTES_PER_SECOND * 1.01))
    scene.wait(2 * SECONDS)
    assert scene.closed == [False, False]
    scene.wait(2)
    assert scene.closed == [True, False]
    assert scene.count("slow") == 1
    scene.wait(10_000)
    assert scene.closed == [True, False]


def test_a_pause_is_forgiven_where_the_client_is_fast_in_all() -> None:
    client = Client(2**30, 2**20)
    scene = Scene(client)
    for _ in range(20):
        scene.wait(1)
        client.rate = 0
        scene.wait(SECONDS - 1)
        client.rate = 2**20
    assert scene.closed == [False]


def test_time_with_nothing_to_take_does_not_count() -> None:
    client = Client(0, 0)
    scene = Scene(client)
    for _ in range(30):
        scene.wait(5 * SECONDS)
        client.unsent = 2 * MIN_BYTES_PER_SECOND
        scene.wait(1)
        client.unsent, client.taken = 0, client.taken + 2 * MIN_BYTES_PER_SECOND
    assert scene.closed == [False]


def test_an_event_loop_that_was_held_up_blames_nobody() -> None:
    scene = Scene(Client(2**30, 0))
    scene.wait(100 * SECONDS, step=50 * SECONDS)
    assert scene.closed == [False]
    scene.wait(SECONDS)
    assert scene.closed == [True]


def test_beyond_the_bound_the_slowest_go_until_the_others_fit() -> None:
    rates = [5, 1, 4, 2, 3]
    scene = Scene(*(Client(2**20, rate * 2**16, to_come=2**28) for rate in rates), max_bytes=2**29 + 2**22)
    scene.wait(1)
    assert scene.closed == [False, True, False, True, True]
    assert scene.count("memory") == 3
    assert scene.readers.bytes_waiting <= 2**29 + 2**22


def test_one_answer_alone_is_never_too_much() -> None:
    scene = Scene(Client(2**30, 2**20), max_bytes=1)
    scene.wait(100)
    assert scene.closed == [False]


def test_what_an_answer_held_at_first_counts_to_its_end() -> None:
    """The application may hold all of it until it is sent."""
    client = Client(2**20, 0, to_come=2**24)
    scene = Scene(client)
    scene.wait(1)
    client.to_come = 0
    scene.wait(1)
    assert scene.readers.bytes_waiting == 2**24 + 2**20


def test_who_is_done_or_gone_is_forgotten_and_the_clock_stops() -> None:
    client = Client(2**30, 0)
    scene = Scene(client)
    scene.wait(2)
    scene.add(client)  # nothing new
    scene.readers.remove(client)
    scene.readers.remove(client)
    scene.wait(1)
    assert scene.loop.is_asleep
    scene.wait(100)
    scene.add(client)
    scene.wait(SECONDS - 1)
    assert scene.closed == [False]
    scene.wait(1)
    assert scene.closed == [True]
    scene.wait(1)
    assert scene.loop.is_asleep


# ── How many connections


class Connection:
    def __init__(self, idle_since: float | None, served: bool = False) -> None:
        self.idle_since, self.served, self.has_unread = idle_since, served, False
        self.dropped = False

    def drop(self) -> None:
        self.dropped = True


def limit(most: int) -> tuple[ConnectionLimit, Callable[[str], float | None]]:
    registry = CollectorRegistry()
    counter = Counter("closed", "connections", ["reason"], registry=registry)
    return ConnectionLimit(most, counter), lambda reason: registry.get_sample_value("closed_total", {"reason": reason})


def test_below_the_limit_nobody_is_touched() -> None:
    bound, count = limit(3)
    connections = {Connection(0.0), Connection(1.0)}
    assert bound.permission(connections, 5.0) is Permission.ANY_REQUEST
    assert len(connections) == 2
    assert (count("idle"), count("full")) == (0, 0)


def test_those_idle_for_longest_make_room_and_those_at_work_stay() -> None:
    bound, count = limit(100)
    connections = {Connection(since) for since in range(10, 60)} | {Connection(None) for _ in range(50)}
    known = list(connections)
    assert bound.permission(connections, 100.0) is Permission.ANY_REQUEST
    dropped = sorted(one.idle_since for one in known if one.dropped and one.idle_since is not None)
    assert dropped == [10, 11, 12, 13]  # 1 and 1 in 32
    assert sum(one.dropped for one in known) == 4
    assert len(connections) == 96
    assert count("idle") == 4


def test_those_that_never_asked_for_anything_go_first() -> None:
    bound, _ = limit(64)
    connections = {Connection(float(since), since < 62) for since in range(64)}
    known = list(connections)
    assert bound.permission(connections, 100.0) is Permission.ANY_REQUEST
    assert sorted(one.idle_since for one in known if one.dropped and one.idle_since is not None) == [0, 62, 63]


def test_one_whose_request_is_on_its_way_stays() -> None:
    bound, count = limit(40)
    connections = {Connection(float(since)) for since in range(40)}
    known = sorted(connections, key=lambda one: one.idle_since or 0)
    known[0].has_unread = True
    assert bound.permission(connections, 100.0) is Permission.ANY_REQUEST
    assert [one.dropped for one in known[:3]] == [False, True, False]
    assert count("idle") == 1


def test_where_new_ones_have_asked_already_those_that_were_answered_make_room() -> None:
    """As where many connect and send at once: none of them is idle, and none of their requests is read yet."""
    bound, count = limit(40)
    new, answered = (
        [Connection(50.0 + since) for since in range(20)],
        [Connection(float(since), True) for since in range(20)],
    )
    for one in new:
        one.has_unread = True
    assert bound.permission({*new, *answered}, 100.0) is Permission.ANY_REQUEST
    assert not any(one.dropped for one in new)
    assert [one.idle_since for one in answered if one.dropped] == [0.0, 1.0]
    assert count("idle") == 2


def test_where_all_are_at_work_probes_come_in_and_then_nothing() -> None:
    bound, count = limit(4)
    connections = {Connection(None) for _ in range(4)}
    for _ in range(4):
        assert bound.permission(connections, 1.0) is Permission.PROBES
        connections.add(Connection(None))
    assert bound.permission(connections, 1.0) is Permission.NOTHING
    assert count("full") == 1
    idle = Connection(0.0)
    connections.pop()
    connections.add(idle)
    assert bound.permission(connections, 1.0) is Permission.PROBES
    assert idle.dropped


def test_idle_ones_are_not_looked_for_again_at_once_where_there_were_none() -> None:
    bound, _ = limit(4)
    connections = {Connection(None) for _ in range(4)}
    assert bound.permission(connections, 1.0) is Permission.PROBES
    idle = Connection(0.0)
    connections.pop()
    connections.add(idle)
    assert bound.permission(connections, 1.05) is Permission.PROBES
    assert not idle.dropped
    assert bound.permission(connections, 1.2) is Permission.ANY_REQUEST
    assert idle.dropped


@pytest.mark.parametrize(
    ("limits", "fitting", "raised"),
    [
        ((-1, -1), 1000, None),
        ((4096, 4096), 1000, None),
        ((256, -1), 1000, (1192, -1)),
        ((256, 4096), 1000, (1192, 4096)),
        ((256, 512), 320, (512, 512)),
        ((100, 100), 25, (100, 100)),
        ((3, 3), 1, (3, 3)),
    ],
)
def test_as_many_connections_as_files_may_be_open(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], fitting: int, raised: tuple[int, int] | None
) -> None:
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: found.append(new))
    assert resource.RLIM_INFINITY == -1
    assert connections_that_fit(1000) == fitting
    assert found == ([] if raised is None else [raised])
