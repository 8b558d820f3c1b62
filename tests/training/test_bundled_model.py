"""The models that come with the repository are what their manifests say."""

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
from training.data.preparation import Preparation
from training.data.splits import DataSplits
from training.fit.recipes import complete_configuration
from training.parser import build_parser
from training.publish.evaluation import Protocol, evaluate
from training.publish.held_out import configuration_of

GREY: NDArray[np.uint8] = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
PIXELS = {
    "mnist": np.where(GREY > 127, np.uint8(255), np.uint8(0)),
    "fashion-mnist": GREY,
    "fruits": np.tile(GREY, (1, 3, 2, 2)),
}
"""How grey and how large each data set's images are, which decides what no option says."""
NUM_IMAGES = {
    "mnist": {"train": 55_000, "validation": 2000, "calibration": 3000, "test": 10_000},
    "fashion-mnist": {"train": 55_000, "validation": 2000, "calibration": 3000, "test": 10_000},
    "fruits": {"train": 31_625, "validation": 2000, "calibration": 2000, "test": 11_968},
}
README = (Path(__file__).parents[2] / "README.md").read_text()


def command_that_trains(name: str) -> Configuration:
    """The README's own `fit` of the data set `name`, as the command line understands it."""
    lines = README.replace("\\\n", " ").splitlines()
    (command,) = [line for line in lines if line.startswith(f"python -m training fit --data {name} ")]
    given = vars(build_parser(None).parse_args(shlex.split(command)[3:]))
    options = {field.name: given[field.name] for field in fields(Configuration) if field.name in given}
    if options.get("size") is not None:
        options |= Preparation.asked({**options, "colour": "rgb"}).as_options()
    train = np.broadcast_to(PIXELS[name], (NUM_IMAGES[name]["train"], *PIXELS[name].shape[1:]))
    return complete_configuration(options, train)


@pytest.fixture(scope="module")
def stored() -> StoredModel:
    return open_version(BUNDLED, "mnist")


@pytest.mark.parametrize("name", sorted(list_versions(BUNDLED)))
def test_it_was_trained_by_the_command_in_the_readme(name: str) -> None:
    provenance = open_version(BUNDLED, name).manifest.provenance
    assert provenance.configuration["num_images"] == NUM_IMAGES[name]
    # The encoder may have been finished later, or not yet.
    found, told = (
        replace(configuration, finish_encoder=True, finish_epochs=None)
        for configuration in (configuration_of(provenance), command_that_trains(name))
    )
    assert found == told


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


def test_fruits_is_a_colour_model_for_pictures_of_any_size() -> None:
    manifest = open_version(BUNDLED, "fruits").manifest
    assert manifest.image.chw == (3, 32, 32)
    assert manifest.likelihood.kind == "discretised_logistic_neighbours"
    assert (manifest.preparation.size, manifest.preparation.fit, manifest.preparation.colour) == (
        (32, 32),
        "crop",
        "rgb",
    )
    assert manifest.provenance.configuration["brightness"]["lowest"] > 0.2  # the fruit are on white
    assert (manifest.calibration.proposal, manifest.calibration.num_samples) == ("encoder", 128)
    assert manifest.calibration.num_images == 1995  # every sixth of the test images
    metrics = {metric.name: metric.value for metric in manifest.metrics}
    assert 2.5 < metrics["bits_per_dim"] < 3.2  # lossless WebP takes 3.67 of validation images
    assert metrics["active_units"] > 16
    (sha256,) = re.findall(r"SHA-256 ([0-9a-f]{64})", manifest.provenance.data_set)
    store = (BUNDLED.parent / "README.md").read_text()
    assert sha256 in store
    assert "| licence | MIT, © 2017 Mihai Oltean, Horea Muresan |" in store


@pytest.mark.parametrize("name", sorted(list_versions(BUNDLED)))
def test_it_is_small_and_tells_nothing_of_the_machine(name: str) -> None:
    files: list[Path] = list(open_version(BUNDLED, name).path.iterdir())
    assert sum(file.stat().st_size for file in files) <= 12 * 2**20
    for file in files:
        assert not re.search(rb"/(?:work|root|home|tmp|usr)/", file.read_bytes()), file.name
