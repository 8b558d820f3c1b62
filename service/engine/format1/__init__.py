"""Format version 1 of the store had no likelihood.onnx: the graphs of the likelihoods that it named.

They are exported by training/publish/format1.py from the same classes as every other, for images of any size: their
sums take longer than those of a version in format 2, and give the same numbers.
"""

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

from model_store import MANIFEST, InvalidArtifactError, LikelihoodSpec, StoredModel

_FOLDER = Path(__file__).parent
_LEVELS = 256
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
        InvalidArtifactError: pixels lie on another number of levels than 256, which no model trained here ever had.
    """
    if spec.levels not in (None, _LEVELS):
        raise InvalidArtifactError(
            file,
            f"format version 1 is read with 256 levels only, and this likelihood has {spec.levels}: "
            "write version 2 by `python -m training upgrade`",
        )
    scale = spec.options.get("scale")
    name = spec.kind if scale is None else f"{spec.kind}_of_scale"
    model = onnx.load_from_string((_FOLDER / f"{name}.onnx").read_bytes())
    _set_num_pixels(model, num_pixels)
    if scale is not None:
        _set_number(model, "scale", float(scale))
        _set_number(model, "log_normaliser", math.log(float(scale)) + _HALF_LOG_2_PI)
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


def _set_number(model: ModelProto, name: str, value: float) -> None:
    """A constant in place of an input."""
    (given,) = (given for given in model.graph.input if given.name == name)
    model.graph.input.remove(given)
    model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
