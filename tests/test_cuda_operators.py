"""No node of any graph that the engine opens is one that ONNX Runtime would run on the CPU beside a GPU.

Every preset and likelihood is looked at where it is exported: tests/training/test_export.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from model_store import BUNDLED, list_versions, open_version
from service.engine.model import Model
from tests.cuda_operators import TABLE, kernels, without_kernel
from tests.opened import RecordingRuntime


def of_types(
    operator: str, inputs: Sequence[int], output: int = TensorProto.FLOAT, *, opset: int = 18, **attributes: int
) -> bytes:
    """A graph of one node on matrices of these types."""
    names = [f"x{index}" for index in range(len(inputs))]
    values = [helper.make_tensor_value_info(name, kind, [2, 2]) for name, kind in zip(names, inputs, strict=True)]
    result = helper.make_tensor_value_info("y", output, None)
    written = helper.make_graph(
        [helper.make_node(operator, names, ["y"], None, None, None, None, **attributes)], "one", values, [result]
    )
    return bytes(helper.make_model(written, opset_imports=[helper.make_opsetid("", opset)]).SerializeToString())


@pytest.mark.parametrize("name", list_versions(BUNDLED))
def test_every_node_of_the_bundled_models_has_a_kernel(name: str) -> None:
    runtime = RecordingRuntime("cpu")
    Model.open(open_version(BUNDLED, name), runtime=runtime)
    found = runtime.graphs()
    assert {"encoder", "decoder", "log weight", "mixture"} <= set(found)
    curvatures = 1 if name == "fruits" else 2  # in all dimensions, and in those used, where these are fewer
    assert sum(label.startswith("curvature") for label in found) == curvatures
    assert [refusal for graph in found.values() for refusal in without_kernel(graph)] == []


FLOAT, DOUBLE, INT64, BOOL = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.BOOL


def test_a_node_without_a_kernel_is_found() -> None:
    assert without_kernel(of_types("Det", [FLOAT])) == ["Det → y: no kernel of any version or type"]


def test_a_node_whose_type_has_no_kernel_is_found() -> None:
    """LpNormalization has one for float32, and none for float64."""
    assert without_kernel(of_types("LpNormalization", [FLOAT], opset=22)) == []
    (found,) = without_kernel(of_types("LpNormalization", [DOUBLE], DOUBLE, opset=22))
    assert found.startswith("LpNormalization → y: no kernel for ")
    assert "T = double" in found


def test_types_are_those_of_the_nodes_before() -> None:
    """The float32 input is cast to float64 on the way."""
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=DOUBLE),
        helper.make_node("LpNormalization", ["wide"], ["short"]),
        helper.make_node("Cast", ["short"], ["y"], to=FLOAT),
    ]
    values = [helper.make_tensor_value_info(name, FLOAT, [2, 2]) for name in ("x", "y")]
    written = helper.make_graph(nodes, "casts", values[:1], values[1:])
    model = helper.make_model(written, opset_imports=[helper.make_opsetid("", 22)])
    (found,) = without_kernel(model.SerializeToString())
    assert found.startswith("LpNormalization → short: ")


def test_a_node_of_a_version_without_a_kernel_is_found() -> None:
    """A kernel that names no last version is for the version it names and no later one."""
    assert without_kernel(of_types("Elu", [FLOAT], opset=21)) == []
    assert without_kernel(of_types("Elu", [FLOAT], opset=22)) == ["Elu → y: no kernel of version 22"]
    assert any(kernel.computes(14) for kernel in kernels()["", "Reshape"] if kernel.last == 18)
    assert not any(kernel.computes(13) for kernel in kernels()["", "Reshape"] if kernel.first == 14)


def test_every_type_parameter_counts() -> None:
    """Cast takes booleans and gives float64, each a parameter of its own; no kernel gives text."""
    assert without_kernel(of_types("Cast", [BOOL], DOUBLE, to=DOUBLE)) == []
    (found,) = without_kernel(of_types("Cast", [BOOL], TensorProto.STRING, to=TensorProto.STRING))
    assert "T2 = string" in found


@pytest.mark.parametrize("operator", ["Shape", "Size"])
def test_a_node_that_brings_others_to_the_cpu_is_found(operator: str) -> None:
    (found,) = without_kernel(of_types(operator, [FLOAT], INT64))
    assert "runs on the CPU" in found


def test_a_function_is_looked_into() -> None:
    body = [helper.make_node("Det", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ours", 1)]
    function = helper.make_function("ours", "Volume", ["a"], ["b"], body, opsets[:1])
    values = [helper.make_tensor_value_info(name, FLOAT, [2, 2] if name == "x" else []) for name in ("x", "y")]
    written = helper.make_graph([helper.make_node("Volume", ["x"], ["y"], domain="ours")], "f", values[:1], values[1:])
    model = helper.make_model(written, opset_imports=opsets, functions=[function])
    (found,) = without_kernel(model.SerializeToString())
    assert found.startswith("Det → ")


def test_the_table_says_where_it_came_from() -> None:
    head = json.loads(TABLE.read_text())
    assert (head["package"], head["provider"]) == ("onnxruntime-gpu", "CUDAExecutionProvider")
    assert head["version"] in (Path(__file__).parents[1] / "constraints.txt").read_text()
