from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from model_store import ImageShape, InvalidArtifactError
from service.engine.chunks import complete
from tests import reference
from tests.likelihoods import BERNOULLI
from tests.rounding import FUNCTION, density_error, gamma, network_error
from tests.toys import AnyArray, Toy, bernoulli_toy, constant, describe, graph, node

SHAPE = ImageShape(channels=1, height=2, width=3)
TOY = bernoulli_toy(SHAPE, 3)
PIXELS = (np.random.default_rng(1).random((4, *SHAPE.chw)) < 0.4).astype(np.float32)

Edit = Callable[[ModelProto], object]


def edited(content: bytes, edit: Edit) -> bytes:
    model = onnx.load_from_string(content)
    edit(model)
    return bytes(model.SerializeToString())


def weight(model: ModelProto, name: str = "w1") -> TensorProto:
    tensors: dict[str, TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
    return tensors[name]


def operator(model: ModelProto, op_type: str) -> onnx.NodeProto:
    operators: dict[str, onnx.NodeProto] = {item.op_type: item for item in model.graph.node}
    return operators[op_type]


def set_dim(value: onnx.ValueInfoProto, axis: int, size: int) -> None:
    value.type.tensor_type.shape.dim[axis].dim_value = size


def rename(model: ModelProto, old: str, new: str) -> None:
    for item in model.graph.node:
        for names in (item.input, item.output):
            names[:] = [new if name == old else name for name in names]
    for named in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        named.name = new if named.name == old else named.name


def replace(model: ModelProto, name: str, value: AnyArray) -> None:
    weight(model, name).CopyFrom(numpy_helper.from_array(value, name))


def external(tensor: TensorProto) -> TensorProto:
    moved = TensorProto()
    moved.CopyFrom(tensor)
    moved.ClearField("raw_data")
    moved.data_location = TensorProto.EXTERNAL
    entry = moved.external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    return moved


def external_initializer(model: ModelProto) -> None:
    weight(model).CopyFrom(external(weight(model)))


def external_attribute(model: ModelProto) -> None:
    tensor = external(weight(model))
    model.graph.initializer.remove(weight(model))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w1"], value=tensor))


def local_function(model: ModelProto) -> None:
    body = [helper.make_node("Tanh", ["a"], ["b"])]
    model.functions.append(helper.make_function("ours", "Twist", ["a"], ["b"], body, [helper.make_opsetid("", 18)]))
    model.opset_import.append(helper.make_opsetid("ours", 1))
    item = operator(model, "Tanh")
    item.op_type, item.domain = "Twist", "ours"


def unknown_operator(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("theirs", 1))
    item = operator(model, "Tanh")
    item.op_type, item.domain = "Twist", "theirs"


def sparse(model: ModelProto, name: str = "w1") -> None:
    dense = numpy_helper.to_array(weight(model))
    model.graph.initializer.remove(weight(model))
    rename(model, "w1", name)
    values = numpy_helper.from_array(dense.ravel(), name)
    indices = numpy_helper.from_array(np.arange(dense.size), "w1_indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, list(dense.shape)))


def sparse_by_axes(model: ModelProto) -> None:
    sparse(model)
    found = model.graph.sparse_initializer[0]
    axes = np.stack(np.unravel_index(numpy_helper.to_array(found.indices), tuple(found.dims)), axis=1)
    found.indices.CopyFrom(numpy_helper.from_array(axes, "w1_indices"))


def default_input(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [3, 16]))


def further_output(model: ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["batch", 16]))


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(local_function, id="a local function in a domain of its own"),
        pytest.param(sparse, id="sparse weights"),
        pytest.param(sparse_by_axes, id="sparse weights whose indices are of each axis"),
        pytest.param(default_input, id="an input that has a default"),
        pytest.param(further_output, id="one more output"),
        pytest.param(lambda model: setattr(model.opset_import[0], "version", 18), id="the oldest opset"),
        pytest.param(lambda model: setattr(model.opset_import[0], "domain", "ai.onnx"), id="the domain by its name"),
        pytest.param(lambda model: rename(model, "h", "x"), id="a tensor named as the encoder's input"),
        pytest.param(lambda model: rename(model, "h", "logpx"), id="a tensor named almost as ours"),
        pytest.param(lambda model: set_dim(model.graph.input[0], 1, 3), id="the latent dimension stated"),
        pytest.param(lambda model: model.graph.output[0].type.tensor_type.shape.dim[2].Clear(), id="a size not stated"),
    ],
)
def test_what_the_format_allows_changes_no_number(edit: Edit) -> None:
    toy = Toy(TOY.description, TOY.encoder, edited(TOY.decoder, edit), TOY.calibration)
    expected = complete(reference.load(TOY).log_likelihood(PIXELS, num_samples=50))
    found = complete(reference.load(toy).log_likelihood(PIXELS, num_samples=50))
    error = density_error(SHAPE.size, np.abs(expected.log_likelihood).max())
    np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, rtol=0, atol=2 * error)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda model: model.Clear(), "not a valid ONNX graph"),
        (lambda model: model.ClearField("opset_import"), "not a valid ONNX graph"),
        (lambda model: setattr(model, "ir_version", 99), "not a valid ONNX graph"),
        (lambda model: model.graph.initializer.remove(weight(model)), "not a valid ONNX graph"),
        (lambda model: model.graph.node.remove(operator(model, "Tanh")), "not a valid ONNX graph"),
        (external_initializer, "weights lie in another file; the store takes single-file graphs"),
        (external_attribute, "weights lie in another file; the store takes single-file graphs"),
        (lambda model: setattr(model.opset_import[0], "version", 17), "uses opset 17; 18 or later is needed"),
        (lambda model: setattr(model.opset_import[0], "version", 9999), "uses opset 9999; the latest known is"),
        (unknown_operator, "operator 'Twist' is of the domain 'theirs', which the format does not have"),
        (lambda model: rename(model, "z", "latents"), "input 'z' is missing; found latents"),
        (lambda model: rename(model, "logits", "loc"), "output 'logits' is missing; found loc"),
        (lambda model: model.graph.input.append(helper.make_tensor_value_info("u", 1, ["batch"])), "unknown inputs: u"),
        (
            lambda model: set_dim(model.graph.input[0], 0, 1),
            "input 'z' has shape [1, 3]; the manifest says ['batch', 3]",
        ),
        (lambda model: set_dim(model.graph.input[0], 1, 4), "input 'z' has shape ['batch', 4]; the manifest says"),
        (lambda model: set_dim(model.graph.output[0], 0, 2), "output 'logits' has shape [2, 1, 2, 3]"),
        (lambda model: set_dim(model.graph.output[0], 3, 2), "output 'logits' has shape ['batch', 1, 2, 2]"),
        (lambda model: model.graph.output[0].type.tensor_type.shape.dim.pop(), "has shape ['batch', 1, 2]"),
        (lambda model: model.graph.output[0].type.tensor_type.ClearField("shape"), "not a valid ONNX graph"),
        (lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", 11), "input 'z' is not float32"),
        (
            lambda model: setattr(model.graph.output[0].type.tensor_type, "elem_type", 10),
            "output 'logits' is not float32",
        ),
        (lambda model: rename(model, "h", "logpx.log_weight"), "begin with 'logpx.' are reserved: logpx.log_weight"),
        (lambda model: rename(model, "w1", "logpx.noise"), "begin with 'logpx.' are reserved: logpx.noise"),
        (lambda model: sparse(model, "logpx.x"), "begin with 'logpx.' are reserved: logpx.x"),
        # What only shows when it runs:
        (lambda model: replace(model, "chw", np.array([2, 1, 2, 3])), "cannot be run"),
        (
            lambda model: replace(model, "chw", np.array([-1, 1, 1, 3])),
            "'logits' came out as [4, 1, 1, 3], expected 2 rows of 6 numbers",
        ),
        (
            lambda model: replace(model, "w2", np.zeros((16, 12), np.float32)),
            "'logits' came out as [4, 1, 2, 3], expected 2 rows of 6 numbers",
        ),
    ],
)
def test_what_breaks_the_contract_is_refused_by_name(edit: Edit, problem: str) -> None:
    toy = Toy(TOY.description, TOY.encoder, edited(TOY.decoder, edit), TOY.calibration)
    with pytest.raises(InvalidArtifactError) as caught:
        reference.load(toy)
    assert caught.value.file == Path("decoder.onnx")
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda model: rename(model, "log_var", "variance"), "output 'log_var' is missing; found mean, variance"),
        (lambda model: set_dim(model.graph.input[0], 2, 3), "input 'x' has shape ['batch', 1, 3, 3]"),
        (lambda model: replace(model, "g", np.zeros((6, 4), np.float32)), "'mean' came out as [2, 4], expected [2, 3]"),
        (lambda model: replace(model, "flat", np.array([1, 6])), "cannot be run"),
        (lambda model: replace(model, "flat", np.array([4, 3])), "ONNX Runtime refuses it"),
    ],
)
def test_the_encoder_is_held_to_it_too(edit: Edit, problem: str) -> None:
    toy = Toy(TOY.description, edited(TOY.encoder, edit), TOY.decoder, TOY.calibration)
    with pytest.raises(InvalidArtifactError) as caught:
        reference.load(toy)
    assert caught.value.file == Path("encoder.onnx")
    assert problem in caught.value.problem


@pytest.mark.parametrize("seed", range(8))
def test_a_broken_file_is_refused_or_runs_and_nothing_else(seed: int) -> None:
    """Bytes changed, cut out or cut off: none may end in another error than the one the service knows."""
    rng = np.random.default_rng(seed)
    refused = []
    for _ in range(40):
        content = bytearray(TOY.decoder)
        first, last = np.sort(rng.integers(len(content), size=2))
        match rng.integers(3):
            case 0:
                content[first] ^= 1 << rng.integers(8)
            case 1:
                del content[first:last]
            case _:
                del content[first:]
        try:
            reference.load(Toy(TOY.description, TOY.encoder, bytes(content), TOY.calibration))
        except InvalidArtifactError as error:
            refused.append(error.file)
    assert len(refused) > 10
    assert set(refused) == {Path("decoder.onnx")}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_convolutional_decoder(channels: int) -> None:
    shape, latent_dim = ImageShape(channels=channels, height=6, width=10), 4
    rng = np.random.default_rng(6)

    def weights(name: str, *dims: int) -> object:
        return constant(name, rng.standard_normal(dims) / np.sqrt(dims[0]))

    upsample = helper.make_node("ConvTranspose", ["maps", "up"], ["bigger"], strides=[2, 2])
    smooth = helper.make_node("Conv", ["active", "mix", "bias"], ["logits"], pads=[1, 1, 1, 1])
    decoder = graph(
        [
            node("MatMul", "z", constant("w", rng.standard_normal((latent_dim, 8 * 15))), out="rows"),
            node("Reshape", "rows", constant("maps_shape", np.array([-1, 8, 3, 5])), out="maps"),
            (upsample, [constant("up", rng.standard_normal((8, 5, 2, 2)) / 3)]),
            node("Relu", "bigger", out="active"),
            (
                smooth,
                [
                    constant("mix", rng.standard_normal((channels, 5, 3, 3)) / 4),
                    constant("bias", rng.standard_normal(channels)),
                ],
            ),
        ],
        inputs={"z": ["n", latent_dim]},
        outputs={"logits": ["n", *shape.chw]},
    )
    toy = Toy(
        describe("convolutional", shape, latent_dim, BERNOULLI, num_images=50),
        bernoulli_toy(shape, latent_dim).encoder,
        decoder,
        TOY.calibration,
    )
    x = (rng.random((5, *shape.chw)) < 0.3).astype(np.float32)
    model = reference.load(toy, chunk_rows=64)
    for proposal in ("encoder", "prior"):
        record = complete(model.log_likelihood(x, proposal=proposal, num_samples=100, seed=9))
        expected = reference.log_weights(toy, x, proposal=proposal, num_samples=100, seed=9)
        np.testing.assert_allclose(
            record.log_likelihood,
            np.logaddexp.reduce(expected, axis=1) - np.log(100),
            rtol=0,
            atol=density_error(shape.size, np.abs(expected).max()),
        )
    latents = rng.standard_normal((3, latent_dim)).astype(np.float32)
    logits = reference.run(decoder, z=latents)["logits"]
    error = 2 * network_error(decoder, z=latents)["logits"] / 4 + gamma(2 * FUNCTION)  # a sigmoid is no steeper than ¼
    assert (np.abs(complete(model.decode(latents)) - 1 / (1 + np.exp(-logits))) <= error).all()
