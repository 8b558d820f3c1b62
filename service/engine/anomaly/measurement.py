"""What one pass over images finds: statistics, and the estimates that these are made of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.anomaly.statistics import Statistics
from service.engine.posterior.estimator import Inference


@dataclass(frozen=True)
class Measurement:
    """Of several images, in their order."""

    statistics: Statistics
    inference: Inference

    @staticmethod
    def join(parts: Sequence["Measurement"]) -> "Measurement":
        """One measurement of several, images in order."""
        statistics, inferences = [part.statistics for part in parts], [part.inference for part in parts]
        return Measurement(Statistics.join(statistics), Inference.join(inferences))

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> "Measurement":
        """The measurement of these images, by index or by mask."""
        return Measurement(self.statistics.take(index), self.inference.take(index))
