"""A float32 graph once more in float64, by the reference implementation of ONNX: the truth to compare with."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, inliner, numpy_helper
from onnx.reference import ReferenceEvaluator

Arrays = Mapping[str, NDArray[Any]]


def run(graph: bytes, inputs: Arrays) -> dict[str, NDArray[Any]]:
    """The graph's outputs, every float32 in it replaced by a float64 of the same value."""
    model = widen(onnx.load_from_string(graph))
    wide = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in inputs.items()}
    values = ReferenceEvaluator(model).run(None, wide)
    return dict(zip((output.name for output in model.graph.output), values, strict=True))


def widen(model: ModelProto) -> ModelProto:
    """The model with float64 in place of float32: weights, constants, casts, inputs, outputs."""
    model = inliner.inline_local_functions(model)
    graph = model.graph
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        _widen_value(value)
    for node in graph.node:
        _widen_node(node)
    return model


def rounded_weights(graph: bytes, bits: int) -> bytes:
    """The graph with so many bits of its weights' mantissas: what TF32 (10 bits) does to one of two factors."""
    model = onnx.load_from_string(graph)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            tensor.CopyFrom(numpy_helper.from_array(round_mantissa(numpy_helper.to_array(tensor), bits), tensor.name))
    return bytes(model.SerializeToString())


def round_mantissa(array: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """To the nearest number of so many bits.

    >>> round_mantissa(np.float32([1 + 2**-10, 1 + 2**-12, 3]), 10).tolist()
    [1.0009765625, 1.0, 3.0]
    """
    mantissa, exponent = np.frexp(array)
    return np.asarray(np.ldexp(np.round(np.ldexp(mantissa, bits + 1)), exponent - bits - 1), np.float32)


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


def _widen_value(value: ValueInfoProto) -> None:
    if value.type.tensor_type.elem_type == TensorProto.FLOAT:
        value.type.tensor_type.elem_type = TensorProto.DOUBLE


def _widen_node(node: NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name == "to" and node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.DOUBLE
        if attribute.type == onnx.AttributeProto.TENSOR:
            _widen_tensor(attribute.t)
        if attribute.name == "value_float":
            attribute.CopyFrom(onnx.helper.make_attribute("value", numpy_helper.from_array(np.array(attribute.f))))
