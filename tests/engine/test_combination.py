import numpy as np
import pytest
from scipy import stats

from service.engine.anomaly.combination import Combination, Neighbours, ScoreTail
from tests.rounding import FLOAT64, FUNCTION, gamma


def test_the_nearest_neighbour_is_the_nearest() -> None:
    neighbours = Neighbours(np.array([[0, 0], [3, 4], [10, 0.0]]))
    np.testing.assert_allclose(neighbours.distance(np.array([[0, 0], [0, 1], [9, 1], [3, -4.0]])), [0, 1, 2**0.5, 5])
    np.testing.assert_allclose(neighbours.distance_among(), [5, 5, 65**0.5])


def test_a_code_that_is_not_a_number_is_near_nothing() -> None:
    found = Neighbours(np.zeros((3, 2))).distance(np.array([[np.nan, 0], [np.inf, 0], [1, 0]]))
    assert np.isnan(found[0])
    assert found[1:].tolist() == [np.inf, 1]


def test_a_tail_is_that_of_an_exponential_distribution() -> None:
    reference = stats.expon(scale=3).ppf((np.arange(4000) + 0.5) / 4000)
    x = np.array([0.1, 1, 5, 12, 20, 60, 300])
    # A share of 4000 is right to one and a half of them, which is 1.5/200 of the last 5 %; the mean of these 200, which
    # stands for an integral of a logarithm, is right to 1/200 by Stirling's formula.
    np.testing.assert_allclose(ScoreTail.fit(reference).log_probability(x), -x / 3, rtol=1 / 200, atol=1.5 / 200)


@pytest.mark.parametrize("num_images", [2, 5, 21, 1000])
def test_a_tail_falls_without_a_jump_and_never_ends(num_images: int) -> None:
    tail = ScoreTail.fit(np.random.default_rng(num_images).gumbel(size=num_images))
    x = np.linspace(-9, 60, 20_001)
    found = tail.log_probability(x)
    assert (np.diff(found) <= 0).all()
    assert np.abs(np.diff(found)).max() < 0.5
    assert (np.diff(found[x > tail.threshold]) < 0).all()
    lowest = tail.log_probability(np.array([-9.0]))[0]
    assert lowest == pytest.approx(np.log(num_images / (num_images + 1)), rel=0, abs=gamma(FUNCTION, FLOAT64))


def test_a_tail_of_equal_values() -> None:
    found = ScoreTail.fit(np.full(9, 3.0)).log_probability(np.array([2.0, 3.0, 3.1]))
    assert np.isfinite(found).all()
    assert found[2] < -1e6 < found[1] <= found[0] <= 0


def test_a_combination_is_fishers_method() -> None:
    """On images like those it was fitted to: −2·Σ log p of three independent p-values is χ² with 6 degrees."""
    rng = np.random.default_rng(4)
    combination = Combination.fit(list(rng.gumbel(size=(3, 20_000))))
    score = combination.score(list(rng.gumbel(size=(3, 2000))))
    assert stats.kstest(score, stats.chi2(6).cdf).pvalue > 0.001


def test_only_the_upper_side_of_each_statistic_is_strange() -> None:
    combination = Combination.fit(list(np.random.default_rng(5).normal(10, 2, (3, 900))))
    low, usual, high, higher = combination.score(
        list(np.array([[-5, 10, 10, 10], [10, 10, 17, 99], [10, 10, 10, 10.0]]))
    )
    assert low < usual < high < higher


def test_what_is_not_finite_has_no_score() -> None:
    combination = Combination.fit(list(np.random.default_rng(6).normal(size=(2, 9))))
    found = combination.score(list(np.array([[0, np.nan, 0], [0, 0, np.inf]])))
    assert np.isnan(found).tolist() == [False, True, True]


def test_values_without_bounds_leave_the_tail_as_it_is() -> None:
    values = np.random.default_rng(7).gumbel(size=200)
    wild = np.concatenate([values, [np.inf, -np.inf, np.nan]])
    x = np.linspace(-3, 30, 50)
    np.testing.assert_array_equal(ScoreTail.fit(wild).log_probability(x), ScoreTail.fit(values).log_probability(x))
