"""What one pass over images finds: statistics, and the estimates that these are made of."""

from dataclasses import dataclass

from service.engine.anomaly.statistics import Statistics
from service.engine.parts import Results
from service.engine.posterior.estimator import Inference


@dataclass(frozen=True)
class Measurement(Results):
    """Of several images, in their order."""

    statistics: Statistics
    inference: Inference
