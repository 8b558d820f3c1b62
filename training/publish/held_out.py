"""Which images a model was not trained on, by what its manifest says of its training."""

from collections.abc import Mapping, Sequence
from typing import Any

from model_store import Provenance
from service.images.brightness import BRIGHTNESS
from training.configuration import Configuration
from training.data.sources import Source, StreamedSource
from training.data.splits import DataSplits, Images, split
from training.errors import ConfigurationError, RunError
from training.publish.provenance import BESIDE

TRAINING_IMAGES = "training_images"
"""In the manifest: a sketch of them, by which `service calibrate` tells images that the model was trained on."""


def held_out_images(source: Source | StreamedSource, provenance: Provenance) -> tuple[Images, str]:
    """The images of `source` to score a model on, and what to call them in words.

    Its own test part; where it has none and the model was trained on this very data, the images that were held out then
    as the test part; otherwise all of it.

    Raises:
        RunError: the data is the model's own, and how it was split cannot be told from the manifest.
    """
    if source.test is not None:
        return source.test, source.name
    if not was_trained_on(provenance, source):
        return source.train, source.name
    try:
        configuration = configuration_of(provenance)
    except ConfigurationError as error:
        raise RunError(f"{source.name}: the model was trained on these images, and on which is not known") from error
    splits = split_as_before(source, configuration, things_of(provenance))
    return splits.test, f"the part of {source.name} that was held out of training as its test"


def split_as_before(
    source: Source | StreamedSource, configuration: Configuration, things: Mapping[str, Any] | None
) -> DataSplits:
    """The division of a data set that a model was trained by; `things` is what was recorded of it.

    Raises:
        RunError: it is another one, since the data set does not say as before what its images show.
    """
    splits = split(source, configuration)
    found = splits.things
    if found != (None if things is None else dict(things)):
        raise RunError(
            f"{source.name}: images were divided by what they show in training ({_in_words(things)}), and would be "
            f"otherwise now ({_in_words(found)}): give the very data, with the same paths and the same table"
        )
    return splits


def _in_words(things: Mapping[str, Any] | None) -> str:
    return "one by one" if things is None else ", ".join(f"{name} {value}" for name, value in things.items())


def was_trained_on(provenance: Provenance, source: Source | StreamedSource) -> bool:
    """Whether a model was trained on these very images, prepared as these are."""
    return fingerprint_of(source.sha256) in provenance.data_set


def things_of(provenance: Provenance) -> Mapping[str, Any] | None:
    """What a manifest records of a division by things."""
    things: Mapping[str, Any] | None = provenance.configuration.get("things")
    return things


def divisions_of(provenances: Sequence[Provenance]) -> set[tuple[object, ...]]:
    """What decided the divisions of one data set in the trainings of several models; one where all are the same.

    Raises:
        ConfigurationError: see `configuration_of`.
    """
    return {
        (c.seed, c.num_validation, c.num_calibration, c.num_test, c.group, tuple((things_of(each) or {}).items()))
        for each in provenances
        for c in [configuration_of(each)]
    }


def configuration_of(provenance: Provenance) -> Configuration:
    """What a published model was trained by; one of before there was a phase for the encoder alone had none.

    Raises:
        ConfigurationError: another program has trained it.
    """
    beside = (*BESIDE, TRAINING_IMAGES, BRIGHTNESS)
    choices = {name: value for name, value in provenance.configuration.items() if name not in beside}
    return Configuration(**{"finish_encoder": False, **choices})


def fingerprint_of(sha256: str) -> str:
    """Of a data set's pixels, as a manifest has it."""
    return f"(pixels SHA-256 {sha256})"
