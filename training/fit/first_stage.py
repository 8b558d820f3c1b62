"""A run of features: what `--features` means for the other options, and the maps that the run trains on."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from service.engine.runtime import Runtime
from training.configuration import Colour, Configuration
from training.data.splits import DataSplits
from training.errors import ConfigurationError
from training.features.graph import FeatureGraph, read_feature_graph
from training.features.maps import RunFeatures, cached_splits, feature_splits
from training.fit.distributed import ProcessGroup
from training.fit.linear import LINEAR, LinearModel, solve
from training.fit.run import CHECKPOINT, RunDescription, check_new
from training.fit.start import Start, inherited_options
from training.likelihoods import LIKELIHOODS

_COLOURS: Mapping[int, Colour] = {1: "grey", 3: "rgb"}
_LIKELIHOOD = "gaussian"
_MAX_GRADIENT_NORM = 500.0
"""Without it a bound once fell to ten times its negative in an epoch: scales learned of few images become narrow."""


def open_graph(file: Path | None, before: RunDescription | None, runtime: Runtime) -> FeatureGraph | None:
    """The graph that was given; None where there is none.

    Raises:
        OSError, InvalidArtifactError: see `read_feature_graph`.
        ConfigurationError: the run that goes on is of pixels, or of another graph.
    """
    if file is None:
        return None
    graph = read_feature_graph(file, runtime)
    if before and (before.features is None or before.features.sha256 != graph.sha256):
        other = "pixels" if before.features is None else "the features of another graph"
        raise ConfigurationError(f"{file}: the run to resume is of {other}")
    return graph


def complete_options(
    given: Mapping[str, Any],
    out: Path,
    before: RunDescription | None,
    start: Start | None,
    graph: FeatureGraph | None,
    *,
    encoder_alone: bool,
) -> dict[str, Any]:
    """The options that were given, with those of the run that goes on or is the start, or that a graph implies.

    Args:
        given: by the configuration's fields.
        out: the run's folder.
        before: the run that goes on.
        start: whose weights the run begins with.
        graph: of a run of features, if it is given.
        encoder_alone: see `inherited_options`.

    Raises:
        ConfigurationError: they cannot go together.
        RunError: a run of features cannot begin in the folder, where they would be computed first.
    """
    if graph and start:
        raise ConfigurationError("features and start-from do not go together: other features are whitened otherwise")
    if before:
        return asdict(before.configuration) | dict(given)
    if start:
        return inherited_options(start, encoder_alone=encoder_alone) | dict(given)
    if graph:
        check_new(out)
        return feature_options(given, graph)
    if given.get("preset") == LINEAR:
        raise ConfigurationError("preset linear is for features: give --features, or another preset")
    return dict(given)


def feature_options(given: Mapping[str, Any], graph: FeatureGraph) -> dict[str, Any]:
    """The options with what a graph implies: its images' size and colour, a density of real numbers, linear.

    Raises:
        ConfigurationError: an option cannot be with features; the message names it.
    """
    channels, height, width = graph.image
    chosen = {"size": (height, width), "colour": _COLOURS.get(channels), **given}
    if given.get("preset", "auto") == "auto":
        chosen["preset"] = LINEAR
    chosen.setdefault("likelihood", _LIKELIHOOD)
    chosen.setdefault("max_gradient_norm", _MAX_GRADIENT_NORM)
    likelihood = LIKELIHOODS[chosen["likelihood"]]
    if likelihood.is_binary or likelihood.build(graph.maps).levels is not None:
        raise ConfigurationError(
            f"features are real numbers: likelihood {_LIKELIHOOD}, or another of them, not {chosen['likelihood']}"
        )
    for name in ("flip", "shift"):
        if chosen.get(name):
            raise ConfigurationError(f"{name} varies images anew at each use, and features are computed once")
    if chosen["preset"] == LINEAR:
        _check_linear(chosen)
    return chosen


def _check_linear(chosen: dict[str, Any]) -> None:
    """Refuse what weights in closed form cannot have, and say of what there is nothing to choose."""
    for name in ("width", "depth", "epochs", "finish_epochs"):
        if name in chosen:
            raise ConfigurationError(f"preset linear has no {name}: its weights are computed at once; or --preset mlp")
    if chosen["likelihood"] != _LIKELIHOOD or chosen.get("finish_encoder"):
        raise ConfigurationError(f"preset linear has a {_LIKELIHOOD} likelihood, and its encoder is exact")
    chosen["epochs"] = 1


def linear_model(given: Mapping[str, Any], splits: DataSplits, out: Path) -> LinearModel | None:
    """The weights of a new run whose preset is linear, or of one that ended before they were kept; else None.

    Raises:
        ConfigurationError: see `solve`.
    """
    if given.get("preset") != LINEAR or (out / CHECKPOINT).exists():
        return None
    return solve(given, splits)


def to_features(
    out: Path,
    splits: DataSplits,
    configuration: Configuration,
    graph: FeatureGraph | None,
    before: RunDescription | None,
    *,
    processes: ProcessGroup,
    runtime: Runtime,
) -> tuple[DataSplits, RunFeatures | None]:
    """The splits with maps in place of images to train on, and what they are; of a run of pixels as they are.

    Several processes that train together share the maps in the run's folder, which the leading one computes.

    Raises:
        ConfigurationError, DataError, RunError: see training/features/maps.py.
    """
    if graph is None:
        record = before.features if before else None
        return (splits, None) if record is None else (cached_splits(out, splits), record)

    def computed(*, progress: bool) -> tuple[DataSplits, RunFeatures]:
        found = feature_splits(
            out,
            splits,
            graph,
            seed=configuration.seed,
            max_gibibytes=configuration.max_memory,
            runtime=runtime,
            progress=progress,
        )
        return found.splits, found.record

    if processes.leads:
        mine = computed(progress=True)
        processes.wait()
        return mine
    processes.wait()
    return computed(progress=False)
