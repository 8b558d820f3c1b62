"""The counters and histograms that every request touches: they read as prometheus_client's own do."""

import re

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from service.web.operations import series

BOUNDS = (0.001, 0.5, 1, 2.5)
VALUES = (0.0, 0.001, 0.0010000001, 0.3, 0.5, 1, 2.5, 2.6, 1e9)


def without_times(text: bytes) -> str:
    """Without the times at which series began."""
    return re.sub(r"(_created\{.*\}) .*", r"\1", text.decode())


def text(registry: CollectorRegistry) -> str:
    """As the library writes it down."""
    return without_times(generate_latest(registry))


def test_they_read_as_those_of_the_library() -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    names = ["route", "status"]
    for labels in (("/v1/encode", 200), ('a "quoted"\n\\ path', 404)):
        if labels[1] == 200:
            counter = prometheus_client.Counter("logpx_requests", "answered", names, registry=theirs)
            histogram = prometheus_client.Histogram("logpx_s", "taken", names, buckets=BOUNDS, registry=theirs)
            our_counter = series.Counter("logpx_requests", "answered", names, registry=ours)
            our_histogram = series.Histogram("logpx_s", "taken", names, buckets=BOUNDS, registry=ours)
            assert text(ours) == text(theirs)  # also where nothing has been counted
            assert without_times(our_counter.text() + our_histogram.text()) == text(theirs)
        for value in VALUES:
            counter.labels(*labels).inc(value)
            histogram.labels(*labels).observe(value)
            our_counter.series(*labels).count += value
            our_histogram.series(*labels).add(value)
    assert text(ours) == text(theirs)
    assert our_counter.text() + our_histogram.text() == generate_latest(ours)
    assert "logpx_s_created" in text(ours)


def test_when_series_began_is_left_out_where_the_library_leaves_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    counter = series.Counter("logpx_requests", "answered", ["route"], registry=registry)
    counter.series("/").count += 1
    histogram = series.Histogram("logpx_s", "taken", ["route"], buckets=BOUNDS, registry=registry)
    histogram.series("/").add(1)
    monkeypatch.setattr(series, "_TELLS_CREATION", False)
    assert "_created" not in text(registry)
    assert counter.text() + histogram.text() == generate_latest(registry)
    assert 'logpx_requests_total{route="/"} 1.0' in text(registry)


def test_no_name_is_taken_twice() -> None:
    registry = CollectorRegistry()
    series.Counter("logpx_requests", "answered", ["route"], registry=registry)
    with pytest.raises(ValueError, match="Duplicated"):
        prometheus_client.Counter("logpx_requests", "answered", ["route"], registry=registry)
