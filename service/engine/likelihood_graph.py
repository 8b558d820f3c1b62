"""The likelihood p(x|z) as the store has it: a graph, of which other graphs take what they need."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx import NodeProto, TensorProto, ValueInfoProto, version_converter

from model_store import InvalidArtifactError
from service.engine.builder import GraphBuilder
from service.engine.graph_check import parse_graph
from service.engine.plain_graph import plain

X, UNIFORM, TANGENT = "x", "uniform", "tangent."
LOG_PROB, PIXEL_LOG_PROB, ENTROPY = "log_prob", "pixel_log_prob", "entropy"
MEAN, SAMPLE, GRADIENT, INFORMATION = "mean", "sample", "gradient", "information"
_TYPES = {
    LOG_PROB: TensorProto.DOUBLE,
    PIXEL_LOG_PROB: TensorProto.DOUBLE,
    ENTROPY: TensorProto.DOUBLE,
    MEAN: TensorProto.FLOAT,
    SAMPLE: TensorProto.FLOAT,
    GRADIENT: TensorProto.DOUBLE,
    INFORMATION: TensorProto.FLOAT,
}


class LikelihoodGraph:
    """What `likelihood.onnx` takes and gives; model_store/README.md has the shapes.

    Args:
        content: the file.
        file: where it came from, for error messages.
        num_pixels: P = C·H·W.

    Attributes:
        outputs: the decoder's outputs by name, in order, each with its size Q of a row.
        num_uniforms: uniform numbers that one image of `sample` takes.

    Raises:
        InvalidArtifactError: it lacks an input or output, or has one of another type or size.
    """

    def __init__(self, content: bytes, file: Path, *, num_pixels: int) -> None:
        self.file = file
        model = parse_graph(content, file)
        self._model = plain(model)
        self._graph = self._model.graph
        sizes = {value.name: self._size(value) for value in self._graph.input}
        for name in (X, UNIFORM):
            if name not in sizes:
                raise InvalidArtifactError(file, f"input {name!r} is missing; found {', '.join(sizes) or 'none'}")
        self.num_uniforms = sizes.pop(UNIFORM)
        if (found := sizes.pop(X)) != num_pixels:
            raise InvalidArtifactError(file, f"input {X!r} has rows of {found} numbers; images have {num_pixels}")
        self.outputs = {name: size for name, size in sizes.items() if not name.startswith(TANGENT)}
        if {TANGENT + name: size for name, size in self.outputs.items()} != {
            name: size for name, size in sizes.items() if name.startswith(TANGENT)
        }:
            raise InvalidArtifactError(file, f"each of the decoder's outputs needs an input {TANGENT}NAME of its size")
        types = {value.name: value.type.tensor_type.elem_type for value in self._graph.output}
        for name, wanted in _TYPES.items():
            if types.get(name) != wanted:
                raise InvalidArtifactError(file, f"output {name!r} is missing, or of another type")

    def convert(self, opset: int) -> None:
        """Write it in another version of ONNX's operators: those of the decoder, whose graph it becomes part of.

        Raises:
            InvalidArtifactError: that cannot be done.
        """
        if next(entry.version for entry in self._model.opset_import if entry.domain in ("", "ai.onnx")) == opset:
            return
        try:
            self._model = version_converter.convert_version(self._model, opset)
        except RuntimeError as error:
            raise InvalidArtifactError(self.file, f"cannot be converted to the decoder's opset {opset}") from error
        self._graph = self._model.graph

    def append(self, builder: GraphBuilder, wanted: Sequence[str], inputs: Mapping[str, str]) -> list[str]:
        """Append the nodes that compute some outputs; returns the names of their results.

        Args:
            builder: of the graph that they become part of.
            wanted: which outputs.
            inputs: for each input that these need, the tensor to take.
        """
        nodes = needed(self._graph.node, wanted)
        read = {name for node in nodes for name in node.input}
        names = {"": "", **inputs}
        names |= {tensor.name: builder.add_tensor(tensor) for tensor in self._graph.initializer if tensor.name in read}
        for node in nodes:
            names |= {name: builder.name() for name in node.output if name}
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.name = ""
            copy.input[:] = [names[name] for name in node.input]
            copy.output[:] = [names[name] for name in node.output]
            builder.nodes.append(copy)
        return [names[name] for name in wanted]

    def _size(self, value: ValueInfoProto) -> int:
        """Of a row: an input is float32 [B, rows, size]."""
        kind = value.type.tensor_type
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
        if kind.elem_type != TensorProto.FLOAT or len(dims) != 3 or dims[0] is not None or not dims[2]:
            raise InvalidArtifactError(self.file, f"input {value.name!r} is not float32 ['batch', rows, a size]")
        return int(dims[2])


def needed(nodes: Sequence[NodeProto], wanted: Sequence[str]) -> list[NodeProto]:
    """The nodes, in order, that some tensors are computed by."""
    tensors, found = set(wanted), []
    for node in reversed(nodes):
        if not tensors.isdisjoint(node.output):
            tensors.update(node.input)
            found.append(node)
    return found[::-1]
