"""Parts of a likelihood's graph that `torch.export`, at a tenth of a second an operator, takes minutes for."""

import io
import warnings
from collections.abc import Mapping
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from training.likelihoods import Likelihood
from training.likelihoods.parts import DOMAIN, Part
from training.publish.exporter import OPSET

_Constants = dict[str, NDArray[Any]]
OWN_WEIGHTS = "network."
"""Begins the names of a likelihood's own weights in its graph."""


class _Traced(nn.Module):
    """A part with the weights that it uses, under their names."""

    def __init__(self, likelihood: Likelihood, part: Part) -> None:
        super().__init__()
        self.network = likelihood.network
        self.compute = part.compute

    def forward(self, *rows: Tensor) -> tuple[Tensor, ...]:
        return self.compute(*rows)


def put_in_parts(model: ModelProto, likelihood: Likelihood) -> None:
    """Put a likelihood's parts in the place of the operators that stand for them.

    The weights are constants of the graph under their own names, after `network.`, once each. To be called where sums
    are those of a graph that serves: see training/likelihoods/reductions.py.
    """
    graph = model.graph
    nodes = list(graph.node)
    del graph.node[:]
    casts = {node.output[0]: node.input[0] for node in nodes if node.op_type == "Cast"}  # to float64 and to float32
    parts: dict[str, tuple[GraphProto, _Constants]] = {}
    constants: dict[tuple[Any, ...], str] = {}
    calls: dict[tuple[str, ...], NodeProto] = {}
    same: dict[str, str] = {}
    for place, node in enumerate(nodes):
        node.input[:] = [same.get(name, name) for name in node.input]
        if node.domain != DOMAIN:
            graph.node.append(node)
            continue
        first = calls.setdefault((node.op_type, *(_before_casts(name, casts) for name in node.input)), node)
        if first is not node:
            same |= dict(zip(node.output, first.output, strict=True))
            continue
        if node.op_type not in parts:
            parts[node.op_type] = _constants_apart(_exported(likelihood, node))
        part, values = parts[node.op_type]
        names = dict(zip((value.name for value in part.input), node.input, strict=True))
        names |= dict(zip((value.name for value in part.output), node.output, strict=True))
        for inner in part.node:
            names |= {name: _constant(graph, constants, name, values[name]) for name in inner.input if name in values}
            copy = NodeProto()
            copy.CopyFrom(inner)
            copy.name = ""
            copy.input[:] = [names[name] if name else "" for name in inner.input]
            copy.output[:] = [names.setdefault(name, f"part.{place}.{name}") for name in inner.output]
            graph.node.append(copy)
    kept = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _before_casts(name: str, casts: Mapping[str, str]) -> str:
    """What is the same number in float32."""
    while name in casts:
        name = casts[name]
    return name


def _constant(graph: GraphProto, constants: dict[tuple[Any, ...], str], name: str, value: NDArray[Any]) -> str:
    """The name of a constant in the graph: weights keep theirs, and equal numbers are one."""
    own = name if name.startswith(OWN_WEIGHTS) else ""
    key = (own, value.dtype.str, value.shape, value.tobytes())
    if key not in constants:
        constants[key] = own or f"part.constant.{len(constants)}"
        graph.initializer.append(numpy_helper.from_array(value, constants[key]))
    return constants[key]


def _exported(likelihood: Likelihood, node: NodeProto) -> GraphProto:
    """A part by PyTorch's former exporter, in a hundredth of the time that the newer one takes.

    It serves where no size is asked for and none but the batch is open.
    """
    example = torch.full((3, 1, likelihood.num_pixels), 0.5)
    names = [f"in.{index}" for index in range(len(node.input))]
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is the former one, and what it doesn't fold
        torch.onnx.export(
            _Traced(likelihood, likelihood.parts[node.op_type]).eval(),
            (example,) * len(names),
            content,  # type: ignore[arg-type]  # it takes files, too
            dynamo=False,
            opset_version=OPSET,
            input_names=names,
            output_names=[f"out.{index}" for index in range(len(node.output))],
            dynamic_axes={name: {0: "B"} for name in names},
        )
    return onnx.load_from_string(content.getvalue()).graph


def _constants_apart(graph: GraphProto) -> tuple[GraphProto, _Constants]:
    """The graph without what can be computed beforehand, and without nodes that do nothing; and its constants."""
    constants: _Constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    same: dict[str, str] = {}
    kept = []
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        if all(name in constants for name in node.input if name):
            given = {name: constants[name] for name in node.input if name}
            constants |= dict(zip(node.output, ReferenceEvaluator(node).run(None, given), strict=True))
        elif node.op_type == "Identity" and node.output[0] not in outputs:
            same[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    return graph, constants
