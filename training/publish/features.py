"""What publishing a run of features needs beside that of pixels: its graph, the manifest's field, and a comparison."""

import numpy as np
import torch

from model_store import FeatureMaps
from service.engine.runtime import Runtime
from training.data.splits import DataSplits
from training.errors import ParityError
from training.features.graph import FeatureGraph
from training.features.maps import cached_splits, run_graph
from training.fit.run import Run, RunDescription
from training.publish.evaluation import in_unit_interval
from training.publish.export import PARITY_BATCHES, PARITY_TOLERANCE


def features_of(run: Run, runtime: Runtime) -> FeatureGraph | None:
    """The whitened graph of a run of features; None of a run of pixels.

    Raises:
        RunError, InvalidArtifactError: see `run_graph`.
    """
    return None if run.description.features is None else run_graph(run.folder, runtime)


def stored_features(run: RunDescription) -> FeatureMaps | None:
    """The manifest's `features`; None of a run of pixels."""
    if run.features is None:
        return None
    channels, height, width = run.image_shape
    return FeatureMaps(channels=channels, height=height, width=width, log_scale_sum=run.features.log_scale_sum)


def checked_maps(run: Run, splits: DataSplits, graph: FeatureGraph) -> torch.Tensor:
    """Maps [N, F, h, w] of some validation images, which must be those that the run was trained on.

    Raises:
        ParityError: the graph makes other maps than those in the run's folder, by more than 1e-4 of the largest.
        RunError: see `cached_splits`.
    """
    count = max(PARITY_BATCHES)
    maps = graph.of(in_unit_interval(splits.validation[:count]))
    trained = cached_splits(run.folder, splits).validation[:count]
    difference = float(np.abs(maps - trained).max())
    if not difference <= PARITY_TOLERANCE * max(1.0, float(np.abs(trained).max())):
        raise ParityError(f"{run.folder}: features of validation images differ by {difference:.3g} from training's")
    return torch.from_numpy(maps)
