"""The model that comes with the repository is what its manifest says."""

import re
import shlex
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store import BUNDLED, StoredModel, list_versions, open_version
from service.engine.model import Model
from service.engine.runtime import Runtime
from training.configuration import Configuration
from training.data.splits import DataSplits
from training.fit.recipes import complete_configuration
from training.parser import build_parser
from training.publish.evaluation import Protocol, evaluate
from training.publish.publication import configuration_of

GREY: NDArray[np.uint8] = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
PIXELS = {"mnist": np.where(GREY > 127, np.uint8(255), np.uint8(0)), "fashion-mnist": GREY}
"""How grey each data set is, which decides the likelihood."""
NUM_TRAIN = 55_000
README = (Path(__file__).parents[2] / "README.md").read_text()


def command_that_trains(name: str) -> Configuration:
    """The README's own `fit` of the data set `name`, as the command line understands it."""
    lines = README.replace("\\\n", " ").splitlines()
    (command,) = [line for line in lines if line.startswith(f"python -m training fit --data {name} ")]
    given = vars(build_parser(None).parse_args(shlex.split(command)[3:]))
    options = {field.name: given[field.name] for field in fields(Configuration) if field.name in given}
    train = np.broadcast_to(PIXELS[name], (NUM_TRAIN, *PIXELS[name].shape[1:]))
    return complete_configuration(options, train)


@pytest.fixture(scope="module")
def stored() -> StoredModel:
    return open_version(BUNDLED, "mnist")


@pytest.mark.parametrize("name", sorted(list_versions(BUNDLED)))
def test_it_was_trained_by_the_command_in_the_readme(name: str) -> None:
    provenance = open_version(BUNDLED, name).manifest.provenance
    assert provenance.configuration["num_images"] == {
        "train": NUM_TRAIN,
        "validation": 2000,
        "calibration": 3000,
        "test": 10000,
    }
    found = replace(configuration_of(provenance), finish_encoder=True, finish_epochs=None)  # finished later, or not yet
    assert found == command_that_trains(name)


def test_it_reaches_the_bar(stored: StoredModel) -> None:
    metrics = {metric.name: metric for metric in stored.manifest.metrics}
    assert metrics["log_likelihood"].num_images == 10_000
    assert metrics["log_likelihood_encoder"].num_images == 10_000
    assert "proposal encoder, 5000 samples" in metrics["log_likelihood_encoder"].protocol
    assert metrics["log_likelihood_encoder"].value >= -83.8
    assert metrics["elbo"].value < metrics["log_likelihood_encoder"].value < metrics["log_likelihood"].value < -82


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
    assert bits.num_images == 10_000
    assert 3 < bits.value < 3.5


@pytest.mark.parametrize("name", sorted(list_versions(BUNDLED)))
def test_it_is_small_and_tells_nothing_of_the_machine(name: str) -> None:
    files: list[Path] = list(open_version(BUNDLED, name).path.iterdir())
    assert sum(file.stat().st_size for file in files) <= 12 * 2**20
    for file in files:
        assert not re.search(rb"/(?:work|root|home|tmp|usr)/", file.read_bytes()), file.name
