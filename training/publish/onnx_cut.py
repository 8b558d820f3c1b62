"""A feature graph cut out of an ONNX file that a user brings, with normalisation before it and one grid behind it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, compose, helper, inliner, numpy_helper, shape_inference, utils
from onnx import version_converter as versions

from model_store import InvalidArtifactError
from service.engine.features import FEATURES, X
from service.engine.runtime import Runtime, blaming
from training.errors import ConfigurationError, ParityError
from training.features.graph import FeatureGraph, feature_graph
from training.publish.export import PARITY_TOLERANCE
from training.publish.exporter import OPSET
from training.publish.feature_export import on_grid

_PREFIX = "network/"
_BATCH = "batch"
_SHOWN = 12
_PARITY_IMAGES = 3
_OF_ONNX = (ValueError, TypeError, RuntimeError, onnx.checker.ValidationError, shape_inference.InferenceError)

Floats = NDArray[np.float32]


def cut_onnx(
    file: Path,
    names: Sequence[str],
    *,
    image: tuple[int, int, int],
    grid: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    out: Path,
    runtime: Runtime,
) -> FeatureGraph:
    """features.onnx of a network in an ONNX file, checked as the service does and against the file itself.

    Args:
        file: a network with one input [batch, C, H, W], float32, of any opset, its batch and its size fixed or not.
        names: of its tensors, each maps [batch, F, h, w] of such images.
        image: C, H, W of the images; grey ones are repeated in the channels of a network of colour.
        grid: h, w of the maps.
        mean: of the network's input, one number or one a channel: it is given (pixel − mean) / std of pixels in [0, 1].
        std: likewise.
        out: what an error names where the new graph is meant.
        runtime: where the graphs run.

    Raises:
        ConfigurationError: the file is none, its input is another, or a name is not of maps; the message lists names.
        InvalidArtifactError: the graph cannot be a first stage.
        ParityError: it computes something else than the file, by more than 1e-4 of the largest number.
    """
    model = _read(file)
    channels = _set_size(file, model, image)
    shift, scale = (_by_channel(values, channels, name) for values, name in ((mean, "mean"), (std, "std")))
    if not (scale > 0).all():
        raise ConfigurationError(f"std must be above 0, not {', '.join(map(str, std))}")
    usable = _maps(file, model)
    chosen = tuple(dict.fromkeys(names))
    if not chosen or (missing := [name for name in chosen if name not in usable]):
        said = f"no maps of such images are called {missing[0]!r}" if chosen else "--outputs is needed"
        raise ConfigurationError(f"{file}: {said}; there are {_suggested(usable)}")
    try:
        cut = _upper_part(model, chosen)
        network = _renewed(cut)
    except _OF_ONNX as error:
        raise ConfigurationError(f"{file}: cannot be cut ({_first_line(error)})") from error
    content = _wrapped(network, chosen, usable, image, grid, shift, scale)
    graph = feature_graph(content, out, runtime)
    noise = np.random.default_rng(0).random((_PARITY_IMAGES, *image), np.float32)
    expected = _by_the_file(file, cut, chosen, (noise - shift) / scale, grid, runtime)
    difference = float(np.abs(graph.of(noise) - expected).max())
    if not difference <= PARITY_TOLERANCE * float(np.abs(expected).max()):
        raise ParityError(f"{out}: the graph differs from {file} by {difference:.3g}")
    return graph


def _read(file: Path) -> ModelProto:
    try:
        model: ModelProto = inliner.inline_local_functions(onnx.load(file))
    except (DecodeError, *_OF_ONNX) as error:
        raise ConfigurationError(f"{file}: not a readable ONNX file ({_first_line(error)})") from error
    return model


def _set_size(file: Path, model: ModelProto, image: tuple[int, int, int]) -> int:
    """Give the network's input the images' height and width and a batch of any size; its channels."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    shapes = {
        value.name: [dim.dim_value or dim.dim_param or "any" for dim in value.type.tensor_type.shape.dim]
        for value in inputs
    }
    if len(inputs) != 1 or len(sizes := next(iter(shapes.values()))) != 4 or sizes[1] not in (1, 3, image[0]):
        last = (
            " (channels come last; export it with channels first)" if len(shapes) == 1 and sizes[-1] in (1, 3) else ""
        )
        raise ConfigurationError(f"{file}: a network with one input [batch, C, H, W] is needed; found {shapes}{last}")
    channels = int(sizes[1])
    if inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise ConfigurationError(f"{file}: its input {inputs[0].name!r} is not float32")
    if image[0] not in (1, channels):
        raise ConfigurationError(f"{file}: takes images of {channels} channels; --colour says {image[0]}")
    name = inputs[0].name
    del graph.input[:], graph.value_info[:]
    graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [_BATCH, channels, *image[1:]]))
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    return channels


def _by_channel(values: Sequence[float], channels: int, name: str) -> Floats:
    """[1, C, 1, 1] of one number or one a channel."""
    if len(values) not in (1, channels):
        several = f", or {channels} separated by commas" if channels > 1 else ""
        raise ConfigurationError(
            f"the network's input has {channels} channel{'s' * (channels > 1)}, so --{name} must be one number"
            f"{several}; there are {len(values)} ({name} is by default ImageNet's)"
        )
    return np.broadcast_to(np.array(values, np.float32), channels).reshape(1, -1, 1, 1).copy()


def _maps(file: Path, model: ModelProto) -> dict[str, tuple[int, int, int]]:
    """By name, in the graph's order, F, h and w of the tensors [batch, F, h, w] that it computes of such images."""
    try:
        inferred = shape_inference.infer_shapes(model, data_prop=True)
    except _OF_ONNX as error:
        raise ConfigurationError(f"{file}: cannot take images of this size ({_first_line(error)})") from error
    known = {value.name: value.type.tensor_type for value in [*inferred.graph.value_info, *inferred.graph.output]}
    found = {}
    for node in inferred.graph.node:
        for name in node.output:
            dims = [dim.dim_value for dim in known[name].shape.dim] if name in known else []
            if len(dims) == 4 and min(dims[1:]) > 0 and known[name].elem_type == TensorProto.FLOAT:
                found[name] = (dims[1], dims[2], dims[3])
    if not found:
        raise ConfigurationError(f"{file}: computes no maps [batch, F, h, w] of images of this size")
    return found


def _suggested(usable: Mapping[str, tuple[int, int, int]]) -> str:
    """The last maps of each size first, which have seen most, then others."""
    last = {shape[1:]: name for name, shape in usable.items() if max(shape[1:]) > 1}
    names = list(dict.fromkeys([*reversed(last.values()), *reversed(list(usable))]))
    shown = ", ".join(f"{name} {list(usable[name])}" for name in names[:_SHOWN])
    return shown + (f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _upper_part(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """What the named tensors are computed by, and nothing else."""
    inferred = shape_inference.infer_shapes(model, data_prop=True)
    cut: ModelProto = utils.Extractor(inferred).extract_model([inferred.graph.input[0].name], list(names))
    del cut.graph.value_info[:]
    for value in cut.graph.output:
        value.type.tensor_type.ClearField("shape")
    return cut


def _renewed(cut: ModelProto) -> ModelProto:
    """The same in our opset, all its names with a prefix."""
    opset = next(entry.version for entry in cut.opset_import if entry.domain in ("", "ai.onnx"))
    converted = versions.convert_version(cut, OPSET) if opset < OPSET else cut
    renamed: ModelProto = compose.add_prefix(converted, _PREFIX)
    return renamed


def _wrapped(
    network: ModelProto,
    names: Sequence[str],
    usable: Mapping[str, tuple[int, int, int]],
    image: tuple[int, int, int],
    grid: tuple[int, int],
    mean: Floats,
    std: Floats,
) -> bytes:
    """The network between the steps from pixels to its input and those from its maps to one grid."""
    graph = network.graph
    constants: dict[str, NDArray[Any]] = {"mean": mean, "std": std, "grid": np.array(grid, np.int64)}
    colour = [helper.make_node("Concat", [X] * mean.shape[1], ["colour"], axis=1)] if image[0] < mean.shape[1] else []
    before = [
        *colour,
        helper.make_node("Sub", ["colour" if colour else X, "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], [graph.input[0].name]),
    ]
    after = [node for name in names for node in _to_grid(f"{_PREFIX}{name}", usable[name][1:], grid)]
    gridded = [node.output[0] for node in after]
    nodes = [*before, *graph.node, *after, helper.make_node("Concat", gridded, [FEATURES], axis=1)]
    count = sum(usable[name][0] for name in names)
    made = helper.make_graph(
        nodes,
        "features",
        [helper.make_tensor_value_info(X, TensorProto.FLOAT, [_BATCH, *image])],
        [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, [_BATCH, count, *grid])],
        [*graph.initializer, *(numpy_helper.from_array(array, name) for name, array in constants.items())],
    )
    content: bytes = helper.make_model(
        made, opset_imports=network.opset_import, ir_version=network.ir_version
    ).SerializeToString()
    return content


def _to_grid(name: str, size: Sequence[int], grid: tuple[int, int]) -> Iterator[NodeProto]:
    """As `on_grid`."""
    down, across = size[0] // grid[0], size[1] // grid[1]
    options: dict[str, Any]
    if (down * grid[0], across * grid[1]) == tuple(size):
        options = {"kernel_shape": [down, across], "strides": [down, across]}
        yield helper.make_node("AveragePool", [name], [f"{name}/grid"], **options)
    else:
        options = {"axes": [2, 3], "mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        yield helper.make_node("Resize", [name, "", "", "grid"], [f"{name}/grid"], **options)


def _by_the_file(
    file: Path, cut: ModelProto, names: Sequence[str], inputs: Floats, grid: tuple[int, int], runtime: Runtime
) -> Floats:
    """The maps that the file's own operators make of each input alone, brought to the grid by PyTorch."""
    try:
        with blaming(file):
            session = runtime.open(cut.SerializeToString(), file)
            each = [session.run({cut.graph.input[0].name: row[None]}) for row in inputs]
    except InvalidArtifactError as error:
        raise ConfigurationError(str(error)) from error
    maps = (np.concatenate([found[name] for found in each]) for name in names)
    return torch.cat([on_grid(torch.from_numpy(found), grid) for found in maps], dim=1).numpy()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
