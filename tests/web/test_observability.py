"""Request ids, logs, metrics and readiness."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from fastapi.testclient import TestClient

from service.web.app import create_app
from service.web.operations.metrics import Metrics, SharedText
from service.web.operations.settings import Settings
from tests.rounding import FLOAT64, gamma
from tests.toys import bernoulli_toy
from tests.web.conftest import DIGIT_SHAPE, Serve, put
from tests.web.forms import npy
from tests.web.test_batching import hold_up

BODY: dict[str, Any] = {
    "content": npy(np.zeros((3, 28, 28), np.uint8)),
    "headers": {"content-type": "application/x-npy"},
}


def test_a_well_formed_request_id_is_kept_and_another_replaced(client: TestClient) -> None:
    assert client.get("/livez", headers={"x-request-id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
    for wrong in ("with space", "x" * 129, "semi;colon", ""):
        given = client.get("/livez", headers={"x-request-id": wrong}).headers["x-request-id"]
        assert given != wrong
        assert len(given) == 32


def test_each_request_is_logged_with_its_id(client: TestClient) -> None:
    with structlog.testing.capture_logs() as lines:
        client.post("/v1/encode", **BODY)
        client.get("/v1/models/nobody", headers={"x-request-id": "mine"})
    requests = [line for line in lines if line["event"] == "request"]
    assert [(line["path"], line["status"]) for line in requests] == [("/v1/encode", 200), ("/v1/models/nobody", 404)]
    assert requests[1]["problem"] == "unknown-model"
    assert [line["client"] for line in requests] == ["testclient"] * 2


def test_metrics_count_what_happened(serve: Serve) -> None:
    client = serve()
    client.post("/v1/log-likelihood?num_samples=40", **BODY)
    client.post("/v1/encode", content=b"x")
    lines = client.get("/metrics").text.splitlines()
    assert 'logpx_execution_provider_info{model="digits",provider="CPUExecutionProvider",version="2"} 1.0' in lines
    told = 'model="digits",route="/v1/log-likelihood",status="200",version="2"'
    assert any(told in line for line in lines), lines
    assert 'logpx_refusals_total{problem="unsupported-media-type"} 1.0' in lines
    assert 'logpx_rows_total{model="digits",version="2"} 120.0' in lines
    assert "logpx_queued_rows 0.0" in lines
    assert "logpx_ready 1.0" in lines
    estimates = [float(line.split()[-1]) for line in lines if line.startswith("logpx_estimates_total{")]
    assert sum(estimates) == 3


def test_rows_that_are_computed_together_are_counted(serve: Serve) -> None:
    client = serve()
    for _ in range(2):
        client.post("/v1/encode", **BODY)
    mean = client.post("/v1/encode", **BODY).json()["mean"]
    client.post("/v1/decode", json={"latents": mean[:2]})
    lines = client.get("/metrics").text.splitlines()
    assert 'logpx_batch_rows_count{model="digits",version="2"} 4.0' in lines
    assert 'logpx_batch_rows_sum{model="digits",version="2"} 11.0' in lines


def test_p_values_are_counted_by_method(serve: Serve) -> None:
    client = serve()
    for _ in range(2):
        answer = client.post("/v1/anomaly-scores", **BODY).json()
    p_values = [result["p_value"] for result in answer["results"]]
    lines = client.get("/metrics").text.splitlines()
    labels = 'method="log_likelihood",model="digits",version="2"'
    assert f"logpx_p_values_count{{{labels}}} 6.0" in lines
    (total,) = [float(line.split()[-1]) for line in lines if line.startswith("logpx_p_values_sum{")]
    assert total == pytest.approx(2 * sum(p_values), rel=gamma(2 * len(p_values), FLOAT64))
    below = sum(p_value <= 0.5 for p_value in p_values)
    assert f'logpx_p_values_bucket{{le="0.5",{labels}}} {2.0 * below}' in lines


def test_a_refusal_has_the_labels_of_a_model_once_it_is_known(serve: Serve) -> None:
    client = serve()
    wrong = {**BODY, "content": b"x"}
    for query in ("", "?version=1", "?model=nobody", "?nothing=1"):
        client.post(f"/v1/encode{query}", **wrong)
    text = client.get("/metrics").text
    for model, version, status in [("digits", "2", 422), ("digits", "1", 422), ("", "", 404), ("", "", 422)]:
        labels = f'method="POST",model="{model}",route="/v1/encode",status="{status}",version="{version}"'
        assert f"logpx_requests_total{{{labels}}} 1.0" in text
    assert 'logpx_refusals_total{problem="invalid-body"} 2.0' in text


def test_unknown_paths_share_one_label(client: TestClient) -> None:
    for path in ("/a", "/b", "/c"):
        client.get(path)
    text = client.get("/metrics").text
    assert 'route="unknown"' in text
    assert 'route="/a"' not in text


def test_timings_are_told(client: TestClient) -> None:
    header = client.post("/v1/encode", **BODY).headers["server-timing"]
    assert header.startswith("queue;dur=")
    assert "compute;dur=" in header


def test_models_tell_their_manifest_and_provider(client: TestClient) -> None:
    listed = {model["name"]: model for model in client.get("/v1/models").json()["models"]}
    assert listed["digits"]["versions"] == [1, 2]
    assert [name for name, model in listed.items() if model["default"]] == ["digits"]
    assert listed["colour"]["execution_provider"] == "CPUExecutionProvider"
    assert listed["colour"]["manifest"]["image"] == {"channels": 3, "height": 8, "width": 6}
    one = client.get("/v1/models/digits?version=1").json()
    assert one["manifest"]["version"] == 1
    assert one["manifest"]["format_version"] == 2
    assert (one["default_version"], one["loaded_versions"]) == (2, [1, 2])


def test_before_models_are_loaded_and_while_draining_it_is_503(serve: Serve) -> None:
    client = serve()
    backend = client.app.state.backend  # type: ignore[attr-defined]
    for state, words in [("starting", "loading"), ("draining", "shutting down"), ("failed", "could not be loaded")]:
        backend.state = state
        for answer in (client.get("/readyz"), client.post("/v1/encode", **BODY)):
            assert answer.status_code == 503
            assert answer.json()["type"] == "urn:logpx:problem:not-ready"
            assert words in answer.json()["detail"]
        assert client.get("/livez").status_code == 200
    backend.state = "ready"
    assert client.post("/v1/encode", **BODY).status_code == 200
    backend.stop()
    assert "dead" in client.get("/readyz").json()["detail"]


def test_a_full_queue_is_429_with_retry_after(serve: Serve) -> None:
    client = serve(max_queued_requests=1)
    gate = hold_up(client)
    answer = client.post("/v1/encode", **BODY)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["type"] == "urn:logpx:problem:queue-full"
    assert "1 requests" in answer.json()["detail"]
    gate.set()
    while "logpx_queued_requests 0.0" not in client.get("/metrics").text:
        pass
    assert client.post("/v1/encode", **BODY).status_code == 200


def test_a_bug_of_ours_is_500_and_tells_nothing_but_its_id(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve()
    backend = client.app.state.backend  # type: ignore[attr-defined]
    monkeypatch.setattr(backend.registry, "summaries", lambda: 1 / 0)
    with structlog.testing.capture_logs() as lines:
        answer = client.get("/v1/models")
    assert [line["event"] for line in lines if line.get("exc_info")] == ["unexpected error"]
    assert answer.status_code == 500
    assert answer.json()["type"] == "urn:logpx:problem:internal-error"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "division" not in answer.text


def test_a_failed_start_calls_back(tmp_path: Any) -> None:
    failed: list[bool] = []
    app = create_app(Settings(model_store=tmp_path), on_failure=lambda: failed.append(True))
    with TestClient(app) as client:
        while not failed:
            assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 503


def test_a_broken_version_published_meanwhile_disturbs_nobody_and_tells_no_paths(tmp_path: Path) -> None:
    put(tmp_path, bernoulli_toy(DIGIT_SHAPE, name="digits"))
    with TestClient(create_app(Settings(model_store=tmp_path))) as client:
        while client.get("/readyz").status_code != 200:
            pass
        (tmp_path / "zz" / "1").mkdir(parents=True)
        (tmp_path / "zz" / "1" / "manifest.json").write_text("{}")
        assert [model["name"] for model in client.get("/v1/models").json()["models"]] == ["digits"]
        assert client.post("/v1/encode", **BODY).status_code == 200
        answer = client.get("/v1/models/zz")
        assert answer.status_code == 503
        assert answer.json()["type"] == "urn:logpx:problem:broken-model"
        assert str(tmp_path) not in answer.text
        shutil.rmtree(tmp_path)
        assert client.get("/v1/models").status_code == 503
        assert client.post("/v1/encode", **BODY).status_code == 200


def test_openapi_lists_every_route_and_content_type(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert {"/v1/encode", "/v1/decode", "/v1/samples", "/v1/log-likelihood", "/v1/anomaly-scores", "/v1/models"} <= set(
        document["paths"]
    )
    accepted = document["paths"]["/v1/encode"]["post"]["requestBody"]["content"]
    assert set(accepted) >= {"image/png", "image/jpeg", "image/webp", "multipart/form-data", "application/x-npy"}
    given = document["paths"]["/v1/samples"]["get"]["responses"]["200"]["content"]
    assert set(given) == {"application/json", "image/png", "application/x-npy"}
    assert json.dumps(document["components"]["schemas"]["Problem"])


def test_metrics_are_made_once_for_all_who_ask_at_once() -> None:
    metrics = Metrics()
    made: list[bytes] = []

    def write() -> Iterator[bytes]:
        pieces = list(metrics.texts())
        made.append(b"".join(pieces))
        yield from pieces

    def fail() -> Iterator[bytes]:
        yield b"# HELP"
        raise ValueError("no text")

    async def ask() -> None:
        shared = SharedText(write)
        metrics.ready.set(0)
        answers = await asyncio.gather(*(shared.get() for _ in range(100)))
        assert answers == made * 100
        metrics.ready.set(1)
        assert b"logpx_ready 1.0" in await shared.get()  # never older than the request
        assert len(made) == 2
        failing = SharedText(fail)
        for _ in range(2):
            with pytest.raises(ValueError, match="no text"):
                await failing.get()

    asyncio.run(ask())


def test_who_asks_for_metrics_while_they_are_written_gets_later_ones_and_nobody_waits_for_the_rest() -> None:
    metrics = Metrics()
    for number in range(2000):  # whose text takes long
        metrics.request_seconds.series(f"/{number}", "digits", "1").add(1)
    turns = 0

    async def ask() -> None:
        nonlocal turns
        shared = SharedText(metrics.texts)
        metrics.ready.set(0)
        first = asyncio.create_task(shared.get())
        second: list[asyncio.Task[bytes]] = []
        while not first.done():  # once for each metric: the event loop comes to what else is ready
            await asyncio.sleep(0)
            turns += 1
            if turns == 3:
                metrics.ready.set(1)
                second = [asyncio.create_task(shared.get()) for _ in range(5)]
        (text,) = {await task for task in second}
        assert b"logpx_ready 1.0" in text
        assert turns > 20

    asyncio.run(ask())
