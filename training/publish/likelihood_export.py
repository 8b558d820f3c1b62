"""A likelihood as one ONNX graph: what `likelihood.onnx` in the store is (model_store/README.md)."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy

import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from training.likelihoods import Likelihood
from training.likelihoods.base import IndependentPixels
from training.likelihoods.reductions import Sums, use_sums
from training.publish.exporter import OPSET, exporter_quietened, model_of, serialised
from training.publish.part_export import put_in_parts

OUTPUTS = ("log_prob", "pixel_log_prob", "entropy", "mean", "sample", "gradient", "information")
TANGENT = "tangent."
_OF_ONE_SAMPLE = "one."
_Curvature = Callable[..., tuple[Tensor, Tensor]]


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


class _Everything(nn.Module):
    """All that the service asks of a likelihood, as one module to trace; its outputs are `OUTPUTS`.

    Its inputs are x and uniform numbers, the decoder's outputs for many samples, the same for one, their tangents, and
    `numbers`. Of any size, the number of pixels is x's, a symbol.
    """

    def __init__(
        self, likelihood: Likelihood, curvature: _Curvature | None, numbers: Sequence[str], *, any_size: bool
    ) -> None:
        super().__init__()
        self.likelihood = copy(likelihood)
        self.curvature = curvature or self._curvature
        self.numbers = numbers
        self.any_size = any_size

    def forward(self, x: Tensor, uniform: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """The outputs in their order."""
        likelihood, count, rest = self.likelihood, len(self.likelihood.outputs), list(others)
        if self.any_size:
            likelihood.num_pixels = x.shape[-1]
            for number in reversed(self.numbers):
                setattr(likelihood, number, rest.pop())
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

    def _curvature(self, x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        count = len(self.likelihood.outputs)
        return self.likelihood.curvature(x, rest[:count], rest[count:])


def _export(likelihood: Likelihood, sums: Sums, numbers: Sequence[str] = ()) -> bytes:
    """A graph whose batch B is dynamic, and so are the numbers of samples K and of directions A."""
    any_pixels = likelihood.num_pixels if sums != "serving" else None
    sizes = {name: math.prod(shape) for name, shape in likelihood.outputs.items()}
    fixed = {likelihood.num_pixels, likelihood.num_uniforms, *sizes.values()}
    # Tracing takes 0 and 1 for constants, and sizes that are equal in its examples for the same everywhere.
    batch, samples, directions = itertools.islice((size for size in itertools.count(3) if size not in fixed), 3)

    def example(size: int, rows: int = 1) -> Tensor:
        return torch.full((batch, rows, size), 0.5)

    inputs = {"x": example(likelihood.num_pixels), "uniform": example(likelihood.num_uniforms)}
    inputs |= {name: example(size, samples) for name, size in sizes.items()}
    inputs |= {_OF_ONE_SAMPLE + name: example(size) for name, size in sizes.items()}
    inputs |= {TANGENT + name: example(size, directions) for name, size in sizes.items()}
    inputs |= {number: torch.tensor(0.5, dtype=torch.float64) for number in numbers}
    examples = tuple(inputs.values())
    dims = {batch: torch.export.Dim("B"), samples: torch.export.Dim("K"), directions: torch.export.Dim("A")}
    if any_pixels:
        pixels = torch.export.Dim("P")
        dims |= {any_pixels: pixels, 2 * any_pixels: 2 * pixels}
    dynamic = [{axis: dims[size] for axis, size in enumerate(one.shape) if size in dims} for one in examples]
    with exporter_quietened(), use_sums(sums), torch.no_grad():
        curvature = _without_gradients(likelihood, examples)
        module = _Everything(likelihood, curvature, numbers, any_size=bool(any_pixels)).eval()
        traced = torch.export.export(module, examples, dynamic_shapes=(*dynamic[:2], tuple(dynamic[2:])))
        program = torch.onnx.export(
            traced,
            dynamo=True,
            input_names=[*inputs],
            output_names=[*OUTPUTS],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
        model = model_of(program)
        put_in_parts(model, likelihood)
    _join_inputs(model, {_OF_ONE_SAMPLE + name: name for name in sizes})
    return serialised(model, check=sums != "any small size")  # whose sizes are no sizes yet


def _without_gradients(likelihood: Likelihood, examples: Sequence[Tensor]) -> nn.Module | None:
    """`curvature` as operators alone, where it takes gradients of gradients: torch.export by itself traces none."""
    if type(likelihood).curvature is not Likelihood.curvature:
        return None
    count = len(likelihood.outputs)

    def curvature(x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        return likelihood.curvature(x, rest[:count], rest[count:])

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
