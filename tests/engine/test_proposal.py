from unittest import mock

import numpy as np
import pytest

from service.engine.proposal import (
    MIN_NUM_SAMPLES,
    PROPOSALS,
    NoiseCache,
    TooFewSamplesError,
    UnknownProposalError,
    check_request,
    standard_normal,
)
from service.engine.runtime import Runtime


@pytest.mark.parametrize("name", ["", "Prior", "posterior", "laplace "])
def test_an_unknown_proposal_is_answered_with_those_there_are(name: str) -> None:
    with pytest.raises(UnknownProposalError, match=f"unknown proposal {name!r}; accepted: {', '.join(PROPOSALS)}"):
        check_request(name, 100)


@pytest.mark.parametrize("name", PROPOSALS)
def test_each_proposal_takes_its_least_number_of_samples_and_no_fewer(name: str) -> None:
    least = MIN_NUM_SAMPLES[name]
    check_request(name, least)
    with pytest.raises(TooFewSamplesError, match=f"num_samples is {least - 1}; the proposal {name} takes at least"):
        check_request(name, least - 1)


def test_the_noise_is_numpys_of_record() -> None:
    """Published calibration scores were made with this noise: another stream would shift every p-value."""
    expected = [[1.117622, -1.3871249, -0.4265716], [-0.80358726, 0.60142773, -0.074993245]]
    np.testing.assert_array_equal(standard_normal(2, 3, seed=0), np.asarray(expected, np.float32))
    np.testing.assert_array_equal(
        standard_normal(1, 2, seed=2**40 + 7), np.asarray([[-0.3796045, 0.6841908]], np.float32)
    )


@pytest.mark.parametrize("num_samples", [1, 2, 63, 64, 1000])
@pytest.mark.parametrize("latent_dim", [1, 3, 50])
def test_more_samples_keep_the_first_ones(num_samples: int, latent_dim: int) -> None:
    noise = standard_normal(1000, latent_dim, seed=11)
    np.testing.assert_array_equal(standard_normal(num_samples, latent_dim, seed=11), noise[:num_samples])


def test_noise_is_standard_normal() -> None:
    noise = standard_normal(100_000, 3, seed=5).astype(np.float64)
    assert np.abs(noise.mean(axis=0)).max() < 4 / np.sqrt(len(noise))
    assert np.abs(np.cov(noise.T) - np.eye(3)).max() < 4 * np.sqrt(2 / len(noise))


@pytest.mark.parametrize("rows", [[(0, 1)], [(0, 8), (8, 9)], [(5, 7), (0, 100), (99, 100)], [(0, 512), (512, 1000)]])
def test_cached_rows_are_the_rows_of_their_seed(rows: list[tuple[int, int]]) -> None:
    cache = NoiseCache(3, Runtime("cpu"))
    for seed in (0, 1, 2, 0, 3, 4, 5, 1, 0):  # more seeds than it keeps, and back again
        noise = standard_normal(1000, 3, seed=seed)
        for start, stop in rows:
            found = cache.rows(seed, start, stop)
            values = found if isinstance(found, np.ndarray) else found.numpy()
            np.testing.assert_array_equal(values, noise[None, start:stop])


def test_the_default_seeds_rows_stay_on_the_device() -> None:
    cache = NoiseCache(2, Runtime("cpu"))
    assert cache.rows(0, 0, 4) is cache.rows(0, 0, 4)


def test_requests_that_interleave_do_not_draw_again() -> None:
    cache = NoiseCache(2, Runtime("cpu"))
    first, second = cache.rows(1, 0, 64), cache.rows(2, 0, 64)
    for seed, rows in ((1, first), (2, second), (1, first)):
        assert np.shares_memory(cache.rows(seed, 0, 64), rows)


def test_rows_by_index_are_the_generators_and_are_drawn_once() -> None:
    cache = NoiseCache(2, Runtime("cpu"))
    samples = np.array([[5, 0], [7, 5]])
    np.testing.assert_array_equal(cache.at(3, samples), standard_normal(8, 2, seed=3)[samples])
    with mock.patch("service.engine.proposal.standard_normal", side_effect=AssertionError("drawn again")):
        np.testing.assert_array_equal(cache.at(3, samples[:1]), cache.at(3, samples)[:1])
    assert cache.at(3, np.empty((2, 0), np.intp)).shape == (2, 0, 2)
