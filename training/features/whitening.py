"""Feature maps as numbers around 0 of unit size whose channels do not vary together: by the training images."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.engine.features import FEATURES
from training.errors import DataError

_SHRINKAGE = 10
"""Images: each number's variance is averaged with its channel's as if so many more had that one."""
_LEAST_SHARE = 1e-6
"""Of the mean variance of all numbers: a channel that never varies is not divided by nearly nothing."""

_RIDGE = 0.03
"""Added to the variances of the scaled channels. Of 0.03, 0.1, 1, 10 and 100, maps of held-out magnetic tiles are
likeliest by it, with 100 training images and with 553 (benchmarks/RESULTS.md)."""
_MOST_CHANNELS = 1448
"""Whose matrix takes 8 MiB; more channels are only scaled, so that a published graph stays small."""

Maps = NDArray[np.float32]


@dataclass(frozen=True)
class Whitening:
    """x_p = W · ((features_p − mean_p) · inverse_scale_p) at each position p.

    Attributes:
        mean, inverse_scale: [F, h, w].
        matrix: W, symmetric, [F, F].
        log_scale_sum: −log |det ∂x/∂features| = −Σ log inverse_scale − h·w·log det W. By the change of variables,
            log p(features) = log P(x) − this.
    """

    mean: Maps
    inverse_scale: Maps
    matrix: Maps
    log_scale_sum: float

    @classmethod
    def fit(cls, batches: Callable[[], Iterable[Maps]], name: str) -> "Whitening":
        """Of maps [B, F, h, w], which are gone through three times; `name` is what an error names.

        A number's variance is shrunk towards the mean of its channel's over the positions: a few images say little of
        one position. W = (S + 0.03·I)^(−1/2), where S [F, F] is the covariance of the channels so scaled, over images
        and positions: it knows h·w times more than one position's would, and takes h·w times less room.

        Raises:
            DataError: the features are the same for all images.
        """
        count, total = 0, np.float64(0)
        for maps in batches():
            count, total = count + len(maps), total + maps.sum(axis=0, dtype=np.float64)
        mean = np.asarray(total / count).astype(np.float32)
        squares = sum(
            (np.square(maps - mean, dtype=np.float64).sum(axis=0) for maps in batches()), np.zeros(mean.shape)
        )
        channel = squares.mean(axis=(1, 2), keepdims=True) / count
        if not channel.any():
            raise DataError(name, "its features are the same for all images")
        variance = (squares + _SHRINKAGE * channel) / (count + _SHRINKAGE)
        variance = np.maximum(variance, _LEAST_SHARE * channel.mean())
        inverse_scale = (1 / np.sqrt(variance)).astype(np.float32)
        if len(mean) > _MOST_CHANNELS:
            matrix, log_determinant = np.eye(len(mean)), 0.0
        else:
            products = sum((_products((maps - mean) * inverse_scale) for maps in batches()), np.zeros((len(mean),) * 2))
            values, axes = np.linalg.eigh(products / (count * mean[0].size))
            values = np.maximum(values, 0) + _RIDGE
            matrix, log_determinant = (axes / np.sqrt(values)) @ axes.T, -0.5 * float(np.log(values).sum())
        log_scale_sum = -np.log(inverse_scale.astype(np.float64)).sum() - mean[0].size * log_determinant
        return cls(mean, inverse_scale, matrix.astype(np.float32), float(log_scale_sum))

    def apply(self, maps: Maps) -> Maps:
        """Maps [B, F, h, w] as the graph of `fold` makes them, within rounding."""
        scaled = ((maps - self.mean) * self.inverse_scale).reshape(*maps.shape[:2], -1)
        return np.asarray((self.matrix @ scaled).reshape(maps.shape))

    def fold(self, content: bytes) -> bytes:
        """A feature graph with these steps at its end; everything in it keeps its name but its output."""
        model = onnx.load_from_string(content)
        graph = model.graph
        taken = {name for node in graph.node for name in [*node.input, *node.output]}
        taken |= {value.name for value in [*graph.input, *graph.initializer]}
        free = _free_names(taken)
        before = next(free)
        for node in graph.node:
            node.input[:] = [before if name == FEATURES else name for name in node.input]
            node.output[:] = [before if name == FEATURES else name for name in node.output]
        channels, height, width = self.mean.shape
        constants = {
            next(free): array
            for array in (
                self.mean[None],
                self.inverse_scale[None],
                np.array([-1, channels, height * width]),
                self.matrix,
                np.array([-1, channels, height, width]),
            )
        }
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
        mean, inverse_scale, flat, matrix, shape = constants
        last = before
        for operator, inputs in (
            ("Sub", [mean]),
            ("Mul", [inverse_scale]),
            ("Reshape", [flat]),
            ("MatMul", [matrix]),
            ("Reshape", [shape]),
        ):
            out = FEATURES if inputs == [shape] else next(free)
            given = [*inputs, last] if operator == "MatMul" else [last, *inputs]
            graph.node.append(helper.make_node(operator, given, [out]))
            last = out
        batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param or "batch"
        del graph.output[:], graph.value_info[:]
        graph.output.append(helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, [batch, *self.mean.shape]))
        folded: bytes = model.SerializeToString()
        return folded


def _products(scaled: Maps) -> NDArray[np.float64]:
    """Σ x·xᵀ over images and positions: [B, F, h, w] → [F, F]."""
    rows = scaled.transpose(1, 0, 2, 3).reshape(scaled.shape[1], -1).astype(np.float64)
    return np.asarray(rows @ rows.T)


def _free_names(taken: set[str]) -> Iterator[str]:
    """Names that no tensor of the graph has."""
    number = 0
    while True:
        if (candidate := f"whitening_{number}") not in taken:
            yield candidate
        number += 1
