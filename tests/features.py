"""A small model of features whose truth is known: tanh of a convolution, then probabilistic PCA of the maps."""

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from model_store import FeatureMaps, ImageShape
from tests.toys import LinearGaussian, Toy, constant, graph, node

IMAGE = ImageShape(channels=1, height=12, width=8)
MAPS = FeatureMaps(channels=5, height=3, width=2, log_scale_sum=-1.5)
PLAIN_MAPS = ImageShape(channels=MAPS.channels, height=MAPS.height, width=MAPS.width)
_SIDE = 4

WEIGHT = np.random.default_rng(71).normal(0, 0.6, (MAPS.channels, 1, _SIDE, _SIDE)).astype(np.float32)


def features_graph(*, tail: str = "Tanh", weight: NDArray[np.float32] = WEIGHT) -> bytes:
    """x [B, 1, 12, 8] → features [B, 5, 3, 2]: a patch of 4×4 pixels a position."""
    convolution = helper.make_node("Conv", ["x", "weight"], ["patches"], strides=[_SIDE, _SIDE])
    return graph(
        [(convolution, [constant("weight", weight)]), node(tail, "patches", out="features")],
        inputs={"x": ["batch", *IMAGE.chw]},
        outputs={"features": ["batch", *MAPS.chw]},
    )


def features_of(pixels: NDArray[np.float32]) -> NDArray[np.float64]:
    """The same in NumPy and float64: [B, 1, 12, 8] → [B, 5, 3, 2]."""
    rows = pixels.astype(np.float64).reshape(-1, MAPS.height, _SIDE, MAPS.width, _SIDE)
    return np.asarray(np.tanh(np.einsum("bhiwj,fij->bfhw", rows, WEIGHT[:, 0].astype(np.float64))))


def ordinary(count: int, *, seed: int) -> NDArray[np.float32]:
    """Images of a gradient whose direction varies, with a little noise."""
    rng = np.random.default_rng(seed)
    rows = np.linspace(0, 1, IMAGE.height)[:, None] * np.ones(IMAGE.width)
    slope = rng.uniform(0.3, 0.7, (count, 1, 1, 1))
    return np.clip(slope * rows + rng.normal(0, 0.05, (count, *IMAGE.chw)) + 0.2, 0, 1).astype(np.float32)


def fitted(maps: NDArray[np.float64], latent_dim: int) -> LinearGaussian:
    """Probabilistic PCA by maximum likelihood (Tipping and Bishop 1999): of maps [N, F, h, w]."""
    rows = maps.reshape(len(maps), -1)
    values, axes = np.linalg.eigh(np.cov(rows.T, bias=True))
    noise = values[:-latent_dim].mean()
    weight = axes[:, -latent_dim:] * np.sqrt(values[-latent_dim:] - noise)
    return LinearGaussian(weight, rows.mean(axis=0), float(np.sqrt(noise)))


DENSITY = fitted(features_of(ordinary(400, seed=70)), 2)


def feature_toy(name: str = "maps") -> Toy:
    """The model, its calibration not yet of images."""
    toy = DENSITY.toy(PLAIN_MAPS, name=name, widen=1.1)
    fields = {"image": IMAGE, "features": MAPS}
    return Toy(toy.description.model_copy(update=fields), toy.encoder, toy.decoder, toy.calibration, features_graph())
