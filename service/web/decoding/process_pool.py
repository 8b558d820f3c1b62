"""Read images in worker processes, within each request's deadline, and cheap ones before expensive ones.

The cost of images is estimated from their headers (service/images/cost.py). If there are several workers, one takes
only cheap jobs, so that a small image never waits for large ones, however many there are. The others take the job that
has waited longest, where one second of a job's own cost counts like ten seconds less of waiting.

If a job's deadline has passed or its client has disconnected, it is removed from the queue, or its worker is killed and
replaced. A job may always run for `GRACE_SECONDS`, because starting a new process costs about as much. Otherwise a
client could keep all workers from working with many requests that have very short deadlines.
"""

import asyncio
import math
from typing import Any

import structlog

from service.images.decode_request import DecodeRequest
from service.images.errors import ImageError, InvalidArrayError, InvalidImageError, PixelLimitError
from service.web.decoding.decoder_process import Decoder, DecoderFaultError, DecoderLostError, DecoderMemoryError
from service.web.decoding.interface import Prepared, Read, expire_after, settle
from service.web.decoding.job_queue import QUICK_COST, DecodingJob, JobQueue
from service.web.operations.metrics import Metrics
from service.web.outcome import QueueFullError, StoppedError
from service.web.rate import Rate

GRACE_SECONDS = 0.5
_QUICK_SECONDS = 2.0  # a job that takes longer was not cheap, whatever its headers said
_MAX_SECONDS_AHEAD = 30.0
_FIRST_RATE = 1e8
_JOB_COST = 2**17  # the cost of sending a job to a worker and back: about a millisecond
_MAX_RESTART_SECONDS = 5.0
_log = structlog.get_logger()


def decoder_memory_bytes(max_pixels: int, max_body_bytes: int) -> int:
    """Memory of a worker in addition to its code: twice a body, and 40 bytes a pixel.

    The most that was measured is 20 bytes a pixel of a file and 12 of what is made of it: docs/operations.md.

    >>> decoder_memory_bytes(2**25, 2**26) // 2**20
    1536
    """
    return 2**27 + 2 * max_body_bytes + 40 * max_pixels


class DecodingPool:
    """Worker processes and their queue. Used only on the event loop in which it is started.

    Args:
        workers: how many; if there are two or more, the first takes only cheap jobs.
        memory_bytes: memory of each, in addition to its code.
    """

    def __init__(self, workers: int, *, memory_bytes: int, metrics: Metrics) -> None:
        self._workers = workers
        self._memory_bytes = memory_bytes
        self._metrics = metrics
        self._rate = Rate(_FIRST_RATE)
        self._queue = JobQueue()
        self._idle: dict[int, asyncio.Future[None]] = {}
        self._jobs: set[DecodingJob] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._decoders: set[Decoder] = set()
        self._spare: asyncio.Task[Decoder] | None = None
        """A spare worker, because starting one takes longer than reading most images."""
        self._closed = False
        metrics.queued_decodings.set_function(lambda: len(self._jobs))

    @property
    def jobs(self) -> int:
        """Number of jobs that wait or are being read."""
        return len(self._jobs)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are running."""
        return [decoder.pid for decoder in self._decoders]

    async def start(self) -> None:
        """Start the workers and a spare one, and return once the workers are ready.

        Raises:
            DecoderLostError, OSError: one cannot be started.
        """
        started = await asyncio.gather(*(self._begin() for _ in range(self._workers)), return_exceptions=True)
        for number, decoder in enumerate(started):
            if isinstance(decoder, BaseException):
                await self.close()
                raise decoder
            self._tasks.append(asyncio.create_task(self._work(number, decoder)))
        self._spare = asyncio.create_task(self._another())

    def prepare(self, reading: DecodeRequest) -> Prepared:
        """See `Decoding`."""
        return Prepared(reading, _JOB_COST + reading.cost(), reading.message())

    def submit(self, prepared: Prepared, timeout_seconds: float) -> "asyncio.Future[Read]":
        """See `Decoding`."""
        if self._closed:
            raise StoppedError("the service is shutting down")
        loop = asyncio.get_running_loop()
        seconds = min(prepared.cost / self._rate.rows_per_second, timeout_seconds)
        job = DecodingJob(prepared, loop.time(), loop.create_future(), seconds, is_quick=prepared.cost <= QUICK_COST)
        self._check_capacity(job, timeout_seconds)
        self._jobs.add(job)
        expire_after(job.answer, timeout_seconds)
        job.answer.add_done_callback(lambda _: self._settled(job))
        self._put(job)
        return job.answer

    async def close(self) -> None:
        """End the workers; jobs that were not done fail with a StoppedError."""
        self._closed = True
        tasks: list[asyncio.Task[Any]] = [*self._tasks, *([self._spare] if self._spare else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for job in list(self._jobs):
            settle(job.answer, StoppedError("the service is shutting down"))
        for decoder in list(self._decoders):
            await self._remove_lost(decoder)

    def _check_capacity(self, job: DecodingJob, timeout_seconds: float) -> None:
        """Refuse a job that would have to wait too long.

        Raises:
            QueueFullError: it would wait longer than its deadline, or than half a minute.
        """
        ahead = self._queue.ahead(job)
        seconds = sum(other.seconds for other in ahead) / max(1, self._workers - 1)
        if seconds > min(timeout_seconds, _MAX_SECONDS_AHEAD):
            retry_after = max(1, math.ceil(seconds))
            waiting = f"{len(ahead)} requests are waiting for their images to be read"
            raise QueueFullError(f"{waiting}; try again in {retry_after} s", retry_after)

    def _put(self, job: DecodingJob) -> None:
        self._queue.put(job)
        able = [number for number in sorted(self._idle) if job.is_quick or not self._takes_quick_only(number)]
        if able and not (waiter := self._idle.pop(able[0])).done():
            waiter.set_result(None)

    def _takes_quick_only(self, number: int) -> bool:
        return number == 0 and self._workers > 1

    async def _work(self, number: int, decoder: Decoder) -> None:
        """Run one worker, and its replacements."""
        while True:
            try:
                while True:
                    await self._read(await self._next(number, decoder), decoder)
            except DecoderLostError as error:
                _log.debug("decoder lost", pid=decoder.pid, reason=str(error))
                await self._remove_lost(decoder)
            decoder = await self._replacement()

    async def _next(self, number: int, decoder: Decoder) -> DecodingJob:
        """Wait for a job.

        Raises:
            DecoderLostError: the worker ended meanwhile, by itself or because it was killed.
        """
        while (job := self._queue.take(quick_only=self._takes_quick_only(number))) is None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle[number] = waiter
            decoder.wake_at_end(waiter)
            try:
                await waiter
            finally:
                self._idle.pop(number, None)
            try:
                decoder.check_alive()
            except DecoderLostError as error:
                self._count_restart("lost")
                _log.warning("an idle decoder has ended", pid=decoder.pid, reason=str(error))
                raise
        return job

    async def _read(self, job: DecodingJob, decoder: Decoder) -> None:
        """Let the worker read one job, and settle its answer.

        Raises:
            DecoderLostError: the worker has ended.
        """
        loop = asyncio.get_running_loop()
        prepared = job.prepared
        job.decoder, job.started = decoder, loop.time()
        if job.is_quick:
            job.timers.append(loop.call_later(_QUICK_SECONDS, self._overrun, job))
        outcome: Read | Exception
        try:
            pixels = await decoder.read(prepared.pieces, prepared.reading.result_shape)
            outcome = Read(pixels, loop.time() - job.queued)
        except ImageError as error:
            outcome = error
        except DecoderMemoryError:
            outcome = PixelLimitError("reading the images takes more memory than the service gives it")
        except DecoderFaultError as error:
            outcome = error
        except DecoderLostError:
            await self._remove_lost(decoder)
            self._after_loss(job, decoder)
            raise
        except Exception as error:
            settle(job.answer, error)
            raise DecoderLostError("what it said was not understood") from error
        finally:
            seconds = loop.time() - job.started
            job.decoder = None
            job.stop_timers()
        if prepared.cost > QUICK_COST:  # the time of cheap jobs depends more on the load than on their cost
            self._rate.add(prepared.cost, seconds)
        self._metrics.decoding_seconds.observe(seconds)
        settle(job.answer, outcome)

    def _after_loss(self, job: DecodingJob, decoder: Decoder) -> None:
        """Retry or fail a job whose worker has ended."""
        if job.answer.done():
            self._count_restart("dropped")
        elif job.overran:
            self._count_restart("overran")
            job.overran, job.is_quick = False, False
            self._put(job)
        elif decoder.has_crashed:
            self._count_restart("crashed")
            _log.error("a decoder has crashed", pid=decoder.pid)
            detail = "the file cannot be decoded: the decoder crashes on it"
            one = len(job.prepared.reading.images) == 1
            error = InvalidImageError(detail, 0) if one else InvalidArrayError(f"one of the images: {detail}")
            settle(job.answer, error)
        else:
            self._count_restart("lost")
            _log.error("a decoder was lost", pid=decoder.pid, again=not job.lost_once)
            if job.lost_once:  # the images may be the cause, for want of memory
                settle(
                    job.answer, QueueFullError("the process that read the images was ended twice; try again in 1 s", 1)
                )
            else:
                job.lost_once = True
                self._put(job)

    def _settled(self, job: DecodingJob) -> None:
        """Called when a job's answer is settled, or nobody waits for it any more."""
        self._jobs.discard(job)
        self._queue.remove(job)
        if job.decoder is not None:
            loop = asyncio.get_running_loop()
            job.timers.append(loop.call_at(job.started + GRACE_SECONDS, self._kill, job))

    def _kill(self, job: DecodingJob) -> None:
        if job.decoder is not None:
            job.decoder.kill()

    def _overrun(self, job: DecodingJob) -> None:
        """Move a job that blocks the other cheap ones to the expensive ones, where it starts again."""
        if job.decoder is not None and self._workers > 1 and not job.answer.done():
            job.overran = True
            job.decoder.kill()

    async def _remove_lost(self, decoder: Decoder) -> None:
        self._decoders.discard(decoder)
        await decoder.end()

    async def _replacement(self) -> Decoder:
        """Take the spare worker, waiting for it if necessary, and start the next spare one."""
        spare = self._spare or asyncio.create_task(self._another())
        self._spare = asyncio.create_task(self._another())
        return await spare

    async def _another(self) -> Decoder:
        """Start a worker; if that fails, try again until it succeeds."""
        pause = 0.0
        while True:
            try:
                return await self._begin()
            except (DecoderLostError, OSError) as error:
                pause = min(_MAX_RESTART_SECONDS, 2 * pause + 0.1)
                _log.error("a decoder cannot be started", reason=str(error), again_seconds=pause)
                await asyncio.sleep(pause)

    async def _begin(self) -> Decoder:
        decoder = await Decoder.start(self._memory_bytes)
        self._decoders.add(decoder)
        return decoder

    def _count_restart(self, reason: str) -> None:
        self._metrics.decoder_restarts.labels(reason).inc()
