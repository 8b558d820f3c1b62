"""A tiny model trained on real digits, once for all tests that need a finished run."""

import hashlib
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from service.engine.runtime import Runtime
from tests.exporter import operators_looked_up_once
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


_export_graph = export._export_graph
_export_likelihood = export_likelihood


def exported_once(likelihood: Likelihood) -> bytes:
    """The likelihood's graph, traced once in a test session."""
    key = (type(likelihood), likelihood.image_shape, likelihood.levels, *likelihood.options.values())
    if key not in _LIKELIHOODS:
        _LIKELIHOODS[key] = _export_likelihood(likelihood)
    return _LIKELIHOODS[key]


_LIKELIHOODS: dict[tuple[object, ...], bytes] = {}


@pytest.fixture(scope="package", autouse=True)
def each_network_is_exported_once() -> Iterator[None]:
    """PyTorch's exporter takes seconds, and what it makes depends on nothing but the network with its weights.

    A likelihood's graph depends on its class, its arguments and the images' shape.
    """
    exported: dict[str, bytes] = {}

    def remembered(module: torch.nn.Module, example: torch.Tensor, *names: Any, **options: Any) -> bytes:
        whole = io.BytesIO()
        torch.save((module, example, names, options), whole)
        key = hashlib.sha256(whole.getbuffer()).hexdigest()
        if key not in exported:
            exported[key] = _export_graph(module, example, *names, **options)
        return exported[key]

    with operators_looked_up_once(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_export_graph", remembered)
        patch.setattr(export, "export_likelihood", exported_once)
        yield


@pytest.fixture
def exported_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test of the exporter itself."""
    monkeypatch.setattr(export, "_export_graph", _export_graph)


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
