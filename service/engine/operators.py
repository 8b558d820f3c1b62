"""Which operators a stored graph may have: those whose work depends on the size of the batch, and on nothing else.

Then a graph that has answered once, within the limits of a trial, answers all that are asked of it: none of its inputs
makes it compute for ever, or take all memory. And it gives the same numbers every time.
"""

from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, inliner, numpy_helper, shape_inference

from model_store import InvalidArtifactError

MAX_NODES = 20_000
"""Nodes of a graph, its functions written out where they are called."""

_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
_SIZED_BY_NUMBERS = ("Compress", "NonMaxSuppression", "NonZero", "Unique")
_NOT_OF_NUMBERS = (
    *("ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert"),
    *("SequenceLength", "SplitToSequence", "Optional", "OptionalGetElement", "OptionalHasElement"),
    *("ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),
)
_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap"), "what it computes may depend on the input"),
    **dict.fromkeys(_RANDOM, "it gives other numbers every time"),
    **dict.fromkeys(_SIZED_BY_NUMBERS, "the size of what it gives depends on the input's numbers"),
    **dict.fromkeys(_NOT_OF_NUMBERS, "it is not about tensors of numbers"),
}
_SIZES: Mapping[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "DFT": (1, 2),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "RoiAlign": (1,),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
"""The inputs that say how large the output is, or along which axes; and of every reduction the second.

RoiAlign's say how large the regions are, of which it reads as many points as they have pixels, whatever it gives.
"""
_DIVISIONS = ("Div", "Mod")
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_STANDARD = ("", "ai.onnx")
_TAKEN = ("ai.onnx", "com.microsoft", "com.ms.", "org.pytorch")
"""Domains in which ONNX Runtime may have an operator that a function's name hides."""
_OF_SHAPE = ("Shape", "Size")  # they look at an input's size, and not at its numbers

Function = tuple[str, str, str]
"""Domain, name and overload."""


def check_operators(model: ModelProto, file: Path) -> None:
    """Refuse a graph whose work depends on more than the size of its input, or whose answers are random.

    Args:
        model: valid, and of not too many nodes.
        file: what an error names.

    Raises:
        InvalidArtifactError: a graph within a node, as of a loop; an operator that is random, of a domain of its own,
            or not about tensors of numbers; a size that is computed from the input's numbers; a division of whole
            numbers that could end the process.
    """
    functions = {_key(function) for function in model.functions}
    for domain, name, _ in functions:
        if domain.startswith(_TAKEN) or domain == "":
            raise InvalidArtifactError(file, f"function {name!r} is of the domain {domain!r}, which has operators")
    for node in _nodes(model):
        if node.domain not in _STANDARD and _called(node) not in functions:
            raise InvalidArtifactError(
                file, f"operator {node.op_type!r} is of the domain {node.domain!r}, which the format does not have"
            )
        if node.domain in _STANDARD and (reason := _REFUSED.get(node.op_type)):
            raise InvalidArtifactError(file, f"operator {node.op_type!r} is refused: {reason}")
        if any(attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in node.attribute):
            raise InvalidArtifactError(file, f"operator {node.op_type!r} is refused: it has a graph inside")
    written_out = inliner.inline_local_functions(model) if model.functions else model
    _check_training(written_out, file)
    _check_sizes(written_out, file)
    _check_divisions(written_out, file)


def check_number_of_nodes(model: ModelProto, file: Path) -> None:
    """Count nodes with the functions written out, without writing them: each may call others twice, and those too.

    Raises:
        InvalidArtifactError: more than `MAX_NODES`, or functions that call themselves.
    """
    bodies = {_key(function): function.node for function in model.functions}
    calls = {key: {_called(node) for node in body} & bodies.keys() for key, body in bodies.items()}
    try:
        order = list(TopologicalSorter(calls).static_order())
    except CycleError:
        raise InvalidArtifactError(file, "has functions that call themselves") from None
    sizes: dict[Function, int] = {}
    for key in order:
        sizes[key] = _size(bodies[key], sizes)
    if (count := _size(model.graph.node, sizes)) > MAX_NODES:
        raise InvalidArtifactError(file, f"has more than {MAX_NODES} nodes ({count})")


def _size(nodes: Iterable[NodeProto], sizes: Mapping[Function, int]) -> int:
    return min(sum(sizes.get(_called(node), 1) for node in nodes), 10**12)


def _check_training(model: ModelProto, file: Path) -> None:
    """Operators that are random, or mix the images of a batch, in training only."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            mode = constants.get(node.input[2])
            if mode is None or numpy_helper.to_array(mode).any():
                raise InvalidArtifactError(file, "operator 'Dropout' is refused: it may be in training mode, at random")
        if node.op_type == "BatchNormalization" and any(a.name == "training_mode" and a.i for a in node.attribute):
            raise InvalidArtifactError(file, "operator 'BatchNormalization' is refused: it is in training mode")


def _check_sizes(model: ModelProto, file: Path) -> None:
    """Follow what is computed from the input's numbers, in the nodes' order, which is that of computing."""
    depends = {value.name for value in model.graph.input} - {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        reduces = node.op_type.startswith("Reduce")
        for index in (1,) if reduces else _SIZES.get(node.op_type, ()):
            if index < len(node.input) and node.input[index] in depends:
                raise InvalidArtifactError(
                    file, f"operator {node.op_type!r} takes a size that is computed from the input's numbers"
                )
        if node.op_type not in _OF_SHAPE and not depends.isdisjoint(node.input):
            depends.update(name for name in node.output if name)


def _check_divisions(model: ModelProto, file: Path) -> None:
    """Refuse whole numbers divided by what is computed, or by 0 or −1.

    The processor ends the process that divides the least whole number of 64 bits by −1, of which ONNX Runtime takes no
    care, as it does of division by 0. Whether that comes to pass may depend on the input's numbers, or on its size.
    """
    divisions = [node for node in model.graph.node if node.op_type in _DIVISIONS]
    if not divisions:
        return
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
            constants.update(zip(node.output, values, strict=False))
    kinds = _kinds(model)
    for node in divisions:
        divisor = node.input[1]
        if kinds.get(divisor) in _FLOATS:
            continue
        if divisor not in constants or np.isin(numpy_helper.to_array(constants[divisor]), (0, -1)).any():
            raise InvalidArtifactError(
                file, f"operator {node.op_type!r} is refused: it divides whole numbers by what may be 0 or -1"
            )


def _kinds(model: ModelProto) -> dict[str, int]:
    """The type of each tensor's elements, where it can be told; what the file itself says of them may be wrong."""
    graph = model.graph
    known = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    known |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    known |= {tensor.values.name: tensor.values.data_type for tensor in graph.sparse_initializer}
    inputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in known.items()]
    bare = helper.make_model(
        helper.make_graph(graph.node, graph.name, inputs, []),  # without the weights
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    found = shape_inference.infer_shapes(bare).graph.value_info
    return known | {value.name: value.type.tensor_type.elem_type for value in found}


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    yield from model.graph.node
    for function in model.functions:
        yield from function.node


def _key(function: object) -> Function:
    return function.domain, function.name, getattr(function, "overload", "")  # type: ignore[attr-defined]


def _called(node: NodeProto) -> Function:
    return node.domain, node.op_type, node.overload
