"""Versions that come, go and break while the real app serves."""

import gc
import os
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from fastapi.testclient import TestClient

from model_store import ImageShape, PixelPreparation, open_version, publish
from service.engine.model import Model
from service.web.app import create_app
from service.web.registry import Registry
from service.web.settings import Settings
from tests.toys import bernoulli_toy
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
    return {version: weakref.ref(model) for (_, version), model in registry._models.items()}


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
    publish(store, grey.description, encoder=colour.encoder, decoder=grey.decoder, calibration=grey.calibration)


def publish_and_damage(store: Path) -> None:
    add(store, seed=6)
    damage(store, 2)


BREAKAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (publish_and_damage, "decoder.onnx: SHA-256 is"),
    "graphs of another shape": (hide_a_contradiction, "encoder.onnx: input 'x' has shape"),
    "an empty folder": (lambda store: (store / "digits" / "2").mkdir(), "manifest.json: missing"),
    "a file": (lambda store: (store / "digits" / "2").write_text(""), "manifest.json: cannot be read"),
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
        kept = publish(tmp_path, described, encoder=other.encoder, decoder=other.decoder, calibration=other.calibration)
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
