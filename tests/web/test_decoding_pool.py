"""The pool of worker processes: deadlines, clients that leave, crashes, the order of jobs, the end of them all."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from service.images.decode_request import DecodeRequest, PlainShape
from service.images.errors import ImageError, InvalidArrayError, InvalidImageError, PixelLimitError
from service.web.decoding import process_pool
from service.web.decoding.decoder_process import Decoder, DecoderLostError
from service.web.decoding.interface import InProcess, Read
from service.web.decoding.process_pool import DecodingPool
from service.web.memory_budget import Budget, Share
from service.web.operations.metrics import Metrics
from service.web.operations.settings import Settings
from service.web.outcome import DeadlineError, QueueFullError, StoppedError
from service.web.serving.backend import Backend
from tests.hostile.image_bombs import GREY, progressive_jpeg
from tests.web.forms import image_file

SHAPE = PlainShape(1, 28, 28)
MEMORY = 2**30
LONG_SECONDS = 120.0
MONSTER = progressive_jpeg(5700, 60)
PHOTOGRAPH = image_file(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8), "JPEG")

Run = Callable[[Coroutine[Any, Any, None]], None]


def reading(*images: Any, shape: PlainShape = SHAPE, max_pixels: int = 2**25) -> DecodeRequest:
    return DecodeRequest(shape, True, max_pixels, images[0] if isinstance(images[0], np.ndarray) else list(images))


async def read(pool: DecodingPool, *images: Any, seconds: float = LONG_SECONDS) -> Any:
    return (await pool.submit(pool.prepare(reading(*images)), seconds)).pixels


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as one:
        yield one


@pytest.fixture(scope="module")
def pool(runner: asyncio.Runner) -> Iterator[DecodingPool]:
    """Two workers, for all tests."""

    async def start() -> DecodingPool:
        made = DecodingPool(2, memory_bytes=MEMORY, metrics=Metrics())
        await made.start()
        return made

    made = runner.run(start())
    yield made
    runner.run(made.close())
    assert made.pids == []


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def restarts(pool: DecodingPool, reason: str) -> float:
    return float(pool._metrics.decoder_restarts.labels(reason)._value.get())


async def busy(pool: DecodingPool) -> Decoder:
    """The worker that reads the only job."""
    await until(lambda: any(job.decoder and job.decoder.pid in pool.pids for job in pool._jobs))
    (found,) = [job.decoder for job in pool._jobs if job.decoder]
    await asyncio.sleep(0.05)  # in the midst of it
    return found


def test_workers_read_to_the_bit_what_this_process_reads(runner: asyncio.Runner, pool: DecodingPool) -> None:
    rng = np.random.default_rng(3)
    jobs: list[Any] = [
        [PHOTOGRAPH],
        [image_file(GREY), image_file(GREY, "WEBP", lossless=True), rng.random((3, 40, 50), dtype=np.float32)],
        [image_file(GREY)] * 2000,
        [rng.integers(0, 256, (300, 3, 9, 11)).astype(np.uint8)],
        [rng.random((30, 9, 11), dtype=np.float32)],
        [np.asfortranarray(rng.random((30, 1, 9, 11), dtype=np.float32))],
        [rng.random((20, 300, 300), dtype=np.float32)],  # larger than any buffer on the way
    ]

    async def scenario() -> None:
        for found, job in zip(await asyncio.gather(*(read(pool, *job) for job in jobs)), jobs, strict=True):
            assert_array_equal(found, reading(*job).read())
            assert found.flags.writeable

    runner.run(scenario())


@pytest.mark.parametrize(
    ("images", "kind", "words"),
    [
        ([image_file(GREY), b"?"], InvalidImageError, "cannot be read"),
        ([progressive_jpeg(5800, 3)], PixelLimitError, "pixels"),
        ([np.zeros((3, 2, 9, 9), np.uint8)], InvalidImageError, "2 channels"),
        ([np.zeros((3, 3), np.uint8)], InvalidArrayError, "accepted"),
    ],
)
def test_errors_are_those_of_this_process(
    runner: asyncio.Runner, pool: DecodingPool, images: list[Any], kind: type[ImageError], words: str
) -> None:
    async def scenario() -> None:
        with pytest.raises(kind, match=words) as found:
            await read(pool, *images)
        with pytest.raises(kind) as expected:
            reading(*images).read()
        assert str(found.value) == str(expected.value)
        assert vars(found.value) == vars(expected.value)

    runner.run(scenario())


def test_a_job_past_its_deadline_is_dropped_and_its_worker_replaced(
    runner: asyncio.Runner, pool: DecodingPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_pool, "GRACE_SECONDS", 0.0)

    async def scenario() -> None:
        before = restarts(pool, "dropped")
        with pytest.raises(DeadlineError, match=r"within 0\.2 s"):
            await read(pool, MONSTER, seconds=0.2)
        assert pool.jobs == 0
        await until(lambda: restarts(pool, "dropped") == before + 1)
        assert (await read(pool, PHOTOGRAPH)).shape == (1, 1, 28, 28)

    runner.run(scenario())


def test_a_short_job_past_its_deadline_costs_no_worker(runner: asyncio.Runner, pool: DecodingPool) -> None:
    async def scenario() -> None:
        await until(lambda: len(pool.pids) == 3)
        before = set(pool.pids)
        late = 0
        async with asyncio.timeout(60):
            while late < 20:  # where this process is held up, an image may be there as soon as the deadline
                try:
                    await read(pool, PHOTOGRAPH, seconds=0)
                except DeadlineError:
                    late += 1
        await read(pool, PHOTOGRAPH)
        assert set(pool.pids) == before

    runner.run(scenario())


def test_a_cancelled_job_is_dropped_whether_it_waits_or_is_being_read(
    runner: asyncio.Runner, pool: DecodingPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_pool, "GRACE_SECONDS", 0.0)

    async def scenario() -> None:
        before = restarts(pool, "dropped")
        first, second = (pool.submit(pool.prepare(reading(MONSTER)), LONG_SECONDS) for _ in range(2))
        await busy(pool)
        second.cancel()
        await asyncio.sleep(0)
        assert pool.jobs == 1
        first.cancel()
        await asyncio.sleep(0)
        assert pool.jobs == 0
        await until(lambda: restarts(pool, "dropped") == before + 1)

    runner.run(scenario())


def test_cheap_jobs_pass_dear_ones_and_cheaper_ones_come_first(runner: asyncio.Runner, pool: DecodingPool) -> None:
    async def scenario() -> None:
        done: list[str] = []

        async def note(name: str, job: Awaitable[Any]) -> None:
            await job
            done.append(name)

        async with asyncio.TaskGroup() as group:
            names = {"first": MONSTER, "dear": progressive_jpeg(5700, 50), "less dear": progressive_jpeg(2000, 40)}
            for name, image in names.items():
                group.create_task(note(name, read(pool, image)))
                await until(lambda: any(job.decoder for job in pool._jobs))
            group.create_task(note("cheap", read(pool, PHOTOGRAPH)))
        assert done == ["cheap", "first", "less dear", "dear"]

    runner.run(scenario())


def test_a_job_that_would_wait_too_long_is_refused_and_told_how_long(
    runner: asyncio.Runner, pool: DecodingPool
) -> None:
    async def scenario() -> None:
        prepared = pool.prepare(reading(MONSTER))
        answers: list[asyncio.Future[Read]] = []
        with pytest.raises(QueueFullError) as caught:
            answers.extend(pool.submit(prepared, LONG_SECONDS) for _ in range(500))
        assert len(answers) > 2
        assert 30 <= caught.value.retry_after <= LONG_SECONDS
        assert (await read(pool, PHOTOGRAPH)).shape == (1, 1, 28, 28)  # there is room for this
        for answer in answers:
            answer.cancel()
        await asyncio.sleep(0)
        assert pool.jobs == 0

    runner.run(scenario())


def test_small_images_do_not_change_what_large_ones_are_thought_to_take(
    runner: asyncio.Runner, pool: DecodingPool
) -> None:
    """Most of the time of a small one goes into the way to a worker and back, which is not what its header tells."""

    async def scenario() -> None:
        await read(pool, MONSTER)
        small, rate = image_file(GREY, "WEBP"), pool._rate.rows_per_second
        for _ in range(100):
            await read(pool, small)
        assert pool._rate.rows_per_second == rate
        for _ in range(500):
            pool.submit(pool.prepare(reading(small)), LONG_SECONDS).cancel()  # there is room for all of them
        ahead = [pool.submit(pool.prepare(reading(small)), LONG_SECONDS) for _ in range(500)]
        waiting = [job.seconds for job in pool._jobs]
        assert sum(waiting) > 500 * 2**17 / rate  # and none of them is thought to take nothing
        await asyncio.gather(*ahead)

    runner.run(scenario())


def test_a_worker_keeps_the_memory_of_ordinary_photographs_for_the_next(
    runner: asyncio.Runner, pool: DecodingPool
) -> None:
    def page_faults() -> int:
        files = [Path(f"/proc/{pid}/stat").read_text() for pid in pool.pids]
        return sum(int(text.rpartition(")")[2].split()[7]) for text in files)

    async def scenario() -> None:
        await until(lambda: len(pool.pids) == 3)  # two, and the spare one
        for count in (10, 20):
            before = page_faults()
            for _ in range(count):
                await pool.submit(pool.prepare(reading(PHOTOGRAPH)), LONG_SECONDS)
        assert page_faults() - before < 20 * 50  # with pages returned after each job, they were 20 · 386

    runner.run(scenario())


@pytest.mark.parametrize("count", [1, 3])
def test_a_crash_is_the_fault_of_the_images(runner: asyncio.Runner, pool: DecodingPool, count: int) -> None:
    async def scenario() -> None:
        task = asyncio.create_task(read(pool, *[MONSTER] * count))
        decoder = await busy(pool)
        os.kill(decoder.pid, signal.SIGSEGV)
        with pytest.raises(InvalidArrayError, match="crashes") as caught:
            await task
        assert isinstance(caught.value, InvalidImageError) == (count == 1)
        assert decoder.pid not in pool.pids
        assert not Path(f"/proc/{decoder.pid}").exists()  # nor is it a zombie

    runner.run(scenario())


def test_a_worker_that_was_killed_costs_one_more_try(runner: asyncio.Runner, pool: DecodingPool) -> None:
    async def scenario() -> None:
        task = asyncio.create_task(read(pool, MONSTER))
        os.kill((await busy(pool)).pid, signal.SIGKILL)
        assert (await task).shape == (1, 1, 28, 28)
        task = asyncio.create_task(read(pool, MONSTER))
        first = await busy(pool)
        os.kill(first.pid, signal.SIGKILL)
        await until(lambda: first.pid not in pool.pids)  # so the next to be busy is another
        os.kill((await busy(pool)).pid, signal.SIGKILL)
        with pytest.raises(QueueFullError) as caught:
            await task
        assert caught.value.retry_after == 1

    runner.run(scenario())


def test_a_job_that_was_not_cheap_after_all_gives_way(
    runner: asyncio.Runner, pool: DecodingPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_pool, "_QUICK_SECONDS", 0.1)

    async def scenario() -> None:
        before = restarts(pool, "overran")
        prepared = pool.prepare(reading(MONSTER))._replace(cost=1)
        found = await pool.submit(prepared, LONG_SECONDS)
        assert found.pixels.shape == (1, 1, 28, 28)
        assert restarts(pool, "overran") == before + 1

    runner.run(scenario())


def test_a_fault_of_the_reading_code_is_told_and_costs_no_worker(runner: asyncio.Runner, pool: DecodingPool) -> None:
    async def scenario() -> None:
        await until(lambda: len(pool.pids) == 3)
        before = set(pool.pids)
        wrong = reading(PHOTOGRAPH, shape=PlainShape(1, 28, -1))
        with pytest.raises(Exception, match="Traceback"):
            await pool.submit(pool.prepare(wrong), LONG_SECONDS)
        assert set(pool.pids) == before

    runner.run(scenario())


def test_what_takes_more_memory_than_there_is_is_refused() -> None:
    async def scenario() -> None:
        small = DecodingPool(1, memory_bytes=2**26, metrics=Metrics())
        await small.start()
        with pytest.raises(PixelLimitError, match="memory"):
            await read(small, np.zeros((1, 1, 3000, 3000), np.uint8))
        assert (await read(small, PHOTOGRAPH)).shape == (1, 1, 28, 28)
        await small.close()

    asyncio.run(scenario())


def test_one_worker_reads_everything_and_closing_leaves_nobody() -> None:
    async def scenario() -> None:
        alone = DecodingPool(1, memory_bytes=MEMORY, metrics=Metrics())
        await alone.start()
        pids = alone.pids
        assert (await read(alone, PHOTOGRAPH)).shape == (1, 1, 28, 28)
        answer = alone.submit(alone.prepare(reading(MONSTER)), LONG_SECONDS)
        await busy(alone)
        await alone.close()
        with pytest.raises(StoppedError):
            await answer
        with pytest.raises(StoppedError):
            alone.submit(alone.prepare(reading(PHOTOGRAPH)), LONG_SECONDS)
        assert alone.pids == []
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)

    asyncio.run(scenario())


def test_a_worker_that_ended_is_watched_no_more() -> None:
    """Its descriptor's number soon is another connection's, which the loop would take for the worker's."""

    async def scenario() -> None:
        alone = DecodingPool(1, memory_bytes=MEMORY, metrics=Metrics())
        await alone.start()
        await until(lambda: bool(alone._idle))
        (decoder,) = [decoder for decoder in alone._decoders if decoder.pid == alone.pids[0]][:1]
        number = decoder._socket.fileno()
        await alone.close()
        assert not asyncio.get_running_loop().remove_reader(number)

    asyncio.run(scenario())


def test_workers_that_cannot_start_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")

    async def scenario() -> None:
        pool = DecodingPool(2, memory_bytes=MEMORY, metrics=Metrics())
        with pytest.raises(DecoderLostError):
            await pool.start()
        assert pool.pids == []

    asyncio.run(scenario())


def test_in_process_the_deadline_holds_and_errors_are_the_same() -> None:
    async def scenario() -> None:
        here, budget = InProcess(), Budget(2**24)
        share = Share(budget)
        share.hold(2**20)
        found: Read = await here.submit(here.prepare(reading(PHOTOGRAPH)), LONG_SECONDS)
        assert_array_equal(found.pixels, reading(PHOTOGRAPH).read())
        with pytest.raises(InvalidImageError):
            await here.submit(here.prepare(reading(b"?")), LONG_SECONDS)
        started = time.monotonic()
        with pytest.raises(DeadlineError):
            await here.submit(here.prepare(reading(progressive_jpeg(2000, 100)))._replace(share=share), 0.01)
        assert time.monotonic() - started < 10
        share.end()  # the request is answered, and what it has is still there
        assert budget.held == 2**20
        await until(lambda: here.jobs == 0)
        assert budget.held == 0
        await here.close()

    asyncio.run(scenario())


def test_a_drain_waits_for_images_and_then_gives_them_up() -> None:
    class Stuck(InProcess):
        closed = False

        @property
        def jobs(self) -> int:
            return 0 if self.closed else 1

        async def close(self) -> None:
            self.closed = True

    async def scenario() -> None:
        decoding = Stuck()
        backend = Backend(Settings(drain_seconds=0.1), Metrics(), lambda: None, decoding)
        started = time.monotonic()
        await backend.drain()
        assert time.monotonic() - started >= 0.1
        assert decoding.closed
        backend.stop()

    asyncio.run(scenario())
