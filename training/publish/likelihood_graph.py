"""A likelihood as one ONNX graph: what `likelihood.onnx` in the store is (model_store/README.md)."""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from training.likelihoods import Likelihood
from training.likelihoods.base import IndependentPixels
from training.likelihoods.reductions import Sums, use_sums
from training.publish.exporter import OPSET, exporter_quietened, strip_notes

OUTPUTS = ("log_prob", "pixel_log_prob", "entropy", "mean", "sample", "gradient", "information")
TANGENT = "tangent."
# Of the examples that are traced: neither 0 nor 1, which tracing takes for constants, and no two the same.
_IMAGES, _SAMPLES, _DIRECTIONS = 3, 4, 5
_OF_ONE_SAMPLE = "one."


def export_likelihood(likelihood: Likelihood) -> bytes:
    """The graph with all that the service asks of a likelihood: see model_store/README.md for inputs and outputs."""
    return _export(likelihood, "serving")


def export_for_any_size(likelihood: IndependentPixels, *numbers: str, small: bool) -> bytes:
    """The same for images of any size: how the service reads format version 1.

    Args:
        likelihood: of images of some size.
        numbers: attributes that become inputs of the graph, float64 [].
        small: of multiples of 4 up to 1024 pixels; see `use_sums`.
    """
    return _export(likelihood, "any small size" if small else "any size", numbers)


def _export(likelihood: Likelihood, sums: Sums, numbers: Sequence[str] = ()) -> bytes:
    any_size = sums != "serving"
    sizes = {name: math.prod(shape) for name, shape in likelihood.outputs.items()}
    count = len(sizes)
    traced = copy(likelihood)

    def everything(x: Tensor, uniform: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        rest = list(others)
        if any_size:
            traced.num_pixels = x.shape[-1]  # a symbol
            for number in reversed(numbers):
                setattr(traced, number, rest.pop())
        many, one, tangents = rest[:count], rest[count : 2 * count], rest[2 * count :]
        wide = [parameter.double() for parameter in one]
        gradient, information = traced.curvature(x, one, tangents)
        return (
            traced.log_prob(x, *many),
            traced.pixel_log_prob(x.double(), *wide),
            traced.entropy(*wide),
            traced.mean(*one),
            traced.sample(uniform, *one),
            gradient.double(),
            information,
        )

    inputs = {"x": _example(likelihood.num_pixels), "uniform": _example(likelihood.num_uniforms)}
    inputs |= {name: _example(size, rows=_SAMPLES) for name, size in sizes.items()}
    inputs |= {_OF_ONE_SAMPLE + name: _example(size) for name, size in sizes.items()}
    inputs |= {f"{TANGENT}{name}": _example(size, rows=_DIRECTIONS) for name, size in sizes.items()}
    inputs |= {number: torch.tensor(0.5, dtype=torch.float64) for number in numbers}
    model = _trace(everything, inputs, sums, likelihood.num_pixels if any_size else None)
    _join_inputs(model, {_OF_ONE_SAMPLE + name: name for name in sizes})
    if sums != "any small size":  # whose sizes are no sizes yet
        onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _example(size: int, *, rows: int = 1) -> Tensor:
    return torch.full((_IMAGES, rows, size), 0.5)


def _trace(method: Callable[..., Any], inputs: Mapping[str, Tensor], sums: Sums, any_pixels: int | None) -> ModelProto:
    """A graph whose batch B is dynamic, and so are the numbers of samples K and of directions A.

    With `any_pixels`, the examples' number of pixels, rows of so many numbers are dynamic too.
    """
    examples = tuple(inputs.values())
    batch, pixels = torch.export.Dim("B"), torch.export.Dim("P")
    rows = {_SAMPLES: torch.export.Dim("K"), _DIRECTIONS: torch.export.Dim("A")}
    columns = {any_pixels: pixels, 2 * any_pixels: 2 * pixels} if any_pixels else {}
    dynamic = []
    for example in examples:
        _, of_image, of_row = example.shape or (0, 0, 0)
        sizes = {1: rows.get(of_image), 2: columns.get(of_row)}
        sizes[0] = batch if example.dim() else None
        dynamic.append({axis: size for axis, size in sizes.items() if size is not None})
    with exporter_quietened(), use_sums(sums), torch.no_grad():
        # torch.export alone does not trace gradients of gradients; make_fx does not leave the number of pixels open.
        if any_pixels:
            traced = torch.export.export(_Module(method), examples, dynamic_shapes={"inputs": tuple(dynamic)})
        else:
            gradients = make_fx(method, tracing_mode="symbolic")(*examples)
            traced = torch.export.export(gradients, examples, dynamic_shapes=tuple(dynamic))
        program = torch.onnx.export(
            traced,
            dynamo=True,
            input_names=[*inputs],
            output_names=[*OUTPUTS],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise AssertionError("torch.onnx.export(dynamo=True) returns a program")
    strip_notes(program.model_proto)
    return program.model_proto


class _Module(nn.Module):
    """A function as torch.export wants it."""

    def __init__(self, method: Callable[..., Any]) -> None:
        super().__init__()
        self._method = method

    def forward(self, *inputs: Tensor) -> Any:
        """What the function gives."""
        return self._method(*inputs)


def _join_inputs(model: ModelProto, same: Mapping[str, str]) -> None:
    """Have the graph read one input in place of another."""
    graph = model.graph
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)
    kept = [value for value in graph.input if value.name not in same]
    del graph.input[:]
    graph.input.extend(kept)
    graph.ClearField("value_info")  # of a row's numbers under names of its own
