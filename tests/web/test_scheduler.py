"""Fairness, bounds, deadlines and faults of the queue, with jobs that are a few lines of Python."""

import asyncio
import threading
from collections.abc import Generator

import pytest

from service.web.scheduler import DeadlineError, QueueFullError, Scheduler, StoppedError


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


async def until(condition: object) -> None:
    """Wait, without a clock in the assertion, until a callable is true."""
    assert callable(condition)
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def scheduler(max_rows: int = 100, max_jobs: int = 10) -> Scheduler:
    return Scheduler(max_rows=max_rows, max_jobs=max_jobs)


def test_short_jobs_take_turns_with_a_long_one() -> None:
    async def scenario() -> list[str]:
        queue, log, gate = scheduler(), list[str](), threading.Event()
        long = asyncio.create_task(queue.run(steps("long", 20, log, gate), rows=20, timeout_seconds=60))
        await until(lambda: queue.queued_jobs == 1)
        short = asyncio.create_task(queue.run(steps("short", 2, log), rows=2, timeout_seconds=60))
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
        first = asyncio.create_task(queue.run(endless(), rows=50, timeout_seconds=60))  # let in: there is no other
        await until(lambda: queue.queued_jobs == 1)
        with pytest.raises(QueueFullError, match="50 rows") as refused:
            await queue.run(endless(), rows=1, timeout_seconds=60)
        assert refused.value.retry_after >= 1
        first.cancel()
        await until(lambda: queue.queued_jobs == 0)
        assert (await queue.run(steps("next", 1, []), rows=1, timeout_seconds=60)).result == "next"
        queue.stop()

    asyncio.run(scenario())


def test_the_number_of_jobs_is_bounded_too() -> None:
    async def scenario() -> None:
        queue = scheduler(max_jobs=2)
        running = [asyncio.create_task(queue.run(endless(), rows=1, timeout_seconds=60)) for _ in range(2)]
        await until(lambda: queue.queued_jobs == 2)
        with pytest.raises(QueueFullError, match="2 requests"):
            await queue.run(endless(), rows=1, timeout_seconds=60)
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
            await queue.run(job(), rows=7, timeout_seconds=0.05)
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
            queue.run(steps("a", 3, []), rows=1, timeout_seconds=60),
            queue.run(broken(), rows=1, timeout_seconds=60),
            queue.run(steps("b", 3, []), rows=1, timeout_seconds=60),
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
            queue.run(endless(), rows=1, timeout_seconds=60),
            queue.run(fatal(), rows=1, timeout_seconds=60),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [StoppedError, StoppedError]
        await until(lambda: not queue.alive)
        with pytest.raises(StoppedError):
            await queue.run(steps("late", 1, []), rows=1, timeout_seconds=60)

    asyncio.run(scenario())


def test_stopping_answers_what_is_left() -> None:
    async def scenario() -> None:
        queue = scheduler()
        left = asyncio.create_task(queue.run(endless(), rows=1, timeout_seconds=60))
        await until(lambda: queue.queued_jobs == 1)
        await asyncio.to_thread(queue.stop)
        with pytest.raises(StoppedError):
            await left
        assert not queue.alive

    asyncio.run(scenario())


def test_times_add_up_and_rows_are_given_back() -> None:
    async def scenario() -> None:
        queue = scheduler()
        done = await queue.run(steps("a", 5, []), rows=5, timeout_seconds=60)
        assert done.queue_seconds >= 0
        assert done.compute_seconds > 0
        assert queue.queued_rows == 0
        queue.stop()

    asyncio.run(scenario())
