import re
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from model_store import ImageShape
from service.engine.runtime import Runtime
from tests.cuda_operators import without_kernel
from tests.opened import RecordingRuntime
from tests.toys import describe
from tests.training.measured import network_rounding
from training.configuration import Configuration, LikelihoodKind, Preset
from training.errors import ParityError
from training.likelihoods import LIKELIHOODS, spec_of
from training.networks.vae import Vae, build_vae
from training.publish.export import ExportedGraphs, check_parity, export
from training.publish.exporter import OPSET
from training.publish.publication import load_engine

SHAPE = (2, 5, 3)
KINDS = get_args(LikelihoodKind)


@pytest.fixture(scope="module")
def vae() -> Vae:
    generator = torch.Generator().manual_seed(4)
    return build_vae(Configuration(width=12, latent_dim=4), torch.rand(SHAPE, generator=generator))


@pytest.fixture(scope="module")
def graphs(vae: Vae) -> ExportedGraphs:
    return export(vae)


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return (torch.rand(70, *SHAPE, generator=torch.Generator().manual_seed(5)) < 0.4).float()


def axes(values: "list[onnx.ValueInfoProto]") -> dict[str, list[str | int]]:
    return {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values
    }


def test_the_interface_is_the_stores(graphs: ExportedGraphs) -> None:
    encoder, decoder = (onnx.load_from_string(content) for content in (graphs.encoder, graphs.decoder))
    assert axes(list(encoder.graph.input)) == {"x": ["B", *SHAPE]}
    assert axes(list(encoder.graph.output)) == {"mean": ["B", 4], "log_var": ["B", 4]}
    assert axes(list(decoder.graph.input)) == {"z": ["N", 4]}
    assert axes(list(decoder.graph.output)) == {"logits": ["N", *SHAPE]}
    for model in (encoder, decoder):
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
        assert all(entry.data_location == onnx.TensorProto.DEFAULT for entry in model.graph.initializer)
        assert "Shape" not in {node.op_type for node in model.graph.node}


def test_no_trace_of_this_machine_is_left(graphs: ExportedGraphs) -> None:
    for content in (graphs.encoder, graphs.decoder, graphs.likelihood):
        assert re.findall(rb"(?:/[\w.-]+){2,}|\.py\b|site-packages|Traceback", content) == []


def test_the_graphs_agree_with_pytorch(vae: Vae, graphs: ExportedGraphs, x: torch.Tensor, runtime: Runtime) -> None:
    rounding = network_rounding(vae, x)
    assert rounding < 1e-4
    assert 0 <= check_parity(vae, graphs, x, runtime=runtime) < rounding
    assert check_parity(vae, graphs, x[:3], runtime=runtime) < rounding  # fewer images than the largest batch


def shifted(content: bytes, initializer: str, by: float) -> bytes:
    model = onnx.load_from_string(content)
    tensor = next(entry for entry in model.graph.initializer if entry.name.endswith(initializer))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[-1] += np.float32(by)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    changed: bytes = model.SerializeToString()
    return changed


def test_a_difference_is_refused_by_name(vae: Vae, graphs: ExportedGraphs, x: torch.Tensor, runtime: Runtime) -> None:
    wrong = replace(graphs, decoder=shifted(graphs.decoder, "pixels.bias", 3e-3))
    with pytest.raises(
        ParityError, match=r"output 'logits' at batch 1 differs from PyTorch's by 0\.003, more than 0\.000\d+"
    ):
        check_parity(vae, wrong, x, runtime=runtime)
    wrong = replace(graphs, encoder=shifted(graphs.encoder, "log_var.weight", 50.0))
    with pytest.raises(ParityError, match="output 'log_var' at batch"):
        check_parity(vae, wrong, x, runtime=runtime)


def test_a_likelihood_of_another_kind_is_refused(
    vae: Vae, graphs: ExportedGraphs, x: torch.Tensor, runtime: Runtime
) -> None:
    model = onnx.load_from_string(graphs.likelihood)
    for node in model.graph.node:
        if node.op_type == "Sigmoid":
            node.op_type = "Tanh"
    with pytest.raises(ParityError, match=r"output 'E\[x\|z\]' at batch 1 differs from PyTorch's by"):
        check_parity(vae, replace(graphs, likelihood=model.SerializeToString()), x, runtime=runtime)
    softer = Configuration(width=12, latent_dim=4, likelihood="gaussian", gaussian_scale=0.5, binarisation="none")
    sharper = replace(softer, gaussian_scale=0.4)
    one, other = (build_vae(choices, torch.full(SHAPE, 0.3)) for choices in (softer, sharper))
    wrong = replace(export(one), likelihood=export(other).likelihood)
    with pytest.raises(ParityError, match=r"output 'log p\(x\|z\)' at batch 1 differs from PyTorch's by"):
        check_parity(one, wrong, x, runtime=runtime)


def test_not_a_number_is_refused(vae: Vae, graphs: ExportedGraphs, x: torch.Tensor, runtime: Runtime) -> None:
    wrong = replace(graphs, decoder=shifted(graphs.decoder, "pixels.bias", float("nan")))
    with pytest.raises(ParityError, match="differs from PyTorch's by nan"):
        check_parity(vae, wrong, x, runtime=runtime)


def test_another_shape_is_refused(vae: Vae, graphs: ExportedGraphs, x: torch.Tensor, runtime: Runtime) -> None:
    other = build_vae(Configuration(width=8, latent_dim=4), torch.full((2, 3, 5), 0.1))
    wrong = replace(graphs, decoder=export(other).decoder)
    with pytest.raises(
        ParityError, match=r"'logits' at batch 1 has the shape \[1, 2, 3, 5\], PyTorch's is \[1, 2, 5, 3\]"
    ):
        check_parity(vae, wrong, x, runtime=runtime)


@pytest.mark.parametrize("preset", get_args(Preset))
@pytest.mark.parametrize(("likelihood", "scale"), [(kind, None) for kind in KINDS] + [("gaussian", 0.1)])
def test_every_preset_and_likelihood_is_exported(
    preset: Preset, likelihood: LikelihoodKind, scale: float | None, runtime: Runtime
) -> None:
    shape = (3, 16, 25)
    exact: dict[str, Any] = {"epochs": 1, "finish_encoder": False} if preset == "linear" else {}
    configuration = Configuration(
        **exact,
        preset=preset,
        width=3,
        depth=1,
        latent_dim=2,
        likelihood=likelihood,
        gaussian_scale=scale,
        binarisation="dynamic" if LIKELIHOODS[likelihood].is_binary else "none",
    )
    generator = torch.Generator().manual_seed(6)
    vae = build_vae(configuration, torch.rand(shape, generator=generator))
    with torch.no_grad():
        own = torch.Generator().manual_seed(7)  # so that a likelihood's own weights are the same of every preset
        for name, parameter in vae.named_parameters():  # nothing may be hidden behind a weight that starts at zero
            drawn_by = own if ".of_likelihood." in name else generator
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=drawn_by))
    graphs = export(vae)
    outputs = axes(list(onnx.load_from_string(graphs.decoder).graph.output))
    assert outputs == {output: ["N", *axes_of] for output, axes_of in vae.likelihood.outputs.items()}
    x = torch.rand(5, *shape, generator=generator)
    assert check_parity(vae, graphs, x, runtime=runtime) < network_rounding(vae, x)
    for content in (graphs.encoder, graphs.decoder):
        assert "Shape" not in {node.op_type for node in onnx.load_from_string(content).graph.node}

    opened = RecordingRuntime("cpu")  # every graph that the engine opens around these two can run on CUDA whole
    channels, height, width = shape
    image = ImageShape(channels=channels, height=height, width=width)
    load_engine(describe("any", image, 2, spec_of(vae.likelihood), num_images=1), graphs, runtime=opened)
    assert set(opened.graphs()) >= {"encoder", "decoder", "log weight", "mixture", "curvature in 2 dimensions"}
    assert [refusal for graph in opened.graphs().values() for refusal in without_kernel(graph)] == []


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 127, 66)])
def test_other_sizes_are_exported(shape: tuple[int, int, int], runtime: Runtime) -> None:
    configuration = Configuration(
        preset="resnet", width=2, depth=1, latent_dim=2, likelihood="discretised_logistic", binarisation="none"
    )
    vae = build_vae(configuration, torch.rand(shape, generator=torch.Generator().manual_seed(1)))
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(2))
    assert check_parity(vae, export(vae), x, runtime=runtime) < network_rounding(vae, x)


def test_exporting_leaves_the_model_as_it_was(vae: Vae, graphs: ExportedGraphs) -> None:
    assert vae.training
    assert all(parameter.requires_grad for parameter in vae.parameters())
