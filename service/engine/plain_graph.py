"""A stored graph in the form that graphs around it are written from: no local functions, and dense constants."""

import numpy as np
from onnx import ModelProto, SparseTensorProto, TensorProto, inliner, numpy_helper, shape_inference

_MAX_NUMBERS = 2**27
"""Of a sparse constant; a larger one stays as it is, and ONNX Runtime decides whether there is room."""


def plain(model: ModelProto) -> ModelProto:
    """The same computation with functions written out where they are called, and sparse constants written in full.

    A function of another opset than its model is converted. It stays a function if onnx cannot do that.
    """
    model = _written_out(model) if model.functions else model
    few = [tensor for tensor in model.graph.sparse_initializer if np.prod(tensor.dims, dtype=float) <= _MAX_NUMBERS]
    if not few:
        return model
    written = ModelProto()
    written.CopyFrom(model)
    for tensor in few:
        written.graph.sparse_initializer.remove(tensor)
        written.graph.initializer.append(_dense(tensor))
    return written


def _written_out(model: ModelProto) -> ModelProto:
    try:
        return inliner.inline_local_functions(shape_inference.infer_shapes(model), convert_version=True)
    except (RuntimeError, shape_inference.InferenceError):  # to convert it, onnx must know the types of what it takes
        return inliner.inline_local_functions(model)


def _dense(tensor: SparseTensorProto) -> TensorProto:
    """Indices are of the flattened tensor, or one for each dimension."""
    values, indices = numpy_helper.to_array(tensor.values), numpy_helper.to_array(tensor.indices)
    found = np.zeros(tuple(tensor.dims), values.dtype)
    flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), found.shape)
    found.reshape(-1)[flat] = values
    return numpy_helper.from_array(found, tensor.values.name)
