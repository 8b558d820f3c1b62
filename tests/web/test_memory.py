"""Memory of requests: counted before it is taken, given back when they are over, and bounded together."""

import asyncio
import threading
import tracemalloc
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import structlog
import yaml
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.types import Message

from service.engine.chunks import complete
from service.engine.model import Model, Pixels
from service.web.connections.incoming_bodies import IncomingBodies
from service.web.connections.request_limits import Limits
from service.web.memory_budget import FREE_BYTES, MEMORY, SENT_AT_ONCE, SMALL_BYTES, Budget, Share
from service.web.operations.allocator import trim
from service.web.operations.settings import Settings
from service.web.problems import LimitError, MemoryFullError
from service.web.serving.backend import Backend
from service.web.serving.batch_queue import BatchMemory, BatchQueue, Computation, Job
from service.web.serving.batching import decoding
from service.web.serving.memory_ceiling import decoders_ceiling, resident_bytes, service_ceiling
from service.web.serving.scheduler import Scheduler
from tests.web.conftest import Serve
from tests.web.forms import npy
from tests.web.test_wrong_input import AS_JSON, AS_NPY, DECODE, ENCODE, check

MEBIBYTE = 2**20
LIMIT = 80 * MEBIBYTE


def test_what_is_free_is_not_counted_and_what_is_given_back_can_be_held_again() -> None:
    budget = Budget(LIMIT)
    share = Share(budget)
    share.hold(FREE_BYTES)
    assert budget.held == 0
    share.hold(MEBIBYTE)
    share.hold(3 * MEBIBYTE)
    assert (share.held, budget.held) == (3 * MEBIBYTE, 3 * MEBIBYTE)
    share.has(MEBIBYTE)
    assert budget.held == MEBIBYTE
    share.hold(FREE_BYTES)
    share.hold(2 * MEBIBYTE)
    share.end()
    assert (budget.held, budget.peak) == (0, 3 * MEBIBYTE)


def test_the_last_eighth_is_for_small_requests() -> None:
    budget = Budget(LIMIT, lambda: 7)
    Share(budget).hold(LIMIT - LIMIT // 8)
    large, small = Share(budget), Share(budget)
    with pytest.raises(MemoryFullError, match=r"this one needs 4194305 more; try again in 7 s") as caught:
        large.hold(SMALL_BYTES + 1)
    assert caught.value.retry_after == 7
    small.hold(SMALL_BYTES)
    Share(budget).hold(SMALL_BYTES)
    Share(budget).hold(LIMIT - budget.held)
    with pytest.raises(MemoryFullError):
        Share(budget).hold(FREE_BYTES + 1)
    for _ in range(1000):
        Share(budget).hold(FREE_BYTES)
    assert budget.held == LIMIT


def test_what_could_never_fit_is_another_error_and_a_refused_share_keeps_what_it_has() -> None:
    budget = Budget(LIMIT)
    share = Share(budget)
    share.hold(10 * MEBIBYTE)
    for refused in (LIMIT, LIMIT - LIMIT // 8 + 1):
        with pytest.raises(LimitError, match="at most 73400320 are given to one"):
            share.hold(refused)
        with pytest.raises(LimitError):
            budget.check(refused)
    assert budget.held == share.held == 10 * MEBIBYTE
    share.has(2 * LIMIT)  # what is there already is counted, whatever the limit
    assert budget.held == 2 * LIMIT
    share.hold(LIMIT // 2)
    assert budget.held == LIMIT // 2


def test_what_is_lent_is_given_back_by_the_last() -> None:
    budget = Budget(LIMIT)
    share = Share(budget)
    share.hold(MEBIBYTE)
    share.lend()
    share.has(FREE_BYTES + 1)
    share.end()
    assert budget.held == MEBIBYTE
    share.end()
    assert budget.held == 0


def test_many_threads_count_right() -> None:
    budget = Budget(2**40)

    def work() -> None:
        for number in range(2000):
            share = Share(budget)
            share.hold(FREE_BYTES + 1 + number)
            share.end()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.held == 0


def test_of_bodies_that_arrive_the_one_that_stalls_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.web.connections.incoming_bodies._GRACE_SECONDS", 0.05)

    async def arrive() -> None:
        incoming_bodies = IncomingBodies(Budget(LIMIT))
        stalled, steady = incoming_bodies.add(), incoming_bodies.add()
        incoming_bodies.grow(stalled, 30 * MEBIBYTE)  # much, and then nothing
        for size in range(1, 6):
            await asyncio.sleep(0.04)
            incoming_bodies.grow(steady, size * MEBIBYTE)
        late = incoming_bodies.add()
        incoming_bodies.grow(late, 6 * MEBIBYTE)
        assert (stalled.gave_way, steady.gave_way, late.gave_way) == (True, False, False)
        incoming_bodies.grow(late, 34 * MEBIBYTE)
        last = incoming_bodies.add()
        await asyncio.sleep(0.06)
        incoming_bodies.grow(last, MEBIBYTE)
        incoming_bodies.end(steady)
        incoming_bodies.end(late)
        with pytest.raises(MemoryFullError, match="this one came slowest"):
            incoming_bodies.grow(last, 41 * MEBIBYTE)
        for body in (stalled, steady, late):
            incoming_bodies.end(body)

    asyncio.run(arrive())


# ── Computations


def job(memory: int) -> Job:
    return Job(None, 1, 1, 1, 1.0, 1, 0.0, asyncio.Future(), memory)


def nothing(_: Any) -> Generator[None, None, list[None]]:
    yield
    return [None]


def test_a_large_computation_waits_for_those_that_have_begun_and_small_ones_pass() -> None:
    async def take() -> None:
        queue = BatchQueue(256, 640)
        computations = {name: Computation(None, nothing) for name in ("first", "second", "third", "small", "free")}
        for name, memory in (("first", 500), ("second", 200), ("third", 100), ("small", 10), ("free", 0)):
            queue.put(computations[name], job(memory))
        names = {id(computation): name for name, computation in computations.items()}

        def taken() -> tuple[str, Any]:
            batch = queue.take()
            assert batch is not None
            return names[id(batch.computation)], batch

        name, first = taken()
        assert name == "first"
        queue.put_back(first)
        assert taken()[0] == "first"  # turns alternate
        assert taken()[0] == "small"  # `third` would fit, and comes after `second`, which does not
        queue.put_back(first)
        assert taken()[0] == "first"
        assert taken()[0] == "free"
        queue.end(first)
        assert [taken()[0] for _ in range(2)] == ["second", "third"]

    asyncio.run(take())


def test_what_needs_more_than_there_is_begins_alone_and_what_nobody_waits_for_is_taken_to_be_dropped() -> None:
    room = BatchMemory(640)
    assert room.fits(10**9)
    room.add(10**9)
    assert not room.fits(11)
    assert room.fits(10)
    room.add(-(10**9))
    assert room.fits(11)

    async def take() -> None:
        queue = BatchQueue(256, 640)
        for memory in (600, 600):
            queue.put(Computation(None, nothing), dropped := job(memory))
        begun = queue.take()
        assert begun is not None
        dropped.answer.set_result(None)
        found = queue.take()
        assert found is not None
        assert found.jobs == [dropped]

    asyncio.run(take())


def test_what_a_job_carries_is_held_until_it_is_settled_though_its_client_has_gone() -> None:
    async def run() -> None:
        scheduler = Scheduler(max_rows=100, max_jobs=10, batch_rows=10)
        budget, begun, go = Budget(LIMIT), threading.Event(), threading.Event()

        def compute(_: Any) -> Generator[None, None, list[None]]:
            begun.set()
            go.wait(60)
            yield
            return [None]

        share = Share(budget)
        share.hold(MEBIBYTE)
        answer = scheduler.submit(Computation(None, compute), None, rows=1, timeout_seconds=60, share=share)
        await asyncio.to_thread(begun.wait, 60)
        answer.cancel()
        share.end()  # the request is over
        await asyncio.sleep(0.01)
        assert budget.held == MEBIBYTE
        go.set()
        while budget.held:
            await asyncio.sleep(0.001)
        scheduler.stop()

    asyncio.run(run())


def test_a_computation_takes_no_more_than_is_told(client: TestClient) -> None:
    model = backend_of(client).registry.loaded[0]
    rng = np.random.default_rng(0)
    for count, samples, proposal in (
        (1, 20_000, "encoder"),
        (30, 1000, "prior"),
        (20, 400, "laplace"),
        (40, 4, "laplace"),
        (20, 400, "annealed"),
        (3, 8000, "annealed"),
        (40, 4, "annealed"),
        (20, 400, "auto"),
    ):
        images = rng.random((count, *model.description.image.chw), np.float32)

        def compute(x: Pixels = images, proposal: str = proposal, samples: int = samples) -> None:
            complete(model.log_likelihood(x, proposal=proposal, num_samples=samples))

        assert peak_of(compute) < model.estimates_bytes(count, samples) + 2 * MEBIBYTE  # beside it, a run's outputs


def peak_of(compute: Callable[[], object]) -> int:
    compute()
    tracemalloc.start()
    try:
        compute()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_request_of_a_batch_does_not_keep_the_results_of_the_others(client: TestClient) -> None:
    model = backend_of(client).registry.loaded[0]
    computation = decoding(model, lambda _: None)
    latents = [np.zeros((count, model.description.latent_dim), np.float32) for count in (1, 7, 2)]
    parts = complete(computation.compute(latents))
    assert [len(part) for part in parts] == [1, 7, 2]
    assert all(part.base is None for part in parts)


# ── Over HTTP


def backend_of(client: TestClient) -> Backend:
    return cast(Backend, cast(FastAPI, client.app).state.backend)


def held(client: TestClient) -> float:
    (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith("logpx_held_memory_bytes ")]
    return float(line.split()[1])


def test_without_memory_a_request_is_429_and_a_small_one_is_not(serve: Serve) -> None:
    client = serve(max_memory_bytes=2**20, max_body_bytes=3 * 2**17)
    large = npy(np.zeros((400, 28, 28), np.uint8))
    check(client.post(ENCODE, content=large, headers=AS_NPY), 413, "limit-exceeded", "bytes of memory; at most 786432")
    assert client.post(ENCODE, content=large[:1] * 1000, headers=AS_NPY).status_code == 422
    check(client.get("/v1/samples?n=300"), 413, "limit-exceeded", "bytes of memory")
    assert client.get("/v1/samples?n=3").status_code == 200
    assert held(client) == 0


def test_a_full_memory_is_told_by_the_head_with_when_to_come_back(serve: Serve) -> None:
    client = serve()
    (budget,) = [item.kwargs["budget"] for item in cast(FastAPI, client.app).user_middleware if "budget" in item.kwargs]
    assert isinstance(budget, Budget)
    other = Share(budget)
    other.hold(budget.limit_each)
    body = npy(np.zeros((6000, 28, 28), np.uint8))
    answer = client.post(ENCODE, content=body, headers=AS_NPY)
    check(answer, 429, "memory-full", "try again in 1 s")
    assert answer.headers["retry-after"] == "1"
    pieces = (body[start : start + 2**17] for start in range(0, len(body), 2**17))  # its length is not told
    answer = client.post(ENCODE, content=pieces, headers=AS_NPY)
    check(answer, 429, "memory-full", "bytes of memory")
    assert client.post(ENCODE, content=npy(np.zeros((10, 28, 28), np.uint8)), headers=AS_NPY).status_code == 200
    other.end()
    assert client.post(ENCODE, content=body, headers=AS_NPY).status_code == 200
    assert held(client) == 0


@pytest.mark.parametrize("status", ["right", "wrong"])
def test_everything_is_given_back_whatever_came_of_it(client: TestClient, status: str) -> None:
    wrong = status == "wrong"
    images = np.full((300, 28, 28), 2 if wrong else 0.5, np.float32)
    latents = np.full((3000, 3), np.nan if wrong else 0, np.float32)
    as_json = b'{"latents":[%b]}' % b",".join([b"[0,0,%b]" % (b'"0"' if wrong else b"0")] * 3000)
    answers = [
        client.post(ENCODE, content=npy(images), headers=AS_NPY),
        client.post("/v1/log-likelihood?proposal=encoder&num_samples=4", content=npy(images), headers=AS_NPY),
        client.post(DECODE, content=npy(latents), headers=AS_NPY),
        client.post(DECODE, content=as_json, headers=AS_JSON),
        client.get(f"/v1/samples?n=500&temperature={-1 if wrong else 1}"),
    ]
    assert [answer.status_code for answer in answers] == [422 if wrong else 200] * 5
    assert held(client) == 0


@pytest.mark.parametrize("size", [256_000, 1000])
def test_a_large_answer_leaves_in_pieces_that_do_not_keep_it_and_let_others_in(size: int) -> None:
    whole = memoryview(bytes(range(256)) * 1000)
    held_while_sent: list[int] = []
    sent: list[Message] = []
    in_a_row, most_in_a_row = 0, 0
    budget = Budget(LIMIT)

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"%d" % (len(whole) + 4))]
        scope[MEMORY].hold(2 * len(whole))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for start in range(0, len(whole), size):
            await send({"type": "http.response.body", "body": whole[start : start + size], "more_body": True})
        await send({"type": "http.response.body", "body": b"last", "more_body": False})

    async def send(message: Message) -> None:
        """A client that takes everything at once: nothing here waits."""
        nonlocal in_a_row, most_in_a_row
        sent.append(message)
        held_while_sent.append(budget.held)
        in_a_row += len(message.get("body", b""))
        most_in_a_row = max(most_in_a_row, in_a_row)

    async def beside_others(task: "asyncio.Task[None]") -> None:
        """What the event loop also has to do, once in every turn."""
        nonlocal in_a_row
        while not task.done():
            in_a_row = 0
            await asyncio.sleep(0)

    async def ask(limits: Limits) -> None:
        task = asyncio.create_task(limits(scope, receive, send))
        await beside_others(task)
        await task

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    scope = {"type": "http", "headers": [], "query_string": b"", "method": "GET", "path": "/"}
    asyncio.run(ask(Limits(answer, Settings(), budget)))
    assert MEMORY in scope
    assert most_in_a_row < 2 * SENT_AT_ONCE, "others had to wait while all of it was sent"
    bodies = [message["body"] for message in sent[1:]]
    assert b"".join(bodies) == bytes(whole) + b"last"
    assert all(type(body) is bytes and len(body) <= SENT_AT_ONCE for body in bodies)
    assert [message["more_body"] for message in sent[1:]] == [True] * (len(bodies) - 1) + [False]
    assert set(held_while_sent) == {len(whole) + 4}
    assert budget.held == 0


# ── The ceiling


def test_the_container_has_room_for_what_the_service_can_have() -> None:
    composed = yaml.safe_load((Path(__file__).parents[2] / "docker-compose.yml").read_text())["services"]["service"]
    with_models = 2**29 + 2**28  # resident with the bundled models, and what their graphs keep
    most = service_ceiling(Settings(), [], with_models) + decoders_ceiling(Settings())
    assert most < int(composed["mem_limit"].removesuffix("g")) * 2**30
    assert composed["pids_limit"] > 0


def test_the_ceiling_grows_with_each_setting_that_lets_more_in(client: TestClient) -> None:
    models: list[Model] = backend_of(client).registry.loaded
    least = service_ceiling(Settings(), models, 0)
    for more in ({"max_memory_bytes": 2**31}, {"max_connections": 2000}, {"max_num_samples": 10**7}):
        assert service_ceiling(Settings.model_validate(more), models, 0) > least
    assert service_ceiling(Settings(), models * 2, 1000) > least + 1000
    later = sum(model.graph_bytes for model in models)
    assert service_ceiling(Settings(), models, 0, models) > least + 8 * later > least
    assert decoders_ceiling(Settings(decoders=0)) == 0
    assert decoders_ceiling(Settings(decoders=3)) > decoders_ceiling(Settings(max_pixels=2**22)) > 0


def test_the_ceiling_is_told_again_once_another_version_is_loaded(serve: Serve) -> None:
    client = serve()
    backend = backend_of(client)
    with structlog.testing.capture_logs() as lines:
        asked: dict[str, Any] = {"content": npy(np.zeros((1, 28, 28), np.uint8)), "headers": AS_NPY}
        for version in (1, 1, 2):  # 2 is the default
            assert client.post(f"{ENCODE}?version={version}", **asked).status_code == 200
    (line,) = [line for line in lines if line["event"] == "memory"]
    (other,) = [one for one in backend.registry.loaded if (one.manifest.name, one.manifest.version) == ("digits", 1)]
    without = [model for model in backend.registry.loaded if model is not other]
    before = service_ceiling(backend.settings, without, line["resident"])
    assert line["at_most"] > before + 8 * other.graph_bytes + other.run_bytes


def test_the_process_knows_its_memory_and_can_give_some_back() -> None:
    assert resident_bytes() > 10 * MEBIBYTE
    trim()
    assert resident_bytes() > 10 * MEBIBYTE
