"""The maps of a data set's images, computed once and kept in the run's folder.

features/
    features.onnx       the graph with the whitening at its end: what is published
    train.npy           maps of the training images [N, F, h, w] float32, whitened; read by memory mapping
    validation.npy
    key.json            what they were made of, written last: without it nothing here counts
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.runtime import Runtime
from service.progress import Progress
from training.data.image_files import Pixels
from training.data.splits import DataSplits, Images
from training.data.streams import ImageStream, in_batches
from training.errors import ConfigurationError, RunError
from training.features.graph import FeatureGraph, Shape, feature_graph
from training.features.whitening import Whitening
from training.files import write_atomically

FOLDER = "features"
GRAPH, KEY = "features.onnx", "key.json"
_PARTS = ("train", "validation")
_AT_ONCE = 64


@dataclass(frozen=True)
class RunFeatures:
    """What a run's features are; part of its identity.

    Attributes:
        sha256: of the graph that was given, before the whitening.
        image_shape: C, H and W of the images that it takes.
        log_scale_sum: see `Whitening`.
    """

    sha256: str
    image_shape: Shape
    log_scale_sum: float


@dataclass(frozen=True)
class FeatureSplits:
    """A data set in the space of features.

    Attributes:
        splits: as the trainer takes them: `train` and `validation` are maps, `calibration` and `test` still images.
        record: for the run's description.
    """

    splits: DataSplits
    record: RunFeatures


def feature_splits(
    run: Path,
    splits: DataSplits,
    graph: FeatureGraph,
    *,
    seed: int,
    max_gibibytes: float,
    runtime: Runtime,
    progress: bool = False,
) -> FeatureSplits:
    """The maps of a data set's training and validation images: those in the run's folder, or computed and put there.

    Args:
        run: the run's folder.
        splits: of images.
        graph: as it was given, not whitened.
        seed: by which the splits were made.
        max_gibibytes: that the maps may take on disk.
        runtime: where the whitened graph is opened.
        progress: say on stderr how far it has come.

    Raises:
        ConfigurationError: the images are not of the graph's size, or the maps would take more.
        DataError: the features are the same for all images.
    """
    if splits.image_shape != graph.image:
        raise ConfigurationError(
            f"the features are of images {list(graph.image)}, these are {list(splits.image_shape)}: leave out --size "
            f"and --colour, or give --size {graph.image[1]}x{graph.image[2]}"
        )
    count = sum(len(getattr(splits, part)) for part in _PARTS)
    num_bytes = 4 * count * int(np.prod(graph.maps))
    if num_bytes > max_gibibytes * 2**30:
        raise ConfigurationError(
            f"the features of {count} images take {num_bytes / 2**30:.1f} GiB on disk, more than --max-memory "
            f"{max_gibibytes:g}: raise that, or make features of fewer channels or positions"
        )
    folder = run / FOLDER
    key = {
        "graph": graph.sha256,
        "data": splits.sha256,
        "seed": seed,
        "things": splits.things,
        **{part: len(getattr(splits, part)) for part in _PARTS},
    }
    found = _read_key(folder)
    if found is None or {name: found.get(name) for name in key} != key:
        found = _compute(folder, splits, graph, key, runtime, progress)
    maps = {part: np.load(folder / f"{part}.npy", mmap_mode="c", allow_pickle=False) for part in _PARTS}
    record = RunFeatures(graph.sha256, graph.image, float(found["log_scale_sum"]))
    return FeatureSplits(replace(splits, **maps), record)


def cached_splits(run: Path, splits: DataSplits) -> DataSplits:
    """The splits with the maps that training has left in the run's folder.

    Raises:
        RunError: they are gone, or of other images.
    """
    folder = run / FOLDER
    found = _read_key(folder)
    if found is None or found.get("data") != splits.sha256:
        raise RunError(f"{folder}: the run's features are gone or of other images; give fit --resume --features again")
    maps = {part: np.load(folder / f"{part}.npy", mmap_mode="c", allow_pickle=False) for part in _PARTS}
    return replace(splits, **maps)


def run_graph(run: Path, runtime: Runtime) -> FeatureGraph:
    """The whitened graph of a run.

    Raises:
        RunError: it is gone, or another one than was trained with.
        InvalidArtifactError: it cannot be opened.
    """
    folder = run / FOLDER
    found = _read_key(folder)
    if found is None:
        raise RunError(f"{folder}: the run's features are gone; give fit --resume --features again")
    content = (folder / GRAPH).read_bytes()
    if hashlib.sha256(content).hexdigest() != found.get("whitened"):
        raise RunError(f"{folder / GRAPH}: not the graph that the run was trained with")
    return feature_graph(content, folder / GRAPH, runtime)


def _read_key(folder: Path) -> dict[str, Any] | None:
    """What the maps in the folder were made of; None where they are not whole."""
    try:
        found = json.loads((folder / KEY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and all((folder / f"{part}.npy").is_file() for part in _PARTS)
    return found if whole and isinstance(found.get("log_scale_sum"), float) and (folder / GRAPH).is_file() else None


def _compute(
    folder: Path,
    splits: DataSplits,
    graph: FeatureGraph,
    key: dict[str, Any],
    runtime: Runtime,
    progress: bool,
) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / KEY).unlink(missing_ok=True)
    opened = {
        part: np.lib.format.open_memmap(
            folder / f"{part}.npy", "w+", np.float32, (len(getattr(splits, part)), *graph.maps)
        )
        for part in _PARTS
    }
    with Progress("computing features", sum(map(len, opened.values())), shown=progress) as bar:
        for part, maps in opened.items():
            start = 0
            for pixels in _batches(getattr(splits, part)):
                maps[start : start + len(pixels)] = graph.of(pixels)
                start += len(pixels)
                bar.advance(len(pixels))
    whitening = Whitening.fit(lambda: _slices(opened["train"]), splits.name)
    for maps in opened.values():
        for some in _slices(maps):
            some[:] = whitening.apply(some)
        maps.flush()
    content = whitening.fold(graph.content)
    feature_graph(content, folder / GRAPH, runtime)
    write_atomically(folder / GRAPH, lambda stream: stream.write(content))
    said: dict[str, Any] = {
        **key,
        "whitened": hashlib.sha256(content).hexdigest(),
        "log_scale_sum": whitening.log_scale_sum,
    }
    write_atomically(folder / KEY, lambda stream: stream.write(json.dumps(said, indent=2).encode()))
    return said


def _batches(images: Images) -> Iterator[NDArray[np.float32]]:
    order = in_batches(np.arange(len(images)), _AT_ONCE)
    batches: Iterator[Pixels] = (
        iter(images.batches(order)) if isinstance(images, ImageStream) else (images[places] for places in order)
    )
    for pixels in batches:
        yield pixels.astype(np.float32) / np.float32(255) if pixels.dtype == np.uint8 else pixels.astype(np.float32)


def _slices(maps: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    return (maps[start : start + _AT_ONCE] for start in range(0, len(maps), _AT_ONCE))
