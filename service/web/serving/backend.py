"""The backend of the routes: the models, the scheduler, and the service's state from starting to stopped."""

import asyncio
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, TypeVar
from weakref import WeakSet

import numpy as np
import structlog
from numpy.typing import NDArray

from service.engine.anomaly.detector import AnomalyScores
from service.engine.blocks import CPU_BLOCKS
from service.engine.model import Model
from service.engine.runtime import CUDA, DeviceLostError
from service.web.decoding.interface import Decoding, InProcess
from service.web.memory_budget import computing_bytes
from service.web.models.registry import Registry
from service.web.operations.metrics import Metrics
from service.web.operations.settings import Settings
from service.web.outcome import DeadlineError, Done, QueueFullError
from service.web.problems import NotReadyError
from service.web.serialisation import Writer
from service.web.serving import advice
from service.web.serving.batch_queue import Computation
from service.web.serving.memory_ceiling import decoders_ceiling, resident_bytes, service_ceiling
from service.web.serving.scheduler import Scheduler

State = Literal["starting", "ready", "draining", "failed"]
P = TypeVar("P")
R = TypeVar("R")
_log = structlog.get_logger()


class Backend:
    """Starts, serves, drains. While `load` is running, the port already answers `/livez`."""

    def __init__(
        self, settings: Settings, metrics: Metrics, on_failure: Callable[[], None], decoding: Decoding | None = None
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.decoding = decoding or InProcess()
        self.state: State = "starting"
        self._on_failure = on_failure
        self._scheduler = Scheduler(
            max_rows=settings.max_queued_rows,
            max_rows_each=settings.max_rows,
            max_jobs=settings.max_queued_requests,
            batch_rows=settings.chunk_rows or CPU_BLOCKS.rows,
            max_memory=computing_bytes(settings.max_memory_bytes),
            fatal=DeviceLostError,
            on_death=self._died,
        )
        self.check_capacity = self._scheduler.check_capacity
        self.writer = Writer()
        self.registry = Registry(settings, metrics, on_device_lost=self._scheduler.fail, on_loaded=self._tell_memory)
        self._at_start: WeakSet[Model] = WeakSet()
        self._resident = 0  # with these loaded, before requests came; until then, not known
        self._told_memory = 0
        # Finding a counter by its labels takes as long as counting.
        self._rows = cache(metrics.rows.series)
        self._queue_seconds = cache(metrics.queue_seconds.series)
        self._compute_seconds = cache(metrics.compute_seconds.series)
        self._batch_rows = cache(metrics.batch_rows.labels)
        metrics.queued_rows.set_function(lambda: self._scheduler.queued_rows)
        metrics.queued_requests.set_function(lambda: self._scheduler.queued_jobs)
        metrics.ready.set_function(lambda: self.reason_against_serving() is None)

    async def load(self) -> None:
        """Load the models, start the image decoders, and become ready.

        Raises: as `Registry.load` and `Decoding.start`.
        """
        starting = asyncio.create_task(self.decoding.start())
        try:
            await self.registry.load()
        finally:
            await starting
        self._at_start = WeakSet(self.registry.loaded)
        self._resident = resident_bytes()
        self._tell_memory()
        self._scheduler.batch_rows = self.registry.batch_rows or CPU_BLOCKS.rows
        if self.state == "starting":  # a signal may have arrived meanwhile
            self.state = "ready"

    def _tell_memory(self) -> None:
        """Log the most memory that the process can have with what is loaded now, where it is not as before."""
        if not self._resident:
            return
        loaded = self.registry.loaded
        later = [model for model in loaded if model not in self._at_start]
        most = service_ceiling(self.settings, loaded, self._resident, later)
        if most != self._told_memory:
            self._told_memory = most
            decoders = decoders_ceiling(self.settings)
            _log.info("memory", resident=self._resident, at_most=most, decoders_at_most=decoders)

    def retry_seconds(self) -> int:
        """Seconds after which a request refused for want of memory should try again: when the queue should be done."""
        return self._scheduler.retry_seconds()

    def submit(
        self, computation: Computation[P, R], payload: P, *, rows: int, images: int = 0, **named: Any
    ) -> "asyncio.Future[Done[R]]":
        """Queue a computation that asks for `rows` rows, and may run more.

        `images`: how many images they are for, by default one each. `named`: see scheduler.py.

        Raises:
            LimitError: more rows than one request may have.
            QueueFullError, StoppedError: see scheduler.py, which also says what the answer can raise.
        """
        if rows > self.settings.max_rows:
            raise advice.too_many_rows(rows, self.settings.max_rows, images or rows)
        scheduler = self._scheduler
        try:
            return scheduler.submit(computation, payload, rows=rows, **named)
        except QueueFullError as error:
            full = scheduler.queued_jobs >= self.settings.max_queued_requests
            free_rows = 0 if full else self.settings.max_queued_rows - scheduler.queued_rows
            raise advice.queue_full(error, self._expected(computation, rows), free_rows, images or rows) from None

    def too_late(
        self, error: DeadlineError, computation: Computation[P, R], *, rows: int, images: int, seconds: float
    ) -> DeadlineError:
        """The same error, saying how many images could have been computed in these seconds."""
        expected = self._expected(computation, rows)
        return advice.too_late(error, expected, self._scheduler.rate.rows_per_second, seconds, images or rows)

    def _expected(self, computation: Computation[P, R], rows: int) -> int:
        meter = computation.meter
        return rows if meter is None else self._scheduler.expectation.rows(meter.key, rows)

    def count_done(self, model: Model, rows: int, done: Done[R]) -> None:
        """Count the rows and the seconds of a request that was computed."""
        manifest: Any = model.description  # a manifest, because the model came from the store
        labels = manifest.name, manifest.version
        self._rows(*labels).count += rows
        self._queue_seconds(*labels).add(done.queue_seconds)
        self._compute_seconds(*labels).add(done.compute_seconds)

    def count_batch(self, model: Model, rows: int) -> None:
        """Count the rows of a batch of this model."""
        self._batch_rows(model.manifest.name, model.manifest.version).observe(rows)

    def count_estimates(self, model: Model, reason: NDArray[np.str_]) -> None:
        """Count estimates by why their error bars are not reliable; the reason is empty where they are."""
        for why, count in zip(*np.unique(reason, return_counts=True), strict=True):
            labels = model.manifest.name, model.manifest.version, str(not why).lower(), str(why)
            self.metrics.estimates.labels(*labels).inc(int(count))

    def count_judgements(self, model: Model, scores: AnomalyScores) -> None:
        """Add p-values to the histogram of each method, which shows a drift of the images."""
        for method, judgement in scores.by_method.items():
            histogram = self.metrics.p_values.labels(model.manifest.name, model.manifest.version, method)
            for p_value in judgement.p_value.tolist():
                histogram.observe(p_value)

    def reason_against_serving(self) -> str | None:
        """Why `/readyz` answers 503, or None."""
        if self.state == "ready" and not self._scheduler.alive:
            return "the inference thread is dead"
        reasons = {"starting": "the models are still loading", "draining": "the service is shutting down"}
        return None if self.state == "ready" else reasons.get(self.state, "the models could not be loaded")

    @property
    def cuda_device(self) -> int | None:
        """The GPU that the models run on, as CUDA counts; None on the CPU, or while that is not known."""
        try:
            return self.settings.device_id if self.registry.execution_provider == CUDA else None
        except NotReadyError:
            return None

    def require_ready(self) -> "Backend":
        """Admit a request. Admitted requests are answered even while draining.

        Raises:
            NotReadyError: requests are not served yet, or no longer.
        """
        if self.state != "ready" or not self._scheduler.alive:
            raise NotReadyError(self.reason_against_serving())
        return self

    async def drain(self) -> None:
        """Refuse new requests, and wait up to `drain_seconds` for admitted ones."""
        self.state = "draining"
        try:
            async with asyncio.timeout(self.settings.drain_seconds):
                while self._scheduler.queued_jobs or self.decoding.jobs:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            left = self._scheduler.queued_jobs + self.decoding.jobs
            _log.warning("drain ended with work left", requests=left)
            await self.decoding.close()
            await asyncio.to_thread(self._scheduler.stop)

    def stop(self) -> None:
        """End the threads."""
        self._scheduler.stop()
        self.registry.close()

    def _died(self) -> None:
        """Called when nothing can be computed any more; the process should end and be replaced."""
        _log.error("the inference thread has died", reason=str(self._scheduler.fatal_error or "unknown"))
        self._on_failure()
