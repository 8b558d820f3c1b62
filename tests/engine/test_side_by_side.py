"""Computations made side by side: all that they yield, at once, for a turn, and to their end whatever happens."""

import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest

from service.engine import side_by_side as module
from service.engine.side_by_side import Steps, side_by_side
from service.engine.team import Team

PATIENCE = 10.0
A_LONG_TIME = 1000.0


def nothing() -> None:
    """Takes no time."""


class Computation:
    """Chunks that do something each, with a result after every second one; knows who made it, and how it ended."""

    def __init__(self, name: str, num_chunks: int = 6, do: Callable[[], Any] = nothing) -> None:
        self.name, self.num_chunks, self.do = name, num_chunks, do
        self.made, self.closed, self.threads = 0, False, set[int]()

    def steps(self) -> Steps[tuple[str, int]]:
        """The computation."""
        try:
            for chunk in range(self.num_chunks):
                self.do()
                self.threads.add(threading.get_ident())
                self.made += 1
                yield (self.name, chunk) if chunk % 2 else None
        finally:
            self.closed = True

    @property
    def results(self) -> set[tuple[str, int]]:
        """All that it yields."""
        return {(self.name, chunk) for chunk in range(1, self.num_chunks, 2)}


def found_by(steps: Iterator[tuple[str, int] | None]) -> list[tuple[str, int]]:
    return [found for found in steps if found is not None]


@pytest.fixture
def occupied() -> Iterator[Team]:
    """A team of two whose helper has other work."""
    team, done = Team(2), threading.Event()
    team.help(lambda: done.wait(PATIENCE))
    yield team
    done.set()


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("turn", [0.0, A_LONG_TIME])
def test_everything_that_is_found_is_yielded_once(
    size: int, count: int, turn: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TURN", turn)
    computations = [Computation(str(index), 2 * index) for index in range(count)]
    found = found_by(side_by_side(Team(size), (one.steps() for one in computations), size))
    assert sorted(found) == sorted(result for one in computations for result in one.results)


@pytest.mark.parametrize("size", [2, 3])
def test_they_are_made_at_once_each_by_a_thread(size: int) -> None:
    meeting = threading.Barrier(size)
    computations = [Computation(str(index), 1, lambda: meeting.wait(PATIENCE)) for index in range(size)]
    found_by(side_by_side(Team(size), (one.steps() for one in computations), size))  # nobody gets past it alone
    assert len(set.union(*(one.threads for one in computations))) == size


@pytest.mark.parametrize(("threads", "share"), [(2, 1), (5, 2)])
def test_each_has_its_share_of_the_threads_for_its_runs_and_the_last_has_all(threads: int, share: int) -> None:
    team, sizes, first_ended = Team(threads), list[int](), threading.Event()
    short = Computation("short", 2)
    long = Computation("long", 6, lambda: sizes.append(team.size) if short.closed else first_ended.wait(0.01))
    found_by(side_by_side(team, [short.steps(), long.steps()], 2))
    assert sizes[-1] == threads
    sizes.clear()
    both = [Computation(name, 2, lambda: sizes.append(team.size)) for name in "ab"]
    steps = side_by_side(team, [one.steps() for one in both], 2)
    next(steps)
    assert sizes[0] == share
    steps.close()
    assert team.size == threads


def test_a_helper_goes_on_while_others_have_their_turn_but_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    came_far = threading.Event()
    helped = Computation("helped", 1000, lambda: came_far.set() if helped.made == 1 else None)
    monkeypatch.setattr(module, "_TURN", A_LONG_TIME)
    steps = side_by_side(Team(2), [Computation("own", 1000).steps(), helped.steps()], 2)
    next(steps)
    assert came_far.wait(PATIENCE)  # nobody asked for a second chunk
    steps.close()

    monkeypatch.setattr(module, "_TURN", 0.0)
    team, helped = Team(2), Computation("helped", 10**9)
    steps = side_by_side(team, [Computation("own", 10**9).steps(), helped.steps()], 2)
    for _ in range(20):
        next(steps)
        team.help(nothing).result(PATIENCE)  # its only helper has time for others
        made = helped.made
        assert team.help(lambda: helped.made).result(PATIENCE) == made
    steps.close()


def test_a_result_of_a_helper_does_not_wait_for_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TURN", A_LONG_TIME)
    blocked = threading.Event()
    helped = Computation("helped", 4, lambda: blocked.wait(PATIENCE) if helped.made == 2 else None)
    steps = side_by_side(Team(2), [Computation("own", 10**9).steps(), helped.steps()], 2)
    assert ("helped", 1) in steps
    assert helped.made == 2
    blocked.set()
    steps.close()


def test_what_no_helper_has_time_for_is_computed_by_the_caller(occupied: Team) -> None:
    computations = [Computation(name) for name in "abc"]
    found = found_by(side_by_side(occupied, (one.steps() for one in computations), 2))
    assert set(found) == set.union(*(one.results for one in computations))
    assert {ident for one in computations for ident in one.threads} == {threading.get_ident()}


def test_who_gives_up_closes_all_and_nobody_computes_on() -> None:
    at_work, go_on = threading.Event(), threading.Event()

    def work() -> None:
        at_work.set()
        go_on.wait(PATIENCE)

    own, helped = Computation("own", 1000), Computation("helped", 1000, work)
    steps = side_by_side(Team(2), [own.steps(), helped.steps()], 2)
    next(steps)
    assert at_work.wait(PATIENCE)
    threading.Timer(0.05, go_on.set).start()  # closing waits for the chunk that is being made
    steps.close()
    assert own.closed
    assert helped.closed
    assert helped.made == 1


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_ends_all(failing: int) -> None:
    def fail() -> None:
        raise ValueError("as it happens")

    computations = [Computation("a", 10**9), Computation("b", 10**9)]
    computations[failing].do = fail
    with pytest.raises(ValueError, match="as it happens"):
        found_by(side_by_side(Team(2), (one.steps() for one in computations), 2))
    assert [one.closed for one in computations] == [True, True]


@pytest.mark.parametrize("asked", [3, None])
def test_what_a_helper_notes_is_done_by_the_thread_that_it_helps_and_none_is_lost(asked: int | None) -> None:
    team, noted = Team(2), list[int]()
    computations = [
        Computation(name, 20, lambda: team.note(lambda: noted.append(threading.get_ident()))) for name in "ab"
    ]
    steps = side_by_side(team, [one.steps() for one in computations], 2)
    for _ in islice(steps, asked):
        assert len(noted) <= sum(one.made for one in computations) + 2  # a chunk may be under way
    steps.close()
    assert len(noted) == sum(one.made for one in computations)
    assert set(noted) == {threading.get_ident()}
