"""Write an ONNX graph node by node."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

PREFIX = "logpx."
_PACKET = 4

Shape = Sequence[str | int]
"""A tensor's dimensions, dynamic ones by name."""


def typed(shapes: Mapping[str, Shape], types: Mapping[str, int]) -> list[ValueInfoProto]:
    """Tensors of these shapes, by name; float32 where no type is given."""
    return [
        helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), dims) for name, dims in shapes.items()
    ]


class GraphBuilder:
    """Collects nodes and constants; every tensor it names starts with `logpx.`, so none collides with a model's own.

    >>> builder = GraphBuilder()
    >>> builder.add("Add", "a", builder.constant(np.float32(2)))
    'logpx.1'
    >>> [node.op_type for node in builder.nodes]
    ['Add']
    """

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._names = 0

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append one node and return the name of its only output."""
        output = output or self.name()
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """Append a constant tensor and return its name."""
        name = self.name()
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    # ONNX Runtime's ReduceSum adds vectors of four, from the first address that is aligned for them: of rows whose
    # length is no multiple of four, the order of adding, and the last bit, depend on the place in the batch. A
    # product's do not.

    def sum_double(self, tensor: str, length: int) -> str:
        """Sum float64 tensors over the last axis, of this length, and drop it."""
        if length % _PACKET == 0:
            return self._reduce_sum(tensor)
        product = self.add("MatMul", tensor, self.constant(np.ones((length, 1))))
        return self.add("Squeeze", product, self.constant(np.array([-1], np.int64)))

    def sum_last(self, tensor: str, length: int) -> str:
        """Sum float32 tensors over the last axis, of this length, and drop it: float64."""
        if length % _PACKET == 0:
            return self.double(self._reduce_sum(tensor))
        return self.sum_double(self.double(tensor), length)

    def double(self, tensor: str) -> str:
        """The same in float64."""
        return self.add("Cast", tensor, to=TensorProto.DOUBLE)

    def float(self, tensor: str) -> str:
        """The same in float32."""
        return self.add("Cast", tensor, to=TensorProto.FLOAT)

    def slice(self, tensor: str, start: int, stop: int, *, axis: int) -> str:
        """Entries start to stop along an axis."""
        return self.add("Slice", tensor, *(self.constant(np.array([value], np.int64)) for value in (start, stop, axis)))

    def _reduce_sum(self, tensor: str) -> str:
        return self.add("ReduceSum", tensor, self.constant(np.array([-1], np.int64)), keepdims=0)

    def name(self) -> str:
        """A name that no other tensor has."""
        name = f"{PREFIX}{self._names}"
        self._names += 1
        return name

    def add_tensor(self, tensor: TensorProto) -> str:
        """Append another graph's constant and return its name here."""
        copy = TensorProto()
        copy.CopyFrom(tensor)
        copy.name = self.name()
        self.constants.append(copy)
        return copy.name

    def graph(
        self, around: GraphProto, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]
    ) -> GraphProto:
        """The nodes with the constants of the graph that some of them were taken from, and their own."""
        return helper.make_graph(
            self.nodes,
            "logpx",
            inputs=inputs,
            outputs=outputs,
            initializer=[*around.initializer, *self.constants],
            sparse_initializer=around.sparse_initializer,
        )
