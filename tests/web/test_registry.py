"""Versions that come, go and break while the real app serves."""

import asyncio
import errno
import gc
import os
import re
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import structlog
from fastapi.testclient import TestClient

from model_store import ImageShape, PixelPreparation, StoreError, open_version, pin, publish, unpin
from service.engine.model import Model
from service.engine.runtime import DeviceLostError, OutOfDeviceMemoryError
from service.web.app import create_app
from service.web.models.loading import Loads, LoadTime
from service.web.models.opening import Opener
from service.web.models.registry import Registry
from service.web.operations.metrics import Metrics
from service.web.operations.settings import Settings
from service.web.outcome import DeadlineError
from tests.toys import bernoulli_toy
from tests.trials import TrialsInProcess
from tests.web.conftest import COLOUR_SHAPE, DIGIT_SHAPE, put
from tests.web.forms import npy

BODY: dict[str, Any] = {
    "content": npy(np.random.default_rng(1).integers(0, 256, (2, 28, 28), np.uint8)),
    "headers": {"content-type": "application/x-npy"},
}
ADMIN = "a-key-for-the-admin"
Run = Callable[..., TestClient]


def add(store: Path, seed: int = 5, name: str = "digits", shape: ImageShape = DIGIT_SHAPE) -> None:
    put(store, bernoulli_toy(shape, name=name, seed=seed, preparation=PixelPreparation(binarisation="threshold")))


def damage(store: Path, version: int, name: str = "digits") -> Path:
    """Flip a bit of the decoder."""
    file = store / name / str(version) / "decoder.onnx"
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(content)
    return file


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """An app over the store in `tmp_path`, ready, and a client with an admin key."""
    with ExitStack() as running:

        def start(**settings: Any) -> TestClient:
            app = create_app(Settings(**{"model_store": tmp_path, "admin_keys": ADMIN, **settings}))
            client = running.enter_context(TestClient(app, raise_server_exceptions=False, headers={"X-API-Key": ADMIN}))
            while client.get("/readyz").status_code != 200:
                pass
            return client

        yield start


def reload(client: TestClient) -> dict[str, Any]:
    """What is told of each model after a reload."""
    answer = client.post("/v1/admin/reload")
    assert answer.status_code == 200
    assert answer.json() == client.get("/v1/models").json()
    return {model["name"]: model for model in answer.json()["models"]}


def encode(client: TestClient, query: str = "") -> int:
    """The version that answers."""
    answer = client.post(f"/v1/encode?{query}", **BODY)
    assert answer.status_code == 200, answer.text
    version: int = answer.json()["version"]
    return version


def loaded_gauge(client: TestClient) -> list[str]:
    """The models and versions that the metrics call loaded."""
    lines = client.get("/metrics").text.splitlines()
    return [line.split("{")[1].split("}")[0] for line in lines if line.startswith("logpx_execution_provider_info{")]


def reloads(client: TestClient, outcome: str) -> float:
    prefix = f'logpx_reloads_total{{outcome="{outcome}"}} '
    (found,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(prefix)]
    return float(found.removeprefix(prefix))


def references(client: TestClient) -> dict[int, "weakref.ref[Model]"]:
    """The models in memory by version; that they are watched does not keep them."""
    registry: Registry = client.app.state.backend.registry  # type: ignore[attr-defined]
    return {model.manifest.version: weakref.ref(model) for model in registry.loaded}


def test_a_published_version_takes_over_and_the_old_one_finishes_its_work_and_is_freed(
    run: Run, tmp_path: Path
) -> None:
    add(tmp_path)
    client = run()
    backend = client.app.state.backend  # type: ignore[attr-defined]
    old = references(client)[1]
    answers: list[Any] = []
    route = "/v1/log-likelihood?proposal=encoder&num_samples=100000"
    body = {**BODY, "content": npy(np.full((16, 28, 28), 128, np.uint8))}  # seconds of work
    long = threading.Thread(target=lambda: answers.append(client.post(route, **body)))
    long.start()
    while not backend._scheduler.queued_jobs:
        assert long.is_alive()
    add(tmp_path, seed=6)
    assert encode(client) == 1
    told = reload(client)["digits"]
    assert (told["default_version"], told["versions"], told["loaded_versions"]) == (2, [1, 2], [2])
    assert (told["manifest"]["version"], told["execution_provider"]) == (2, "CPUExecutionProvider")
    assert loaded_gauge(client) == ['model="digits",provider="CPUExecutionProvider",version="2"']
    assert encode(client) == 2
    assert long.is_alive()  # all of this while the old version computed
    assert old() is not None
    long.join()
    assert (answers[0].status_code, answers[0].json()["version"]) == (200, 1)
    encode(client)  # event loop and inference thread have let go of the last request
    gc.collect()  # of whose frames the web framework may have made a cycle
    assert old() is None
    assert reloads(client, "changed") == 1


def test_polling_takes_up_versions_while_every_request_is_answered(run: Run, tmp_path: Path) -> None:
    add(tmp_path)
    client = run(reload_seconds=0.01, admin_keys=None)
    for version in (2, 3):
        add(tmp_path, seed=version)
        seen = [encode(client)]
        while seen[-1] != version:
            seen.append(encode(client))
        assert sorted(seen) == seen
    refused = client.post("/v1/admin/reload")
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:logpx:problem:forbidden")


def test_nothing_is_taken_up_unasked(run: Run, tmp_path: Path) -> None:
    add(tmp_path)
    client = run()
    add(tmp_path, seed=6)
    assert encode(client) == 1
    assert encode(client, "version=2") == 2
    assert encode(client) == 1
    told = client.get("/v1/models/digits").json()
    assert (told["default_version"], told["versions"], told["loaded_versions"]) == (1, [1, 2], [1, 2])
    assert client.get("/v1/models/digits?version=2").json()["manifest"]["version"] == 2
    assert reload(client)["digits"]["loaded_versions"] == [2]


def hide_a_contradiction(store: Path) -> None:
    """Hashes fit, but the graphs are of colour images."""
    grey, colour = bernoulli_toy(DIGIT_SHAPE, name="digits"), bernoulli_toy(COLOUR_SHAPE)
    replace(grey, encoder=colour.encoder).publish(store)


def publish_and_damage(store: Path) -> None:
    add(store, seed=6)
    damage(store, 2)


BREAKAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (publish_and_damage, "decoder.onnx: SHA-256 is"),
    "graphs of another shape": (hide_a_contradiction, "encoder.onnx: input 'x' has shape"),
    "an empty folder": (lambda store: (store / "digits" / "2").mkdir(), "manifest.json: missing"),
    "a file": (lambda store: (store / "digits" / "2").write_text(""), "2: cannot be read (Not a directory)"),
}


@pytest.mark.parametrize(("breakage", "reason"), BREAKAGES.values(), ids=BREAKAGES)
def test_a_broken_version_is_refused_and_named_and_the_old_one_serves(
    run: Run, tmp_path: Path, breakage: Callable[[Path], object], reason: str
) -> None:
    add(tmp_path)
    with structlog.testing.capture_logs() as lines:
        client = run(reload_seconds=0.01)
        shutil.copytree(tmp_path, tmp_path / ".aside")
        breakage(tmp_path / ".aside")
        (tmp_path / ".aside" / "digits" / "2").rename(tmp_path / "digits" / "2")  # at once, as `publish` does it
        while not reloads(client, "refused"):
            assert encode(client) == 1
        looked = reloads(client, "unchanged")
        while reloads(client, "unchanged") < looked + 3:
            assert encode(client) == 1
        (told,) = client.get("/v1/models").json()["models"]
        asked = client.post("/v1/encode?version=2", **BODY)
    assert (told["default_version"], told["loaded_versions"]) == (1, [1])
    (refused,) = told["refused"]
    assert refused["version"] == 2
    assert refused["reason"].startswith(reason)
    assert str(tmp_path) not in str(told)
    assert asked.status_code == 503
    assert asked.json()["type"] == "urn:logpx:problem:broken-model"
    assert [line["version"] for line in lines if line["event"] == "version refused"] == [2]
    assert "logpx_refused_versions 1.0" in client.get("/metrics").text


def test_a_refusal_is_logged_once_and_a_mended_version_is_taken_up(run: Run, tmp_path: Path) -> None:
    add(tmp_path)
    add(tmp_path / "aside", seed=6)
    with structlog.testing.capture_logs() as lines:
        client = run()
        shutil.copytree(tmp_path / "aside" / "digits" / "1", tmp_path / "digits" / "2")
        assert [refused["version"] for refused in reload(client)["digits"]["refused"]] == [2]  # says it is version 1
        reload_as_polling_does(client)
        reload_as_polling_does(client)
        assert [line["version"] for line in lines if line["event"] == "version refused"] == [2]
        reload(client)  # an operator's word makes it look again
        assert [line["version"] for line in lines if line["event"] == "version refused"] == [2, 2]
    manifest = tmp_path / "digits" / "2" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1,\n  "created"', '"version": 2,\n  "created"'))
    reload_as_polling_does(client)
    (told,) = client.get("/v1/models").json()["models"]
    assert (told["default_version"], told["refused"]) == (2, [])
    assert encode(client) == 2


def reload_as_polling_does(client: TestClient) -> None:
    assert client.portal is not None
    registry: Registry = client.app.state.backend.registry  # type: ignore[attr-defined]
    client.portal.call(registry.reload)


def test_a_version_damaged_while_it_serves_serves_on(run: Run, tmp_path: Path) -> None:
    add(tmp_path)
    add(tmp_path, seed=6)
    client = run()
    expected = client.post("/v1/encode", **BODY).content
    damage(tmp_path, 2)
    told = reload(client)["digits"]
    assert (told["default_version"], told["loaded_versions"]) == (2, [2])
    assert [refused["version"] for refused in told["refused"]] == [2]
    assert client.post("/v1/encode", **BODY).content == expected


def test_removing_the_newest_version_rolls_back(run: Run, tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        add(tmp_path, seed=seed)
    client = run()
    damage(tmp_path, 2)
    shutil.rmtree(tmp_path / "digits" / "3")
    assert encode(client) == 3
    told = reload(client)["digits"]
    assert (told["default_version"], told["versions"], told["loaded_versions"]) == (1, [1, 2], [1])
    assert [refused["version"] for refused in told["refused"]] == [2]
    shutil.rmtree(tmp_path / "digits" / "2")
    assert reload(client)["digits"]["refused"] == []
    shutil.rmtree(tmp_path / "digits")
    assert reload(client)["digits"]["versions"] == []
    assert encode(client) == 1  # there is nothing to take its place
    shutil.rmtree(tmp_path)
    answer = client.post("/v1/admin/reload")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:logpx:problem:broken-model")
    assert reloads(client, "failed") == 1
    assert encode(client) == 1


def test_a_number_that_is_used_again_is_another_version(run: Run, tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        add(tmp_path, seed=seed)
    client = run()
    before = [client.post(f"/v1/encode?version={version}", **BODY).content for version in (1, 3)]
    for version, seed in ((1, 11), (3, 13)):
        folder = tmp_path / "digits" / str(version)
        stored = open_version(tmp_path, "digits", version)
        shutil.rmtree(folder)
        other = bernoulli_toy(DIGIT_SHAPE, name="digits", seed=seed)
        described = stored.manifest.model_copy(update={"name": "aside"})
        kept = publish(
            tmp_path,
            described,
            encoder=other.encoder,
            decoder=other.decoder,
            likelihood=other.likelihood,
            calibration=other.calibration,
        )
        manifest = kept.manifest.model_copy(update={"name": "digits", "version": version})
        (kept.path / "manifest.json").write_text(manifest.model_dump_json())
        kept.path.rename(folder)
    shutil.rmtree(tmp_path / "aside")
    assert reload(client)["digits"]["refused"] == []
    after = [client.post(f"/v1/encode?version={version}", **BODY).content for version in (1, 3)]
    assert all(new != old for new, old in zip(after, before, strict=True))


def test_versions_asked_for_by_number_do_not_pile_up(run: Run, tmp_path: Path) -> None:
    for seed in range(1, 6):
        add(tmp_path, seed=seed)
    client = run(max_other_versions=2)
    seen: dict[int, weakref.ref[Model]] = {}
    for version, loaded in (
        (1, [1, 5]),
        (2, [1, 2, 5]),
        (1, [1, 2, 5]),
        (3, [1, 3, 5]),
        (5, [1, 3, 5]),
        (4, [3, 4, 5]),
    ):
        assert encode(client, f"version={version}") == version
        assert client.get("/v1/models/digits").json()["loaded_versions"] == loaded
        assert len(loaded_gauge(client)) == len(loaded)
        seen |= references(client)
    gc.collect()
    assert sorted(version for version, model in seen.items() if model() is not None) == [3, 4, 5]
    assert client.get("/v1/models/digits?version=4").json()["default_version"] == 5


@pytest.fixture
def unlistable(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of folders that cannot be listed; a test that runs as root cannot have it by permissions."""
    names: set[str] = set()
    scandir = os.scandir

    def refuse(folder: Path) -> Any:
        if Path(folder).name in names:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    return names


def test_a_model_whose_folder_cannot_be_listed_is_refused_alone_and_named(
    run: Run, tmp_path: Path, unlistable: set[str]
) -> None:
    for name in ("digits", "closed"):
        add(tmp_path, name=name)
    unlistable.add("closed")
    with structlog.testing.capture_logs() as lines:
        client = run(model="digits")
        for _ in range(2):
            reload_as_polling_does(client)
    refused = [line for line in lines if line["event"] == "model refused"]
    assert [(line["model"], line["problem"]) for line in refused] == [("closed", "cannot be read (Permission denied)")]
    assert encode(client) == 1
    told = {model["name"]: model for model in client.get("/v1/models").json()["models"]}
    assert told["digits"]["refused"] == []
    assert told["closed"]["refused"] == [{"version": None, "reason": "closed: cannot be read (Permission denied)"}]
    assert (told["closed"]["default_version"], told["closed"]["versions"]) == (None, [])
    assert "logpx_refused_versions 1.0" in client.get("/metrics").text
    for query, status in (("model=closed", 503), ("model=closed&version=7", 503), ("model=nobody", 404)):
        assert client.post(f"/v1/encode?{query}", **BODY).status_code == status
        assert client.get("/v1/models/" + query.partition("=")[2].replace("&", "?")).status_code == status
    assert "logpx_refused_versions 1.0" in client.get("/metrics").text  # whatever numbers were asked for
    unlistable.clear()
    assert reload(client)["closed"]["refused"] == []
    assert encode(client, "model=closed") == 1


def test_a_folder_that_is_closed_while_its_model_serves_changes_nothing_for_it(
    run: Run, tmp_path: Path, unlistable: set[str]
) -> None:
    for seed in (1, 2):
        add(tmp_path, seed=seed)
    client = run()
    assert [encode(client, "version=1"), encode(client)] == [1, 2]
    unlistable.add("digits")
    reload_as_polling_does(client)
    reload_as_polling_does(client)
    assert (reloads(client, "refused"), reloads(client, "unchanged"), reloads(client, "failed")) == (1, 1, 0)
    assert [encode(client, "version=1"), encode(client)] == [1, 2]
    (told,) = client.get("/v1/models").json()["models"]
    assert [refused["version"] for refused in told["refused"]] == [None]


def test_a_store_of_nothing_but_unreadable_models_cannot_be_served_and_names_them(
    tmp_path: Path, unlistable: set[str]
) -> None:
    add(tmp_path)
    unlistable.add("digits")

    async def load() -> None:
        await Registry(Settings(model_store=tmp_path), Metrics()).load()

    with pytest.raises(StoreError, match=r"no version of digits can be served: .*digits: cannot be read \(Permission"):
        asyncio.run(load())


def test_one_readable_model_beside_an_unreadable_one_is_not_the_only_one(
    run: Run, tmp_path: Path, unlistable: set[str]
) -> None:
    for name in ("digits", "closed"):
        add(tmp_path, name=name)
    unlistable.add("closed")
    client = run()
    assert client.post("/v1/encode", **BODY).status_code == 404  # it says that there are several
    assert encode(client, "model=digits") == 1


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Versions asked for by number load only once this is set; `opened` lists them."""
    event = threading.Event()
    event.opened = []  # type: ignore[attr-defined]
    opening = Opener._open

    def wait(self: Opener, key: Any, *arguments: Any) -> Any:
        if key[1] != 3:
            event.opened.append(key[1])  # type: ignore[attr-defined]
            event.wait(60)
        return opening(self, key, *arguments)

    monkeypatch.setattr(Opener, "_open", wait)
    yield event
    event.set()


def test_loading_a_version_is_within_the_requests_deadline_and_goes_on_for_others(
    run: Run, tmp_path: Path, gate: Any
) -> None:
    for seed in (1, 2, 3):
        add(tmp_path, seed=seed)
    client = run()
    hurried = {**BODY, "headers": {**BODY["headers"], "X-Request-Timeout-Ms": "20"}}
    for route in ("encode", "log-likelihood", "anomaly-scores"):
        late = client.post(f"/v1/{route}?version=1", **hurried)
        assert (late.status_code, late.json()["type"]) == (504, "urn:logpx:problem:deadline-exceeded")
        assert late.json()["detail"].startswith("not loaded within 0.02 s")
    assert encode(client) == 3  # what is in memory is served meanwhile
    with ThreadPoolExecutor(3) as pool:
        patient = [pool.submit(encode, client, "version=1") for _ in range(3)]
        while gate.opened != [1]:
            pass
        gate.set()
        assert [answer.result() for answer in patient] == [1, 1, 1]
    assert gate.opened == [1]  # once, for all who asked
    assert client.get("/v1/models/digits").json()["loaded_versions"] == [1, 3]


def test_what_the_store_has_not_is_told_while_another_version_loads(run: Run, tmp_path: Path, gate: Any) -> None:
    for seed in (1, 2, 3):
        add(tmp_path, seed=seed)
    client = run()
    headers = {**BODY["headers"], "X-Request-Timeout-Ms": "100"}
    assert client.post("/v1/encode?version=1", **{**BODY, "headers": headers}).status_code == 504  # it loads on
    while gate.opened != [1]:
        pass
    headers["X-Request-Timeout-Ms"] = "20000"
    for query in ("version=9", "model=unheard-of&version=1"):
        assert client.post(f"/v1/encode?{query}", **{**BODY, "headers": headers}).status_code == 404


def test_a_gpu_without_room_for_a_version_is_not_the_versions_fault_and_counts(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (1, 2):
        add(tmp_path, seed=seed)
    client = run()
    opener: Opener = client.app.state.backend.registry._opener  # type: ignore[attr-defined]
    opener._load_time = LoadTime(lambda: 0.0)
    left = opener._load_time._left

    def full(*_: Any, **__: Any) -> Model:
        time.sleep(0.002)
        raise OutOfDeviceMemoryError("the GPU has no room for this computation")

    with monkeypatch.context() as patched:
        patched.setattr("service.web.models.opening.Model", SimpleNamespace(open=full))  # a trial has no GPU
        answer = client.post("/v1/encode?version=1", **BODY)
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:logpx:problem:out-of-device-memory")
        assert opener._load_time._left < left
        add(tmp_path, seed=3)
        assert client.post("/v1/admin/reload").status_code == 503
    assert 'logpx_reloads_total{outcome="failed"} 1.0' in client.get("/metrics").text
    assert encode(client) == 2
    assert client.get("/v1/models/digits").json()["refused"] == []
    assert reload(client)["digits"]["default_version"] == 3


def test_a_gpu_that_is_lost_while_a_version_is_opened_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (1, 2):
        add(tmp_path, seed=seed)
    told = threading.Event()
    app = create_app(Settings(model_store=tmp_path), on_failure=told.set)
    with TestClient(app, raise_server_exceptions=False) as client:
        while client.get("/readyz").status_code != 200:
            pass

        def lost(*_: Any, **__: Any) -> Model:
            raise DeviceLostError("the GPU has failed")

        monkeypatch.setattr("service.web.models.opening.Model", SimpleNamespace(open=lost))  # a trial has no GPU
        answer = client.post("/v1/encode?version=1", **BODY)
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:logpx:problem:not-ready")
        assert told.wait(60)
        assert "dead" in client.get("/readyz").json()["detail"]


def test_loading_takes_of_the_time_for_computing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path)
    client = run(timeout_seconds=100)
    found = Registry.model

    async def slow(self: Registry, *names: Any, timeout_seconds: float) -> Any:
        assert timeout_seconds == 100
        model, _ = await found(self, *names, timeout_seconds=timeout_seconds)
        return model, 100.0

    monkeypatch.setattr(Registry, "model", slow)
    for route in ("encode", "log-likelihood", "anomaly-scores"):
        assert client.post(f"/v1/{route}", **BODY).status_code == 504


def test_an_answer_tells_how_long_its_version_took_to_load(run: Run, tmp_path: Path) -> None:
    for seed in (1, 2):
        add(tmp_path, seed=seed)
    with structlog.testing.capture_logs() as lines:
        client = run()
        timings = [
            client.post(f"/v1/{route}?{query}", **BODY).headers["server-timing"]
            for route, query in (("encode", "version=1"), ("encode", "version=1"), ("log-likelihood", ""))
        ]
    first, second, default = timings
    found = re.fullmatch(r"load;dur=([0-9.]+), queue;dur=[0-9.]+, compute;dur=[0-9.]+", first)
    assert found is not None
    (seconds,) = [line["load_seconds"] for line in lines if "load_seconds" in line]
    # Both rounded, to half a thousandth of a millisecond.
    assert float(found[1]) == pytest.approx(1000 * seconds, rel=0, abs=0.001)
    assert seconds > 0
    assert "load" not in second + default


def test_versions_that_drive_one_another_out_are_not_loaded_all_the_time(run: Run, tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        add(tmp_path, seed=seed)
    client = run(max_other_versions=1)
    opener: Opener = client.app.state.backend.registry._opener  # type: ignore[attr-defined]
    now = [0.0]
    opener._load_time = LoadTime(lambda: now[0])
    opener._load_time.spend(60.0)  # some loads, one after the other
    assert encode(client, "version=1") == 1  # nobody knows before how long it takes
    assert opener._load_time._left < 0
    now[0] = 0.0
    opener._load_time = LoadTime(lambda: now[0])
    opener._load_time.spend(62)
    refused = client.post("/v1/encode?version=2", **BODY)
    assert (refused.status_code, refused.json()["type"]) == (429, "urn:logpx:problem:too-many-loads")
    assert refused.headers["retry-after"] == "20"
    assert [encode(client, "version=1"), encode(client)] == [1, 3]  # what is in memory needs no loading
    assert client.post("/v1/encode?version=9", **BODY).status_code == 404
    add(tmp_path, seed=4)
    assert reload(client)["digits"]["default_version"] == 4  # nor does it keep a new version from being taken up
    now[0] = 20.0
    assert encode(client, "version=2") == 2


def test_a_load_that_nobody_waits_for_any_more_goes_on_and_its_error_is_nobodys() -> None:
    async def scenario() -> list[str]:
        log: list[str] = []
        go_on = asyncio.Event()
        loads: Loads[str] = Loads()

        async def load() -> str:
            log.append("begun")
            await go_on.wait()
            log.append("ended")
            raise ZeroDivisionError

        for _ in range(2):
            with pytest.raises(DeadlineError, match=r"not loaded within 0\.01 s"):
                await loads.wait("a", load, timeout_seconds=0.01)
        go_on.set()
        while loads._under_way:
            await asyncio.sleep(0)
        with pytest.raises(ZeroDivisionError):
            await loads.wait("a", load, timeout_seconds=60)  # another try
        return log

    assert asyncio.run(scenario()) == ["begun", "ended", "begun", "ended"]


def test_a_newcomer_does_not_take_the_place_of_the_only_model(run: Run, tmp_path: Path) -> None:
    add(tmp_path)
    client = run()
    add(tmp_path, name="newcomer")
    (tmp_path / "nothing-good" / "1").mkdir(parents=True)
    told = reload(client)
    assert [(name, model["default"], model["default_version"]) for name, model in told.items()] == [
        ("digits", True, 1),
        ("newcomer", False, 1),
        ("nothing-good", False, None),
    ]
    assert encode(client) == encode(client, "model=newcomer") == 1
    assert client.post("/v1/encode?model=nothing-good", **BODY).status_code == 503
    assert client.post("/v1/encode?model=nobody", **BODY).status_code == 404


def test_a_start_serves_the_newest_version_that_passes_and_names_the_others(run: Run, tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        add(tmp_path, seed=seed)
    damage(tmp_path, 2)
    damage(tmp_path, 3)
    (tmp_path / "zz" / "1").mkdir(parents=True)
    client = run(model="digits")
    assert encode(client) == 1
    told = {model["name"]: model for model in client.get("/v1/models").json()["models"]}
    assert [refused["version"] for refused in told["digits"]["refused"]] == [2, 3]
    assert told["zz"]["manifest"] is None
    assert client.get("/readyz").status_code == 200


def test_a_version_that_changes_between_trial_and_loading_is_not_served(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is loaded is what was tried out, byte by byte; the next look at the store tries the new files out."""
    for seed in (1, 2):
        add(tmp_path, seed=seed)
    add(tmp_path / "aside", seed=3)
    client = run()
    report = TrialsInProcess.report

    def swap(self: TrialsInProcess, request: Any) -> dict[str, Any]:
        found = report(self, request)
        for file in ("manifest.json", "encoder.onnx", "decoder.onnx", "calibration.npz"):
            content = (tmp_path / "aside" / "digits" / "1" / file).read_bytes()
            (tmp_path / "digits" / "3" / file).write_bytes(content.replace(b'"version": 1,', b'"version": 3,'))
        return found

    add(tmp_path, seed=4)
    with monkeypatch.context() as patched:
        patched.setattr(TrialsInProcess, "report", swap)
        (refused,) = reload(client)["digits"]["refused"]
    assert refused["version"] == 3
    assert refused["reason"].startswith("manifest.json: SHA-256 is ")
    assert refused["reason"].endswith(": it has changed")
    assert encode(client) == 2
    assert reload(client)["digits"]["default_version"] == 3


def test_a_graph_that_grows_between_trial_and_loading_is_not_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it would take the memory of the service itself, which no trial bounds."""
    for seed in (1, 2):
        add(tmp_path, seed=seed)
    client = run()
    report = TrialsInProcess.report
    size = (tmp_path / "digits" / "2" / "encoder.onnx").stat().st_size

    def swap(self: TrialsInProcess, request: Any) -> dict[str, Any]:
        found = report(self, request)
        os.truncate(tmp_path / "digits" / "3" / "encoder.onnx", 2**31 - 1)
        return found

    add(tmp_path, seed=3)
    monkeypatch.setattr(TrialsInProcess, "report", swap)
    (refused,) = reload(client)["digits"]["refused"]
    assert refused["reason"] == f"encoder.onnx: has {2**31 - 1} bytes; at most {size} are read"


def test_what_is_published_during_a_long_trial_is_tried_before_what_is_older(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path)
    client = run()
    for seed in (2, 3):
        add(tmp_path, seed=seed)
    monkeypatch.setattr("service.web.models.registry._LONG_SECONDS", 0.0)
    report, tried = TrialsInProcess.report, []

    def note(self: TrialsInProcess, request: Any) -> dict[str, Any]:
        tried.append(request.version)
        if request.version == 3:
            add(tmp_path, seed=4)
            return {"refused": "hangs", "file": "decoder.onnx"}
        return report(self, request)

    monkeypatch.setattr(TrialsInProcess, "report", note)
    assert reload(client)["digits"]["default_version"] == 4
    assert tried == [3, 4]


def test_models_are_tried_out_beside_one_another(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of one that takes long does not keep another model's version from being taken up."""
    for name in ("digits", "other"):
        add(tmp_path, name=name)
    client = run(model="digits")
    report, taken = TrialsInProcess.report, threading.Event()

    def wait(self: TrialsInProcess, request: Any) -> dict[str, Any]:
        if request.name == "digits":
            return report(self, request) if taken.wait(60) else {"refused": "waited in vain", "file": "x"}
        return report(self, request)

    monkeypatch.setattr(TrialsInProcess, "report", wait)
    for name in ("digits", "other"):
        add(tmp_path, name=name, seed=2)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(reload, client)
        while client.get("/v1/models/other").json()["default_version"] != 2:
            assert not answer.done()
        taken.set()
        assert answer.result()["digits"]["default_version"] == 2


def test_a_refusal_does_not_use_up_the_time_for_loading(run: Run, tmp_path: Path) -> None:
    """It is not tried again before its files change, so nobody can have it tried all the time."""
    for seed in (1, 2):
        add(tmp_path, seed=seed)
    damage(tmp_path, 1)
    client = run()
    opener: Opener = client.app.state.backend.registry._opener  # type: ignore[attr-defined]
    opener._load_time = LoadTime(lambda: 0.0)
    left = opener._load_time._left
    assert client.post("/v1/encode?version=1", **BODY).status_code == 503
    assert opener._load_time._left == left


def test_a_hundred_reloads_leave_memory_flat(run: Run, tmp_path: Path) -> None:
    """A model takes several MB in memory: a hundred that stayed would pass the bound many times."""
    add(tmp_path, shape=ImageShape(channels=1, height=64, width=48))
    client = run()

    def renew(times: int) -> None:
        for _ in range(times):
            (tmp_path / "digits" / "1" / "manifest.json").touch()  # cheaper than to publish, and as good as new
            reload(client)
            assert client.get("/v1/samples?n=2&seed=1").status_code == 200

    renew(10)
    before = resident_bytes()
    renew(100)
    assert reloads(client, "changed") == 110
    assert resident_bytes() - before < 150 * 2**20


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_pinned_version_is_the_default_until_it_is_unpinned(run: Run, tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        add(tmp_path, seed=seed)
    pin(tmp_path, "digits", 2)
    client = run()
    told = reload(client)["digits"]
    assert (told["default_version"], told["versions"], told["loaded_versions"]) == (2, [1, 2, 3], [2])
    assert (encode(client), encode(client, "version=3")) == (2, 3)
    pin(tmp_path, "digits", 1)
    add(tmp_path, seed=4)
    assert reload(client)["digits"]["default_version"] == encode(client) == 1
    assert unpin(tmp_path, "digits")
    assert reload(client)["digits"]["default_version"] == encode(client) == 4


def test_no_other_version_takes_the_place_of_a_pinned_one(run: Run, tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        add(tmp_path, seed=seed)
    client = run()
    damage(tmp_path, 2)
    pin(tmp_path, "digits", 2)
    assert reload(client)["digits"]["default_version"] == encode(client) == 3  # serves on
    shutil.rmtree(tmp_path / "digits" / "2")
    told = reload(client)["digits"]
    problem = "digits: the pin names version 2, which the model does not have"
    assert told["refused"] == [{"version": None, "reason": problem}]
    assert encode(client) == 3
    pin(tmp_path, "digits", 1)
    assert reload(client)["digits"]["refused"] == []
    assert encode(client) == 1


def test_a_start_serves_no_model_whose_pin_is_wrong(run: Run, tmp_path: Path) -> None:
    add(tmp_path)
    add(tmp_path, name="other")
    pin(tmp_path, "other", 1)
    (tmp_path / "other" / "pin").write_text("9")
    client = run(model="digits")
    assert encode(client) == 1
    answer = client.post("/v1/encode?model=other", **BODY)
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:logpx:problem:broken-model")
