"""Every graph that the engine opens for a model, and what it runs them on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray

from service.engine import graphs
from service.engine.runtime import Runtime, Session

Inputs = dict[str, NDArray[Any]]


@dataclass
class Opened:
    """One graph, with the inputs of its runs, the largest of each shape's kept apart: shapes → inputs."""

    label: str
    graph: bytes
    file: Path
    runs: dict[tuple[tuple[int, ...], ...], Inputs] = field(default_factory=dict)
    num_runs: int = 0

    def largest(self) -> Inputs:
        """The inputs of most numbers."""
        return max(self.runs.values(), key=lambda inputs: sum(array.size for array in inputs.values()))


class RecordingRuntime(Runtime):
    """A runtime that remembers the graphs opened with it, and what they were run on."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.opened: list[Opened] = []

    def graphs(self) -> dict[str, bytes]:
        """Those opened, by their labels."""
        return {opened.label: opened.graph for opened in self.opened}

    def open(self, graph: bytes, file: Path, *arguments: Any, **keywords: Any) -> Session:
        """As the runtime's own."""
        session = super().open(graph, file, *arguments, **keywords)
        opened = Opened(label(graph), graph, file)
        self.opened.append(opened)
        return cast(Session, _RecordedSession(session, opened))


class _RecordedSession:
    def __init__(self, session: Session, opened: Opened) -> None:
        self._recorded = session
        self._opened = opened

    def run(self, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        arrays = {
            name: np.array(value if isinstance(value, np.ndarray) else value.numpy()) for name, value in inputs.items()
        }
        self._opened.runs[tuple(array.shape for array in arrays.values())] = arrays
        self._opened.num_runs += 1
        return self._recorded.run(inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recorded, name)


def label(graph: bytes) -> str:
    """What a graph is, by its outputs."""
    model = onnx.load_from_string(graph)
    outputs = {value.name: value for value in model.graph.output}
    if set(outputs) == {"mean", "log_var"}:
        return "encoder"
    if graphs.INFORMATION in outputs:
        return f"curvature in {outputs[graphs.GRADIENT].type.tensor_type.shape.dim[1].dim_value} dimensions"
    if graphs.ENCODER_LOG_WEIGHT in outputs:
        return "mixture"
    if set(outputs) == {graphs.LOG_WEIGHT}:
        return "log weight"
    if set(outputs) == {graphs.IMAGES}:
        return "sample" if any(value.name == graphs.UNIFORM for value in model.graph.input) else "mean"
    if set(outputs) == {graphs.SURPRISE}:
        return "surprise"
    return "decoder"
