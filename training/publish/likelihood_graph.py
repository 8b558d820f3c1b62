"""A likelihood as one ONNX graph: what `likelihood.onnx` in the store is (model_store/README.md)."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from training.likelihoods import Likelihood
from training.likelihoods.reductions import sums_for_serving
from training.publish.exporter import OPSET, exporter_quietened, model_of, serialised

OUTPUTS = ("log_prob", "pixel_log_prob", "entropy", "mean", "sample", "gradient", "information")
TANGENT = "tangent."
_OF_ONE_SAMPLE = "one."


class _Everything(nn.Module):
    """All that the service asks of a likelihood, as one module to trace."""

    def __init__(self, likelihood: Likelihood, curvature: Callable[..., tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.curvature = curvature

    def forward(self, x: Tensor, uniform: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """The outputs in their order, of the parameters of many samples, those of one, and the tangents."""
        likelihood, count = self.likelihood, len(self.likelihood.outputs)
        many, one = rest[:count], rest[count : 2 * count]
        wide = [parameter.double() for parameter in one]
        gradient, information = self.curvature(x, *rest[count:])
        return (
            likelihood.log_prob(x, *many),
            likelihood.pixel_log_prob(x.double(), *wide),
            likelihood.entropy(*wide),
            likelihood.mean(*one),
            likelihood.sample(uniform, *one),
            gradient.double(),
            information,
        )


def export_likelihood(likelihood: Likelihood) -> bytes:
    """The graph with all that the service asks of a likelihood: see model_store/README.md for inputs and outputs."""
    sizes = {name: math.prod(shape) for name, shape in likelihood.outputs.items()}
    fixed = {likelihood.num_pixels, likelihood.num_uniforms, *sizes.values()}
    # Tracing takes 0 and 1 for constants, and numbers that are equal in its examples for the same everywhere.
    batch, samples, directions = itertools.islice((size for size in itertools.count(2) if size not in fixed), 3)

    def example(size: int, rows: int = 1) -> Tensor:
        return torch.full((batch, rows, size), 0.5)

    inputs = {"x": example(likelihood.num_pixels), "uniform": example(likelihood.num_uniforms)}
    inputs |= {name: example(size, samples) for name, size in sizes.items()}
    inputs |= {_OF_ONE_SAMPLE + name: example(size) for name, size in sizes.items()}
    inputs |= {TANGENT + name: example(size, directions) for name, size in sizes.items()}
    examples = tuple(inputs.values())
    rows = {samples: torch.export.Dim("K"), directions: torch.export.Dim("A")}
    dynamic = [{0: torch.export.Dim("B")} | {1: rows[n] for n in (one.shape[1],) if n in rows} for one in examples]
    with exporter_quietened(), sums_for_serving(), torch.no_grad():
        module = _Everything(likelihood, _traceable_curvature(likelihood, examples)).eval()
        program = torch.onnx.export(
            torch.export.export(module, examples, dynamic_shapes=(*dynamic[:2], tuple(dynamic[2:]))),
            dynamo=True,
            input_names=[*inputs],
            output_names=[*OUTPUTS],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    model = model_of(program)
    _join_inputs(model, {_OF_ONE_SAMPLE + name: name for name in sizes})
    return serialised(model)


def _traceable_curvature(
    likelihood: Likelihood, examples: Sequence[Tensor]
) -> Callable[..., tuple[Tensor, Tensor]]:
    """`curvature` without automatic differentiation: torch.export by itself does not trace gradients of gradients."""
    count = len(likelihood.outputs)

    def curvature(x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        return likelihood.curvature(x, rest[:count], rest[count:])

    if type(likelihood).curvature is not Likelihood.curvature:
        return curvature
    traced: nn.Module = make_fx(curvature, tracing_mode="symbolic")(examples[0], *examples[2 + count :])
    return traced


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
