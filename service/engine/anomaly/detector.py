"""How strange is an image? Scores, higher for stranger, and their conformal p-values against calibration images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_store import FITTING, LATENT
from service.engine.anomaly.conformal import benjamini_hochberg, conformal_p_value
from service.engine.anomaly.measurement import Measurement
from service.engine.anomaly.scores import (
    ALL_METHODS,
    DEFAULT_METHOD,
    FEATURE_METHODS,
    METHODS,
    MIN_FITTING,
    Method,
    Score,
)
from service.engine.anomaly.statistics import Statistics, Values, derived, restored
from service.engine.arrays import Float64Array
from service.engine.chunks import Chunks

_FITTING_EVERY = 3
_IMAGES_AT_ONCE = 32  # their nearest codes are found in a few milliseconds
DEFAULT_ALPHA = 0.05


class UnknownMethodError(ValueError):
    """An anomaly method this engine does not have."""


class UncalibratedModelError(Exception):
    """A model's calibration scores are not there, or lack what a method needs."""


@dataclass(frozen=True)
class Judgement:
    """What one method says; arrays [B], nats where there is a unit."""

    score: Float64Array
    """Higher for stranger."""
    p_value: Float64Array
    """Conformal, see conformal.py."""
    is_anomaly: NDArray[np.bool_]
    """p_value ≤ alpha; with `fdr`, Benjamini-Hochberg's decision over all images of the call."""


@dataclass(frozen=True)
class AnomalyScores:
    """Images scored by one method or several."""

    by_method: Mapping[str, Judgement]
    """In the order asked for."""
    log_likelihood: Float64Array
    """The estimate of log P(x) that the scores are made of, as are the next four: see posterior/estimate.py."""
    std_error: Float64Array
    posterior_gap: Float64Array
    num_samples: NDArray[np.int64]
    reliable: NDArray[np.bool_]
    calibration_size: int
    """Images that scores are compared with: no p-value is below 1 / (n + 1)."""
    explanation: NDArray[np.float64] | None = None
    """Surprise of each pixel, nats, [B, C, H, W]; see explanation.py."""


@dataclass(frozen=True)
class CalibrationSummary:
    """The scores that p-values compare with, and the codes of the same images.

    Attributes:
        quantiles: by method, [Q]: the smallest score that so many of the images do not exceed.
        code_mean, code_variance: over images, of the encoder's means, [D]; None where an older calibration lacks these.
    """

    quantiles: Mapping[str, Float64Array]
    code_mean: Float64Array | None
    code_variance: Float64Array | None


def check_methods(methods: Sequence[str]) -> None:
    """Refuse a method that there is not.

    Raises:
        UnknownMethodError: the message lists those there are.
    """
    for method in methods:
        if method not in ALL_METHODS:
            raise UnknownMethodError(f"unknown method {method!r}; accepted: {', '.join(ALL_METHODS)}")


def fitting_images(num_images: int) -> Float64Array:
    """The array `fitting`: every third image, whatever its scores, so that all others remain comparable.

    >>> fitting_images(7).tolist()
    [0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    """
    return np.asarray(np.arange(num_images) % _FITTING_EVERY == _FITTING_EVERY - 1, np.float64)


def compared_with(num_images: int) -> int:
    """Of so many calibration images, how many scores are compared with."""
    return num_images - int(fitting_images(num_images).sum())


class Detector:
    """Scores images against one model's calibration images.

    What a method fits (a mean, a covariance) is fitted to one part of them, and p-values are taken against the others:
    to a score function that knows nothing of those, an ordinary image is one more of them, and so P(p ≤ α) ≤ α.
    An older calibration has no such parts: it serves methods that fit nothing, and they are compared with all of it.

    Args:
        calibration: arrays [n] by name, as in calibration.npz.
    """

    def __init__(self, calibration: Mapping[str, Float64Array]) -> None:
        every = len(calibration["log_likelihood"])
        fitting = calibration.get(FITTING, np.zeros(every)) > 0
        reference, self._compared = (
            {n: a[part] for n, a in derived(restored(calibration)).items()} for part in (fitting, ~fitting)
        )
        self.calibration_size = every - int(fitting.sum())
        self._missing: dict[str, str] = {}
        self._scores: dict[str, tuple[Score, Float64Array]] = {}
        self._of_features = "local" in calibration
        self._methods = FEATURE_METHODS if self._of_features else METHODS
        for name, method in self._methods.items():
            if missing := _missing(method, reference, int(fitting.sum())):
                self._missing[name] = missing
            else:
                score = method.fit(reference)
                self._scores[name] = score, np.sort(score(self._compared))

    @property
    def default_method(self) -> str:
        """Of features `local`; of pixels `combined`, where the calibration has what that needs."""
        wanted = "local" if self._of_features else DEFAULT_METHOD
        return wanted if wanted in self._scores else "log_likelihood"

    @property
    def available(self) -> tuple[str, ...]:
        """The methods that the calibration has what they need for."""
        return tuple(self._scores)

    def summary(self, probabilities: Float64Array) -> CalibrationSummary:
        """The quantiles of the scores of every method that this calibration has what it needs for."""
        quantiles = {
            name: np.quantile(scores, probabilities, method="inverted_cdf")
            for name, (_, scores) in self._scores.items()
        }
        codes = [array for name, array in self._compared.items() if name.startswith(LATENT)]
        if not codes:
            return CalibrationSummary(quantiles, None, None)
        with np.errstate(over="ignore", invalid="ignore"):  # ∞ − ∞
            return CalibrationSummary(quantiles, np.mean(codes, axis=1), np.var(codes, axis=1))

    def choose(self, methods: Sequence[str]) -> tuple[str, ...]:
        """The methods to score by: those asked for, each once, or the default one.

        Raises:
            UnknownMethodError: see `check_methods`; or the method is for models of the other space.
            UncalibratedModelError: the calibration has not what a method needs.
        """
        check_methods(methods)
        for method in methods:
            if method not in self._methods:
                other = "pixels" if self._of_features else "features"
                raise UnknownMethodError(
                    f"{method} is for models of {other}, which this is not; it can score by: {', '.join(self._scores)}"
                )
            if method in self._missing:
                raise UncalibratedModelError(
                    f"{method} needs calibration images' {self._missing[method]}, which this version lacks; it can "
                    f"score by: {', '.join(self._scores)}. `python -m service calibrate` makes one that can by all"
                )
        return tuple(dict.fromkeys(methods)) or (self.default_method,)

    def scores(
        self, measurement: Measurement, methods: Sequence[str], *, alpha: float, fdr: float | None
    ) -> Chunks[AnomalyScores]:
        """What `judge` says of images, with the estimates that this is made of."""
        record = measurement.inference.record
        return AnomalyScores(
            by_method=(yield from self.judge(measurement.statistics, methods, alpha=alpha, fdr=fdr)),
            log_likelihood=record.log_likelihood,
            std_error=record.std_error,
            posterior_gap=record.posterior_gap,
            num_samples=record.num_samples,
            reliable=record.reliable,
            calibration_size=self.calibration_size,
        )

    def judge(
        self, statistics: Statistics, methods: Sequence[str], *, alpha: float, fdr: float | None
    ) -> Chunks[dict[str, Judgement]]:
        """Score by methods that `choose` has passed, some images at a time: what each says, by its name."""
        values = derived(statistics.measured())
        count = len(values["log_likelihood"])
        by_method = {}
        for method in methods:
            score, ascending = self._scores[method]
            strangeness = np.empty(count)
            for start in range(0, count, _IMAGES_AT_ONCE):
                some = slice(start, start + _IMAGES_AT_ONCE)
                strangeness[some] = score({name: array[some] for name, array in values.items()})
                yield
            p_value = conformal_p_value(strangeness, ascending)
            is_anomaly = p_value <= alpha if fdr is None else benjamini_hochberg(p_value, fdr)
            by_method[method] = Judgement(strangeness, p_value, is_anomaly)
        return by_method


def _missing(method: Method, reference: Values, num_fitting: int) -> str:
    lacking = [name for name in method.needs if name not in reference]
    if not lacking and method.fits and num_fitting < MIN_FITTING:
        return f"scores of {MIN_FITTING} images or more to fit"
    return ", ".join(lacking)
