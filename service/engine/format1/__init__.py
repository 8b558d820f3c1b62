"""Format version 1 of the store had no likelihood.onnx: the graphs of the likelihoods that it named.

They are exported by training/publish/format1.py from the same classes as every other, for images of any size. Here they
get the size, and the numbers that the manifest gives.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, numpy_helper

from model_store import MANIFEST, InvalidArtifactError, LikelihoodSpec, StoredModel
from service.engine.arrays import largest_divisor

_FOLDER = Path(__file__).parent
_MOST_LEVELS = 256
_SMALL, _PACKET = 1024, 4
_HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


def likelihood_graph_of(stored: StoredModel) -> bytes:
    """A version's likelihood.onnx; of format version 1, the graph of the likelihood that its manifest names.

    Raises:
        InvalidArtifactError: see `likelihood_of_format_1`.
    """
    if stored.likelihood is not None:
        return stored.likelihood
    manifest = stored.manifest
    return likelihood_of_format_1(manifest.likelihood, manifest.image.size, stored.path / MANIFEST)


def likelihood_of_format_1(spec: LikelihoodSpec, num_pixels: int, file: Path) -> bytes:
    """What would be `likelihood.onnx`, for images of P = C·H·W pixels; `file` is what an error names.

    Raises:
        InvalidArtifactError: pixels lie on more than 256 levels, which no model trained here ever had.
    """
    name, numbers = spec.kind, dict[str, float]()
    scale = spec.options.get("scale")
    if scale is not None:
        name = f"{name}_of_scale"
        numbers = {"scale": float(scale), "log_normaliser": math.log(float(scale)) + _HALF_LOG_2_PI}
    if spec.levels is not None:
        if spec.levels > _MOST_LEVELS:
            problem = f"likelihood.levels is {spec.levels}; of format version 1, up to {_MOST_LEVELS} are read"
            raise InvalidArtifactError(file, problem)
        numbers = {"top": spec.levels - 1, "half_step": 0.5 / (spec.levels - 1)}
    size = ".small" if num_pixels <= _SMALL and num_pixels % _PACKET == 0 else ""
    model = onnx.load_from_string((_FOLDER / f"{name}{size}.onnx").read_bytes())
    _set_num_pixels(model, num_pixels)
    _set_numbers(model, numbers)
    content: bytes = model.SerializeToString()
    return content


def _set_num_pixels(model: ModelProto, num_pixels: int) -> None:
    """Write P for the symbol that stands for it, and for each node that asks a tensor for its shape the answer."""
    graph = model.graph
    dims = {value.name: value.type.tensor_type.shape.dim for value in graph.input}
    symbol = dims["x"][2].dim_param
    sizes = {symbol: num_pixels, f"2*{symbol}": 2 * num_pixels}
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    for node in [node for node in graph.node if node.op_type == "Shape"]:
        axes = {attribute.name: attribute.i for attribute in node.attribute}
        found = [dim.dim_value for dim in dims[node.input[0]][axes["start"] : axes["end"]]]
        graph.initializer.append(numpy_helper.from_array(np.array(found), node.output[0]))
        graph.node.remove(node)
    used_by = {node.input[1]: node.op_type for node in graph.node if node.op_type in ("Reshape", "Pad")}
    for tensor in graph.initializer:
        if (operator := used_by.get(tensor.name)) is not None:
            lengths = [_size(operator, size, num_pixels) for size in numpy_helper.to_array(tensor).tolist()]
            tensor.CopyFrom(numpy_helper.from_array(np.array(lengths), tensor.name))
    _fold_sizes(graph)


def _fold_sizes(graph: GraphProto) -> None:
    """Compute what depends on whole numbers alone: where sizes are not constants, there is no gradient (adjoint.py)."""
    from onnx.reference import ReferenceEvaluator  # takes 40 ms, which only versions of format 1 need

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    sizes = {name: array for name, array in constants.items() if array.dtype.kind == "i"}
    for node in list(graph.node):
        if node.input and all(name in sizes for name in node.input):
            (found,) = cast(Any, ReferenceEvaluator(node)).run(None, {name: sizes[name] for name in node.input})
            sizes[node.output[0]] = np.asarray(found)
            graph.initializer.append(numpy_helper.from_array(sizes[node.output[0]], node.output[0]))
            graph.node.remove(node)


def _size(operator: str, size: int, num_pixels: int) -> int:
    """What a number among an operator's sizes stands for: see `use_sums` in training/likelihoods/reductions.py."""
    if size >= -1:
        return size
    group = largest_divisor(num_pixels, -size)
    return group if operator == "Reshape" else -(num_pixels // group) % _PACKET


def _set_numbers(model: ModelProto, numbers: Mapping[str, float]) -> None:
    """Constants in place of inputs."""
    for given in [given for given in model.graph.input if given.name in numbers]:
        model.graph.input.remove(given)
        model.graph.initializer.append(numpy_helper.from_array(np.array(numbers[given.name], float), given.name))
