"""How operators are differentiated in reverse: one rule each, for the operators of the decoders that training exports.

And for some that others use. Each product is by a constant, and nothing is summed over more than a row, so that an
image's digits do not depend on its batch.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, helper

from service.engine.adjoint import Adjoint, NotDifferentiableError, Rule


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute if one.type != AttributeProto.GRAPH}


def _summed(at: Adjoint, node: NodeProto, index: int, given: str) -> str:
    """The derivative in an operand, of that in the output: summed over the axes along which the operand is repeated.

    In float64, and a row at a time.
    """
    name, output = node.input[index], node.output[0]
    own, whole = at.shape(name), at.shape(output)
    if own == whole:
        return given
    if len(own) != len(whole):
        raise NotDifferentiableError(f"operator {node.op_type!r} repeats an operand along the batch")
    sizes, wide = at.batched(name), at.batched(output)
    repeated = [axis for axis, size in enumerate(sizes) if size != wide[axis]]
    kept = [axis for axis in range(len(sizes)) if axis not in repeated]
    if repeated[0] < kept[-1]:
        given = at.add("Transpose", given, perm=[*kept, *repeated])
    count = math.prod(wide[axis] for axis in repeated)
    rows = at.add("Reshape", given, at.sizes(*(sizes[axis] for axis in kept), count))
    return at.add("Reshape", at.sum_last(rows, count, like=name), at.sizes(*sizes))


def _add(at: Adjoint, node: NodeProto, index: int, given: str) -> str:
    part = _summed(at, node, index, given)
    return at.add("Neg", part) if node.op_type == "Sub" and index else part


def _mul(at: Adjoint, node: NodeProto, index: int, given: str) -> str:
    return _summed(at, node, index, at.add("Mul", given, node.input[1 - index]))


def _div(at: Adjoint, node: NodeProto, index: int, given: str) -> str:
    part = at.add("Div", given, node.input[1])
    return _summed(at, node, index, at.add("Neg", at.add("Mul", part, node.output[0])) if index else part)


def _by(slope: Callable[[Adjoint, str, str], str]) -> Rule:
    """Of a function of each number: its slope, given what it takes and what it gave."""
    return lambda at, node, _, given: at.add("Mul", given, slope(at, node.input[0], node.output[0]))


def _sigmoid(at: Adjoint, x: str, y: str) -> str:
    return at.add("Mul", y, at.add("Sub", at.number(1, x), y))


def _tanh(at: Adjoint, x: str, y: str) -> str:
    return at.add("Sub", at.number(1, x), at.add("Mul", y, y))


def _relu(at: Adjoint, x: str, _: str) -> str:
    return at.add("Cast", at.add("Greater", x, at.number(0, x)), to=at.tensor(x).kind)


def _same_shape(at: Adjoint, node: NodeProto, _: int, given: str) -> str:
    return at.add("Reshape", given, at.sizes(*at.batched(node.input[0])))


def _cast(at: Adjoint, node: NodeProto, _: int, given: str) -> str:
    if helper.tensor_dtype_to_np_dtype(at.tensor(node.output[0]).kind).kind != "f":
        raise NotDifferentiableError("operator 'Cast' rounds")
    return at.add("Cast", given, to=at.tensor(node.input[0]).kind)


def _transpose(at: Adjoint, node: NodeProto, _: int, given: str) -> str:
    order = _attributes(node).get("perm") or range(len(at.shape(node.input[0])))[::-1]
    return at.add("Transpose", given, perm=np.argsort(np.asarray(order)).tolist())


def _depth_to_space(at: Adjoint, node: NodeProto, _: int, given: str) -> str:
    chosen = _attributes(node)
    side, (channels, height, width) = chosen["blocksize"], at.batched(node.output[0])[1:]
    apart = at.add("Reshape", given, at.sizes(-1, channels, height // side, side, width // side, side))
    order = [0, 1, 3, 5, 2, 4] if chosen.get("mode", b"DCR") == b"CRD" else [0, 3, 5, 1, 2, 4]
    together = at.add("Transpose", apart, perm=order)
    return at.add("Reshape", together, at.sizes(*at.batched(node.input[0])))


def _gemm(at: Adjoint, node: NodeProto, index: int, given: str) -> str:
    chosen: dict[str, Any] = {"alpha": 1.0, "transA": 0, "transB": 0} | _attributes(node)
    at.values(node.input[1])
    if index != 0 or chosen["transA"]:
        raise NotDifferentiableError("operator 'Gemm' is not of rows by a constant")
    return at.add("Gemm", given, node.input[1], alpha=chosen["alpha"], transB=int(not chosen["transB"]))


def _matmul(at: Adjoint, node: NodeProto, index: int, given: str) -> str:
    weight = at.values(node.input[1])
    if index != 0 or weight.ndim != 2 or len(at.shape(node.input[0])) < 2:
        raise NotDifferentiableError("operator 'MatMul' is not of rows by a constant")
    return at.add("MatMul", given, at.weight(np.ascontiguousarray(weight.T)))


def _conv(at: Adjoint, node: NodeProto, index: int, given: str) -> str:
    """The other one, with the same weights; a step of 1 has weights of its own, which run faster."""
    chosen, weight = _attributes(node), at.values(node.input[1])
    if index != 0 or chosen.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in chosen:
        raise NotDifferentiableError(f"operator {node.op_type!r} states no padding")
    spatial = weight.ndim - 2
    strides, dilations = (list(chosen.get(name) or [1] * spatial) for name in ("strides", "dilations"))
    pads, group = list(chosen.get("pads") or [0] * 2 * spatial), chosen.get("group", 1)
    if node.op_type == "ConvTranspose":
        given_to = {"strides": strides, "dilations": dilations, "pads": pads, "group": group}
        return at.add("Conv", given, node.input[1], **given_to)
    reach = [dilation * (size - 1) for dilation, size in zip(dilations, weight.shape[2:], strict=True)]
    around = [reach[axis % spatial] - pad for axis, pad in enumerate(pads)]
    if group == 1 and set(strides) == {1} and min(around) >= 0:
        turned = np.flip(weight.swapaxes(0, 1), tuple(range(2, weight.ndim)))
        return at.add("Conv", given, at.weight(np.ascontiguousarray(turned)), dilations=dilations, pads=around)
    wide, narrow = at.batched(node.input[0])[2:], at.batched(node.output[0])[2:]
    missing = [
        wide[axis] - ((narrow[axis] - 1) * strides[axis] + reach[axis] + 1 - pads[axis] - pads[axis + spatial])
        for axis in range(spatial)
    ]
    options = {"strides": strides, "dilations": dilations, "pads": pads, "group": group, "output_padding": missing}
    return at.add("ConvTranspose", given, node.input[1], **options)


def _pad(at: Adjoint, given: str, like: str, axis: int, before: int, after: int) -> str:
    rank = len(at.shape(like))
    pads = np.zeros((2, rank), np.int64)
    pads[:, axis] = before, after
    return at.add("Pad", given, at.sizes(*pads.ravel().tolist()), at.number(0, like))


def _gather(at: Adjoint, node: NodeProto, index: int, given: str) -> str:
    where = at.values(node.input[1])
    axis = _axis(at, node.input[0], _attributes(node).get("axis", 0))
    if index != 0 or where.ndim > 0:
        raise NotDifferentiableError("operator 'Gather' does not take one slice")
    size = at.batched(node.input[0])[axis]
    before = int(where) % size
    unsqueezed = at.add("Unsqueeze", given, at.sizes(axis))
    return _pad(at, unsqueezed, node.input[0], axis, before, size - before - 1)


def _slice(at: Adjoint, node: NodeProto, index: int, given: str) -> str:
    """Zeros where nothing was taken from; of the axes of several, one after another."""
    if len(node.input) < 4:
        raise NotDifferentiableError("operator 'Slice' does not say along what")
    starts, stops, axes, *steps = (at.values(name) for name in node.input[1:])
    if index != 0 or any((one != 1).any() for one in steps):
        raise NotDifferentiableError("operator 'Slice' leaves some out")
    shape = at.batched(node.input[0])
    for start, stop, axis in zip(starts.tolist(), stops.tolist(), axes.tolist(), strict=True):
        along = _axis(at, node.input[0], axis)
        first, last, _ = slice(start, stop).indices(shape[along])
        given = _pad(at, given, node.input[0], along, first, shape[along] - last)
    return given


def _joined(at: Adjoint, node: NodeProto, _: int, given: str) -> str:
    """Refuse parts of the batch; the outputs' derivatives are joined already."""
    _axis(at, node.input[0], _attributes(node).get("axis", 0))
    return given


def _unpad(at: Adjoint, node: NodeProto, index: int, given: str) -> str:
    """As much taken away as it adds; and zeros, with no derivative, where it takes away (its padding is negative)."""
    if len(node.input) < 2:
        raise NotDifferentiableError("operator 'Pad' states no padding")
    pads = at.values(node.input[1]).reshape(2, -1)
    is_plain = _attributes(node).get("mode", b"constant") == b"constant" and len(node.input) < 4
    if index != 0 or not is_plain or pads[:, 0].any():
        raise NotDifferentiableError("operator 'Pad' does not add constants")
    return at.add("Pad", given, at.sizes(*(-pads).ravel().tolist()), at.number(0, node.input[0]))


def _concat(at: Adjoint, node: NodeProto, index: int, given: str) -> str:
    axis = _axis(at, node.output[0], _attributes(node)["axis"])
    sizes = [at.batched(name)[axis] for name in node.input]
    first = sum(sizes[:index])
    return at.add("Slice", given, at.sizes(first), at.sizes(first + sizes[index]), at.sizes(axis))


def _reduce_sum(at: Adjoint, node: NodeProto, index: int, given: str) -> str:
    shape = at.batched(node.input[0])
    axes = at.values(node.input[1]).ravel().tolist() if len(node.input) > 1 else []
    along = [_axis(at, node.input[0], axis) for axis in axes]
    if index != 0 or not along:
        raise NotDifferentiableError("operator 'ReduceSum' does not say over what")
    if not _attributes(node).get("keepdims", 1):
        given = at.add("Unsqueeze", given, at.sizes(*along))
    repeated = [size if axis in along else 1 for axis, size in enumerate(shape)]
    dtype = helper.tensor_dtype_to_np_dtype(at.tensor(node.input[0]).kind)
    return at.add("Mul", given, at.weight(np.ones(repeated, dtype)))


def _axis(at: Adjoint, name: str, axis: Any) -> int:
    """Counted from the first, which is the batch and may not be meant."""
    rank = len(at.shape(name))
    found = int(axis) % rank
    if found == 0:
        raise NotDifferentiableError("an operator is along the batch")
    return int(found)


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("Add", "Sub"), _add),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _same_shape),
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    "Cast": _cast,
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Div": _div,
    "Exp": _by(lambda _, __, y: y),
    "Gather": _gather,
    "Gemm": _gemm,
    "Identity": lambda _, __, ___, given: given,
    "Log": _by(lambda at, x, _: at.add("Reciprocal", x)),
    "MatMul": _matmul,
    "Mul": _mul,
    "Pad": _unpad,
    "Neg": lambda at, _, __, given: at.add("Neg", given),
    "Reciprocal": _by(lambda at, _, y: at.add("Neg", at.add("Mul", y, y))),
    "ReduceSum": _reduce_sum,
    "Relu": _by(_relu),
    "Sigmoid": _by(_sigmoid),
    "Slice": _slice,
    "Split": _joined,
    "Softplus": _by(lambda at, x, _: at.add("Sigmoid", x)),
    "Tanh": _by(_tanh),
    "Transpose": _transpose,
}
"""By operator. A transposition keeps the batch first, or the shape of what follows is not known."""
