"""Requests of all sorts at once, on one thread and on several: the same answers, deadlines, counts, and memory told."""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from model_store import BUNDLED
from service.web.app import create_app
from service.web.operations.settings import Settings
from tests.web.conftest import wait_until_ready
from tests.web.forms import npy
from tests.web.test_batching import backend_of, together

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def mnist_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("mnist-alone")
    shutil.copytree(BUNDLED / "mnist", store / "mnist")
    return store


def ask(client: TestClient, path: str, images: Any, headers: Mapping[str, str] | None = None) -> Any:
    kind = {"content-type": "application/x-npy", **(headers or {})}
    return client.post(f"/v1/{path}", content=npy(images), headers=kind)


def test_strange_and_familiar_requests_at_once_have_the_same_answers_on_any_number_of_threads(
    mnist_store: Path,
) -> None:
    digits = np.load(DATA / "digits.npz")["test"]
    clothes = np.load(DATA / "clothes.npz")
    shoe = clothes[clothes.files[0]][:1].reshape(1, 28, 28)
    noise = np.random.default_rng(0).integers(0, 256, (8, 28, 28), np.uint8)
    asked: list[tuple[str, Any]] = [
        ("anomaly-scores", digits[:1]),
        ("log-likelihood?proposal=laplace", digits[1:2]),
        ("log-likelihood", np.concatenate([digits[2:3], shoe])),
        ("anomaly-scores?method=combined,kl", digits[4:6]),
        ("log-likelihood?proposal=laplace", digits[7:8]),
    ]
    found = []
    for num_threads in (1, 3):
        settings = Settings(model_store=mnist_store, execution_provider="cpu", num_threads=num_threads, decoders=0)
        with TestClient(create_app(settings)) as client:
            wait_until_ready(client)

            post = partial(ask, client)
            requests: list[Callable[[], Any]] = [partial(post, path, images) for path, images in asked]
            too_late = partial(post, "log-likelihood", noise, {"x-request-timeout-ms": "150"})
            *answers, late = together(client, [*requests, too_late])
            assert [answer.status_code for answer in answers] == [200] * len(asked)
            assert late.status_code == 504
            found.append([answer.json()["results"] for answer in answers])
            scheduler = backend_of(client)._scheduler
            while scheduler.queued_jobs:  # who was too late is dropped at its next chunk
                pass
            assert scheduler.queued_rows == 0
            assert post("anomaly-scores", digits[:1]).json()["results"] == found[0][0]
            (model,) = backend_of(client).registry.loaded
            assert model.run_bytes > (5 + num_threads) * 256 * 40 * 784
    assert found[0] == found[1]
