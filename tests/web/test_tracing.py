"""Spans of requests, and a start that says when the packages for them are missing."""

import http.server
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import structlog
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service.serve import export_traces
from service.web.app import create_app
from service.web.operations.settings import Settings
from tests.web import plain_http
from tests.web.open_inference import in_json
from tests.web.test_observability import BODY
from tests.web.test_process import Start, address, start  # noqa: F401 (a fixture)

TRACE_ID, CALLER_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def spans_of(store: Path, requests: list[tuple[str, str, dict[str, object]]]) -> list[ReadableSpan]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app(Settings(model_store=store, model="digits"), tracer_provider=provider)
    with TestClient(app, raise_server_exceptions=False) as client:
        while client.get("/readyz").status_code != 200:
            pass
        for method, path, arguments in requests:
            client.request(method, path, **arguments)  # type: ignore[arg-type]
    return list(exporter.get_finished_spans())


def test_a_traced_request_is_answered_as_any_other(store: Path) -> None:
    """By FastAPI's router, where others come to their route more directly."""
    key = "a-key-of-the-traced-service"
    settings = Settings(model_store=store, model="digits", api_keys=key)
    inference = in_json("images", np.zeros((1, 1, 28, 28), np.uint8))
    image, keyed = BODY, {"headers": {**BODY["headers"], "x-api-key": key}}
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/v1/encode", {**image, **keyed}),
        ("POST", "/v1/encode", image),
        ("POST", "/v1/encode?model=nobody", {**image, **keyed}),
        ("POST", "/v1/encode?nothing=1", {**image, **keyed}),
        ("POST", "/v1/encode", {"headers": {**keyed["headers"], "accept": "image/png"}, "content": b""}),
        ("POST", "/v1/encode", {"headers": keyed["headers"], "content": b"no image"}),
        ("HEAD", "/v1/samples?n=2&seed=1", keyed),
        ("GET", "/v1/samples?n=2&seed=1", keyed),
        ("GET", "/v1/encode", keyed),
        ("PUT", "/v1/samples", keyed),
        ("POST", "/v2/models/digits.encode/infer", {"content": inference["content"], "headers": keyed["headers"]}),
        ("POST", "/v2/models/digits.encode/versions/1/infer", {**inference, **keyed}),
        ("POST", "/v2/models/digits.encode/infer", inference),
        ("POST", "/v2/models/digits/infer", keyed),
    ]
    answers = []
    for provider in (None, TracerProvider()):
        with TestClient(create_app(settings, tracer_provider=provider), raise_server_exceptions=False) as client:
            while client.get("/readyz").status_code != 200:
                pass
            found = [client.request(method, path, **arguments) for method, path, arguments in requests]
        told = [re.sub(r'"request_id":"\w+"', "", answer.text) for answer in found]
        heads = [{**answer.headers, "x-request-id": "", "server-timing": ""} for answer in found]
        answers.append(([answer.status_code for answer in found], told, heads))
    assert answers[0] == answers[1]
    assert answers[0][0] == [200, 401, 404, 422, 406, 422, 200, 200, 405, 405, 200, 200, 401, 404]


def test_a_request_is_one_span_that_tells_what_it_took(store: Path) -> None:
    caller = {**BODY["headers"], "traceparent": f"00-{TRACE_ID}-{CALLER_ID}-01", "x-request-id": "mine"}
    requests = [
        ("POST", "/v1/log-likelihood?num_samples=40", {**BODY, "headers": caller}),
        ("GET", "/v1/models/nobody", {}),
        ("GET", "/nowhere", {}),
        ("GET", "/metrics", {}),
    ]
    scored, refused, lost = spans_of(store, requests)
    assert scored.context is not None
    assert scored.parent is not None
    assert (f"{scored.context.trace_id:x}", f"{scored.parent.span_id:016x}") == (TRACE_ID, CALLER_ID)
    assert (scored.name, scored.kind) == ("POST /v1/log-likelihood", SpanKind.SERVER)
    told = dict(scored.attributes or {})
    for seconds in (told["logpx.queue_seconds"], told["logpx.compute_seconds"]):
        assert isinstance(seconds, float)
        assert seconds >= 0
    assert (told["http.route"], told["http.response.status_code"]) == ("/v1/log-likelihood", 200)
    assert (told["logpx.model"], told["logpx.version"], told["logpx.rows"]) == ("digits", 2, 120)
    assert told["logpx.request_id"] == "mine"
    assert refused.attributes is not None
    assert (refused.name, refused.attributes["logpx.problem"]) == ("GET /v1/models/{name}", "unknown-model")
    assert (lost.name, refused.status.status_code, lost.parent) == ("GET", StatusCode.UNSET, None)


def test_a_bug_of_ours_is_an_error_in_its_span(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.web.models.registry.Registry.summaries", lambda _: 1 / 0)
    with structlog.testing.capture_logs():
        (span,) = spans_of(store, [("GET", "/v1/models", {})])
    assert span.status.status_code == StatusCode.ERROR
    assert (span.attributes or {})["http.response.status_code"] == 500


def test_the_service_has_a_name_that_the_environment_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = export_traces()
    assert provider.resource.attributes["service.name"] == "logpx"
    provider.shutdown()
    monkeypatch.setenv("OTEL_SERVICE_NAME", "anomalies")
    provider = export_traces()
    assert provider.resource.attributes["service.name"] == "anomalies"
    provider.shutdown()


class Collector(http.server.BaseHTTPRequestHandler):
    """Keeps what it is sent."""

    received: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        self.received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def test_spans_reach_a_collector_before_the_process_ends(
    start: Start,  # noqa: F811 (the fixture)
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_address[1]}")
        process = start()
        plain_http.get(f"{address(process)}/v1/models/digits", headers={"traceparent": f"00-{TRACE_ID}-{CALLER_ID}-01"})
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        collector.shutdown()
    told = [body for path, body in Collector.received if path == "/v1/traces"]
    assert bytes.fromhex(TRACE_ID) in b"".join(told)
    assert b"GET /v1/models/{name}" in b"".join(told)


def test_traces_asked_for_without_their_packages_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['opentelemetry.sdk'] = None")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-m", "service"], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert "is missing: install the extra `otel`" in done.stderr
    assert "Traceback" not in done.stderr
