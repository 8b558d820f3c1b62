"""The model that comes with the repository is what its manifest says."""

import re
from pathlib import Path

import numpy as np
import pytest

from model_store import BUNDLED, StoredModel, list_versions, open_version
from service.engine.model import Model
from service.engine.runtime import Runtime
from training.configuration import Configuration
from training.data import DataSplits
from training.evaluate import Protocol, evaluate


@pytest.fixture(scope="module")
def stored() -> StoredModel:
    return open_version(BUNDLED, "mnist")


def test_it_was_trained_by_the_default_recipe(stored: StoredModel) -> None:
    configuration = dict(stored.manifest.provenance.configuration)
    assert configuration.pop("num_images") == {"train": 55000, "validation": 2000, "calibration": 3000, "test": 10000}
    assert Configuration(**configuration) == Configuration()  # it names no option that is younger than it is


def test_it_reaches_the_bar(stored: StoredModel) -> None:
    metrics = {metric.name: metric for metric in stored.manifest.metrics}
    assert metrics["log_likelihood"].num_images == 10_000
    assert metrics["log_likelihood"].value >= -86
    assert metrics["elbo"].value < metrics["log_likelihood"].value


def test_test_digits_score_as_the_manifest_says(stored: StoredModel, splits: DataSplits, runtime: Runtime) -> None:
    evaluation = evaluate(Model.open(stored, runtime=runtime), splits.test, Protocol("encoder", 200, 0))
    expected = next(metric for metric in stored.manifest.metrics if metric.name == "log_likelihood")
    assert abs(evaluation.log_likelihood - expected.value) < 3 * evaluation.std_error + 1


def test_calibration_scores_are_those_of_unseen_digits(stored: StoredModel) -> None:
    scores = stored.calibration["log_likelihood"]
    assert scores.shape == (3000,)
    assert -100 < np.mean(scores) < -75
    assert (stored.calibration["elbo"] < scores).all()


def test_fashion_mnist_is_an_eight_bit_model_whose_scores_are_cheap() -> None:
    manifest = open_version(BUNDLED, "fashion-mnist").manifest
    assert manifest.likelihood.kind == "discretised_logistic"
    assert (manifest.calibration.proposal, manifest.calibration.num_samples) == ("encoder", 128)
    (bits,) = [metric for metric in manifest.metrics if metric.name == "bits_per_dim"]
    assert 3 < bits.value < 3.5


@pytest.mark.parametrize("name", sorted(list_versions(BUNDLED)))
def test_it_is_small_and_tells_nothing_of_the_machine(name: str) -> None:
    files: list[Path] = list(open_version(BUNDLED, name).path.iterdir())
    assert sum(file.stat().st_size for file in files) <= 12 * 2**20
    for file in files:
        assert not re.search(rb"/(?:work|root|home|tmp|usr)/", file.read_bytes()), file.name
