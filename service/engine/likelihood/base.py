"""What every likelihood p(x|z) states about itself."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from service.engine.builder import GraphBuilder

Parameters = Mapping[str, NDArray[Any]]
"""The decoder's outputs by name, each [..., C, H, W]."""


@dataclass(frozen=True)
class Curvature:
    """Names of tensors [B, 1, P]: how log p(x|z) changes with the decoder's outputs, pixel by pixel."""

    score: Mapping[str, str]
    """∂ log p(x|z) / ∂ output, for each output."""
    information: Mapping[tuple[str, str], str]
    """−∂² log p(x|z) / ∂ output ∂ output′, the observed information, for each pair; in order, and each pair once."""


class Likelihood(ABC):
    """A density over images x [..., C, H, W], whose pixels are independent given the decoder's outputs.

    It states the same density twice: `log_prob` in NumPy (float64, the reference) and `fragment` as ONNX nodes (what
    serves); tests hold the two against each other, and `curvature` against both.
    """

    outputs: ClassVar[tuple[str, ...]]
    """Names of the decoder's outputs, in order."""

    levels: int | None = None
    """How many values a pixel can take, k/(levels − 1) in [0, 1]; None where x is not bound to levels."""

    def log_prob(self, x: NDArray[Any], parameters: Parameters) -> NDArray[np.float64]:
        """log p(x|z) in nats, summed over C, H, W in float64: [..., C, H, W] → [...]."""
        return np.asarray(self.pixel_log_prob(x, parameters).sum(axis=(-3, -2, -1)))

    @abstractmethod
    def pixel_log_prob(self, x: NDArray[Any], parameters: Parameters) -> NDArray[np.float64]:
        """log p(x_i|z) of each pixel and channel, nats: [..., C, H, W]."""

    @abstractmethod
    def pixel_entropy(self, parameters: Parameters) -> NDArray[np.float64]:
        """−E[log p(x_i|z)] over x_i ~ p(x_i|z), nats: [..., C, H, W]."""

    @abstractmethod
    def mean(self, parameters: Parameters) -> NDArray[Any]:
        """E[x|z], [..., C, H, W], in x's unit."""

    @abstractmethod
    def sample(self, parameters: Parameters, rng: np.random.Generator) -> NDArray[np.float32]:
        """Draw x ~ p(x|z), [..., C, H, W]."""

    @abstractmethod
    def fragment(self, builder: GraphBuilder, x: str, parameters: Mapping[str, str], num_pixels: int) -> str:
        """Append nodes that compute log p(x|z) and return the name of their result.

        `x` names a tensor [B, 1, P] and each parameter one [B, K, P], P = C·H·W; the result is [B, K], in nats,
        in float64: see `GraphBuilder.sum_pixels`.
        """

    @abstractmethod
    def curvature(self, builder: GraphBuilder, x: str, parameters: Mapping[str, str]) -> Curvature:
        """Append nodes for the score and the observed information in the outputs, pixel by pixel.

        `x` and each parameter name tensors [B, 1, P]. Observed, and not Fisher's, which is its mean over x: a pixel
        that the model was sure of tells nothing more, and Fisher's would say that it does.
        """
