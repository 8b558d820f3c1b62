"""The real app, in process, over stores of toys."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from model_store import ImageShape, PixelPreparation
from service.web.app import create_app
from service.web.operations.settings import Settings
from tests.toys import LinearGaussian, Toy, bernoulli_toy
from tests.trials import TrialsInProcess

DIGIT_SHAPE = ImageShape(channels=1, height=28, width=28)
COLOUR_SHAPE = ImageShape(channels=3, height=8, width=6)
GAUSSIAN_SHAPE = ImageShape(channels=1, height=5, width=4)

Serve = Callable[..., TestClient]


def put(store: Path, toy: Toy) -> None:
    """Publish a toy."""
    toy.publish(store)


def wait_until_ready(client: TestClient) -> None:
    """Fails after a minute."""
    for _ in range(6000):
        if client.get("/readyz").status_code == 200:
            return
        time.sleep(0.01)
    raise AssertionError(client.get("/readyz").text)


@pytest.fixture(scope="session", autouse=True)
def _trials_in_process() -> Iterator[None]:
    """A child for each app would take half a second; tests/hostile has the real ones, and so has each real process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("service.web.models.registry.Trials", TrialsInProcess)
        yield


@pytest.fixture(scope="session")
def linear_gaussian() -> LinearGaussian:
    return LinearGaussian.random(GAUSSIAN_SHAPE, 2, scale=0.2)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, linear_gaussian: LinearGaussian) -> Path:
    """Three models: `digits` (two versions), `colour` and `linear-gaussian`."""
    root = tmp_path_factory.mktemp("store")
    dynamic = PixelPreparation(binarisation="dynamic")
    put(root, bernoulli_toy(DIGIT_SHAPE, name="digits", preparation=dynamic))
    put(root, bernoulli_toy(DIGIT_SHAPE, name="digits", preparation=dynamic, seed=6))
    put(root, bernoulli_toy(COLOUR_SHAPE, name="colour"))
    put(root, linear_gaussian.toy(GAUSSIAN_SHAPE, widen=1.1))
    return root


@pytest.fixture(scope="session")
def digits_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of `digits` and no other model: with one, a process is ready sooner than with three."""
    root = tmp_path_factory.mktemp("digits-store")
    dynamic = PixelPreparation(binarisation="dynamic")
    put(root, bernoulli_toy(DIGIT_SHAPE, name="digits", preparation=dynamic))
    put(root, bernoulli_toy(DIGIT_SHAPE, name="digits", preparation=dynamic, seed=6))
    return root


@pytest.fixture(scope="session")
def serve(store: Path) -> Iterator[Serve]:
    """Start an app with these settings and wait until it is ready."""
    with ExitStack() as running:

        def start(**settings: Any) -> TestClient:
            app = create_app(Settings(**{"model_store": store, "model": "digits", **settings}))
            client = running.enter_context(TestClient(app, raise_server_exceptions=False))
            wait_until_ready(client)
            return client

        yield start


@pytest.fixture(scope="session")
def client(serve: Serve) -> TestClient:
    """One app with default settings."""
    return serve()


@pytest.fixture(scope="session")
def digits() -> Any:
    """Ten real test digits, uint8 [10, 28, 28]."""
    with np.load(Path(__file__).parents[1] / "data" / "digits.npz", allow_pickle=False) as archive:
        return archive["test"][:10]
