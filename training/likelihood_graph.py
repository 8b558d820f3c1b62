"""A likelihood as one ONNX graph: what `likelihood.onnx` in the store is (model_store/README.md)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch
from onnx import ModelProto, helper
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from training.export import OPSET, exporter_quietened, strip_notes
from training.likelihoods import Likelihood
from training.likelihoods.reductions import sums_for_serving

# Of the examples that are traced: neither 0 nor 1, which tracing takes for constants, and no two the same.
_IMAGES, _SAMPLES, _DIRECTIONS = 3, 4, 5

_Example = tuple[str, Tensor]


def export_likelihood(likelihood: Likelihood) -> bytes:
    """The graph with all that the service asks of a likelihood: see model_store/README.md for inputs and outputs.

    Each output is traced by itself and keeps nodes of its own, so that whoever wants one can take it alone.
    """
    sizes = {name: math.prod(shape) for name, shape in likelihood.outputs.items()}
    x, uniform = _example("x", likelihood.num_pixels), _example("uniform", likelihood.num_uniforms)
    many = [_example(name, size, rows=_SAMPLES) for name, size in sizes.items()]
    one = [_example(name, size) for name, size in sizes.items()]
    tangents = [_example(f"tangent.{name}", size, rows=_DIRECTIONS) for name, size in sizes.items()]

    def curvature(x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        gradient, information = likelihood.curvature(x, rest[: len(sizes)], rest[len(sizes) :])
        return gradient.double(), information

    merged = _merge(
        [
            _trace(likelihood.log_prob, [x, *many], ["log_prob"]),
            _trace(_in_float64(likelihood.pixel_log_prob), [x, *one], ["pixel_log_prob"]),
            _trace(_in_float64(likelihood.entropy), one, ["entropy"]),
            _trace(likelihood.mean, one, ["mean"]),
            _trace(likelihood.sample, [uniform, *one], ["sample"]),
            _trace(curvature, [x, *one, *tangents], ["gradient", "information"]),
        ]
    )
    onnx.checker.check_model(merged, full_check=True)
    content: bytes = merged.SerializeToString(deterministic=True)
    return content


def _example(name: str, size: int, *, rows: int = 1) -> _Example:
    return name, torch.full((_IMAGES, rows, size), 0.5)


def _in_float64(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *inputs: method(*(tensor.double() for tensor in inputs))


def _trace(method: Callable[..., Any], inputs: Sequence[_Example], outputs: Sequence[str]) -> ModelProto:
    """One method as a graph whose batch is dynamic, and its number of samples or directions where there are several."""
    names, examples = [name for name, _ in inputs], tuple(example for _, example in inputs)
    batch, rows = torch.export.Dim("B"), {_SAMPLES: torch.export.Dim("K"), _DIRECTIONS: torch.export.Dim("A")}
    dynamic = tuple({0: batch} | {1: rows[n] for n in (example.shape[1],) if n in rows} for example in examples)
    with exporter_quietened(), sums_for_serving(), torch.no_grad():
        traced = make_fx(method, tracing_mode="symbolic")(*examples)
        program = torch.onnx.export(
            torch.export.export(traced, examples, dynamic_shapes=dynamic),
            dynamo=True,
            input_names=names,
            output_names=list(outputs),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise AssertionError("torch.onnx.export(dynamo=True) returns a program")
    strip_notes(program.model_proto)
    return program.model_proto


def _merge(parts: Sequence[ModelProto]) -> ModelProto:
    """Several graphs as one: inputs of one name are one input, everything else stays each graph's own."""
    graphs = [
        onnx.compose.add_prefix_graph(part.graph, f"{index}.", rename_inputs=False, rename_outputs=False)
        for index, part in enumerate(parts)
    ]
    inputs = {value.name: value for graph in reversed(graphs) for value in graph.input}
    merged = helper.make_graph(
        [node for graph in graphs for node in graph.node],
        "likelihood",
        [inputs[name] for name in dict.fromkeys(value.name for graph in graphs for value in graph.input)],
        [value for graph in graphs for value in graph.output],
        initializer=[tensor for graph in graphs for tensor in graph.initializer],
    )
    return helper.make_model(merged, opset_imports=parts[0].opset_import, ir_version=parts[0].ir_version)
