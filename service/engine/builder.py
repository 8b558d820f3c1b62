"""Write an ONNX graph node by node."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

PREFIX = "logpx."
_MAX_SUMMED = 1024
_SUMMED_GROUP = 16
_PACKET = 4


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

    def sum_pixels(self, tensor: str, num_pixels: int) -> str:
        """Sum float32 tensors [B, K, P] over their pixels: [B, K] in float64.

        Up to 1024 pixels are added in float32; of more, groups of 16, and their sums in float64. A float32 sum of a
        large image's nats, some −6·10⁵, would have steps of 0.06.
        """
        if num_pixels <= _MAX_SUMMED:
            return self.sum_last(tensor, num_pixels)
        if num_pixels % _SUMMED_GROUP:
            return self.sum_double(self.double(tensor), num_pixels)
        num_groups = num_pixels // _SUMMED_GROUP
        shape = self.constant(np.array([0, 0, num_groups, _SUMMED_GROUP], np.int64))
        return self.sum_double(self.sum_last(self.add("Reshape", tensor, shape), _SUMMED_GROUP), num_groups)

    def dot_pixels(self, tensor: str, x: str, num_pixels: int) -> str:
        """Σ over pixels of a tensor [B, K, P] times another [B, 1, P]: [B, K] in float64, as exact as `sum_pixels`."""
        if num_pixels > _MAX_SUMMED:
            return self.sum_pixels(self.add("Mul", tensor, x), num_pixels)
        columns = self.add("Reshape", x, self.constant(np.array([0, num_pixels, 1], np.int64)))  # [B, P, 1]
        product = self.add("MatMul", tensor, columns)  # [B, K, 1]
        return self.double(self.add("Squeeze", product, self.constant(np.array([-1], np.int64))))

    def double(self, tensor: str) -> str:
        """The same in float64."""
        return self.add("Cast", tensor, to=TensorProto.DOUBLE)

    def float(self, tensor: str) -> str:
        """The same in float32."""
        return self.add("Cast", tensor, to=TensorProto.FLOAT)

    def log(self, tensor: str) -> str:
        """Natural logarithm of float32 tensors, in float64.

        The last bit of ONNX Runtime's own in float32 depends on where a tensor is cut between threads, and so on the
        batch.
        """
        return self.add("Log", self.double(tensor))

    @staticmethod
    def group(num_pixels: int, most: int) -> int:
        """The largest number up to `most` that divides the number of pixels.

        >>> GraphBuilder.group(784, 64)
        56
        """
        return max(size for size in range(1, most + 1) if num_pixels % size == 0)

    def slice(self, tensor: str, start: int, stop: int, *, axis: int) -> str:
        """Entries start to stop along an axis."""
        return self.add("Slice", tensor, *(self.constant(np.array([value], np.int64)) for value in (start, stop, axis)))

    def fill_like(self, tensor: str, value: str) -> str:
        """A scalar constant in the shape of a finite tensor; `Shape` would run on the CPU, whatever the provider."""
        return self.add("Add", self.add("Mul", tensor, self.constant(np.float32(0))), value)

    def _reduce_sum(self, tensor: str) -> str:
        return self.add("ReduceSum", tensor, self.constant(np.array([-1], np.int64)), keepdims=0)

    def _name(self) -> str:
        name = f"{PREFIX}{self._names}"
        self._names += 1
        return name
