import math

import numpy as np
import pytest
from scipy import stats

from service.engine.anomaly.conformal import benjamini_hochberg, conformal_p_value, false_alarm_band
from tests.rounding import FLOAT64, FUNCTION, gamma


@pytest.mark.parametrize(
    ("score", "calibration", "p_value"),
    [
        (3.0, [5.0, 1.0, 2.0, 4.0], 3 / 5),  # 5 and 4 are stranger; the order does not matter
        (6.0, [5.0, 1.0, 2.0, 4.0], 1 / 5),  # never zero
        (0.0, [5.0, 1.0, 2.0, 4.0], 1),
        (2.0, [2.0, 2.0, 2.0, 1.0], 4 / 5),  # a tie counts as at least as strange
        (7.0, [7.0], 1),
        (7.1, [7.0], 1 / 2),
        (6.9, [7.0], 1),
        (np.inf, [5.0, 1.0], 1 / 3),
        (np.nan, [5.0, 1.0], 1 / 3),
        (np.nan, [5.0, np.nan, 1.0], 2 / 4),  # as strange as one that is no number either
        (np.inf, [5.0, np.nan, 1.0], 2 / 4),
        (-np.inf, [5.0, 1.0], 1),
    ],
)
def test_p_values_by_hand(score: float, calibration: list[float], p_value: float) -> None:
    assert conformal_p_value(np.array([score]), np.array(calibration)).tolist() == [p_value]


def test_p_values_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    score, calibration = rng.integers(0, 20, 300) / 4, rng.integers(0, 20, 77) / 4
    expected = (1 + (calibration[None] >= score[:, None]).sum(axis=1)) / 78
    np.testing.assert_array_equal(conformal_p_value(score, calibration), expected)


@pytest.mark.parametrize("num_calibration", [1, 4, 19, 99])
@pytest.mark.parametrize("ties", [False, True])
def test_a_familiar_image_is_rarely_called_strange(num_calibration: int, ties: bool) -> None:
    """P(p ≤ α) ≤ α for exchangeable scores, and without ties no less than α − 1/(n + 1)."""
    rng = np.random.default_rng(17)
    num_trials = 20_000
    scores = rng.gumbel(size=(num_trials, num_calibration + 1))
    if ties:
        scores = np.floor(scores)
    p_value = np.array([conformal_p_value(row[:1], row[1:])[0] for row in scores])
    for alpha in (0.01, 0.05, 0.2, 0.5):
        slack = 4 * np.sqrt(alpha * (1 - alpha) / num_trials)
        frequency = (p_value <= alpha).mean()
        assert frequency <= alpha + slack
        if not ties:
            assert frequency >= np.floor(alpha * (num_calibration + 1)) / (num_calibration + 1) - slack


@pytest.mark.parametrize(
    ("p_values", "fdr", "rejected"),
    [
        ([0.01, 0.02, 0.03, 0.9], 0.05, [True, True, True, False]),  # 0.03 ≤ 0.05·3/4
        ([0.04, 0.04, 0.04, 0.04], 0.04, [True] * 4),  # none passes by itself, all do together
        ([0.04, 0.04, 0.04, 0.05], 0.04, [False] * 4),
        ([0.5, 0.012, 0.9, 0.03], 0.05, [False, True, False, False]),
        ([0.5, 0.0125, 0.9, 0.0125], 0.05, [False, True, False, True]),  # a tie is rejected as one
        ([0.1], 0.1, [True]),
        ([0.1001], 0.1, [False]),
        ([], 0.1, []),
    ],
)
def test_benjamini_hochberg_by_hand(p_values: list[float], fdr: float, rejected: list[bool]) -> None:
    assert benjamini_hochberg(np.array(p_values), fdr).tolist() == rejected


def test_benjamini_hochberg_is_scipys() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        p_value = rng.beta(0.5, 2, 37).round(2) + 0.001
        adjusted = stats.false_discovery_control(p_value, method="bh")
        np.testing.assert_array_equal(benjamini_hochberg(p_value, 0.1), adjusted <= 0.1 * (1 + 1e-12))


@pytest.mark.parametrize("ties", [False, True])
def test_the_false_discovery_rate_is_kept_with_conformal_p_values(ties: bool) -> None:
    """All p-values of a mixture are taken against one calibration set; 600 mixtures of 80 ordinary and 20 strange."""
    rng, fdr = np.random.default_rng(11), 0.2
    shares, found = [], []
    for _ in range(600):
        scores = np.concatenate([rng.gumbel(size=580), rng.gumbel(size=20) + 6])
        if ties:
            scores = np.round(scores)
        rejected = benjamini_hochberg(conformal_p_value(scores[500:], scores[:500]), fdr)
        shares.append(rejected[:80].sum() / max(1, rejected.sum()))
        found.append(rejected[80:].mean())
    noise = np.std(shares) / np.sqrt(len(shares))
    assert (
        np.mean(shares) <= fdr * 80 / 100 + 3 * noise
    )  # Benjamini-Hochberg keeps fdr times the share of ordinary ones
    assert np.mean(found) > 0.8
    if not ties:
        assert np.mean(shares) > fdr * 80 / 100 - 0.02 - 3 * noise  # and gives away little


@pytest.mark.parametrize("num_images", [1, 7, 19, 20, 99, 333, 2000])
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.3])
def test_the_band_is_that_of_the_beta_distribution(num_images: int, alpha: float) -> None:
    k = (np.arange(1, num_images + 1) / (num_images + 1) <= alpha).sum()
    expected = stats.beta(k, num_images + 1 - k).ppf([0.005, 0.995]) if k else (0, 0)
    # Bisection ends within half of 10⁻⁶. A probability is a sum of up to n + 1 terms, exponentials of logarithms of up
    # to three factorials; its error is divided by the density.
    density = stats.beta(k, num_images + 1 - k).pdf(expected) if k else 1
    error = 0.5e-6 + gamma(num_images + FUNCTION + 3 * math.ceil(math.lgamma(num_images + 2)), FLOAT64) / density
    assert (np.abs(np.array(false_alarm_band(num_images, alpha)) - expected) <= error).all()


def test_false_alarms_of_one_calibration_set_lie_in_its_band() -> None:
    """The share flagged of endlessly many ordinary images, known exactly for each of 3000 calibration sets."""
    rng, num_images, alpha = np.random.default_rng(8), 150, 0.05
    low, high = false_alarm_band(num_images, alpha, confidence=0.9)
    calibration = np.sort(rng.random((3000, num_images)), axis=1)
    k = sum(count / (num_images + 1) <= alpha for count in range(1, num_images + 1))
    share = 1 - calibration[:, num_images - k]  # scores above the k-th largest have p ≤ α
    flagged = conformal_p_value(calibration[0, num_images - k] + np.array([-1e-9, 1e-9]), calibration[0]) <= alpha
    assert flagged.tolist() == [False, True]
    outside = int(((share < low) | (share > high)).sum())
    assert stats.binom(3000, 0.1).ppf(0.001) <= outside <= stats.binom(3000, 0.1).ppf(0.999)
    assert share.mean() == pytest.approx(k / (num_images + 1), abs=4 * share.std() / np.sqrt(3000))
