"""Write an ONNX graph node by node."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

PREFIX = "logpx."


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
        output = output or self._name()
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """Append a constant tensor and return its name."""
        name = self._name()
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def sum_last(self, tensor: str) -> str:
        """Sum over the last axis and drop it."""
        return self.add("ReduceSum", tensor, self.constant(np.array([-1], np.int64)), keepdims=0)

    def log(self, tensor: str) -> str:
        """Natural logarithm of float32 tensors, by way of float64.

        The last bit of ONNX Runtime's own depends on where a tensor is cut between threads, and so on the batch.
        """
        wide = self.add("Log", self.add("Cast", tensor, to=TensorProto.DOUBLE))
        return self.add("Cast", wide, to=TensorProto.FLOAT)

    def slice(self, tensor: str, start: int, stop: int, *, axis: int) -> str:
        """Entries start to stop along an axis."""
        return self.add("Slice", tensor, *(self.constant(np.array([value], np.int64)) for value in (start, stop, axis)))

    def fill_like(self, tensor: str, value: str) -> str:
        """A scalar constant in the shape of a finite tensor; `Shape` would run on the CPU, whatever the provider."""
        return self.add("Add", self.add("Mul", tensor, self.constant(np.float32(0))), value)

    def _name(self) -> str:
        name = f"{PREFIX}{self._names}"
        self._names += 1
        return name
