"""The metrics at `/metrics` for Prometheus; docs/operations.md describes each."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from service.web.operations import series

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROWS = tuple(2**power for power in range(13))
_P_VALUES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *(tenth / 10 for tenth in range(1, 11)))


class Metrics:
    """The metrics of one app; two apps in one process do not share them."""

    def __init__(self) -> None:
        self.registry = _Registry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = series.Counter(
            "logpx_requests",
            "requests answered; model and version are empty for what was refused before its model was known",
            ["route", "method", "status", "model", "version"],
            registry=self.registry,
        )
        self.request_seconds = series.Histogram(
            "logpx_request_seconds",
            "from a request's first byte to its answer's last",
            ["route", "model", "version"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.refusals = series.Counter("logpx_refusals", "problem documents sent", ["problem"], registry=self.registry)
        self.queue_seconds = series.Histogram(
            "logpx_queue_seconds",
            "a job's wait for the inference thread",
            ["model", "version"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.compute_seconds = series.Histogram(
            "logpx_compute_seconds",
            "a job's time on the inference thread",
            ["model", "version"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.decoding_seconds = Histogram(
            "logpx_decoding_seconds",
            "a request's images' time in the process that read them",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.queued_decodings = Gauge(
            "logpx_queued_decodings",
            "requests whose images wait for a process that reads them, or are being read",
            registry=self.registry,
        )
        self.decoder_restarts = Counter(
            "logpx_decoder_restarts",
            "processes that read images and were replaced, by reason",
            ["reason"],
            registry=self.registry,
        )
        for reason in ("dropped", "overran", "crashed", "lost"):
            self.decoder_restarts.labels(reason)  # there from the start, as below
        self.rows = series.Counter(
            "logpx_rows", "images × samples of finished requests, at most", ["model", "version"], registry=self.registry
        )
        self.batch_rows = Histogram(
            "logpx_batch_rows",
            "images or latents of encode and decode requests that were computed together",
            ["model", "version"],
            buckets=_ROWS,
            registry=self.registry,
        )
        self.p_values = Histogram(
            "logpx_p_values",
            "p-values of anomaly scores; on familiar images they are uniform on [0, 1]",
            ["model", "version", "method"],
            buckets=_P_VALUES,
            registry=self.registry,
        )
        self.estimates = Counter(
            "logpx_estimates",
            "log-likelihood estimates, by whether they were reliable, and why not",
            ["model", "version", "reliable", "reason"],
            registry=self.registry,
        )
        self.queued_rows = Gauge("logpx_queued_rows", "rows waiting or running", registry=self.registry)
        self.queued_requests = Gauge("logpx_queued_requests", "requests waiting or running", registry=self.registry)
        self.held_memory = Gauge(
            "logpx_held_memory_bytes", "memory that requests hold, by upper bounds", registry=self.registry
        )
        self.ready = Gauge("logpx_ready", "1 when /readyz answers 200", registry=self.registry)
        self.execution_provider = Gauge(
            "logpx_execution_provider_info",
            "1 for the ONNX Runtime execution provider that runs this model",
            ["model", "version", "provider"],
            registry=self.registry,
        )

        # Of the GPU that the models run on; gpu.py sets these, and there is no series without one.
        self.gpu_memory_used = self._of_gpu("memory_used_bytes", "memory of the GPU that is in use, by all processes")
        self.gpu_memory_total = self._of_gpu("memory_total_bytes", "memory of the GPU")
        self.gpu_utilisation = self._of_gpu("utilisation_ratio", "share of the time in which the GPU was computing")
        self.gpu_temperature = self._of_gpu("temperature_celsius", "temperature of the GPU")
        self.gpu_power = self._of_gpu("power_watts", "electrical power that the GPU takes")
        self.reloads = Counter(
            "logpx_reloads",
            "looks at the store for new versions, by what came of it",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in ("unchanged", "changed", "refused", "failed"):
            self.reloads.labels(outcome)  # there from the start, so that the first one of a kind is seen as a rise
        self.refused_versions = Gauge(
            "logpx_refused_versions", "versions in the store that did not pass their checks", registry=self.registry
        )
        self.closed_connections = Counter(
            "logpx_closed_connections",
            "connections closed before their time, by why",
            ["reason"],
            registry=self.registry,
        )
        for reason in ("stalled", "slow", "memory", "idle", "full"):
            self.closed_connections.labels(reason)
        self.dropped_log_lines = Counter(
            "logpx_dropped_log_lines",
            "log lines dropped because standard output could not take them",
            registry=self.registry,
        )

    def _of_gpu(self, name: str, documentation: str) -> Gauge:
        return Gauge(f"logpx_gpu_{name}", documentation, ["uuid"], registry=self.registry)

    def texts(self) -> Iterator[bytes]:
        """The exposition format, version 0.0.4, a metric at a time."""
        for collector in self.registry.collectors:
            if isinstance(collector, series.Counter | series.Histogram):
                yield collector.text()
            else:
                yield generate_latest(collector)


class _Registry(CollectorRegistry):
    """Tells its collectors, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.collectors: list[Collector] = []

    def register(self, collector: Collector) -> None:
        """Add one."""
        super().register(collector)
        self.collectors.append(collector)


class SharedText:
    """A text written once for all who ask while another is written: that of the metrics takes as long as ten encodes.

    Between two pieces the event loop comes to what else is ready.

    Args:
        write: its pieces.
        prepare: awaited before each writing.
    """

    def __init__(
        self, write: Callable[[], Iterable[bytes]], prepare: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._write = write
        self._prepare = prepare
        self._next: asyncio.Future[bytes] | None = None
        self._writing: asyncio.Task[None] | None = None

    async def get(self) -> bytes:
        """The text, written after it was asked for; raises what `write` and `prepare` do."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            if self._writing is None:
                self._writing = asyncio.create_task(self._answer_all())
        return await asyncio.shield(self._next)

    async def _answer_all(self) -> None:
        while (answer := self._next) is not None:
            self._next = None
            pieces = []
            try:
                if self._prepare is not None:
                    await self._prepare()
                for piece in self._write():
                    pieces.append(piece)
                    await asyncio.sleep(0)
            except Exception as error:  # noqa: BLE001 - it belongs to those who wait
                answer.set_exception(error)
            else:
                answer.set_result(b"".join(pieces))
        self._writing = None
