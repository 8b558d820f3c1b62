"""Fairness, bounds, deadlines and faults of the queue, with jobs that are a few lines of Python."""

import asyncio
import math
import threading
import time
import weakref
from collections.abc import Generator, Sequence

import pytest

from service.web.outcome import DeadlineError, Done, QueueFullError, StoppedError
from service.web.rate import Expectation, Meter, Rate
from service.web.serving import batch_queue
from service.web.serving.batch_queue import Computation
from service.web.serving.scheduler import Scheduler


def steps(name: str, count: int, log: list[str], gate: threading.Event | None = None) -> Generator[None, None, str]:
    """A job that logs each of its chunks; the first waits for the gate."""
    for _ in range(count):
        if gate is not None:
            gate.wait(30)
        log.append(name)
        yield
    return name


def endless() -> Generator[None, None, None]:
    while True:
        threading.Event().wait(0.001)
        yield


def doubling(log: list[list[int]], key: str = "double") -> Computation[int, int]:
    """Doubles numbers, all of a batch at once, and logs each batch; 13 is one it cannot double."""

    def compute(numbers: Sequence[int]) -> Generator[None, None, list[int]]:
        log.append(list(numbers))
        yield
        if 13 in numbers:
            raise ZeroDivisionError("an unlucky number")
        return [2 * number for number in numbers]

    return Computation(key, compute)


async def blocked(queue: Scheduler) -> "tuple[threading.Event, asyncio.Future[Done[str]]]":
    """Keep the inference thread in a chunk of its own until the event is set."""
    gate, log = threading.Event(), list[str]()
    answer = queue.submit_alone(steps("gate", 1, log, gate), rows=1, timeout_seconds=60)
    await until(lambda: queue._running is not None)
    return gate, answer


async def until(condition: object) -> None:
    """Wait, without a clock in the assertion, until a callable is true."""
    assert callable(condition)
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def scheduler(max_rows: int = 100, max_jobs: int = 10, max_rows_each: int | None = None) -> Scheduler:
    return Scheduler(max_rows=max_rows, max_jobs=max_jobs, batch_rows=8, max_rows_each=max_rows_each)


class Climbing:
    """Jobs that run other numbers of rows than they ask for: so many a chunk. The last chunk waits for the gate."""

    def __init__(self) -> None:
        self.rows_run = 0
        self.gate = threading.Event()

    def meter(self, kind: str) -> Meter:
        return Meter(kind, lambda: self.rows_run)

    def job(self, chunks: int, rows: int) -> Generator[None, None, None]:
        for chunk in range(chunks):
            if chunk == chunks - 1:
                self.gate.wait(30)
            self.rows_run += rows
            yield


def test_short_jobs_take_turns_with_a_long_one() -> None:
    async def scenario() -> list[str]:
        queue, log, gate = scheduler(), list[str](), threading.Event()
        long = queue.submit_alone(steps("long", 20, log, gate), rows=20, timeout_seconds=60)
        await until(lambda: queue.queued_jobs == 1)
        short = queue.submit_alone(steps("short", 2, log), rows=2, timeout_seconds=60)
        await until(lambda: queue.queued_jobs == 2)
        gate.set()
        assert (await short).result == "short"
        assert (await long).result == "long"
        queue.stop()
        return log

    log = asyncio.run(scenario())
    assert log.count("long") == 20
    assert log.index("short") <= 2
    assert len(log) - log[::-1].index("short") <= 6  # the short one was done long before the long one


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    async def scenario() -> None:
        queue = scheduler(max_rows=10, max_jobs=2)
        first = queue.submit_alone(endless(), rows=50, timeout_seconds=60)  # let in: there is no other
        await until(lambda: queue.queued_jobs == 1)
        with pytest.raises(QueueFullError, match="50 rows") as refused:
            await queue.submit_alone(endless(), rows=1, timeout_seconds=60)
        assert refused.value.retry_after >= 1
        first.cancel()
        await until(lambda: queue.queued_jobs == 0)
        assert (await queue.submit_alone(steps("next", 1, []), rows=1, timeout_seconds=60)).result == "next"
        queue.stop()

    asyncio.run(scenario())


def test_the_number_of_jobs_is_bounded_too() -> None:
    async def scenario() -> None:
        queue = scheduler(max_jobs=2)
        running = [queue.submit_alone(endless(), rows=1, timeout_seconds=60) for _ in range(2)]
        await until(lambda: queue.queued_jobs == 2)
        with pytest.raises(QueueFullError, match="2 requests"):
            await queue.submit_alone(endless(), rows=1, timeout_seconds=60)
        for task in running:
            task.cancel()
        await until(lambda: queue.queued_rows == 0)
        queue.stop()

    asyncio.run(scenario())


def test_a_passed_deadline_ends_the_job_and_frees_its_rows() -> None:
    closed = threading.Event()

    def job() -> Generator[None, None, None]:
        try:
            yield from endless()
        finally:
            closed.set()

    async def scenario() -> None:
        queue = scheduler()
        with pytest.raises(DeadlineError, match=r"0\.05 s"):
            await queue.submit_alone(job(), rows=7, timeout_seconds=0.05)
        await until(closed.is_set)
        await until(lambda: queue.queued_rows == 0)
        queue.stop()

    asyncio.run(scenario())


def test_a_failing_job_fails_alone() -> None:
    def broken() -> Generator[None, None, None]:
        yield
        raise ZeroDivisionError("mine alone")

    async def scenario() -> None:
        queue = scheduler()
        outcomes = await asyncio.gather(
            queue.submit_alone(steps("a", 3, []), rows=1, timeout_seconds=60),
            queue.submit_alone(broken(), rows=1, timeout_seconds=60),
            queue.submit_alone(steps("b", 3, []), rows=1, timeout_seconds=60),
            return_exceptions=True,
        )
        assert [type(outcome).__name__ for outcome in outcomes] == ["Done", "ZeroDivisionError", "Done"]
        assert queue.alive
        assert queue.queued_rows == queue.queued_jobs == 0
        queue.stop()

    asyncio.run(scenario())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dying_thread_answers_everyone() -> None:
    def fatal() -> Generator[None, None, None]:
        yield
        raise SystemExit("the device is gone")

    async def scenario() -> None:
        queue = scheduler()
        outcomes = await asyncio.gather(
            queue.submit_alone(endless(), rows=1, timeout_seconds=60),
            queue.submit_alone(fatal(), rows=1, timeout_seconds=60),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [StoppedError, StoppedError]
        await until(lambda: not queue.alive)
        with pytest.raises(StoppedError):
            await queue.submit_alone(steps("late", 1, []), rows=1, timeout_seconds=60)
        queue.stop()

    asyncio.run(scenario())


def test_stopping_answers_what_is_left() -> None:
    async def scenario() -> None:
        queue = scheduler()
        left = queue.submit_alone(endless(), rows=1, timeout_seconds=60)
        await until(lambda: queue.queued_jobs == 1)
        await asyncio.to_thread(queue.stop)
        with pytest.raises(StoppedError):
            await left
        assert not queue.alive

    asyncio.run(scenario())


def test_times_add_up_and_rows_are_given_back() -> None:
    async def scenario() -> None:
        queue = scheduler()
        done = await queue.submit_alone(steps("a", 5, []), rows=5, timeout_seconds=60)
        assert done.queue_seconds >= 0
        assert done.compute_seconds > 0
        assert queue.queued_rows == 0
        queue.stop()

    asyncio.run(scenario())


def test_requests_of_one_kind_that_wait_together_are_computed_together() -> None:
    async def scenario() -> tuple[list[list[int]], list[int]]:
        queue, log = scheduler(max_jobs=30), list[list[int]]()
        gate, _ = await blocked(queue)
        answers = [queue.submit(doubling(log), number, rows=1, timeout_seconds=60) for number in range(12)]
        other = queue.submit(doubling(log, "other"), 100, rows=1, timeout_seconds=60)
        gate.set()
        results = [(await answer).result for answer in [*answers, other]]
        queue.stop()
        return log, results

    log, results = asyncio.run(scenario())
    assert results == [*range(0, 24, 2), 200]
    assert log == [list(range(8)), [8, 9, 10, 11], [100]]  # at most 8 rows together


def test_an_idle_thread_takes_a_request_alone() -> None:
    async def scenario() -> None:
        queue, log = scheduler(), list[list[int]]()
        for number in range(3):
            assert (await queue.submit(doubling(log), number, rows=1, timeout_seconds=60)).result == 2 * number
        assert log == [[0], [1], [2]]
        queue.stop()

    asyncio.run(scenario())


def test_more_rows_than_a_batch_holds_are_computed_by_themselves() -> None:
    async def scenario() -> list[list[int]]:
        queue, log = scheduler(), list[list[int]]()
        gate, _ = await blocked(queue)
        answers = [
            queue.submit(doubling(log), number, rows=rows, timeout_seconds=60)
            for number, rows in enumerate([3, 50, 3, 3, 3])
        ]
        gate.set()
        await asyncio.gather(*answers)
        queue.stop()
        return log

    assert asyncio.run(scenario()) == [[0], [1], [2, 3], [4]]


def test_one_bad_request_of_a_batch_fails_alone() -> None:
    async def scenario() -> None:
        queue, log = scheduler(), list[list[int]]()
        gate, _ = await blocked(queue)
        numbers = [1, 2, 3, 13, 5, 6]
        answers = [queue.submit(doubling(log), number, rows=1, timeout_seconds=60) for number in numbers]
        gate.set()
        outcomes = await asyncio.gather(*answers, return_exceptions=True)
        results = [outcome.result if isinstance(outcome, Done) else type(outcome) for outcome in outcomes]
        assert results == [2, 4, 6, ZeroDivisionError, 10, 12]
        assert log[0] == numbers
        await until(lambda: queue.queued_rows == queue.queued_jobs == 0)
        queue.stop()

    asyncio.run(scenario())


def test_when_every_request_of_a_batch_is_bad_all_are_told() -> None:
    async def scenario() -> None:
        queue = scheduler()
        gate, _ = await blocked(queue)
        answers = [queue.submit(doubling([]), 13, rows=1, timeout_seconds=60) for _ in range(5)]
        gate.set()
        outcomes = await asyncio.gather(*answers, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ZeroDivisionError] * 5
        assert queue.alive
        queue.stop()

    asyncio.run(scenario())


def test_whoever_left_or_is_too_late_is_not_computed_with_the_batch() -> None:
    async def scenario() -> list[list[int]]:
        queue, log = scheduler(), list[list[int]]()
        gate, _ = await blocked(queue)
        stays = queue.submit(doubling(log), 1, rows=1, timeout_seconds=60)
        leaves = queue.submit(doubling(log), 2, rows=1, timeout_seconds=60)
        late = queue.submit(doubling(log), 3, rows=1, timeout_seconds=0.01)
        leaves.cancel()
        with pytest.raises(DeadlineError):
            await late
        gate.set()
        assert (await stays).result == 2
        await until(lambda: queue.queued_rows == 0)
        queue.stop()
        return log

    assert asyncio.run(scenario()) == [[1]]


def test_what_everybody_left_before_it_began_is_not_kept() -> None:
    async def scenario() -> None:
        queue = scheduler()
        gate, _ = await blocked(queue)
        work = steps("left", 1, [])
        kept = weakref.ref(work)
        queue.submit_alone(work, rows=1, timeout_seconds=60).cancel()
        del work
        gate.set()
        await until(lambda: queue.queued_jobs == 0)
        await until(lambda: kept() is None)
        queue.stop()

    asyncio.run(scenario())


def test_a_batch_that_everybody_left_stops_within_a_chunk() -> None:
    chunks: list[int] = []
    entered, gate = threading.Event(), threading.Event()

    def long(requests: Sequence[int]) -> Generator[None, None, list[int]]:
        while True:
            chunks.append(len(requests))
            entered.set()
            gate.wait(30)
            yield

    async def scenario() -> None:
        queue = scheduler()
        kind = Computation("long", long)
        answers = [queue.submit(kind, 0, rows=1, timeout_seconds=60) for _ in range(2)]
        await asyncio.to_thread(entered.wait, 30)
        for answer in answers:
            answer.cancel()
        gate.set()
        await until(lambda: queue.queued_jobs == 0)
        queue.stop()

    asyncio.run(scenario())
    assert chunks == [2]


def test_a_new_request_waits_for_one_chunk_however_many_long_ones_run() -> None:
    async def scenario() -> list[str]:
        queue, log, gate = scheduler(), list[str](), threading.Event()
        long = [queue.submit_alone(steps("long", 50, log, gate), rows=1, timeout_seconds=60) for _ in range(5)]
        gate.set()
        await until(lambda: log.count("long") > 10)
        gate.clear()
        short = queue.submit_alone(steps("short", 1, log), rows=1, timeout_seconds=60)
        before = len(log)
        gate.set()
        assert (await short).result == "short"
        await asyncio.gather(*long)
        queue.stop()
        return log[before:]

    assert asyncio.run(scenario()).index("short") <= 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_death_is_told_and_a_stop_is_not() -> None:
    def fatal() -> Generator[None, None, None]:
        yield
        raise SystemExit("the device is gone")

    async def scenario() -> None:
        told: list[str] = []
        queue = Scheduler(max_rows=9, max_jobs=9, batch_rows=9, on_death=lambda: told.append("dead"))
        queue.stop()
        await asyncio.sleep(0)
        assert told == []
        queue = Scheduler(max_rows=9, max_jobs=9, batch_rows=9, on_death=lambda: told.append("dead"))
        with pytest.raises(StoppedError):
            await queue.submit_alone(fatal(), rows=1, timeout_seconds=60)
        await until(lambda: told == ["dead"])
        queue.stop()

    asyncio.run(scenario())


def test_a_fatal_error_ends_the_thread_and_others_do_not() -> None:
    def failing(error: Exception) -> Generator[None, None, None]:
        yield
        raise error

    async def scenario() -> None:
        told: list[str] = []
        queue = Scheduler(max_rows=9, max_jobs=9, batch_rows=9, fatal=OSError, on_death=lambda: told.append("dead"))
        with pytest.raises(ZeroDivisionError):
            await queue.submit_alone(failing(ZeroDivisionError()), rows=1, timeout_seconds=60)
        assert queue.alive
        lost = OSError("the device is gone")
        waiting = [queue.submit_alone(failing(lost), rows=1, timeout_seconds=60) for _ in range(3)]
        for answer in waiting:
            with pytest.raises(StoppedError):
                await answer
        await until(lambda: told == ["dead"])
        assert queue.fatal_error is lost
        assert queue.queued_rows == 0
        queue.stop()

    asyncio.run(scenario())


def test_the_rate_weighs_work_by_the_time_it_took() -> None:
    rate = Rate()
    for _ in range(100):
        rate.add(5000, seconds=1.0)
    assert rate.rows_per_second == pytest.approx(5000, rel=0.01)
    for _ in range(100):
        rate.add(1, seconds=0.0005)  # a hundred small requests are 0.05 s of work, and say little
    assert rate.rows_per_second == pytest.approx(5000, rel=0.05)


def test_as_many_rows_are_expected_as_the_last_requests_of_the_kind_have_run() -> None:
    async def scenario() -> None:
        queue, work = scheduler(max_rows=10_000), Climbing()
        work.gate.set()
        for kind, rows in (("strange", 200), ("familiar", 10), ("stops early", 1)):
            done = await queue.submit_alone(work.job(10, rows), rows=100, timeout_seconds=60, meter=work.meter(kind))
            assert done.rows_run == 10 * rows
        work.gate.clear()
        for kind, expected in (("strange", 2000), ("familiar", 100), ("stops early", 10), ("never seen", 100)):
            answer = queue.submit_alone(work.job(1, 0), rows=100, timeout_seconds=60, meter=work.meter(kind))
            assert queue.queued_rows == pytest.approx(expected, abs=1)
            answer.cancel()
            work.gate.set()
            await until(lambda: not queue.queued_jobs)
            assert queue.queued_rows == 0
            work.gate.clear()
        queue.stop()

    asyncio.run(scenario())


def test_a_request_that_runs_more_than_was_expected_is_expected_to_run_as_much_again() -> None:
    async def scenario() -> None:
        queue, work = scheduler(max_rows=3000), Climbing()
        answer = queue.submit_alone(work.job(11, 100), rows=100, timeout_seconds=60, meter=work.meter("strange"))
        assert queue.queued_rows == 100
        # Doubled at 200, to 400, and at 500, to 1000; that has not been passed yet.
        await until(lambda: work.rows_run == queue.queued_rows == max(job.rows_run for job in queue._jobs) == 1000)
        assert queue._seconds_left() == pytest.approx(1000 / queue.rate.rows_per_second, rel=0.01)
        with pytest.raises(QueueFullError, match="1 requests with 1000 rows"):
            queue.submit_alone(endless(), rows=2001, timeout_seconds=60)
        work.gate.set()
        assert (await answer).rows_run == 1100
        assert queue.queued_rows == 0
        queue.stop()

    asyncio.run(scenario())


def test_one_request_does_not_take_all_the_room_unless_it_asks_for_it() -> None:
    async def scenario() -> None:
        queue, work = scheduler(max_rows=1000, max_rows_each=500), Climbing()
        strange = queue.submit_alone(work.job(11, 100), rows=10, timeout_seconds=60, meter=work.meter("strange"))
        await until(lambda: work.rows_run == 1000 and queue.queued_rows == 500)
        assert queue._seconds_left() > 0
        other = queue.submit_alone(steps("other", 1, []), rows=500, timeout_seconds=60)
        with pytest.raises(QueueFullError, match="2 requests with 1000 rows"):
            queue.submit_alone(steps("third", 1, []), rows=1, timeout_seconds=60)
        work.gate.set()
        await asyncio.gather(strange, other)
        large = queue.submit_alone(endless(), rows=5000, timeout_seconds=60)  # let in: there is no other
        assert queue.queued_rows == 5000
        large.cancel()
        await until(lambda: queue.queued_rows == 0)
        queue.stop()

    asyncio.run(scenario())


def test_the_time_to_come_back_is_that_of_rows_still_to_be_run_at_the_rate_measured() -> None:
    async def scenario() -> None:
        queue, work = scheduler(max_rows=10_000), Climbing()
        queue.rate = Rate()
        for _ in range(200):
            queue.rate.add(100, seconds=1.0)  # a hundred rows a second
        queue.expectation.add("strange", asked=100, run=2000, seconds=1)
        running = queue.submit_alone(work.job(6, 1000), rows=400, timeout_seconds=6000, meter=work.meter("strange"))
        assert queue.queued_rows == 8000
        assert queue._seconds_left() == pytest.approx(80, rel=0.01)
        await until(lambda: work.rows_run == 5000 and max(job.rows_run for job in queue._jobs) == 5000)
        left = 3000 / queue.rate.rows_per_second  # 5000 of 8000 are run, at whatever rate this machine has
        assert queue._seconds_left() == pytest.approx(left, rel=0.01)
        with pytest.raises(QueueFullError) as refused:
            queue.submit_alone(endless(), rows=3000, timeout_seconds=60)
        assert refused.value.retry_after == max(1, math.ceil(left))
        work.gate.set()
        await running
        queue.stop()

    asyncio.run(scenario())


def test_the_time_to_come_back_is_never_beyond_the_last_deadline() -> None:
    async def scenario() -> None:
        queue, work = scheduler(max_rows=100), Climbing()
        for _ in range(200):
            queue.rate.add(1, seconds=1.0)
        answer = queue.submit_alone(work.job(1, 1), rows=100, timeout_seconds=30)
        with pytest.raises(QueueFullError) as refused:
            queue.submit_alone(endless(), rows=1, timeout_seconds=60)
        assert 1 <= refused.value.retry_after <= 30  # by then the first is answered, or dropped
        work.gate.set()
        await answer
        queue.stop()

    asyncio.run(scenario())


def test_what_was_dropped_tells_that_its_kind_takes_at_least_so_much() -> None:
    async def scenario() -> None:
        queue, work = scheduler(max_rows=10_000), Climbing()
        dropped = queue.submit_alone(work.job(3, 1000), rows=100, timeout_seconds=60, meter=work.meter("strange"))
        await until(lambda: work.rows_run == 2000)
        dropped.cancel()
        work.gate.set()
        await until(lambda: not queue.queued_jobs)
        assert queue.expectation.rows("strange", 100) >= 2000
        queue.stop()

    asyncio.run(scenario())


def test_expectations_follow_what_was_run_last_and_do_not_pile_up() -> None:
    expectation = Expectation()
    for _ in range(100):
        expectation.add("a", asked=400, run=600, seconds=1)
    assert expectation.rows("a", 1000) == pytest.approx(1500, abs=1)
    for _ in range(100):
        expectation.add("a", asked=400, run=12_000, seconds=10)  # from now on the images are strange
    assert expectation.rows("a", 1000) == pytest.approx(30_000, rel=0.01)
    expectation.add_unfinished("a", asked=400, run=100, seconds=1)  # says nothing: it may just have begun
    assert expectation.rows("a", 1000) == pytest.approx(30_000, rel=0.01)
    for number in range(1000):
        expectation.add(number, asked=1, run=1, seconds=1)
    assert len(expectation._sums) <= 256
    assert expectation.rows("a", 1000) == 1000  # forgotten


def test_a_job_that_the_thread_drops_before_its_timer_has_run_is_answered_too() -> None:
    async def scenario() -> None:
        queue = scheduler()
        gate, first = await blocked(queue)
        late = queue.submit_alone(steps("late", 1, []), rows=1, timeout_seconds=0.05)
        await asyncio.sleep(0)
        time.sleep(0.1)  # no timer runs meanwhile
        gate.set()
        while queue._queue._new or queue._running is not None:  # until the thread has dropped it
            time.sleep(0.001)
        with pytest.raises(DeadlineError):
            await asyncio.wait_for(late, 30)
        await first
        queue.stop()

    asyncio.run(scenario())


def by_turns(log: list[int], gate: threading.Event, wrong: int | None = None) -> Computation[int, int]:
    """Squares numbers of a batch one after another, the smallest first; from the second on each waits for the gate."""

    def compute(numbers: Sequence[int]) -> Generator[dict[int, int] | None, None, list[int]]:
        for place, number in enumerate(sorted(numbers)):
            if place:
                gate.wait(30)
            yield None
            if number == wrong:
                raise ZeroDivisionError("an unlucky number")
            log.append(number)
            yield {numbers.index(number): number**2}
        return [number**2 for number in numbers]

    return Computation("square", compute)


async def squared(
    queue: Scheduler, computation: Computation[int, int], *numbers: int
) -> "list[asyncio.Future[Done[int]]]":
    """Submit numbers so that they become one batch."""
    first, answer = await blocked(queue)
    answers = [queue.submit(computation, number, rows=1, timeout_seconds=60) for number in numbers]
    first.set()
    await answer
    return answers


def test_what_is_finished_first_is_answered_first() -> None:
    async def scenario() -> None:
        queue, log, gate = scheduler(), list[int](), threading.Event()
        last, first, middle = await squared(queue, by_turns(log, gate), 5, 2, 3)
        assert (await first).result == 4
        assert not last.done()
        assert not middle.done()
        assert queue.queued_jobs == queue.queued_rows == 2
        gate.set()
        assert ((await middle).result, (await last).result) == (9, 25)
        await until(lambda: queue.queued_jobs == 0)
        queue.stop()
        assert log == [2, 3, 5]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("rows", "seconds", "order"),
    [
        (
            1,
            60.0,
            [2, 3, -1, 5, 6, 7, 9],
        ),  # what came meanwhile is one batch after it; another computation begins at once
        (1, 0.0, [2, 3, -1, 5, 7, 6, 9]),  # it has computed for long
        (50, 60.0, [2, 3, -1, 5, 7, 6, 9]),  # nobody could have joined it
    ],
)
def test_a_batch_is_the_only_one_of_its_computation_for_a_while(
    rows: int, seconds: float, order: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_queue, "_BY_ITSELF_SECONDS", seconds)

    def compute(groups: Sequence[list[int]]) -> Generator[dict[int, int] | None, None, list[int]]:
        for number in sorted(number for group in groups for number in group):
            log.append(number)
            yield None
            gate.wait(30)
        return [0] * len(groups)

    async def scenario() -> None:
        queue = scheduler()
        begun = queue.submit(Computation("kind", compute), [2, 3, 5, 6], rows=rows, timeout_seconds=60)
        await until(lambda: log)
        later = [
            queue.submit(computation, payload, rows=1, timeout_seconds=60)
            for computation, payload in (
                (Computation("other", compute), [-1]),
                (Computation("kind", compute), [9]),
                (Computation("kind", compute), [7]),
            )
        ]
        gate.set()
        await asyncio.gather(begun, *later)
        queue.stop()

    log, gate = list[int](), threading.Event()
    asyncio.run(scenario())
    assert log == order


def test_who_has_an_answer_does_not_share_in_later_rows() -> None:
    async def scenario() -> None:
        queue, climbing, gate = scheduler(), Climbing(), threading.Event()

        def compute(numbers: Sequence[int]) -> Generator[dict[int, int] | None, None, list[int]]:
            climbing.rows_run += 8
            yield {0: 1}
            gate.wait(30)
            climbing.rows_run += 100
            yield None
            return [1, 2]

        answers = await squared(queue, Computation("meter", compute, climbing.meter("kind")), 5, 6)
        first = await answers[0]
        gate.set()
        assert (first.rows_run, (await answers[1]).rows_run) == (4, 104)
        assert queue.expectation.rows("kind", 2) == 108
        queue.stop()

    asyncio.run(scenario())


def test_jobs_that_would_take_much_memory_together_are_not_computed_together() -> None:
    async def scenario() -> list[list[int]]:
        queue, log = Scheduler(max_rows=100, max_jobs=10, batch_rows=8, max_memory=400), list[list[int]]()
        first, answer = await blocked(queue)
        answers = [
            queue.submit(doubling(log), number, rows=1, memory=memory, timeout_seconds=60)
            for number, memory in ((1, 60), (2, 40), (3, 1), (4, 300))
        ]
        first.set()
        await asyncio.gather(answer, *answers)
        queue.stop()
        return log

    assert asyncio.run(scenario()) == [[1, 2], [3], [4]]


def test_an_error_reaches_only_those_without_an_answer() -> None:
    async def scenario() -> None:
        queue, log, gate = scheduler(), list[int](), threading.Event()
        gate.set()
        answers = await squared(queue, by_turns(log, gate, wrong=3), 5, 2, 3)
        found = await asyncio.gather(*answers, return_exceptions=True)
        assert [type(one) for one in found] == [Done, Done, ZeroDivisionError]
        assert log == [2, 5]  # each once: 5 was computed again without 3
        await until(lambda: queue.queued_jobs == 0)
        queue.stop()

    asyncio.run(scenario())


def test_a_batch_ends_when_those_without_an_answer_have_gone() -> None:
    async def scenario() -> None:
        queue, log, gate = scheduler(), list[int](), threading.Event()
        last, first, middle = await squared(queue, by_turns(log, gate), 5, 2, 3)
        await first
        last.cancel()
        middle.cancel()
        gate.set()
        await until(lambda: queue.queued_jobs == 0)
        assert (await queue.submit(by_turns(log, gate), 7, rows=1, timeout_seconds=60)).result == 49
        queue.stop()
        assert 5 not in log

    asyncio.run(scenario())


def test_the_end_of_the_thread_reaches_only_those_without_an_answer() -> None:
    async def scenario() -> None:
        queue, log, gate = scheduler(), list[int](), threading.Event()
        last, first, middle = await squared(queue, by_turns(log, gate), 5, 2, 3)
        await first
        stopping = asyncio.create_task(asyncio.to_thread(queue.stop))
        await until(lambda: not queue.alive)
        gate.set()
        await stopping
        found = await asyncio.gather(first, last, middle, return_exceptions=True)
        assert isinstance(found[0], Done)
        assert StoppedError in map(type, found)

    asyncio.run(scenario())
