"""Is a stored graph what the manifest says? Checked before anything is built on it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message
from onnx import ModelProto, TensorProto, ValueInfoProto, external_data_helper

from model_store import InvalidArtifactError
from service.engine.builder import PREFIX
from service.engine.operators import check_number_of_nodes, check_operators

MIN_OPSET = 18


def parse_graph(content: bytes, file: Path) -> ModelProto:
    """Parse a stored graph, whatever it takes and gives.

    Raises:
        InvalidArtifactError: not an ONNX graph, an operator that is refused (see operators.py), external data, an old
            opset, a name of ours.
    """
    try:
        model = onnx.load_from_string(content)
    except DecodeError as error:
        raise InvalidArtifactError(file, f"not a valid ONNX graph ({error})") from error
    check_number_of_nodes(model, file)
    if any(external_data_helper.uses_external_data(tensor) for tensor in _tensors(model)):
        raise InvalidArtifactError(file, "weights lie in another file; the store takes single-file graphs")
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:  # the latter: a name that is not UTF-8
        raise InvalidArtifactError(file, f"not a valid ONNX graph ({error})") from error
    check_operators(model, file)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < MIN_OPSET:
        raise InvalidArtifactError(file, f"uses opset {opset}; {MIN_OPSET} or later is needed")
    if opset > onnx.defs.onnx_opset_version():
        raise InvalidArtifactError(file, f"uses opset {opset}; the latest known is {onnx.defs.onnx_opset_version()}")
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    reserved = [name for name in {*constants, *_computed(model)} if name.startswith(PREFIX)]
    if reserved:
        raise InvalidArtifactError(
            file, f"names that begin with {PREFIX!r} are reserved: {', '.join(sorted(reserved))}"
        )
    return model


def read_graph(
    content: bytes, file: Path, *, inputs: Mapping[str, Sequence[int]], outputs: Mapping[str, Sequence[int] | int]
) -> ModelProto:
    """Parse a stored graph and check that it is what the manifest says.

    `inputs` and `outputs` map each tensor's name to its shape without the batch dimension, which must be dynamic, or to
    the product of that shape.

    Raises:
        InvalidArtifactError: not an ONNX graph, an operator that is refused (see operators.py), external data, an old
            opset, a name of ours, a missing tensor, another type or shape.
    """
    model = parse_graph(content, file)
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    _check_tensors(file, "input", [value for value in model.graph.input if value.name not in constants], inputs)
    _check_tensors(file, "output", model.graph.output, outputs)
    return model


def _tensors(message: Message) -> Iterator[TensorProto]:
    """Every tensor of a model, wherever it lies: initialisers, attributes, subgraphs, functions."""
    if isinstance(message, TensorProto):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                yield from _tensors(part)


def _computed(model: ModelProto) -> Iterator[str]:
    return (name for node in model.graph.node for name in node.output)


def _check_tensors(
    file: Path,
    role: str,
    found: Sequence[ValueInfoProto],
    expected: Mapping[str, Sequence[int]] | Mapping[str, Sequence[int] | int],
) -> None:
    tensors = {value.name: value.type.tensor_type for value in found}
    for name in expected:
        if name not in tensors:
            raise InvalidArtifactError(file, f"{role} {name!r} is missing; found {', '.join(tensors) or 'none'}")
    if role == "input" and len(tensors) > len(expected):
        raise InvalidArtifactError(file, f"unknown inputs: {', '.join(sorted(set(tensors) - set(expected)))}")
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.elem_type != TensorProto.FLOAT:
            raise InvalidArtifactError(file, f"{role} {name!r} is not float32")
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
        if not dims or dims[0] is not None or not _fits(dims[1:], shape):
            stated = [size if size is not None else "batch" for size in dims]
            wanted = (
                f"'batch' rows of {shape} numbers"
                if isinstance(shape, int)
                else f"['batch', {', '.join(map(str, shape))}]"
            )
            raise InvalidArtifactError(file, f"{role} {name!r} has shape {stated}; the manifest says {wanted}")


def _fits(dims: Sequence[int | None], shape: Sequence[int] | int) -> bool:
    """Whether these dimensions, None where unknown, may be that shape, or have that product."""
    if isinstance(shape, int):
        known = math.prod(size for size in dims if size is not None)
        return known == shape if None not in dims else shape % max(known, 1) == 0
    return len(dims) == len(shape) and all(have in (None, want) for have, want in zip(dims, shape, strict=True))


def check_shape(file: Path, output: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Refuse what a graph gave when it ran, if it has another shape than the contract says.

    Raises:
        InvalidArtifactError.
    """
    if found != expected:
        raise InvalidArtifactError(file, f"output {output!r} came out as {list(found)}, expected {list(expected)}")


def check_rows(file: Path, output: str, found: tuple[int, ...], rows: int, size: int) -> None:
    """The same of an output whose rows may have any shape, of so many numbers.

    Raises:
        InvalidArtifactError.
    """
    if not found or found[0] != rows or math.prod(found[1:]) != size:
        problem = f"output {output!r} came out as {list(found)}, expected {rows} rows of {size} numbers"
        raise InvalidArtifactError(file, problem)
