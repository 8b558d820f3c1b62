"""Which nodes of a graph have a kernel of ONNX Runtime's CUDA provider: by a table, on a machine without a GPU."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, defs, inliner, shape_inference

TABLE = Path(__file__).parent / "data" / "cuda_operators.json"
"""Written by benchmarks/cuda_operators.py; it names the version of onnxruntime-gpu that it came from."""

FOLLOWED_ON_CPU = ("Shape", "Size")
"""Their results lie in the host's memory, and ONNX Runtime runs what computes with them on the CPU."""


@dataclass(frozen=True)
class Kernel:
    """One operator in a range of versions."""

    first: int
    last: int | None
    """None: the kernel names no last version, and is taken for `first` alone."""
    types: tuple[Mapping[str, list[str]], ...]
    """Any of these assignments of types to the operator's type parameters."""

    def computes(self, since: int) -> bool:
        """Whether it is for the operator as defined in that version: ONNX Runtime's own rule."""
        return self.first == since or (self.last is not None and self.first <= since <= self.last)


@cache
def kernels() -> dict[tuple[str, str], list[Kernel]]:
    """The table, by domain and operator."""
    found: dict[tuple[str, str], list[Kernel]] = {}
    for row in json.loads(TABLE.read_text())["kernels"]:
        kernel = Kernel(row["first"], row["last"], tuple(row["types"]))
        found.setdefault((row["domain"], row["operator"]), []).append(kernel)
    return found


def without_kernel(graph: bytes) -> list[str]:
    """The nodes that would not run on CUDA, each with the reason; empty for a graph that can run there whole."""
    model = inliner.inline_local_functions(onnx.load_from_string(graph))
    model = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    types = _types(model)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    reasons = ((node, _reason(node, types, versions)) for node in model.graph.node)
    return [f"{node.op_type} → {', '.join(node.output)}: {reason}" for node, reason in reasons if reason]


def _types(model: ModelProto) -> dict[str, str]:
    """Each tensor's element type, as `float` or `int64`."""
    graph = model.graph
    found = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    found |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    found |= {tensor.values.name: tensor.values.data_type for tensor in graph.sparse_initializer}
    return {name: TensorProto.DataType.Name(number).lower() for name, number in found.items()}


def _reason(node: NodeProto, types: Mapping[str, str], versions: Mapping[str, int]) -> str | None:
    """Why there is no kernel for a node; None where there is one."""
    if node.op_type in FOLLOWED_ON_CPU:
        return "what is computed from its result runs on the CPU"
    if any(attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in node.attribute):
        return "it has a graph of its own, which is not looked into"
    known = kernels().get((node.domain, node.op_type))
    if known is None:  # ONNX Runtime may still compute it by other operators, where ONNX defines it by them
        return "no kernel of any version or type"
    schema = defs.get_schema(node.op_type, versions[node.domain], node.domain)
    matching = [kernel for kernel in known if kernel.computes(schema.since_version)]
    if not matching:
        return f"no kernel of version {schema.since_version}"
    actual = dict(_parameters(node, schema, types))
    if any(_fits(allowed, actual) for kernel in matching for allowed in kernel.types):
        return None
    return f"no kernel for {', '.join(f'{name} = {found}' for name, found in sorted(actual.items()))}"


def _parameters(node: NodeProto, schema: defs.OpSchema, types: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The types that a node has, by the operator's type parameters and by the names of its inputs and outputs."""
    for names, formal in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for index, name in enumerate(names):
            if name:  # an empty one is an optional input left out
                parameter = formal[min(index, len(formal) - 1)]  # the last may stand for any number
                yield parameter.type_str, types[name]
                yield parameter.name, types[name]


def _fits(allowed: Mapping[str, list[str]], actual: Mapping[str, str]) -> bool:
    """Whether every type that a kernel constrains is one that it takes; optional parts left out are any type."""
    return all(name not in actual or actual[name] in types for name, types in allowed.items())
