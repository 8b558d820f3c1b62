"""Two models on the same images: which finds them likelier, and by how much, image by image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_store import Description, Provenance
from service.engine.arrays import Float64Array
from service.engine.model import Model
from service.engine.runtime import Runtime
from service.images.folder import printable
from training.data.sources import Source, StreamedSource
from training.data.splits import Images
from training.errors import ConfigurationError, RunError
from training.fit.loaded_model import load_model
from training.fit.run import RUN, open_run
from training.publish.evaluation import Evaluation, Protocol
from training.publish.export import export
from training.publish.features import features_of
from training.publish.held_out import configuration_of, divisions_of, split_as_before, things_of, was_trained_on
from training.publish.publication import describe, load_engine, open_stored

AnySource = Source | StreamedSource
_CLEAR = 2.0
"""Standard errors that make a difference."""


@dataclass(frozen=True)
class OpenedModel:
    """A model and the lines of its run's metrics.jsonl, or none if it comes from a store."""

    model: Model
    curves: Sequence[dict[str, float]]

    @property
    def description(self) -> Description:
        """The manifest, or what would be one."""
        return self.model.description


def open_model(path: Path, protocol: Protocol, runtime: Runtime) -> OpenedModel:
    """The model of a run's folder, or of `store/NAME` or `store/NAME/VERSION`; `protocol` is that of its scores.

    Raises:
        RunError, StoreError: there is none.
    """
    if not (path / RUN).is_file():
        return OpenedModel(Model.open(open_stored(path), runtime=runtime), [])
    run = open_run(path)
    loaded = load_model(run)
    description = describe(
        run.description, "run", protocol, sessions=run.read_sessions(), finished_encoder=loaded.finished_encoder
    )
    graphs, features = export(loaded.vae), features_of(run, runtime)
    model = load_engine(description, graphs, runtime=runtime, features=features)
    return OpenedModel(model, run.read_metrics(loaded.epoch))


def common_images(sources: Sequence[AnySource], provenances: Sequence[Provenance]) -> tuple[list[Images], str]:
    """The same images for each of the models, prepared as each wants them, and what to call them in words.

    They are the data's own test images; or, if a model was trained on this very data, those that were held out then; or
    else all.

    Args:
        sources: the same data, read with the preparation of each model.
        provenances: of the models, in the same order.

    Raises:
        RunError: both were trained on this data and divided it differently, or it is not known how.
    """
    name = sources[0].name
    own = [source.test for source in sources if source.test is not None]
    if len(own) == len(sources):
        return own, f"the test images of {name}"
    trained = [given for source, given in zip(sources, provenances, strict=True) if was_trained_on(given, source)]
    if not trained:
        return [source.train for source in sources], name
    try:
        divided = divisions_of(trained)
        configuration = configuration_of(trained[0])
    except ConfigurationError as error:
        raise RunError(f"{name}: a model was trained on these images, and on which is not known") from error
    if len(divided) > 1:
        raise RunError(f"{name}: the models were trained on different parts of these images: give others as --data")
    splits = [split_as_before(source, configuration, things_of(trained[0])) for source in sources]
    return [each.test for each in splits], f"those of {name} held out of training as test"


def compare_lines(names: Sequence[str], descriptions: Sequence[Description], found: Sequence[Evaluation]) -> list[str]:
    """The protocol, a table of both models' figures and of their differences by pairs, and which is better."""
    first, second = found
    records = first.record, second.record
    rows = {
        "log_likelihood, nats": [record.log_likelihood for record in records],
        "elbo, nats": [record.elbo for record in records],
        "bits_per_dim": [record.bits_per_dim for record in records],
        "reliable, share": [record.reliable.astype(np.float64) for record in records],
    }
    lines = [first.protocol, f"{'':<22}{'A':>14}{'B':>14}{'B − A':>14}"]
    lines += [f"{name:<22}{a.mean():>14.4f}{b.mean():>14.4f}{_difference(a, b)}" for name, (a, b) in rows.items()]
    if any(description.features is not None for description in descriptions):
        return [
            *lines,
            "of a model of features log P compares only with that of another one with the same features.onnx",
        ]
    if len({description.image.size for description in descriptions}) > 1:
        return [*lines, "the models see images of different sizes: only bits_per_dim compares, and not quite"]
    if len({description.preparation.binarisation for description in descriptions}) > 1:
        return [*lines, "the models binarise images differently: their figures are of other pixels, and do not compare"]
    return [*lines, _conclusion(names, second.record.log_likelihood - first.record.log_likelihood)]


def _difference(first: Float64Array, second: Float64Array) -> str:
    """The mean difference of pairs and its standard error, as the table has it."""
    return f"{(second - first).mean():>+14.4f} ± {_standard_error(second - first):.4f}"


def _standard_error(values: Float64Array) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


def _conclusion(names: Sequence[str], gain: Float64Array) -> str:
    """Which of two models is better, `gain` being the second's log P(x) less the first's, by image."""
    if abs(gain.mean()) <= _CLEAR * _standard_error(gain):
        return f"no clear difference: {_CLEAR:g} standard errors are more than it"
    better, share = ("B", (gain > 0).mean()) if gain.mean() > 0 else ("A", (gain < 0).mean())
    return (
        f"{better} is better ({printable(names['AB'.index(better)])}): likelier for {100 * share:.0f} % of the images"
    )
