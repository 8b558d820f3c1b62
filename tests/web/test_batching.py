"""Requests that share a run, deadlines by header, and a thread that dies: over HTTP."""

import asyncio
import math
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import pytest
import structlog
from fastapi.testclient import TestClient

from service.engine.model import Model
from service.engine.runtime import DeviceLostError, OutOfDeviceMemoryError, Session
from service.web.app import create_app
from service.web.operations.metrics import Metrics
from service.web.operations.settings import Settings
from service.web.rate import Meter
from service.web.serving.backend import Backend
from service.web.serving.batch_queue import alone
from tests.rounding import sum_error
from tests.web.conftest import Serve
from tests.web.forms import npy, read_npy

NPY = {"content-type": "application/x-npy", "accept": "application/x-npy"}


def backend_of(client: TestClient) -> Backend:
    backend: Backend = client.app.state.backend  # type: ignore[attr-defined]
    return backend


def hold_up(client: TestClient) -> threading.Event:
    """Keep the inference thread busy until the event is set."""
    entered, gate = threading.Event(), threading.Event()

    def busy() -> Generator[None, None, None]:
        entered.set()
        gate.wait(60)
        yield

    async def submit() -> None:
        backend_of(client)._scheduler.submit_alone(busy(), rows=1, timeout_seconds=60)

    assert client.portal is not None
    client.portal.call(submit)
    assert entered.wait(60)
    return gate


def together(client: TestClient, requests: list[Callable[[], Any]]) -> list[Any]:
    """Send requests that all wait for the inference thread at the same time."""
    gate = hold_up(client)
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = [pool.submit(request) for request in requests]
        while backend_of(client)._scheduler.queued_jobs < 1 + len(requests):
            pass
        gate.set()
        return [answer.result() for answer in answers]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The route and the rows of each computation on the inference thread."""
    seen: list[tuple[str, int]] = []
    for name in ("encode", "decode", "reconstruct", "infer", "measure_x"):
        compute = getattr(Model, name)

        def logged(self: Model, rows: Any, *others: Any, name: str = name, compute: Any = compute) -> Any:
            seen.append((name, len(rows)))
            return compute(self, rows, *others)

        monkeypatch.setattr(Model, name, logged)
    return seen


def test_encode_requests_share_a_run_and_keep_their_answers(
    serve: Serve, digits: Any, batches: list[tuple[str, int]]
) -> None:
    client = serve()

    def encode(images: Any) -> Any:
        return read_npy(client.post("/v1/encode", content=npy(images), headers=NPY).content)

    parts = [digits[:1], digits[1:4], digits[4:5], digits[5:10]]
    alone = [encode(part) for part in parts]
    batches.clear()
    shared = together(client, [lambda part=part: encode(part) for part in parts])  # type: ignore[misc]
    assert batches == [("encode", 10)]
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=sum_error(28 * 28, 100))


def test_decode_requests_share_runs_of_their_own(serve: Serve, digits: Any, batches: list[tuple[str, int]]) -> None:
    client = serve()
    latents = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)

    def decode(rows: slice) -> Any:
        return read_npy(client.post("/v1/decode", content=npy(latents[rows]), headers=NPY).content)

    def encode() -> Any:
        return client.post("/v1/encode", content=npy(digits), headers=NPY).status_code

    rows = [slice(0, 2), slice(2, 3), slice(3, 6)]
    alone = [decode(part) for part in rows]
    batches.clear()
    *shared, status = together(client, [*(lambda part=part: decode(part) for part in rows), encode])
    assert sorted(batches) == [("decode", 6), ("encode", 10)]
    assert status == 200
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=sum_error(28 * 28, 100))


def asked(client: TestClient, query: str, images: Any) -> Callable[[], Any]:
    """A request for the results of images."""
    headers = NPY | {"accept": "application/json"}

    def ask() -> Any:
        answer = client.post(f"/v1/{query}", content=npy(images), headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()["results"]

    return ask


@pytest.mark.parametrize("proposal", ["encoder", "laplace", "annealed", "auto"])
def test_estimates_of_several_requests_are_made_together_with_the_same_bits(
    serve: Serve, digits: Any, batches: list[tuple[str, int]], proposal: str
) -> None:
    client = serve()
    strange = np.random.default_rng(2).integers(0, 256, (2, *digits.shape[1:]), np.uint8)
    parts = [digits[:1], np.concatenate([strange[:1], digits[1:3]]), strange[1:], digits[3:4]]
    query = f"log-likelihood?proposal={proposal}&num_samples=20"
    alone = [asked(client, query, part)() for part in parts]
    batches.clear()
    other = asked(client, f"{query}&seed=1", digits[:1])
    *shared, last = together(client, [*(asked(client, query, part) for part in parts), other])
    assert sorted(batches) == [("infer", 1), ("infer", 6)]
    assert shared == alone
    assert last != alone[0]


def test_scores_of_several_requests_are_made_together_and_each_decides_for_itself(
    serve: Serve, digits: Any, batches: list[tuple[str, int]]
) -> None:
    client = serve()
    noise = np.random.default_rng(2).integers(0, 256, (4, *digits.shape[1:]), np.uint8)
    queries = {
        "anomaly-scores": digits[:3],
        "anomaly-scores?fdr=0.6": np.concatenate([noise[:2], digits[3:5]]),
        "anomaly-scores?alpha=0.4&method=posterior_gap,log_likelihood": noise[2:3],
        "anomaly-scores?alpha=0.001": noise[3:],
    }
    requests = [asked(client, query, images) for query, images in queries.items()]
    alone = [request() for request in requests]
    batches.clear()
    explained = asked(client, "anomaly-scores?explain=true", digits[:1])
    *shared, _ = together(client, [*requests, explained])
    assert sorted(batches) == [("measure_x", 1), ("measure_x", 9)]
    assert shared == alone
    assert [result["is_anomaly"] for result in shared[3]] == [False]


def test_reconstructions_share_a_run(serve: Serve, digits: Any, batches: list[tuple[str, int]]) -> None:
    client = serve()

    def reconstruct(images: Any) -> Any:
        return read_npy(client.post("/v1/reconstruct", content=npy(images), headers=NPY).content)

    parts = [digits[:1], digits[1:4], digits[4:5]]
    alone = [reconstruct(part) for part in parts]
    batches.clear()
    shared = together(client, [lambda part=part: reconstruct(part) for part in parts])  # type: ignore[misc]
    assert ("reconstruct", 5) in batches
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=sum_error(28 * 28, 100))


def test_who_asks_for_many_images_is_not_joined(serve: Serve, digits: Any, batches: list[tuple[str, int]]) -> None:
    client = serve()
    many = np.concatenate([digits] * 7)
    requests = [asked(client, "log-likelihood?proposal=encoder&num_samples=2", part) for part in (many, digits[:1])]
    together(client, requests)
    assert sorted(batches) == [("infer", 1), ("infer", 70)]


def test_models_and_versions_are_not_mixed(serve: Serve, digits: Any, batches: list[tuple[str, int]]) -> None:
    client = serve()

    def encode(version: int) -> Any:
        answer = client.post(f"/v1/encode?version={version}", content=npy(digits), headers=NPY)
        return read_npy(answer.content)

    alone = [encode(1), encode(2)]
    batches.clear()
    shared = together(client, [lambda: encode(1), lambda: encode(2)])
    assert batches == [("encode", 10), ("encode", 10)]
    np.testing.assert_array_equal(alone, shared)
    assert not np.allclose(alone[0], alone[1])


def test_a_request_has_a_deadline_of_its_own(serve: Serve, digits: Any) -> None:
    client = serve()
    gate = hold_up(client)
    answer = client.post("/v1/encode", content=npy(digits), headers={**NPY, "x-request-timeout-ms": "20"})
    assert answer.status_code == 504
    assert answer.json()["type"] == "urn:logpx:problem:deadline-exceeded"
    assert "0.02 s" in answer.json()["detail"]
    gate.set()
    answer = client.post("/v1/encode", content=npy(digits), headers={**NPY, "x-request-timeout-ms": "60000"})
    assert answer.status_code == 200


def test_no_deadline_is_later_than_the_setting(serve: Serve, digits: Any) -> None:
    client = serve(timeout_seconds=0.05)
    gate = hold_up(client)
    answer = client.post("/v1/encode", content=npy(digits), headers={**NPY, "x-request-timeout-ms": "9" * 30})
    assert answer.status_code == 504
    assert "0.05 s" in answer.json()["detail"]
    gate.set()


@pytest.mark.parametrize("wrong", ["0", "-5", "1.5", "soon", "", "1e3"])
def test_a_deadline_that_is_no_number_is_refused(client: TestClient, digits: Any, wrong: str) -> None:
    headers = {**NPY, "x-request-timeout-ms": wrong}
    for route, body in (("encode", digits), ("log-likelihood", digits), ("anomaly-scores", digits), ("decode", digits)):
        answer = client.post(f"/v1/{route}", content=npy(body), headers={**headers, "accept": "*/*"})
        assert answer.status_code == 422
        assert answer.json()["type"] == "urn:logpx:problem:invalid-parameter"
        assert answer.json()["errors"][0]["parameter"] == "X-Request-Timeout-Ms"
    assert client.get("/v1/samples", headers={"x-request-timeout-ms": wrong}).status_code == 422


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_is_answered_told_and_not_ready(store: Any, digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()
    with TestClient(create_app(Settings(model_store=store, model="digits"), on_failure=told.set)) as client:
        while client.get("/readyz").status_code != 200:
            pass

        def fatal(*_: Any) -> Any:
            raise SystemExit("the device is gone")

        monkeypatch.setattr(Model, "encode", fatal)
        answer: httpx2.Response = client.post("/v1/encode", content=npy(digits), headers=NPY)
        assert answer.status_code == 503
        assert told.wait(60)
        assert client.get("/readyz").status_code == 503
        assert "dead" in client.get("/readyz").json()["detail"]


def test_admission_expects_what_requests_of_the_kind_really_took(serve: Serve, digits: Any) -> None:
    """Finding a mode takes decoder rows too, and annealing; the log tells them beside the rows that were asked for."""
    client = serve()
    queue = backend_of(client)._scheduler
    proposals = ("encoder", "laplace", "annealed", "auto")
    queries = {proposal: f"proposal={proposal}&num_samples=40" for proposal in proposals}
    took: dict[str, int] = {}
    for proposal, query in queries.items():
        with structlog.testing.capture_logs() as lines:
            answer = client.post(f"/v1/log-likelihood?{query}", content=npy(digits), headers=NPY | {"accept": "*/*"})
        assert answer.status_code == 200
        (line,) = [line for line in lines if line["event"] == "request"]
        assert line["rows"] == 40 * len(digits)
        took[proposal] = line["rows_run"]
    assert took["encoder"] == 40 * len(digits)
    assert took["laplace"] > 40 * len(digits)
    assert took["annealed"] > 400 * len(digits)
    for proposal, rows_run in took.items():
        kind = ("digits", 2, "log-likelihood", proposal, False)
        assert queue.expectation.rows(kind, 1000) == math.ceil(1000 * rows_run / (40 * len(digits)))
    gate = hold_up(client)
    body: dict[str, Any] = {"content": npy(digits), "headers": NPY | {"accept": "*/*"}}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, f"/v1/log-likelihood?{queries['laplace']}", **body)
        while queue.queued_jobs < 2:
            pass
        assert queue.queued_rows == 1 + took["laplace"]
        gate.set()
        assert waiting.result().status_code == 200


def test_ten_thousand_images_are_let_in_by_default_whatever_they_are_expected_to_take() -> None:
    async def scenario() -> None:
        backend = Backend(Settings(), Metrics(), lambda: None)
        queue, meter = backend._scheduler, Meter("strange", lambda: 0)
        queue.expectation.add("strange", asked=400, run=16_000, seconds=1)
        entered, gate = threading.Event(), threading.Event()

        def wait() -> Generator[None, None, None]:
            entered.set()
            gate.wait(60)
            yield

        answers = []
        for rows in (1, 10_000 * 400):  # a short one, and beside it the long one
            answers.append(backend.submit(alone(wait(), meter), None, rows=rows, timeout_seconds=60))
            await asyncio.to_thread(entered.wait, 60)
        assert queue.queued_jobs == 2
        assert Settings().max_rows <= queue.queued_rows < Settings().max_queued_rows
        gate.set()
        await asyncio.gather(*answers)
        backend.stop()

    asyncio.run(scenario())


def test_a_lost_gpu_is_answered_with_503_and_ends_the_process(
    store: Any, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ONNX Runtime tells it: a run fails by a CUDA error, and the probe that follows fails as well."""
    told = threading.Event()
    with TestClient(create_app(Settings(model_store=store, model="digits"), on_failure=told.set)) as client:
        while client.get("/readyz").status_code != 200:
            pass

        def fail(session: Session, inputs: Any) -> Any:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

        def explain(error: Exception) -> Exception:
            return DeviceLostError(f"the GPU has failed: {error}")

        monkeypatch.setattr(Session, "_run", fail)
        for model in backend_of(client).registry.loaded:
            monkeypatch.setattr(model._encoder, "_explain", explain)
        answer: httpx2.Response = client.post("/v1/encode", content=npy(digits), headers=NPY)
        assert answer.status_code == 503
        assert answer.json()["type"] == "urn:logpx:problem:not-ready"
        assert told.wait(60)
        assert "dead" in client.get("/readyz").json()["detail"]
        assert "CUDA failure 700" in str(backend_of(client)._scheduler.fatal_error)


def test_a_gpu_without_room_refuses_the_request_alone(
    client: TestClient, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Generator[None, None, None]:
        yield
        raise OutOfDeviceMemoryError("the GPU has no room for this computation")

    with monkeypatch.context() as patched:
        patched.setattr(Model, "encode", full)
        answer: httpx2.Response = client.post("/v1/encode", content=npy(digits), headers=NPY)
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:logpx:problem:out-of-device-memory"
    assert client.post("/v1/encode", content=npy(digits), headers=NPY).status_code == 200
    assert client.get("/readyz").status_code == 200


def test_rows_of_a_batch_are_what_suits_the_device(store: Any) -> None:
    for chunk_rows, expected, of_estimates in ((None, 256, 96), (7, 7, 7)):
        settings = Settings(model_store=store, model="digits", chunk_rows=chunk_rows)
        with TestClient(create_app(settings)) as client:
            while client.get("/readyz").status_code != 200:
                pass
            backend = backend_of(client)
            assert backend._scheduler.batch_rows == expected
            assert {model._chunk_rows for model in backend.registry.loaded} == {expected}
            assert {model._sampler.chunk_rows for model in backend.registry.loaded} == {of_estimates}
