from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from scipy import stats
from scipy.special import expit

from service.engine.builder import GraphBuilder
from service.engine.likelihood import Bernoulli, Gaussian, Likelihood
from tests.toys import Array

# 784 = 14·56; 127 is prime and above 64, 61 prime and below; 128 = 2·64; 3·6·5 is a colour image
SHAPES = [(1, 1, 1), (1, 1, 61), (1, 1, 127), (1, 16, 8), (1, 28, 28), (3, 6, 5)]


def run_fragment(likelihood: Likelihood, x: Array, parameters: Array) -> Array:
    """The likelihood's ONNX nodes alone: x [B, C, H, W], parameters [B, K, C, H, W] → [B, K]."""
    num_images, num_samples = parameters.shape[:2]
    num_pixels = x[0].size
    builder = GraphBuilder()
    result = likelihood.fragment(builder, "x", {likelihood.outputs[0]: "parameters"}, num_pixels)
    builder.add("Identity", result, output="y")
    graph = helper.make_graph(
        builder.nodes,
        "fragment",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 1, num_pixels]),
            helper.make_tensor_value_info("parameters", TensorProto.FLOAT, ["B", "K", num_pixels]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "K"])],
        initializer=builder.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = {
        "x": x.reshape(num_images, 1, -1).astype(np.float32),
        "parameters": parameters.reshape(num_images, num_samples, -1).astype(np.float32),
    }
    result_array: Array = session.run(["y"], inputs)[0]
    return result_array


def draw(shape: tuple[int, int, int], *, scale: float, seed: int = 1) -> tuple[Array, Array]:
    """Binary images [2, C, H, W] and parameters [2, 3, C, H, W]."""
    rng = np.random.default_rng(seed)
    x = (rng.random((2, *shape)) < 0.3).astype(np.float32)
    return x, (scale * rng.standard_normal((2, 3, *shape))).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.01, 3.0, 60.0, 1000.0])
def test_bernoulli_graph_is_the_reference(shape: tuple[int, int, int], scale: float) -> None:
    x, logits = draw(shape, scale=scale)
    reference = Bernoulli().log_prob(x[:, None], {"logits": logits})
    np.testing.assert_allclose(run_fragment(Bernoulli(), x, logits), reference, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("extreme", [60.0, 88.0, 104.0, 1000.0, 1e30])
def test_bernoulli_stays_exact_at_extreme_logits(extreme: float) -> None:
    x = np.array([0, 1, 0, 1] * 32, np.float32).reshape(1, 1, 16, 8)
    signs = np.array([1, 1, -1, -1] * 32, np.float32).reshape(x.shape)
    for sign in (1, -1):
        logits = sign * extreme * signs
        reference = Bernoulli().log_prob(x, {"logits": logits})
        np.testing.assert_allclose(reference, -64 * extreme, rtol=1e-6)  # half of the pixels are certain and wrong
        np.testing.assert_allclose(run_fragment(Bernoulli(), x, logits[None])[0], reference, rtol=1e-6)


def test_bernoulli_is_scipys() -> None:
    x, logits = draw((3, 4, 5), scale=3.0)
    expected = stats.bernoulli.logpmf(x[:, None], expit(logits.astype(np.float64))).sum(axis=(-3, -2, -1))
    np.testing.assert_allclose(Bernoulli().log_prob(x[:, None], {"logits": logits}), expected, rtol=1e-10)
    np.testing.assert_allclose(Bernoulli().mean({"logits": logits}), expit(logits), atol=1e-7)
    assert Bernoulli().mean({"logits": np.array([-1e30, -1000, 0, 1000, 1e30], np.float32)}).tolist() == [
        0,
        0,
        0.5,
        1,
        1,
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0])
def test_gaussian_graph_is_the_reference(shape: tuple[int, int, int], scale: float) -> None:
    x, loc = draw(shape, scale=2.0)
    likelihood = Gaussian(scale)
    reference = likelihood.log_prob(x[:, None], {"loc": loc})
    np.testing.assert_allclose(run_fragment(likelihood, x, loc), reference, rtol=2e-6, atol=2e-6)


def test_gaussian_is_scipys() -> None:
    x, loc = draw((3, 4, 5), scale=2.0)
    expected = stats.norm(loc.astype(np.float64), 0.3).logpdf(x[:, None]).sum(axis=(-3, -2, -1))
    np.testing.assert_allclose(Gaussian(0.3).log_prob(x[:, None], {"loc": loc}), expected, rtol=1e-10)
    assert Gaussian(0.3).mean({"loc": loc}) is loc


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.5)], ids=["bernoulli", "gaussian"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_parameter_that_is_no_number_is_not_hidden(likelihood: Likelihood, value: float) -> None:
    x, parameters = draw((1, 5, 5), scale=1.0)
    parameters[1, 2, 0, 3, 4] = value
    log_prob: Any = run_fragment(likelihood, x, parameters)
    assert not np.isfinite(log_prob[1, 2])
    log_prob[1, 2] = 0
    assert np.isfinite(log_prob).all()
