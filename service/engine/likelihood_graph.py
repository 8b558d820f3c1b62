"""The likelihood p(x|z) as the store has it: a graph, of which other graphs take what they need."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx import ModelProto, NodeProto, TensorProto, helper, version_converter

from model_store import InvalidArtifactError
from service.engine.builder import GraphBuilder
from service.engine.graph_check import parse_graph

X, UNIFORM, TANGENT = "x", "uniform", "tangent."
LOG_PROB, PIXEL_LOG_PROB, ENTROPY = "log_prob", "pixel_log_prob", "entropy"
MEAN, SAMPLE, GRADIENT, INFORMATION = "mean", "sample", "gradient", "information"

_Row = int | None
"""Of an axis: its size; None where it is the graph's to say."""


class LikelihoodGraph:
    """What `likelihood.onnx` takes and gives (model_store/README.md).

    Attributes:
        outputs: the decoder's outputs by name, in order, with the numbers of a row of each, Q.
        num_uniforms: uniform numbers that one image of `sample` takes.

    Raises:
        InvalidArtifactError: it lacks an input or output, or has one of another type or shape.
    """

    def __init__(self, content: bytes, file: Path, *, num_pixels: int) -> None:
        self._file = file
        self._model = parse_graph(content, file)
        sizes = {value.name: self._row(value.name, value) for value in self._model.graph.input}
        self.num_uniforms = self._taken(sizes, UNIFORM)
        if self._taken(sizes, X) != num_pixels:
            raise InvalidArtifactError(file, f"input {X!r} has rows of {sizes[X]} numbers; images have {num_pixels}")
        self.outputs = {name: size for name, size in sizes.items() if not name.startswith(TANGENT)}
        for name, size in self.outputs.items():
            if sizes.get(TANGENT + name) != size:
                raise InvalidArtifactError(file, f"input {TANGENT + name!r} is missing, or of another size")
        self._check_outputs()
        self._opset = self._model.opset_import[0].version

    def in_opset(self, version: int) -> "LikelihoodGraph":
        """The same in another version of ONNX's operators, that of a decoder."""

    def append(self, builder: GraphBuilder, wanted: Sequence[str], inputs: Mapping[str, str]) -> list[str]:
        """Append the nodes that compute some outputs; returns the names of their results.

        Args:
            builder: of the graph that they become part of.
            wanted: which outputs.
            inputs: for each input that these need, the tensor to take: x [B, 1, P], the decoder's outputs [B, K, Q].
        """
        graph = self._model.graph
        nodes = _needed(graph.node, wanted)
        names = dict(inputs)
        for tensor in graph.initializer:
            if any(tensor.name in node.input for node in nodes):
                names[tensor.name] = builder.add_tensor(tensor)
        for node in nodes:
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.name = ""
            for index, name in enumerate(node.input):
                copy.input[index] = names[name] if name else ""
            for index, name in enumerate(node.output):
                names[name] = copy.output[index] = builder.name() if name else ""
            builder.nodes.append(copy)
        return [names[name] for name in wanted]


def _needed(nodes: Sequence[NodeProto], wanted: Sequence[str]) -> list[NodeProto]:
    """The nodes, in order, that some tensors are computed by."""
    tensors, found = set(wanted), []
    for node in reversed(nodes):
        if not tensors.isdisjoint(node.output):
            tensors.update(node.input)
            found.append(node)
    return found[::-1]
