"""Exact gradients of log p(x|z): each operator's rule against its closed form, and whole models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from model_store import BUNDLED, ImageShape, open_version
from service.engine import graphs
from service.engine.chunks import complete
from service.engine.runtime import Runtime
from service.engine.verification import read_graphs
from tests import reference
from tests.likelihoods import BERNOULLI
from tests.toys import AnyArray, LinearGaussian, Toy, bernoulli_toy, constant, describe, graph, node

SHAPE = ImageShape(channels=1, height=4, width=6)
LATENT = 5
RNG = np.random.default_rng(2)
WEIGHT = RNG.standard_normal((LATENT, SHAPE.size)) / 2
Z = RNG.standard_normal((7, LATENT)).astype(np.float32)
X = (RNG.random((7, 1, SHAPE.size)) < 0.5).astype(np.float32)
RELATIVE = 1e-5
"""Of the largest number: float32's rounding, over sums of at most a few hundred."""


def toy_of(decoder: bytes) -> Toy:
    stand_in = bernoulli_toy(SHAPE, LATENT)
    description = describe("toy", SHAPE, LATENT, BERNOULLI, num_images=50)
    return Toy(description, stand_in.encoder, decoder, stand_in.calibration)


def written(toy: Toy) -> bytes | None:
    return read_graphs(toy.description, toy.encoder, toy.decoder, toy.likelihood, Path()).gradient()


def gradient(toy: Toy, z: AnyArray = Z, x: AnyArray = X) -> tuple[AnyArray, AnyArray]:
    content = written(toy)
    assert content is not None
    found = Runtime("cpu").open(content, Path("gradient")).run({"z": z, graphs.X: x})
    return found[graphs.LOG_LIKELIHOOD], found[graphs.GRADIENT]


def decoder(*nodes: object, flat: str = "y") -> bytes:
    last = node("Reshape", flat, constant("chw", np.array([-1, *SHAPE.chw])), out="logits")
    return graph([*nodes, last], inputs={"z": ["n", LATENT]}, outputs={"logits": ["n", *SHAPE.chw]})  # type: ignore[list-item]


ROWS = node("MatMul", "z", constant("w", WEIGHT), out="rows")


@pytest.mark.parametrize(
    ("operator", "function", "slope"),
    [
        ("Sigmoid", lambda t: 1 / (1 + np.exp(-t)), lambda t: np.exp(-t) / (1 + np.exp(-t)) ** 2),
        ("Tanh", np.tanh, lambda t: 1 - np.tanh(t) ** 2),
        ("Relu", lambda t: np.maximum(t, 0), lambda t: t > 0),
        ("Softplus", lambda t: np.log1p(np.exp(t)), lambda t: 1 / (1 + np.exp(-t))),
        ("Exp", np.exp, np.exp),
        ("Neg", lambda t: -t, lambda t: -np.ones_like(t)),
        ("Identity", lambda t: t, np.ones_like),
    ],
)
def test_functions_of_each_number(
    operator: str, function: Callable[..., AnyArray], slope: Callable[..., AnyArray]
) -> None:
    expect(decoder(ROWS, node(operator, "rows", out="y")), function, slope)


def expect(content: bytes, function: Callable[..., AnyArray], slope: Callable[..., AnyArray]) -> None:
    """The gradient of a decoder that takes function(z·W) of each number."""
    rows = Z.astype(np.float64) @ WEIGHT.astype(np.float32)
    score = X[:, 0] - 1 / (1 + np.exp(-function(rows)))
    expected = (score * slope(rows)) @ WEIGHT.T
    _, found = gradient(toy_of(content))
    np.testing.assert_allclose(found, expected, rtol=0, atol=RELATIVE * np.abs(score * slope(rows)).max() * SHAPE.size)


def test_products_quotients_and_logarithms_of_what_depends_on_z() -> None:
    """y = t·t / (1 + t²) − log(1 + t²) + 1/(1 + t²)."""
    one = constant("one", np.ones(1))
    content = decoder(
        ROWS,
        node("Mul", "rows", "rows", out="square"),
        node("Add", "square", one, out="more"),
        node("Div", "square", "more", out="part"),
        node("Log", "more", out="log"),
        node("Sub", "part", "log", out="less"),
        node("Reciprocal", "more", out="inverse"),
        node("Add", "less", "inverse", out="y"),
    )
    expect(content, lambda t: 1 - np.log(1 + t**2), lambda t: -2 * t / (1 + t**2))


REPEATED = {"columns": (4, 1), "rows": (1, 6), "ones": (1, 1)}


def test_operands_that_are_repeated() -> None:
    """Along the last axis, along the one before it, and along both, on either side of every operator.

    Against central differences in float64, whose own error is far beneath float32's rounding.
    """
    weights = {name: RNG.standard_normal((LATENT, high * wide)) / 4 for name, (high, wide) in REPEATED.items()}
    parts = []
    for name, weight in weights.items():
        sizes = constant(f"sizes_{name}", np.array([-1, *REPEATED[name]]))
        parts += [
            node("MatMul", "z", constant(f"w_{name}", weight), out=f"{name}_flat"),
            node("Reshape", f"{name}_flat", sizes, out=f"{name}_log"),
            node("Exp", f"{name}_log", out=name),
        ]
    content = decoder(
        *parts,
        node("Mul", "columns", "rows", out="product"),
        node("Add", "ones", "product", out="sum"),
        node("Div", "sum", "columns", out="quotient"),
        node("Div", "rows", "quotient", out="inverse"),
        node("Mul", "inverse", "ones", out="scaled"),
        node("Sub", "rows", "scaled", out="less"),
        node("Sub", "less", "columns", out="y"),
    )

    def log_prob(z: AnyArray) -> AnyArray:
        columns, rows, ones = (
            np.exp((z @ weight.astype(np.float32)).reshape(-1, *REPEATED[name])) for name, weight in weights.items()
        )
        logits = (rows - rows * columns / (ones + columns * rows) * ones - columns).reshape(len(z), -1)
        return np.asarray((X[:, 0] * logits - np.logaddexp(0, logits)).sum(axis=1))

    _, found = gradient(toy_of(content))
    for axis in range(LATENT):
        step = 1e-5 * np.eye(LATENT)[axis]
        expected = (log_prob(Z + step) - log_prob(Z - step)) / 2e-5
        np.testing.assert_allclose(found[:, axis], expected, rtol=0, atol=RELATIVE * SHAPE.size)
    _, alone = gradient(toy_of(content), Z[3:4], X[3:4])
    np.testing.assert_array_equal(alone, found[3:4])


def test_an_operand_that_is_repeated_along_the_batch_has_no_derivative() -> None:
    """Of seven images alone does this decoder work, or of one: the rows' batch is the other's second axis."""
    square = 7 * SHAPE.size
    content = decoder(
        ROWS,
        node("MatMul", "z", constant("wide", np.ones((LATENT, square))), out="flat"),
        node("Reshape", "flat", constant("square", np.array([-1, 7, SHAPE.size])), out="squares"),
        node("Add", "squares", "rows", out="sum"),
        node("ReduceSum", "sum", constant("second", np.array([1])), out="y"),
    )
    assert written(toy_of(content)) is None


def linear_decoders() -> list[bytes]:
    """Decoders that are linear in z, with a bias: by layers, of pieces, by convolutions of every kind."""

    def maps(channels: int, height: int, width: int) -> list[object]:
        wide = channels * height * width
        return [
            node("MatMul", "z", constant("w", RNG.standard_normal((LATENT, wide))), out="wide"),
            node("Reshape", "wide", constant("maps_shape", np.array([-1, channels, height, width])), out="maps"),
        ]

    def convolution(operator: str, weights: AnyArray, **options: Any) -> object:
        used = [constant("kernel", weights)]
        return helper.make_node(operator, ["maps", "kernel"], ["y"], **options), used

    normal = RNG.standard_normal
    gemm = helper.make_node("Gemm", ["z", "w", "bias"], ["y"], alpha=0.5, transB=1)
    first = [constant("first", np.array(1))]
    bounds = [constant("from", np.array([1])), constant("to", np.array([9])), constant("along", np.array([2]))]
    left = [constant("zero", np.array([0])), constant("one", np.array([1])), constant("along2", np.array([-1]))]
    inner = [constant("from3", np.array([2])), constant("to3", np.array([-1])), constant("along3", np.array([2]))]
    sides = [constant("pads", np.array([0, 0, 2, 0, 0, 1])), constant("nothing", np.zeros(()))]
    pieces = [
        *maps(2, 6, 4),
        (helper.make_node("Transpose", ["maps"], ["turned"], perm=[0, 1, 3, 2]), []),
        (helper.make_node("Gather", ["turned", "first"], ["channel"], axis=1), first),  # [n, 4, 6]
        node("Slice", "channel", *bounds, out="right"),  # [n, 4, 5]
        node("Slice", "channel", *left, out="left"),  # [n, 4, 1]
        (helper.make_node("Concat", ["right", "left"], ["joined"], axis=2), []),
        node("Slice", "joined", *inner, out="narrow"),  # [n, 4, 3]
        node("Pad", "narrow", *sides, out="wide_again"),
        node("Unsqueeze", "wide_again", constant("at", np.array([1])), out="y"),
    ]

    halves = [
        *maps(2, 4, 6),
        (helper.make_node("Split", ["maps", "sizes"], ["one", "other"], axis=-3), [constant("sizes", np.ones(2, int))]),
        node("Sub", "other", "one", out="y"),
    ]

    moved = [
        *maps(1, 4, 7),
        node("Pad", "maps", constant("by", np.array([0, 0, 1, -2, 0, 0, -1, 1])), out="shorter"),  # [n, 1, 4, 6]
        node("Slice", "shorter", *left, out="edge"),  # [n, 1, 4, 1]
        node("Sub", "shorter", "edge", out="y"),
    ]

    def shuffled(mode: str) -> object:
        return helper.make_node("DepthToSpace", ["maps"], ["y"], blocksize=2, mode=mode), []

    return [
        decoder(*maps(4, 2, 3), shuffled("CRD")),
        decoder(*maps(12, 2, 1), shuffled("DCR")),  # three channels of 4×2
        decoder(*maps(12, 1, 2), shuffled("CRD")),
        decoder((gemm, [constant("w", WEIGHT.T), constant("bias", normal(SHAPE.size))])),
        decoder(*pieces),
        decoder(*halves),
        decoder(*moved),
        decoder(*maps(3, 4, 6), convolution("Conv", normal((1, 3, 3, 3)), pads=[1, 1, 1, 1])),
        decoder(*maps(2, 6, 7), convolution("Conv", normal((1, 2, 3, 2)))),
        decoder(*maps(2, 8, 13), convolution("Conv", normal((1, 2, 3, 3)), strides=[2, 2], pads=[1, 0, 0, 0])),
        decoder(*maps(4, 2, 3), convolution("Conv", normal((4, 2, 1, 1)), group=2)),
        decoder(*maps(1, 8, 10), convolution("Conv", normal((1, 1, 3, 3)), dilations=[2, 2])),
        decoder(*maps(3, 2, 3), convolution("ConvTranspose", normal((3, 1, 2, 2)), strides=[2, 2])),
        decoder(*maps(3, 4, 6), convolution("ConvTranspose", normal((3, 1, 3, 3)), pads=[1, 1, 1, 1])),
    ]


@pytest.mark.parametrize("content", linear_decoders(), ids=range(len(linear_decoders())))
def test_linear_layers(content: bytes) -> None:
    """The Jacobian is what the decoder gives for unit vectors, less what it gives for zero."""
    units = np.concatenate([np.zeros((1, LATENT)), np.eye(LATENT)])
    columns = reference.run(content, z=units)["logits"].reshape(LATENT + 1, -1).astype(np.float64)
    jacobian = columns[1:] - columns[0]
    logits = Z.astype(np.float64) @ jacobian + columns[0]
    expected = (X[:, 0] - 1 / (1 + np.exp(-logits))) @ jacobian.T
    _, found = gradient(toy_of(content))
    np.testing.assert_allclose(found, expected, rtol=0, atol=RELATIVE * np.abs(jacobian).sum())


@pytest.mark.parametrize(
    "size", [ImageShape(channels=1, height=10, width=12), ImageShape(channels=3, height=4, width=4)]
)
def test_a_linear_gaussian_model(size: ImageShape) -> None:
    """log p(x|z) is quadratic in z, so central differences are exact but for rounding."""
    oracle = LinearGaussian.random(size, 6, scale=0.3)
    x = oracle.draw(4, size, seed=1).reshape(4, 1, -1)
    z = RNG.standard_normal((4, 6)).astype(np.float32)
    value, found = gradient(oracle.toy(size), z, x)
    h = 0.25
    for axis in range(6):
        step = h * np.eye(6, dtype=np.float32)[axis]
        up, down = (gradient(oracle.toy(size), z + sign * step, x)[0] for sign in (1, -1))
        scale = np.abs(value).max() / h
        np.testing.assert_allclose(found[:, axis], ((up - down) / (2 * h))[:, 0], rtol=0, atol=RELATIVE * scale)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_bundled_models_have_one_with_the_same_digits_in_any_batch(name: str) -> None:
    stored = open_version(BUNDLED, name)
    assert stored.likelihood is not None
    content = read_graphs(stored.manifest, stored.encoder, stored.decoder, stored.likelihood, Path()).gradient()
    assert content is not None
    session = Runtime("cpu").open(content, Path("gradient"))
    z = RNG.standard_normal((37, stored.manifest.latent_dim)).astype(np.float32)
    x = (RNG.random((37, 1, stored.manifest.image.size)) < 0.5).astype(np.float32)
    every = session.run({"z": z, graphs.X: x})
    for count in (1, 2, 3, 8, 36):
        some = session.run({"z": z[-count:], graphs.X: x[-count:]})
        for output in (graphs.LOG_LIKELIHOOD, graphs.GRADIENT):
            np.testing.assert_array_equal(some[output], every[output][-count:])


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([ROWS, node("Erf", "rows", out="y")], id="an operator without a rule"),
        pytest.param(
            [
                ROWS,
                node("Mul", "rows", constant("halves", np.full((1, 1, 1), 0.5)), out="second"),
                node("Squeeze", "second", constant("first", np.array([0])), out="y"),
            ],
            id="a batch that is not first",
        ),
        pytest.param(
            [
                ROWS,
                node("Slice", "rows", constant("from", np.zeros(2, int)), constant("to", np.full(2, 2**31)), out="y"),
            ],
            id="a slice along all dimensions",
        ),
        pytest.param(
            [
                node("MatMul", "z", constant("w", np.ones((LATENT, 2 * SHAPE.size))), out="wide"),
                (
                    helper.make_node("Split", ["wide", "sizes"], ["y", "rest"], axis=1),
                    [constant("sizes", np.full(2, SHAPE.size))],
                ),
            ],
            id="a part that is not used",
        ),
        pytest.param(
            [
                ROWS,
                (helper.make_node("Cast", ["rows"], ["whole"], to=TensorProto.INT64), []),
                (helper.make_node("Cast", ["whole"], ["y"], to=TensorProto.FLOAT), []),
            ],
            id="rounding",
        ),
    ],
)
def test_where_there_is_no_rule_there_is_no_gradient_and_the_model_works(nodes: list[object]) -> None:
    toy = toy_of(decoder(*nodes))
    assert written(toy) is None
    pixels = X.reshape(-1, *SHAPE.chw)
    record = complete(reference.load(toy).log_likelihood(pixels[:2], num_samples=50))
    assert np.isfinite(record.log_likelihood).all()
