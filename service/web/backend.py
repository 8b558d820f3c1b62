"""What stands behind the routes: the loaded models, the scheduler, and whether they may be used yet, or still."""

import asyncio
import threading
from collections.abc import Generator
from typing import Literal, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from model_store import ModelNotFoundError, StoreError, list_versions, open_version
from service.engine.model import Model
from service.engine.runtime import Runtime
from service.web.errors import LimitError, NotReadyError
from service.web.metrics import Metrics
from service.web.scheduler import Done, Scheduler
from service.web.schemas import ModelSummary, ModelVersion
from service.web.settings import Settings

State = Literal["starting", "ready", "draining", "failed"]
T = TypeVar("T")
_log = structlog.get_logger()


class Backend:
    """Starts, serves, drains. `load` runs in a thread of its own while the port already answers `/livez`."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.state: State = "starting"
        self._scheduler = Scheduler(max_rows=settings.max_queued_rows, max_jobs=settings.max_queued_requests)
        self._models: dict[tuple[str, int], Model] = {}
        self._default_versions: dict[str, int] = {}
        self._loading = threading.Lock()
        self._runtime: Runtime | None = None
        metrics.queued_rows.set_function(lambda: self._scheduler.queued_rows)
        metrics.queued_requests.set_function(lambda: self._scheduler.queued_jobs)
        metrics.ready.set_function(lambda: self.reason_against_serving() is None)

    def load(self) -> None:
        """Load the latest version of every model in the store and run each once; older ones load when first asked for.

        Raises:
            StoreError: the store has no model, or not the configured one, or a latest version is broken.
            ExecutionProviderError: the wanted provider cannot be used.
        """
        settings = self.settings
        runtime = Runtime(settings.execution_provider, settings.num_threads)
        self._runtime = runtime
        if runtime.fallback_reason:
            _log.info("running on the CPU", reason=runtime.fallback_reason)
        versions = self.versions()
        if not versions:
            raise StoreError(f"{settings.model_store}: the model store holds no model")
        if settings.model is not None and settings.model not in versions:
            raise ModelNotFoundError(f"the store has no model {settings.model!r} (LOGPX_MODEL)")
        for name, known in versions.items():
            self.model(name, known[-1])
        self._default_versions = {name: known[-1] for name, known in versions.items()}
        if self.state == "starting":  # a signal may have come meanwhile
            self.state = "ready"
        _log.info("ready", models=versions, provider=runtime.provider)

    def versions(self) -> dict[str, list[int]]:
        """Every model of the store with its versions, ascending."""
        return list_versions(self.settings.model_store)

    def model(self, name: str | None = None, version: int | None = None) -> Model:
        """A model, by default the configured or only one in the latest version there was at start.

        Reads from disk when this version is asked for the first time.

        Raises:
            ModelNotFoundError: the store has no such model or version, or several and none was named.
            InvalidArtifactError: its files are broken.
        """
        name = name or self.settings.model or self._only_model()
        key = (name, version or self._default_versions.get(name, 0))
        if key not in self._models:
            with self._loading:
                if key not in self._models:
                    self._models = {**self._models, key: self._load(name, version)}
        return self._models[key]

    async def run(self, model: Model, chunks: Generator[None, None, T], *, rows: int) -> Done[T]:
        """Queue a computation of at most `rows` rows and await it.

        Raises:
            LimitError: more rows than one request may have.
            QueueFullError, DeadlineError, StoppedError: see scheduler.py.
        """
        if rows > self.settings.max_rows:
            raise LimitError(f"images × samples is {rows}; at most {self.settings.max_rows} are accepted in a request")
        done = await self._scheduler.run(chunks, rows=rows, timeout_seconds=self.settings.timeout_seconds)
        labels = {"model": model.manifest.name, "version": model.manifest.version}
        self.metrics.rows.labels(**labels).inc(rows)
        self.metrics.queue_seconds.labels(**labels).observe(done.queue_seconds)
        self.metrics.compute_seconds.labels(**labels).observe(done.compute_seconds)
        return done

    def count_estimates(self, model: Model, reliable: NDArray[np.bool_]) -> None:
        """Count estimates by whether their error bars can be believed."""
        for outcome in (True, False):
            labels = model.manifest.name, model.manifest.version, str(outcome).lower()
            self.metrics.estimates.labels(*labels).inc(int((reliable == outcome).sum()))

    def summaries(self) -> list[ModelSummary]:
        """What `/v1/models` tells of the models that were there at start."""
        on_disk = self.versions()
        served = [(name, self._models[name, version]) for name, version in self._default_versions.items()]
        return [
            ModelSummary(
                name=name,
                versions=on_disk.get(name, [latest.manifest.version]),
                default=name == self.settings.model or len(served) == 1,
                latest=ModelVersion(manifest=latest.manifest, execution_provider=latest.provider),
            )
            for name, latest in served
        ]

    def reason_against_serving(self) -> str | None:
        """Why `/readyz` is 503, or None."""
        if self.state == "ready" and not self._scheduler.alive:
            return "the inference thread is dead"
        reasons = {"starting": "the models are still loading", "draining": "the service is shutting down"}
        return None if self.state == "ready" else reasons.get(self.state, "the models could not be loaded")

    def require_ready(self) -> None:
        """Raise NotReadyError unless requests may be served."""
        if reason := self.reason_against_serving():
            raise NotReadyError(reason)

    async def drain(self) -> None:
        """Refuse new work, and give what was accepted up to `drain_seconds`."""
        self.state = "draining"
        try:
            async with asyncio.timeout(self.settings.drain_seconds):
                while self._scheduler.queued_jobs:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            _log.warning("drain ended with work left", requests=self._scheduler.queued_jobs)
            await asyncio.to_thread(self._scheduler.stop)

    def stop(self) -> None:
        """End the inference thread."""
        self._scheduler.stop()

    def _only_model(self) -> str:
        names = sorted(self._default_versions)
        if len(names) != 1:
            raise ModelNotFoundError(f"there are several models; name one with ?model=: {', '.join(names)}")
        return names[0]

    def _load(self, name: str, version: int | None) -> Model:
        if self._runtime is None:
            raise NotReadyError("the models are still loading")
        stored = open_version(self.settings.model_store, name, version)
        model = Model.open(
            stored, runtime=self._runtime, chunk_rows=self.settings.chunk_rows, max_steps=self.settings.max_steps
        )
        labels = {"model": name, "version": stored.manifest.version, "provider": model.provider}
        self.metrics.execution_provider.labels(**labels).set(1)
        _log.info("model loaded", **labels)
        return model
