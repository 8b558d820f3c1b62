"""Fast counters and histograms for every request, which give the same text as prometheus_client's.

Those take several calls for one observation, which is a good part of what else an encode takes on the event loop, and
a tenth of a second to write a thousand series down. These belong to one thread, which also writes them down, a tenth as
long; what Prometheus reads of them is the same to the letter.
"""

import os
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
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
            found = self._series[key] = HistogramSeries(self._bounds, self._begun_lines(key))
        return found

    def _begun_lines(self, labels: Labels) -> list[str]:
        """Each line of a series up to its value, in the order of the text; when it began comes last."""
        name, _, label_names = self._named
        named = dict(zip(label_names, labels, strict=True))
        buckets = [_begun_line(f"{name}_bucket", {**named, "le": _number(bound)}) for bound in self._bounds]
        return buckets + [_begun_line(f"{name}_{what}", named) for what in ("count", "sum", "created")]

    def text(self) -> bytes:
        """What generate_latest makes of `collect`."""
        name, documentation, _ = self._named
        lines, created = [_heading(name, documentation, "histogram")], []
        for series in self._series.values():
            counts = list(accumulate(series.counts))
            *begun, last = series.begun_lines
            lines += [
                f"{line}{_number(value)}\n"
                for line, value in zip(begun, (*counts, counts[-1], series.sum), strict=True)
            ]
            created.append(f"{last}{_number(series.created)}\n")
        return _joined(lines, created, _heading(f"{name}_created", documentation, "gauge"))

    def collect(self) -> Iterator[Metric]:
        """What is read."""
        name, documentation, label_names = self._named
        metric = HistogramMetricFamily(name, documentation, labels=label_names)
        bounds = [_number(bound) for bound in self._bounds]
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

    __slots__ = ("_bounds", "begun_lines", "counts", "created", "sum")

    def __init__(self, bounds: Sequence[float], begun_lines: Sequence[str]) -> None:
        self._bounds = bounds
        self.begun_lines = begun_lines
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
            name, _, label_names = self._named
            named = dict(zip(label_names, key, strict=True))
            begun_lines = [_begun_line(f"{name}_{what}", named) for what in ("total", "created")]
            found = self._series[key] = CounterSeries(begun_lines)
        return found

    def text(self) -> bytes:
        """What generate_latest makes of `collect`."""
        name, documentation, _ = self._named
        lines, created = [_heading(f"{name}_total", documentation, "counter")], []
        for series in self._series.values():
            total, began = series.begun_lines
            lines.append(f"{total}{_number(series.count)}\n")
            created.append(f"{began}{_number(series.created)}\n")
        return _joined(lines, created, _heading(f"{name}_created", documentation, "gauge"))

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

    __slots__ = ("begun_lines", "count", "created")

    def __init__(self, begun_lines: Sequence[str]) -> None:
        self.begun_lines = begun_lines
        self.count = 0.0
        self.created = time.time()


def _heading(name: str, documentation: str, kind: str) -> str:
    escaped = documentation.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {escaped}\n# TYPE {name} {kind}\n"


def _begun_line(name: str, labels: Mapping[str, str]) -> str:
    """A line of the text up to its value."""
    return f"{name}{{{','.join(_label(key, labels[key]) for key in sorted(labels))}}} "


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'{name}="{escaped}"'


def _number(value: float) -> str:
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _joined(lines: Sequence[str], created: Sequence[str], heading: str) -> bytes:
    """The text of a metric; when its series began, if that is told, is a metric of its own after it."""
    return "".join([*lines, *([heading, *created] if created and _TELLS_CREATION else [])]).encode()
