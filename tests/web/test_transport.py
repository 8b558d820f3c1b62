"""Small writes wait for what else is ready in the event loop; none is lost. Closed connections linger in bounds."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from service.web.connections.transport import (
    LINGER_IDLE_SECONDS,
    LINGER_SECONDS,
    LINGER_SHUTDOWN_SECONDS,
    MAX_LINGERING,
    BufferedTransport,
    LingeringClose,
    close_lingeringly,
)


class Written:
    """Stands in for a transport: what it was asked for, in order."""

    def __init__(self) -> None:
        self.calls: list[bytes | str] = []

    def set_write_buffer_limits(self, high: int) -> None:
        assert high == 0

    def write(self, data: bytes) -> None:
        self.calls.append(data)

    def close(self) -> None:
        self.calls.append("closed")

    def write_eof(self) -> None:
        self.calls.append("said all")

    def is_closing(self) -> bool:
        return self.calls[-1:] == ["closed"]


def test_small_writes_of_one_turn_leave_together_and_large_ones_at_once() -> None:
    async def scenario() -> list[bytes | str]:
        written, loop = Written(), asyncio.get_running_loop()
        buffered: Any = BufferedTransport(cast(asyncio.Transport, written), loop, lambda transport: transport.close())
        buffered.write(b"head ")
        buffered.write(b"body")
        assert written.calls == []
        await asyncio.sleep(0)
        buffered.write(b"head ")
        buffered.write(b"x" * 2**15)
        buffered.write(b"last")
        buffered.close()
        buffered.close()
        assert buffered.is_closing()
        await asyncio.sleep(0)
        return written.calls

    assert asyncio.run(scenario()) == [b"head body", b"head ", b"x" * 2**15, b"last", "closed"]


def test_nothing_goes_past_what_is_kept() -> None:
    async def scenario() -> list[bytes | str]:
        written, loop = Written(), asyncio.get_running_loop()
        buffered = BufferedTransport(cast(asyncio.Transport, written), loop, lambda transport: transport.close())
        buffered.write(b"head ")
        buffered.writelines([b"and ", b"body"])
        with pytest.raises(NotImplementedError):
            buffered.write_eof()
        await asyncio.sleep(0)
        return written.calls

    assert asyncio.run(scenario()) == [b"head and body"]


def test_what_is_written_to_a_lost_connection_goes_nowhere() -> None:
    async def scenario() -> list[bytes | str]:
        written = Written()
        buffered: Any = BufferedTransport(cast(asyncio.Transport, written), asyncio.get_running_loop(), lambda _: None)
        buffered.write(b"kept")
        buffered.forget()
        buffered.write(b"after")
        buffered.write(b"x" * 2**15)
        buffered.close()
        await asyncio.sleep(0)
        return written.calls

    assert asyncio.run(scenario()) == []


class Clock:
    """Stands in for an event loop whose time passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> "Timer":
        self._timers.append(Timer(when, call))
        return self._timers[-1]

    def pass_seconds(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self._timers if timer.call and timer.when <= end]:
            timer = min(due, key=lambda timer: timer.when)
            self.now, call = timer.when, timer.call
            timer.cancel()
            assert call is not None
            call()
        self.now = end


class Timer:
    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


@pytest.fixture
def lingering() -> tuple[LingeringClose, Clock, Written, set[LingeringClose]]:
    clock, written, among = Clock(), Written(), set[LingeringClose]()
    loop, transport = cast(asyncio.AbstractEventLoop, clock), cast(asyncio.Transport, written)
    return LingeringClose(transport, loop, among), clock, written, among


Fixture = tuple[LingeringClose, Clock, Written, set[LingeringClose]]


def test_a_client_that_says_nothing_more_is_waited_for_no_longer_than_that(lingering: Fixture) -> None:
    one, clock, written, among = lingering
    assert (written.calls, among) == (["said all"], {one})
    clock.pass_seconds(LINGER_IDLE_SECONDS - 0.01)
    assert not written.is_closing()
    clock.pass_seconds(0.02)
    assert (written.calls, among) == (["said all", "closed"], set())


@pytest.mark.parametrize("size", [1, 2**18])
def test_a_client_that_goes_on_sending_is_read_for_so_long_and_kept_nowhere(lingering: Fixture, size: int) -> None:
    one, clock, written, among = lingering
    for _ in range(int(LINGER_SECONDS) - 1):
        one.discard(bytes(size))
        clock.pass_seconds(1)
        assert not written.is_closing()
    one.discard(bytes(size))
    clock.pass_seconds(1.01)
    assert (written.calls, among) == (["said all", "closed"], set())


def test_a_client_that_sends_a_gibibyte_is_hung_up_on(lingering: Fixture) -> None:
    one, _, written, _ = lingering
    piece = bytes(2**24)
    for _ in range(64):
        one.discard(piece)
        assert not written.is_closing()
    one.discard(b"x")
    assert written.is_closing()


def test_a_shutdown_cuts_it_short(lingering: Fixture) -> None:
    one, clock, written, _ = lingering
    one.shorten()
    one.discard(b"x")
    clock.pass_seconds(LINGER_SHUTDOWN_SECONDS - 0.01)
    assert not written.is_closing()
    clock.pass_seconds(0.02)
    assert written.is_closing()


def test_an_end_by_the_client_leaves_no_timer(lingering: Fixture) -> None:
    one, clock, written, among = lingering
    one.end()
    clock.pass_seconds(100)
    assert (written.calls, among) == (["said all", "closed"], set())


def test_of_many_that_linger_further_ones_are_closed_at_once() -> None:
    among, closed = set[LingeringClose](), []
    loop = cast(asyncio.AbstractEventLoop, Clock())
    for _ in range(MAX_LINGERING + 2):
        written = Written()
        close_lingeringly(cast(asyncio.Transport, written), loop, among, seconds=LINGER_SECONDS)
        closed.append(written.is_closing())
    assert closed == [False] * MAX_LINGERING + [True] * 2
    among.pop().end()
    assert close_lingeringly(cast(asyncio.Transport, Written()), loop, among, seconds=LINGER_SECONDS) in among
