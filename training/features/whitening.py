"""Feature maps as numbers around 0 of unit size: the mean and the scale of each, over the training images."""

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

Maps = NDArray[np.float32]


@dataclass(frozen=True)
class Whitening:
    """x = (features − mean) · inverse_scale, by position and channel; both [F, h, w] float32."""

    mean: Maps
    inverse_scale: Maps

    @property
    def log_scale_sum(self) -> float:
        """Σ log scale: log p(features) = log P(x) − this, by the change of variables."""
        return float(-np.log(self.inverse_scale.astype(np.float64)).sum())

    @classmethod
    def fit(cls, batches: Callable[[], Iterable[Maps]], name: str) -> "Whitening":
        """The moments of maps [B, F, h, w], which are gone through twice; `name` is what an error names.

        A number's variance is shrunk towards the mean of its channel's over the positions: a few images say little of
        one position.

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
        return cls(mean, (1 / np.sqrt(variance)).astype(np.float32))

    def apply(self, maps: Maps) -> Maps:
        """Maps [B, F, h, w] as the graph of `fold` makes them, to the last bit."""
        return np.asarray((maps - self.mean) * self.inverse_scale)

    def fold(self, content: bytes) -> bytes:
        """A feature graph with these two steps at its end; everything in it keeps its name but its output."""
        model = onnx.load_from_string(content)
        graph = model.graph
        taken = {name for node in graph.node for name in [*node.input, *node.output]}
        taken |= {value.name for value in [*graph.input, *graph.initializer]}
        before, mean, inverse, centred = _free_names(taken)
        for node in graph.node:
            node.input[:] = [before if name == FEATURES else name for name in node.input]
            node.output[:] = [before if name == FEATURES else name for name in node.output]
        graph.initializer.extend(
            [numpy_helper.from_array(self.mean[None], mean), numpy_helper.from_array(self.inverse_scale[None], inverse)]
        )
        graph.node.extend(
            [
                helper.make_node("Sub", [before, mean], [centred]),
                helper.make_node("Mul", [centred, inverse], [FEATURES]),
            ]
        )
        batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param or "batch"
        del graph.output[:], graph.value_info[:]
        graph.output.append(helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, [batch, *self.mean.shape]))
        folded: bytes = model.SerializeToString()
        return folded


def _free_names(taken: set[str]) -> Iterator[str]:
    """Four names that no tensor of the graph has."""
    for name in ("before_whitening", "whitening_mean", "whitening_inverse_scale", "centred"):
        number = 0
        while (candidate := f"{name}_{number}" if number else name) in taken:
            number += 1
        yield candidate
