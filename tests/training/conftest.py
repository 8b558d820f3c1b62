"""A tiny model trained on real digits, once for all tests that need a finished run."""

import hashlib
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from service.engine.runtime import Runtime
from tests.exporter import Exports, operators_looked_up_once
from training.configuration import Configuration
from training.data.sources import read_source
from training.data.splits import DataSplits, split
from training.fit.loaded_model import load_model
from training.fit.run import Run, create_run, describe_run
from training.fit.trainer import fit
from training.likelihoods import Likelihood
from training.publish import export
from training.publish.likelihood_export import export_likelihood

DIGITS = Path(__file__).parents[1] / "data" / "digits.npz"
TINY = Configuration(width=48, latent_dim=6, num_samples=4, epochs=25, batch_size=16, learning_rate=3e-3, ema_decay=0.9)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of progress, however slow the machine is: tests compare what is printed."""
    monkeypatch.setattr("service.progress._SECONDS_AT_LEAST", math.inf)
    monkeypatch.setattr("service.progress._SECONDS_AT_MOST", math.inf)


_export_graph = export.export_graph
_export_likelihood = export_likelihood
ExportOnce = Callable[[Likelihood], bytes]


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory)


@pytest.fixture(scope="session")
def exported_once(exports: Exports) -> ExportOnce:
    """The likelihood's graph, which depends on its class, its arguments, the images' shape and its own weights."""

    def exported(likelihood: Likelihood) -> bytes:
        key = (likelihood.name, likelihood.image_shape, likelihood.levels, *sorted(likelihood.options.items()))
        whole = io.BytesIO()
        if likelihood.network is not None:
            torch.save(likelihood.network.state_dict(), whole)
        name = _name("likelihood", repr(key).encode() + whole.getvalue())
        return exports.get(name, lambda: _export_likelihood(likelihood))

    return exported


@pytest.fixture(scope="package", autouse=True)
def each_network_is_exported_once(exports: Exports, exported_once: ExportOnce) -> Iterator[None]:
    """PyTorch's exporter takes seconds, and what it makes depends on nothing but the network with its weights."""

    def remembered(module: torch.nn.Module, example: torch.Tensor, *names: Any, **options: Any) -> bytes:
        whole = io.BytesIO()
        torch.save((module, example, names, options), whole)
        name = _name("network", whole.getbuffer())
        return exports.get(name, lambda: _export_graph(module, example, *names, **options))

    with operators_looked_up_once(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "export_graph", remembered)
        patch.setattr(export, "export_likelihood", exported_once)
        yield


def _name(kind: str, content: "bytes | memoryview") -> str:
    return f"{kind}-{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def exported_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test of the exporter itself."""
    monkeypatch.setattr(export, "export_graph", _export_graph)


@pytest.fixture(scope="session")
def digits() -> Path:
    """200 training and 100 test images of MNIST."""
    return DIGITS


@pytest.fixture(scope="session")
def splits() -> DataSplits:
    return split(read_source(DIGITS), TINY)


@pytest.fixture(scope="session")
def finished_run(splits: DataSplits, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = create_run(tmp_path_factory.mktemp("run") / "tiny", describe_run(TINY, splits, source=str(DIGITS)))
    fit(run, splits, device=torch.device("cpu"), on_epoch=lambda figures, model: None)
    assert load_model(run).finished
    return run


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    return Runtime("cpu")
