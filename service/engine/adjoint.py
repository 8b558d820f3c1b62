"""The gradient of what a graph computes, as further nodes: differentiation in reverse, one rule an operator.

A graph that takes z to the numbers y gets the nodes that take cotangents of y (what a scalar's derivative in y is) to
the scalar's derivative in z. That costs about as much as the graph itself, whatever the dimension of z; differences
cost the graph's work once for each dimension.

The rules are in adjoint_rules.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, ValueInfoProto, helper, numpy_helper
from onnx import shape_inference as inference

from service.engine.builder import GraphBuilder

_SMALL = 1024
"""Numbers of a constant, up to which shapes may be read from it."""
_STANDARD = ("", "ai.onnx")

Rule = Callable[["Adjoint", NodeProto, int, str], str]
"""A node, which of its inputs, and the derivative in its output (joined, if it has several) → that in the input."""


class NotDifferentiableError(Exception):
    """No rule says how an operator is differentiated in this use."""


@dataclass(frozen=True)
class _Tensor:
    """What is known of a tensor: its element type, and its shape, None for the batch."""

    kind: int
    shape: tuple[int | None, ...]


class Adjoint:
    """Differentiates nodes that are in a builder, and appends what it needs there.

    Args:
        builder: holds the nodes and constants; every node appended comes after them.
        graph: the same nodes as one graph, with all constants and with typed inputs; every tensor on the way has the
            batch as its first dimension, and the others are known.
        opset: of its operators.
        rules: by operator.
    """

    def __init__(self, builder: GraphBuilder, graph: GraphProto, opset: int, rules: Mapping[str, Rule]) -> None:
        self._builder = builder
        self._rules = rules
        self._nodes = list(graph.node)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._tensors = _tensors(graph, opset)

    def append(self, cotangents: Mapping[str, str], wanted: str) -> str:
        """Append the nodes that give the derivative in the tensor `wanted`; returns its name.

        Args:
            cotangents: for some tensors, the name of the derivative in each.
            wanted: a tensor that these depend on.

        Raises:
            NotDifferentiableError: an operator on the way has no rule, or they do not depend on it.
        """
        depends = {wanted}
        for node in self._nodes:
            if not depends.isdisjoint(node.input):
                depends.update(node.output)
        found = dict(cotangents)
        for node in reversed(self._nodes):
            if depends.isdisjoint(node.input) or found.keys().isdisjoint(node.output):
                continue
            rule = self._rules.get(node.op_type) if node.domain in _STANDARD else None
            if rule is None:
                raise NotDifferentiableError(f"operator {node.op_type!r} has no rule")
            given = self._joined(node, found)
            for index, name in enumerate(node.input):
                if name in depends:
                    part = rule(self, node, index, given)
                    found[name] = self.add("Add", found[name], part) if name in found else part
        if wanted not in found:
            raise NotDifferentiableError(f"nothing depends on {wanted!r}")
        return found[wanted]

    def _joined(self, node: NodeProto, found: Mapping[str, str]) -> str:
        """The derivative in a node's output; of Split, those in its outputs, joined again."""
        if len(node.output) == 1:
            return found[node.output[0]]
        if node.op_type != "Split" or not found.keys() >= set(node.output):
            raise NotDifferentiableError(f"operator {node.op_type!r} has outputs that are not used")
        axis = next((helper.get_attribute_value(one) for one in node.attribute if one.name == "axis"), 0)
        return self.add("Concat", *(found[name] for name in node.output), axis=axis)

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a node."""
        return self._builder.add(operator, *inputs, **attributes)

    def sum_last(self, tensor: str, length: int, like: str) -> str:
        """Sum over the last axis, of this length, and drop it: in float64, then of another tensor's type."""
        return self.add(
            "Cast", self._builder.sum_double(self._builder.double(tensor), length), to=self.tensor(like).kind
        )

    def number(self, value: float, like: str) -> str:
        """A constant of another tensor's type."""
        dtype = helper.tensor_dtype_to_np_dtype(self.tensor(like).kind)
        return self._builder.constant(np.asarray(value, dtype))

    def sizes(self, *values: int) -> str:
        """Whole numbers, as operators take shapes and axes."""
        return self._builder.constant(np.array(values, np.int64))

    def values(self, name: str) -> NDArray[Any]:
        """A constant's numbers."""
        if name not in self._constants:
            raise NotDifferentiableError(f"{name!r} is computed")
        return numpy_helper.to_array(self._constants[name])

    def tensor(self, name: str) -> _Tensor:
        """Type and shape."""
        if name not in self._tensors:
            raise NotDifferentiableError(f"the shape of {name!r} is not known")
        return self._tensors[name]

    def shape(self, name: str) -> tuple[int | None, ...]:
        """None for the batch, which is the first dimension."""
        return self.tensor(name).shape

    def batched(self, name: str) -> tuple[int, ...]:
        """The same with −1 for the batch, as Reshape takes it."""
        first, *others = self.shape(name)
        if first is not None:
            raise NotDifferentiableError(f"{name!r} has no batch")
        return (-1, *(size for size in others if size is not None))

    def weight(self, array: NDArray[Any]) -> str:
        """A constant made here."""
        return self._builder.constant(array)


def _tensors(graph: GraphProto, opset: int) -> dict[str, _Tensor]:
    """Of all tensors whose shape can be told; large constants are looked at by their shape alone."""
    small = [tensor for tensor in graph.initializer if np.prod(tensor.dims, dtype=np.int64) <= _SMALL]
    large = [tensor for tensor in graph.initializer if np.prod(tensor.dims, dtype=np.int64) > _SMALL]
    inputs = [*graph.input, *(helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in large)]
    bare = helper.make_model(
        helper.make_graph(graph.node, "shapes", inputs, [], initializer=small),
        opset_imports=[helper.make_opsetid("", opset)],
    )
    inferred = inference.infer_shapes(bare, data_prop=True).graph
    found = {tensor.name: _Tensor(tensor.data_type, tuple(tensor.dims)) for tensor in small}
    for value in (*inputs, *inferred.value_info):
        shape = _shape(value)
        if shape is not None:
            found[value.name] = _Tensor(value.type.tensor_type.elem_type, shape)
    return found


def _shape(value: ValueInfoProto) -> tuple[int | None, ...] | None:
    """None where more than the first dimension is unknown."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    return shape if None not in shape[1:] else None
