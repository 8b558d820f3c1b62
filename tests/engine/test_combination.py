import numpy as np
import pytest
from scipy import stats

from service.engine.combination import Combination, Distance, Tail


def test_distance_is_mahalanobis() -> None:
    rng, centre = np.random.default_rng(1), np.array([5, -100, 0.2])
    reference = rng.standard_normal((5000, 3)) @ np.array([[2, 0, 0], [1, 1, 0], [0, 3, 0.1]]) + centre
    values = rng.standard_normal((40, 3)) + centre
    apart = values - reference.mean(axis=0)
    expected = np.einsum("bi,ij,bj->b", apart, np.linalg.inv(np.cov(reference.T)), apart)
    np.testing.assert_allclose(Distance.fit(reference).of(values), expected, rtol=0.02)


def test_distance_does_not_depend_on_units() -> None:
    rng = np.random.default_rng(2)
    reference, values = rng.gamma(2, 1, (30, 4)), rng.gamma(2, 1, (10, 4))
    scale = np.array([1e-3, 1, 7, 1e4])
    np.testing.assert_allclose(
        Distance.fit(reference * scale).of(values * scale), Distance.fit(reference).of(values), rtol=1e-6
    )


@pytest.mark.parametrize("num_images", [2, 3, 40])
def test_statistics_that_follow_from_one_another_leave_a_distance(num_images: int) -> None:
    rng = np.random.default_rng(3)
    two = rng.standard_normal((num_images, 2))
    reference = np.column_stack([two, two.sum(axis=1), np.full(num_images, 4.0)])
    distance = Distance.fit(reference)
    found = distance.of(np.array([[0, 0, 0, 4], [9, 9, 18, 4], [0, 0, 0, 5]], float))
    assert np.isfinite(found).all()
    assert found[0] < found[1]
    assert found[0] < found[2]


def test_a_tail_is_that_of_an_exponential_distribution() -> None:
    reference = stats.expon(scale=3).ppf((np.arange(4000) + 0.5) / 4000)
    x = np.array([0.1, 1, 5, 12, 20, 60, 300])
    np.testing.assert_allclose(Tail.fit(reference).log_probability(x), -x / 3, rtol=0.03, atol=0.01)


@pytest.mark.parametrize("num_images", [2, 5, 21, 1000])
def test_a_tail_falls_without_a_jump_and_never_ends(num_images: int) -> None:
    tail = Tail.fit(np.random.default_rng(num_images).gumbel(size=num_images))
    x = np.linspace(-9, 60, 20_001)
    found = tail.log_probability(x)
    assert (np.diff(found) <= 0).all()
    assert np.abs(np.diff(found)).max() < 0.5
    assert (np.diff(found[x > tail.threshold]) < 0).all()
    assert tail.log_probability(np.array([-9.0]))[0] == pytest.approx(np.log(num_images / (num_images + 1)))


def test_a_tail_of_equal_values() -> None:
    found = Tail.fit(np.full(9, 3.0)).log_probability(np.array([2.0, 3.0, 3.1]))
    assert np.isfinite(found).all()
    assert found[2] < -1e6 < found[1] <= found[0] <= 0


def test_a_combination_is_fishers_method() -> None:
    """On images like those it was fitted to: −2·Σ log p of two independent p-values is χ² with 4 degrees."""
    rng = np.random.default_rng(4)
    combination = Combination.fit(rng.standard_normal((20_000, 3)), rng.exponential(size=20_000))
    score = combination.score(rng.standard_normal((2000, 3)), rng.exponential(size=2000))
    assert stats.kstest(score, stats.chi2(4).cdf).pvalue > 0.001


def test_only_one_side_of_the_one_sided_statistic_is_strange() -> None:
    rng = np.random.default_rng(5)
    combination = Combination.fit(rng.standard_normal((900, 3)), rng.normal(10, 2, 900))
    middle = np.zeros((3, 3))
    low, usual, high = combination.score(middle, np.array([-5.0, 10.0, 25.0]))
    assert low < usual < high
    either = combination.score(np.array([[-6, 0, 0], [0, 0, 0], [6.0, 0, 0]]), np.full(3, 10.0))
    assert either[1] < either[0]
    assert either[1] < either[2]
