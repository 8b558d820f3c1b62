"""One service for all tests of a module, over toys; where a test fails, the log of each service that runs is shown."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from model_store import ImageShape, PixelPreparation
from tests.hostile import harness
from tests.hostile.harness import ChildService
from tests.toys import bernoulli_toy
from tests.web.conftest import put


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model, which is tried out in one child: `digits` (1×28×28, two versions, a latent of 3)."""
    root = tmp_path_factory.mktemp("hostile-store")
    dynamic = PixelPreparation(binarisation="dynamic")
    digits = ImageShape(channels=1, height=28, width=28)
    put(root, bernoulli_toy(digits, name="digits", preparation=dynamic))
    put(root, bernoulli_toy(digits, name="digits", preparation=dynamic, seed=6))
    return root


@pytest.fixture(scope="module")
def service(store: Path) -> Iterator[ChildService]:
    """A service with default settings, for all tests of a module."""
    with ChildService(store, model="digits") as started:
        yield started


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections += [(f"service on port {one.port}", one.log_tail()) for one in harness.running]
    return report
