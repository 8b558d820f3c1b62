"""How far rounding, or chance, can move a number: what the tests' tolerances are made of.

A tolerance that was found by trying holds for one processor: another adds in another order, or fuses a product with a
sum. These bounds hold for every order (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1).
"""

from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import ArrayLike, NDArray
from onnx import numpy_helper
from scipy.stats import norm

Number = TypeVar("Number", float, NDArray[Any])

FLOAT32 = 2.0**-24
"""Unit roundoff: the largest relative error of one operation."""
FLOAT64 = 2.0**-53
FUNCTION = 8
"""Roundings that an exponential, a logarithm, tanh or a sigmoid counts as: no library is off by more."""


def gamma(num_operations: int, unit: float = FLOAT32) -> float:
    """Relative error of so many roundings one after another, n·u / (1 − n·u).

    >>> gamma(1, FLOAT64) < 1.2e-16
    True
    """
    return num_operations * unit / (1 - num_operations * unit)


def sum_error(
    num_terms: int, magnitude: Number, unit: float = FLOAT32, *, roundings_of_a_term: int = FUNCTION
) -> Number:
    """The largest error of a sum of so many terms whose absolute values add up to `magnitude`, in any order.

    Each term may have been rounded itself: a product once, an exponential or a logarithm by a few units in the last
    place, which is what `roundings_of_a_term` counts.

    >>> sum_error(784, 100) < 0.005  # nats of a log P(x) over 784 pixels
    True
    """
    return gamma(num_terms + roundings_of_a_term, unit) * magnitude


def network_error(graph: bytes, **inputs: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """How far each output of a float32 network may lie from what real numbers would give; of two, twice that.

    Layer by layer, |error| ≤ γ(n)·|W_L|·…·|W_1|·|inputs|, as tanh and ReLU neither stretch a distance nor enlarge a
    number (Higham, section 3.5). The products are the network's own with every weight and input made positive and
    those functions left out; n counts the roundings on the way to an output: a sum's terms, one for a weight that was
    stored in float32, and FUNCTION for tanh.

    >>> weight = numpy_helper.from_array(np.array([[3.0], [-2.0]], np.float32), "w")
    >>> tensors = [onnx.helper.make_tensor_value_info(name, 1, None) for name in "xy"]
    >>> nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])]
    >>> model = onnx.helper.make_model(
    ...     onnx.helper.make_graph(nodes, "one", tensors[:1], tensors[1:], [weight]),
    ...     opset_imports=[onnx.helper.make_opsetid("", 18)],
    ...     ir_version=10,
    ... )
    >>> found = network_error(model.SerializeToString(), x=np.array([[1.0, 1.0]]))["y"]
    >>> bool(np.isclose(found[0, 0], gamma(3) * 5))
    True
    """
    model = onnx.load_from_string(graph)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    roundings = 0
    for item in model.graph.node:
        match item.op_type:
            case "MatMul":
                roundings += weights[item.input[1]].shape[0] + 1
            case "Conv":
                roundings += weights[item.input[1]][0].size + 2
            case "ConvTranspose":
                roundings += weights[item.input[1]][:, 0].size + 2
            case "Add" | "Sub":
                roundings += 2
                item.op_type = "Add"
            case "Tanh" | "Relu":
                roundings += FUNCTION
                item.op_type = "Identity"
            case "Reshape":
                pass
            case other:
                raise NotImplementedError(other)
    for tensor in model.graph.initializer:
        value = weights[tensor.name]
        if value.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(np.abs(value), tensor.name))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: np.abs(np.asarray(value, np.float32)) for name, value in inputs.items()})
    names = [output.name for output in session.get_outputs()]
    return {name: gamma(roundings) * np.asarray(value, np.float64) for name, value in zip(names, found, strict=True)}


def sampling_error(deviation: ArrayLike, num_samples: int, *, num_means: int, chance: float = 1e-4) -> NDArray[Any]:
    """z·σ/√n: with this chance at most, any of so many means of n independent draws is further from what it estimates.

    >>> float(sampling_error(1.0, 10_000, num_means=1).round(3))  # z = 3.9
    0.039
    """
    return np.asarray(norm.isf(chance / 2 / num_means) * np.asarray(deviation) / np.sqrt(num_samples))


def density_error(num_pixels: int, nats: float) -> float:
    """Of a float32 log density over so many pixels, or a log weight made of one, of up to `nats` in absolute value.

    Its terms add up, in absolute value, to more than it: those of a Bernoulli density are x·l and softplus(l), which
    cancel in part, and a weight has the prior and the proposal, too. Four times as much holds for the tests' models.
    """
    return sum_error(num_pixels, 4 * nats)
