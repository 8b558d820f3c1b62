import numpy as np
import pytest

from service.engine.conformal import conformal_p_value


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
