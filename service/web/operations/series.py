"""Fast counters and histograms for every request, which give the same text as prometheus_client's.

prometheus_client takes a lock and several calls for one observation, which is a large part of an encode's time on the
event loop. These have no lock: one thread updates them and writes them out.
"""

import os
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]
_TELLS_CREATION = os.environ.get("PROMETHEUS_DISABLE_CREATED_SERIES", "").lower() not in ("true", "1", "yes")
"""A variable of prometheus_client."""


class Histogram(Collector):
    """A histogram of non-negative values.

    Args:
        name, documentation, label_names: as prometheus_client's.
        buckets: upper bounds, ascending, without infinity.
        registry: the registry that reads it.

    >>> registry = CollectorRegistry()
    >>> histogram = Histogram("seconds", "that it took", ["route"], buckets=[0.5, 1], registry=registry)
    >>> histogram.series("/v1/encode").add(0.7)
    >>> registry.get_sample_value("seconds_bucket", {"route": "/v1/encode", "le": "1.0"})
    1.0
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        label_names: Sequence[str],
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._named = name, documentation, label_names
        self._bounds = [*buckets, float("inf")]
        self._series: dict[Labels, HistogramSeries] = {}
        registry.register(self)

    def series(self, *labels: object) -> "HistogramSeries":
        """The values with these labels."""
        key = tuple(map(str, labels))
        found = self._series.get(key)
        if found is None:
            found = self._series[key] = HistogramSeries(self._bounds)
        return found

    def collect(self) -> Iterator[Metric]:
        """What is read."""
        name, documentation, label_names = self._named
        metric = HistogramMetricFamily(name, documentation, labels=label_names)
        bounds = [floatToGoString(bound) for bound in self._bounds]  # type: ignore[no-untyped-call]
        for labels, series in self._series.items():
            metric.add_metric(labels, list(zip(bounds, accumulate(map(float, series.counts)), strict=True)), series.sum)
            if _TELLS_CREATION:
                metric.add_sample(f"{name}_created", dict(zip(label_names, labels, strict=True)), series.created)
        yield metric

    def describe(self) -> Iterator[Metric]:
        """Its name."""
        name, documentation, label_names = self._named
        yield HistogramMetricFamily(name, documentation, labels=label_names)


class HistogramSeries:
    """The values with one combination of labels."""

    __slots__ = ("_bounds", "counts", "created", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * len(bounds)
        self.sum = 0.0
        self.created = time.time()

    def add(self, value: float) -> None:
        """Add a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


class Counter(Collector):
    """A counter; its arguments as prometheus_client's."""

    def __init__(
        self, name: str, documentation: str, label_names: Sequence[str], *, registry: CollectorRegistry
    ) -> None:
        self._named = name, documentation, label_names
        self._series: dict[Labels, CounterSeries] = {}
        registry.register(self)

    def series(self, *labels: object) -> "CounterSeries":
        """The count with these labels."""
        key = tuple(map(str, labels))
        found = self._series.get(key)
        if found is None:
            found = self._series[key] = CounterSeries()
        return found

    def collect(self) -> Iterator[Metric]:
        """What is read."""
        name, documentation, label_names = self._named
        metric = CounterMetricFamily(name, documentation, labels=label_names)
        for labels, series in self._series.items():
            metric.add_metric(labels, series.count, created=series.created if _TELLS_CREATION else None)
        yield metric

    def describe(self) -> Iterator[Metric]:
        """Its name."""
        name, documentation, label_names = self._named
        yield CounterMetricFamily(name, documentation, labels=label_names)


class CounterSeries:
    """The count with one combination of labels."""

    __slots__ = ("count", "created")

    def __init__(self) -> None:
        self.count = 0.0
        self.created = time.time()
