"""A feature graph that a user brings: what it takes, what it makes, and whether it can be a first stage."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store import ImageShape, InvalidArtifactError
from service.engine.chunks import complete
from service.engine.features import FEATURES, FeatureStage, X
from service.engine.graph_check import parse_graph
from service.engine.runtime import Runtime, blaming

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class FeatureGraph:
    """features.onnx, tried out and ready to run.

    Attributes:
        content: the file's bytes.
        image: C, H, W that it takes.
        maps: F, h, w that it makes.
    """

    content: bytes
    image: Shape
    maps: Shape
    stage: FeatureStage

    @property
    def sha256(self) -> str:
        """Of the file, in hex."""
        return hashlib.sha256(self.content).hexdigest()

    def of(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pixels [B, C, H, W] in [0, 1] → maps [B, F, h, w], as the service computes them."""
        return complete(self.stage.maps(pixels))


def read_feature_graph(file: Path, runtime: Runtime) -> FeatureGraph:
    """Open a graph from `x` [batch, C, H, W] to `features`, C, H and W being fixed.

    Raises:
        OSError: the file cannot be read.
        InvalidArtifactError: it cannot be a first stage (model_store/README.md); the message names the file.
    """
    return feature_graph(file.read_bytes(), file, runtime)


def feature_graph(content: bytes, file: Path, runtime: Runtime) -> FeatureGraph:
    """The same of bytes; `file` is what an error names."""
    model = parse_graph(content, file)
    inputs = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input}
    sizes = inputs.get(X, [])
    if len(sizes) != 4 or min(sizes[1:]) < 1:
        raise InvalidArtifactError(file, f"input {X!r} must be [batch, C, H, W] with fixed C, H and W; found {inputs}")
    image = (sizes[1], sizes[2], sizes[3])
    with blaming(file):
        outputs = runtime.open(content, file).run({X: np.zeros((1, *image), np.float32)})
    found = outputs[FEATURES].shape if FEATURES in outputs else ()
    if len(found) != 4 or min(found) < 1:
        named = ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())
        raise InvalidArtifactError(file, f"output {FEATURES!r} must be [batch, F, h, w]; found {named}")
    maps = (found[1], found[2], found[3])
    stage = FeatureStage(content, shape_of(image), shape_of(maps), runtime=runtime, file=file)
    stage.try_out()
    return FeatureGraph(content, image, maps, stage)


def shape_of(chw: Shape) -> ImageShape:
    """As the store has it."""
    return ImageShape(channels=chw[0], height=chw[1], width=chw[2])
