"""The graphs the engine runs: checked against the store's contract, or built around `decoder.onnx` at load.

Built at load, so that any encoder and decoder in the store get them, and published files stay plain.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message
from onnx import ModelProto, TensorProto, ValueInfoProto, external_data_helper, helper

from model_store import Description, InvalidArtifactError
from service.engine.builder import PREFIX, GraphBuilder
from service.engine.likelihood import Likelihood

MIN_OPSET = 18

X, MEAN, LOG_VAR, NOISE, SHAPE, LOG_WEIGHT = (
    PREFIX + name for name in ("x", "mean", "log_var", "noise", "shape", "log_weight")
)


def read_graph(
    content: bytes, file: Path, *, inputs: Mapping[str, Sequence[int]], outputs: Mapping[str, Sequence[int]]
) -> ModelProto:
    """Parse a stored graph and check that it is what the manifest says.

    `inputs` and `outputs` map each tensor's name to its shape without the batch dimension, which must be dynamic.

    Raises:
        InvalidArtifactError: not an ONNX graph, external data, an old opset, a name of ours, a missing tensor, another
            type or shape.
    """
    try:
        model = onnx.load_from_string(content)
    except DecodeError as error:
        raise InvalidArtifactError(file, f"not a valid ONNX graph ({error})") from error
    if any(external_data_helper.uses_external_data(tensor) for tensor in _tensors(model)):
        raise InvalidArtifactError(file, "weights lie in another file; the store takes single-file graphs")
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:  # the latter: a name that is not UTF-8
        raise InvalidArtifactError(file, f"not a valid ONNX graph ({error})") from error
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < MIN_OPSET:
        raise InvalidArtifactError(file, f"uses opset {opset}; {MIN_OPSET} or later is needed")
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    reserved = [name for name in {*constants, *_computed(model)} if name.startswith(PREFIX)]
    if reserved:
        raise InvalidArtifactError(
            file, f"names that begin with {PREFIX!r} are reserved: {', '.join(sorted(reserved))}"
        )
    _check_tensors(file, "input", [value for value in model.graph.input if value.name not in constants], inputs)
    _check_tensors(file, "output", model.graph.output, outputs)
    return model


def log_weight_graph(decoder: ModelProto, likelihood: Likelihood, description: Description) -> bytes:
    """The log weight of importance samples from a diagonal Gaussian, in one graph around the decoder.

    `log_weight = log p(x|z) + log p(z) − log r(z|x)`, with z = mean + exp(log_var / 2)·noise and
    log p(z) − log r(z|x) = Σ ½·(noise² + log_var − z²): the normalisers of the two Gaussians cancel. With mean and
    log_var zero it is the prior's. Only [B, K] leaves the graph.

    Inputs: `x` [B, 1, P], `mean` and `log_var` [B, 1, D], `noise` [1, K, D], all float32, and `shape`, the three int64
    numbers (B, K, P). They are an input because a graph that asked its tensors for their shape would run those nodes
    on the CPU, whatever the execution provider.
    """
    num_pixels, latent_dim = description.image.size, description.latent_dim
    builder = GraphBuilder()
    half = builder.constant(np.float32(0.5))
    scale = builder.add("Exp", builder.add("Mul", LOG_VAR, half))  # [B, 1, D]
    latents = builder.add("Add", MEAN, builder.add("Mul", scale, NOISE))  # [B, K, D]
    flat = builder.constant(np.array([-1, latent_dim], np.int64))
    builder.add("Reshape", latents, flat, output="z")  # [B·K, D]
    builder.nodes.extend(decoder.graph.node)
    parameters = {name: builder.add("Reshape", name, SHAPE) for name in likelihood.outputs}  # [B, K, P]
    log_likelihood = likelihood.fragment(builder, X, parameters, num_pixels)  # [B, K]
    squares = builder.add("Add", builder.add("Mul", NOISE, NOISE), LOG_VAR)  # [B, K, D]
    squares = builder.add("Sub", squares, builder.add("Mul", latents, latents))
    log_ratio = builder.add("Mul", builder.sum_last(squares), half)  # [B, K]
    builder.add("Add", log_likelihood, log_ratio, output=LOG_WEIGHT)

    graph = helper.make_graph(
        builder.nodes,
        "log_weight",
        inputs=[
            helper.make_tensor_value_info(X, TensorProto.FLOAT, ["B", 1, num_pixels]),
            helper.make_tensor_value_info(MEAN, TensorProto.FLOAT, ["B", 1, latent_dim]),
            helper.make_tensor_value_info(LOG_VAR, TensorProto.FLOAT, ["B", 1, latent_dim]),
            helper.make_tensor_value_info(NOISE, TensorProto.FLOAT, [1, "K", latent_dim]),
            helper.make_tensor_value_info(SHAPE, TensorProto.INT64, [3]),
        ],
        outputs=[helper.make_tensor_value_info(LOG_WEIGHT, TensorProto.FLOAT, ["B", "K"])],
        initializer=[*decoder.graph.initializer, *builder.constants],
        sparse_initializer=decoder.graph.sparse_initializer,
    )
    model = helper.make_model(
        graph,
        opset_imports=decoder.opset_import,
        functions=decoder.functions,
        ir_version=decoder.ir_version,
    )
    return bytes(model.SerializeToString())


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
    file: Path, role: str, found: Sequence[ValueInfoProto], expected: Mapping[str, Sequence[int]]
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
        wanted = [None, *shape]
        if (
            len(dims) != len(wanted)
            or dims[0] is not None
            or any(have not in (None, want) for have, want in zip(dims[1:], shape, strict=True))
        ):
            stated = [size if size is not None else "batch" for size in dims]
            problem = f"{role} {name!r} has shape {stated}; the manifest says ['batch', {', '.join(map(str, shape))}]"
            raise InvalidArtifactError(file, problem)
