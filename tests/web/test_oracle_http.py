"""Over HTTP, from bytes to nats: a model whose log P(x) is known exactly."""

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.toys import LinearGaussian
from tests.web.conftest import GAUSSIAN_SHAPE
from tests.web.forms import npy


@pytest.mark.parametrize(
    ("proposal", "num_samples"),
    [("encoder", 5000), ("prior", 50_000), ("laplace", 400), ("annealed", 400), ("auto", 400)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_log_likelihood_is_within_three_standard_errors(
    client: TestClient, linear_gaussian: LinearGaussian, proposal: str, num_samples: int, seed: int
) -> None:
    x = linear_gaussian.draw(12, GAUSSIAN_SHAPE, seed=21)
    answer = client.post(
        "/v1/log-likelihood",
        params={"model": "linear-gaussian", "proposal": proposal, "num_samples": num_samples, "seed": seed},
        content=npy(x),
        headers={"content-type": "application/x-npy"},
    ).json()
    results: list[dict[str, Any]] = answer["results"]
    estimate = np.array([result["log_likelihood"] for result in results])
    std_error = np.array([result["std_error"] for result in results])
    exact = linear_gaussian.log_likelihood(x)
    assert (std_error < 0.2).all()
    assert (np.abs(estimate - exact) < 3 * std_error).all()
    assert np.allclose([r["bits_per_dim"] for r in results], -estimate / (x[0].size * np.log(2)))
    assert np.allclose([r["posterior_gap"] for r in results], estimate - [r["elbo"] for r in results])


def test_max_std_error_samples_until_it_is_met(client: TestClient, linear_gaussian: LinearGaussian) -> None:
    x = linear_gaussian.draw(4, GAUSSIAN_SHAPE, seed=22)
    answer = client.post(
        "/v1/log-likelihood?model=linear-gaussian&proposal=prior&num_samples=200&max_std_error=0.05",
        content=npy(x),
        headers={"content-type": "application/x-npy"},
    ).json()
    for result, exact in zip(answer["results"], linear_gaussian.log_likelihood(x), strict=True):
        assert result["reliable"]
        assert result["std_error"] <= 0.05
        assert result["num_samples"] > 200
        assert abs(result["log_likelihood"] - exact) < 4 * result["std_error"]
