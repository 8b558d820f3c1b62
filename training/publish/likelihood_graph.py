"""A likelihood as one ONNX graph: what `likelihood.onnx` in the store is (model_store/README.md)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import ModelProto
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from training.likelihoods import Likelihood
from training.likelihoods.reductions import sums_for_serving
from training.publish.exporter import OPSET, exporter_quietened, strip_notes

OUTPUTS = ("log_prob", "pixel_log_prob", "entropy", "mean", "sample", "gradient", "information")
TANGENT = "tangent."
# Of the examples that are traced: neither 0 nor 1, which tracing takes for constants, and no two the same.
_IMAGES, _SAMPLES, _DIRECTIONS = 3, 4, 5
_OF_ONE_SAMPLE = "one."


def export_likelihood(likelihood: Likelihood) -> bytes:
    """The graph with all that the service asks of a likelihood: see model_store/README.md for inputs and outputs."""
    sizes = {name: math.prod(shape) for name, shape in likelihood.outputs.items()}
    count = len(sizes)

    def everything(x: Tensor, uniform: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        many, one, tangents = rest[:count], rest[count : 2 * count], rest[2 * count :]
        wide = [parameter.double() for parameter in one]
        gradient, information = likelihood.curvature(x, one, tangents)
        return (
            likelihood.log_prob(x, *many),
            likelihood.pixel_log_prob(x.double(), *wide),
            likelihood.entropy(*wide),
            likelihood.mean(*one),
            likelihood.sample(uniform, *one),
            gradient.double(),
            information,
        )

    inputs = {"x": _example(likelihood.num_pixels), "uniform": _example(likelihood.num_uniforms)}
    inputs |= {name: _example(size, rows=_SAMPLES) for name, size in sizes.items()}
    inputs |= {_OF_ONE_SAMPLE + name: _example(size) for name, size in sizes.items()}
    inputs |= {f"{TANGENT}{name}": _example(size, rows=_DIRECTIONS) for name, size in sizes.items()}
    model = _trace(everything, inputs, [*OUTPUTS])
    _join_inputs(model, {_OF_ONE_SAMPLE + name: name for name in sizes})
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _example(size: int, *, rows: int = 1) -> Tensor:
    return torch.full((_IMAGES, rows, size), 0.5)


def _trace(method: Callable[..., Any], inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> ModelProto:
    """A graph whose batch B is dynamic, and so are the numbers of samples K and of directions A."""
    examples = tuple(inputs.values())
    batch, rows = torch.export.Dim("B"), {_SAMPLES: torch.export.Dim("K"), _DIRECTIONS: torch.export.Dim("A")}
    dynamic = tuple({0: batch} | {1: rows[n] for n in (example.shape[1],) if n in rows} for example in examples)
    with exporter_quietened(), sums_for_serving(), torch.no_grad():
        # torch.export alone does not trace gradients of gradients.
        traced = make_fx(method, tracing_mode="symbolic")(*examples)
        program = torch.onnx.export(
            torch.export.export(traced, examples, dynamic_shapes=dynamic),
            dynamo=True,
            input_names=[*inputs],
            output_names=[*outputs],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise AssertionError("torch.onnx.export(dynamo=True) returns a program")
    strip_notes(program.model_proto)
    return program.model_proto


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
