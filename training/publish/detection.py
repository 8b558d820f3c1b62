"""How well each method's score tells images of defects from ordinary ones, where a data set has both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from model_store import Metric
from service.engine.anomaly.detector import DEFAULT_ALPHA, Detector
from service.engine.anomaly.statistics import Statistics
from service.engine.arrays import Float64Array
from service.engine.chunks import complete


@dataclass(frozen=True)
class Detection:
    """AUROC by defect and method: the probability that a defect's score is above an ordinary image's, ties a half.

    Attributes:
        auroc: by the defect's folder, then by method, 0 to 1.
        num_defects: images by the defect's folder.
        num_ordinary: test images that they are compared with.
    """

    auroc: Mapping[str, Mapping[str, float]]
    num_defects: Mapping[str, int]
    num_ordinary: int

    @property
    def methods(self) -> Sequence[str]:
        """In the columns' order."""
        return list(next(iter(self.auroc.values())))

    def mean(self) -> dict[str, float]:
        """By method, over the kinds of defects, each counting alike."""
        return {method: float(np.mean([row[method] for row in self.auroc.values()])) for method in self.methods}

    def as_metrics(self) -> tuple[Metric, ...]:
        """As a manifest holds them: `auroc.<defect>.<method>`."""
        return tuple(
            Metric(
                name=f"auroc.{defect}.{method}",
                value=value,
                unit="AUROC",
                num_images=self.num_defects[defect],
                protocol=f"{method}'s score of images of {defect} against that of {self.num_ordinary} test images",
            )
            for defect, by_method in self.auroc.items()
            for method, value in by_method.items()
        )

    def lines(self) -> list[str]:
        """As a table in text."""
        width = max(len("AUROC"), *(len(defect) for defect in self.auroc)) + 2
        head = "".join(f"{method:>18}" for method in self.methods)
        rows = (
            f"{defect:<{width}}{self.num_defects[defect]:>7}" + "".join(f"{value:>18.3f}" for value in row.values())
            for defect, row in self.auroc.items()
        )
        return [f"{'AUROC':<{width}}{'images':>7}{head}", *rows]


def auroc(ordinary: Float64Array, strange: Float64Array) -> float:
    """P(strange > ordinary) + P(strange = ordinary) / 2; what is no number counts as the strangest.

    >>> auroc(np.array([1.0, 2.0, 3.0]), np.array([2.0, 9.0]))
    0.75
    """
    ordinary, strange = (
        np.nan_to_num(scores, nan=np.inf, posinf=np.inf, neginf=-np.inf) for scores in (ordinary, strange)
    )
    ascending = np.sort(ordinary)
    below = np.searchsorted(ascending, strange, side="left") + np.searchsorted(ascending, strange, side="right")
    return float(below.mean() / (2 * len(ordinary)))


def detect(
    calibration: Mapping[str, Float64Array], ordinary: Statistics, defects: Mapping[str, Statistics]
) -> Detection:
    """AUROC of `combined` and of every other method that the calibration allows, `combined` first.

    Args:
        calibration: arrays of calibration.npz.
        ordinary: statistics of test images.
        defects: by folder, of images with a defect; at least one folder.
    """
    detector = Detector(calibration)
    methods = detector.available
    first = sorted(methods, key=lambda method: method != detector.default_method)

    def scores(statistics: Statistics) -> dict[str, Float64Array]:
        judged = complete(detector.judge(statistics, first, alpha=DEFAULT_ALPHA, fdr=None))
        return {method: judgement.score for method, judgement in judged.items()}

    inside = scores(ordinary)
    outside = {name: scores(statistics) for name, statistics in defects.items()}
    return Detection(
        auroc={name: {m: auroc(inside[m], found[m]) for m in first} for name, found in outside.items()},
        num_defects={name: len(statistics.log_likelihood) for name, statistics in defects.items()},
        num_ordinary=len(ordinary.log_likelihood),
    )
