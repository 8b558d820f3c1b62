"""Small models whose truth is known, made with `onnx.helper`: no training code between the test and the formula."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.stats import multivariate_normal

from model_store import (
    CalibrationProtocol,
    Description,
    ImageShape,
    LikelihoodSpec,
    PixelPreparation,
    Provenance,
    StoredModel,
    publish,
)
from tests.likelihoods import BERNOULLI, gaussian, graph_of, reference_of
from tests.likelihoods import AnyArray as AnyArray


@dataclass(frozen=True)
class Toy:
    """A pair of graphs with its description and calibration scores, ready for `Model` or `publish`."""

    description: Description
    encoder: bytes
    decoder: bytes
    calibration: dict[str, NDArray[np.float64]]
    features: bytes | None = None

    @property
    def likelihood(self) -> bytes:
        """likelihood.onnx."""
        return graph_of(self.description.likelihood, self.description.x_shape.size)

    def publish(self, root: Path) -> StoredModel:
        """As the next version in a store."""
        return publish(
            root,
            self.description,
            encoder=self.encoder,
            decoder=self.decoder,
            likelihood=self.likelihood,
            calibration=self.calibration,
            features=self.features,
        )


@dataclass(frozen=True)
class LinearGaussian:
    """x = W·z + b + N(0, scale²·I), z ~ N(0, I): so x ~ N(b, W·Wᵀ + scale²·I), and the posterior is Gaussian."""

    weight: AnyArray  # [P, D]
    bias: AnyArray  # [P]
    scale: float

    @classmethod
    def random(cls, shape: ImageShape, latent_dim: int, *, scale: float, seed: int = 3) -> "LinearGaussian":
        """Columns neither orthogonal nor of one length, so that nothing cancels by symmetry."""
        rng = np.random.default_rng(seed)
        weight = 0.2 * rng.standard_normal((shape.size, latent_dim)) * rng.uniform(0.2, 1, latent_dim)
        return cls(weight + 0.02, rng.uniform(0.3, 0.7, shape.size), scale)

    def draw(self, num_images: int, shape: ImageShape, *, seed: int) -> NDArray[np.float32]:
        """Images from the model, clipped to [0, 1]: the formula below holds for any x."""
        rng = np.random.default_rng(seed)
        z = rng.standard_normal((num_images, self.weight.shape[1]))
        x = z @ self.weight.T + self.bias + self.scale * rng.standard_normal((num_images, shape.size))
        return np.clip(x, 0, 1).astype(np.float32).reshape(num_images, *shape.chw)

    def log_likelihood(self, x: AnyArray) -> NDArray[np.float64]:
        """Exact log P(x), nats: [B, C, H, W] → [B]."""
        covariance = self.weight @ self.weight.T + self.scale**2 * np.eye(len(self.bias))
        flat = np.asarray(x, np.float64).reshape(len(x), -1)
        return np.atleast_1d(multivariate_normal(self.bias, covariance).logpdf(flat))

    def posterior(self) -> tuple[AnyArray, AnyArray]:
        """G [P, D] and Σ [D, D] of p(z|x) = N((x − b)·G, Σ)."""
        precision = np.eye(self.weight.shape[1]) + self.weight.T @ self.weight / self.scale**2
        covariance = np.linalg.inv(precision)
        return self.weight @ covariance / self.scale**2, covariance

    def toy(self, shape: ImageShape, *, name: str = "linear-gaussian", widen: float = 1.0) -> Toy:
        """The pair of graphs; the encoder has the exact mean and the exact marginal variances, times `widen`²."""
        gain, covariance = self.posterior()
        log_var = np.log(widen**2 * np.diag(covariance))
        encoder = graph(
            [
                node("Reshape", "x", constant("flat", np.array([-1, shape.size])), out="rows"),
                node("Sub", "rows", constant("b", self.bias), out="centred"),
                node("MatMul", "centred", constant("gain", gain), out="mean"),
                node("MatMul", "centred", constant("nothing", np.zeros_like(gain)), out="zeros"),
                node("Add", "zeros", constant("v", log_var), out="log_var"),
            ],
            inputs={"x": ["batch", *shape.chw]},
            outputs={"mean": ["batch", gain.shape[1]], "log_var": ["batch", gain.shape[1]]},
        )
        decoder = graph(
            [
                node("MatMul", "z", constant("w", self.weight.T), out="rows"),
                node("Add", "rows", constant("b", self.bias), out="shifted"),
                node("Reshape", "shifted", constant("chw", np.array([-1, *shape.chw])), out="loc"),
            ],
            inputs={"z": ["batch", gain.shape[1]]},
            outputs={"loc": ["batch", *shape.chw]},
        )
        scores = self.log_likelihood(self.draw(200, shape, seed=99))
        return Toy(
            describe(name, shape, gain.shape[1], gaussian(self.scale), num_images=200),
            encoder,
            decoder,
            {"log_likelihood": scores, "elbo": scores - 0.5},
        )


def bernoulli_toy(
    shape: ImageShape,
    latent_dim: int = 3,
    *,
    name: str = "bernoulli",
    preparation: PixelPreparation | None = None,
    seed: int = 5,
) -> Toy:
    """A random two-layer Bernoulli pair: no closed form, but every shape, size and preparation."""
    rng = np.random.default_rng(seed)
    decoder = graph(
        [
            node("MatMul", "z", constant("w1", rng.standard_normal((latent_dim, 16))), out="h"),
            node("Tanh", "h", out="a"),
            node("MatMul", "a", constant("w2", rng.standard_normal((16, shape.size))), out="rows"),
            node("Reshape", "rows", constant("chw", np.array([-1, *shape.chw])), out="logits"),
        ],
        inputs={"z": ["batch", latent_dim]},
        outputs={"logits": ["batch", *shape.chw]},
    )
    gain = rng.standard_normal((shape.size, latent_dim)) / shape.size
    encoder = graph(
        [
            node("Reshape", "x", constant("flat", np.array([-1, shape.size])), out="rows"),
            node("MatMul", "rows", constant("g", gain), out="mean"),
            node("MatMul", "rows", constant("v", -gain), out="log_var"),
        ],
        inputs={"x": ["batch", *shape.chw]},
        outputs={"mean": ["batch", latent_dim], "log_var": ["batch", latent_dim]},
    )
    scores = rng.normal(-0.7 * shape.size, 2, 50)
    description = describe(name, shape, latent_dim, BERNOULLI, num_images=50, preparation=preparation)
    return Toy(description, encoder, decoder, {"log_likelihood": scores, "elbo": scores - 1})


def nonlinear_toy(likelihood: LikelihoodSpec, shape: ImageShape, latent_dim: int, *, seed: int = 6) -> Toy:
    """A random two-layer pair for any likelihood; a scale, where the decoder gives one, varies about exp(−1.5)."""
    rng = np.random.default_rng(seed)
    outputs = reference_of(likelihood).outputs
    nodes = [
        node("MatMul", "z", constant("w1", rng.standard_normal((latent_dim, 8))), out="h"),
        node("Tanh", "h", out="a"),
    ]
    for name in outputs:
        weight = constant(f"w_{name}", 0.25 * rng.standard_normal((8, shape.size)))
        bias = constant(f"b_{name}", np.full(shape.size, -1.5 if name == "log_scale" else 0.5))
        nodes += [
            node("MatMul", "a", weight, out=f"rows_{name}"),
            node("Add", f"rows_{name}", bias, out=f"shifted_{name}"),
            node("Reshape", f"shifted_{name}", constant(f"chw_{name}", np.array([-1, *shape.chw])), out=name),
        ]
    decoder = graph(
        nodes, inputs={"z": ["batch", latent_dim]}, outputs={name: ["batch", *shape.chw] for name in outputs}
    )
    stand_in = bernoulli_toy(shape, latent_dim)  # its encoder does for any
    description = describe("nonlinear", shape, latent_dim, likelihood, num_images=50)
    return Toy(description, stand_in.encoder, decoder, stand_in.calibration)


def describe(
    name: str,
    shape: ImageShape,
    latent_dim: int,
    likelihood: LikelihoodSpec,
    *,
    num_images: int,
    preparation: PixelPreparation | None = None,
) -> Description:
    """A manifest's fields for a toy."""
    return Description(
        name=name,
        image=shape,
        preparation=preparation or PixelPreparation(),
        latent_dim=latent_dim,
        likelihood=likelihood,
        calibration=CalibrationProtocol(
            proposal="encoder", num_samples=200, seed=0, num_images=num_images, source="drawn from the toy itself"
        ),
        provenance=Provenance(data_set="toy", seed=3, configuration={}, library_versions={}),
    )


@dataclass(frozen=True)
class Constant:
    """A named weight of a toy graph."""

    name: str
    value: AnyArray


def constant(name: str, value: AnyArray) -> Constant:
    """Floats become float32, as the store wants them."""
    return Constant(name, value.astype(np.float32) if value.dtype.kind == "f" else value)


def node(operator: str, *inputs: str | Constant, out: str) -> tuple[onnx.NodeProto, list[Constant]]:
    """One operator with one output, and the constants it reads."""
    names = [item.name if isinstance(item, Constant) else item for item in inputs]
    return helper.make_node(operator, names, [out]), [item for item in inputs if isinstance(item, Constant)]


def graph(
    nodes: list[tuple[onnx.NodeProto, list[Constant]]],
    *,
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    opset: int = 20,
) -> bytes:
    """Serialise a small float32 graph."""
    proto = helper.make_graph(
        [item for item, _ in nodes],
        "toy",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in outputs.items()],
        initializer=[numpy_helper.from_array(item.value, item.name) for _, used in nodes for item in used],
    )
    return bytes(
        helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=10).SerializeToString()
    )
