"""Annealed importance sampling against closed forms and quadrature."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from model_store import ImageShape
from tests.rounding import FLOAT64, sampling_error, sum_error
from tests.toys import LinearGaussian
from training.publish.annealing import (
    TARGET_ACCEPTANCE,
    Annealing,
    Chains,
    Target,
    automatic_gradient,
    fit_gaussian,
    lower_bound,
    recentre,
    resample,
    sigmoidal_schedule,
    upper_bound,
)

SHAPE = ImageShape(channels=1, height=2, width=4)
NUM_IMAGES, NUM_CHAINS, LATENT_DIM = 3, 400, 5
ORACLE = LinearGaussian.random(SHAPE, LATENT_DIM, scale=0.15)
X = ORACLE.draw(NUM_IMAGES, SHAPE, seed=11)
TRUTH = torch.from_numpy(ORACLE.log_likelihood(X))


def linear_gaussian(*, distortion: float = 1.0) -> Target:
    """`distortion` multiplies the gradient, as a coarse one would be off."""
    weight, bias = torch.from_numpy(ORACLE.weight), torch.from_numpy(ORACLE.bias)
    x = torch.from_numpy(X.reshape(NUM_IMAGES, 1, -1)).double()
    constant = SHAPE.size * (math.log(ORACLE.scale) + 0.5 * math.log(2 * math.pi))

    def log_likelihood(z: Tensor) -> Tensor:
        return -0.5 * ((x - z @ weight.T - bias) / ORACLE.scale).square().sum(-1) - constant

    exact = automatic_gradient(log_likelihood)
    return Target(log_likelihood, lambda z: distortion * exact(z))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prior_samples(seed: int, latent_dim: int = LATENT_DIM, num_images: int = NUM_IMAGES) -> Tensor:
    return torch.randn(num_images, NUM_CHAINS, latent_dim, generator=generator(seed), dtype=torch.float64)


def posterior_samples() -> Tensor:
    gain, covariance = ORACLE.posterior()
    mean = torch.from_numpy((X.reshape(NUM_IMAGES, -1) - ORACLE.bias) @ gain)
    return mean[:, None] + prior_samples(3) @ torch.from_numpy(np.linalg.cholesky(covariance)).T


@cache
def both_ways(num_temperatures: int, distortion: float = 1.0) -> tuple[Chains, Chains]:
    target = linear_gaussian(distortion=distortion)
    annealing = Annealing(target, sigmoidal_schedule(num_temperatures), num_leapfrog=5)
    steps = Annealing(target, sigmoidal_schedule(100), num_leapfrog=5).adapt(prior_samples(1), generator=generator(1))
    forward = annealing.forward(prior_samples(2), steps, generator=generator(2))
    return forward, annealing.backward(posterior_samples(), steps, generator=generator(4))


def between_samples(forward: Chains) -> float:
    """How far means of resampled chains and of as many independent draws may lie apart, in standard deviations.

    Weights, and drawing by them, leave 1/(2 + cv²) of the chains' worth, with cv the weights' coefficient of variation.
    """
    weight = torch.exp(forward.log_weight - forward.log_weight.amax(1, keepdim=True))
    variation = (weight.std(1) / weight.mean(1)).square().max().item()
    return float(sampling_error(1, NUM_CHAINS / (3 + variation), num_means=2 * NUM_IMAGES * LATENT_DIM))


def assert_mean_is_one(weight: Tensor) -> None:
    """Means over chains, against their own spread, which must be small enough to tell something."""
    error = weight.std(1) / math.sqrt(weight.shape[1])
    assert (error < 0.2).all()
    assert ((weight.mean(1) - 1).abs() < 4 * error).all()


@pytest.mark.parametrize("distortion", [1.0, 0.9])
@pytest.mark.parametrize("num_temperatures", [120, 200])
def test_weights_are_unbiased_both_ways_however_short_the_schedule(num_temperatures: int, distortion: float) -> None:
    forward, backward = both_ways(num_temperatures, distortion)
    assert_mean_is_one(torch.exp(forward.log_weight - TRUTH[:, None]))
    assert_mean_is_one(torch.exp(TRUTH[:, None] - backward.log_weight))


def test_the_bounds_enclose_the_truth_and_meet_as_the_schedule_grows() -> None:
    gaps = []
    for num_temperatures in (50, 200):
        forward, backward = both_ways(num_temperatures)
        below, above = forward.log_weight.mean(1), backward.log_weight.mean(1)  # single chains: the widest bounds
        assert (below < TRUTH).all()
        assert (above > TRUTH).all()
        gaps.append(above - below)
    assert (gaps[1] < gaps[0] / 2).all()
    for weight, found in (
        (torch.exp(forward.log_weight - TRUTH[:, None]), lower_bound(forward.log_weight) - TRUTH),
        (torch.exp(TRUTH[:, None] - backward.log_weight), TRUTH - upper_bound(backward.log_weight)),
    ):  # each is the logarithm of the weights' mean
        assert (found.exp() - weight.mean(1)).abs().max() < sum_error(NUM_CHAINS, 10, FLOAT64)
        assert_mean_is_one(weight)


def test_step_sizes_meet_the_acceptance_that_they_aim_at() -> None:
    forward, backward = both_ways(200)
    settled = torch.cat([forward.acceptance, backward.acceptance])[:, 10:]
    assert (settled - TARGET_ACCEPTANCE).abs().max() < 0.2


def test_forward_chains_end_in_the_posterior() -> None:
    forward, _ = both_ways(200)
    ends = resample(forward, generator=generator(5))
    expected = posterior_samples()
    scale = expected.std(1)
    error = between_samples(forward)
    assert error < 0.5
    assert ((ends.mean(1) - expected.mean(1)).abs() < error * scale).all()
    assert ((ends.std(1) / scale).log().abs() < error).all()  # of log σ: 1/√(2n), less than the mean's


def test_from_the_posterior_itself_every_weight_is_the_evidence() -> None:
    gain, covariance = ORACLE.posterior()
    mean = torch.from_numpy((X.reshape(NUM_IMAGES, -1) - ORACLE.bias) @ gain)
    root = torch.from_numpy(np.linalg.cholesky(covariance)).expand(NUM_IMAGES, LATENT_DIM, LATENT_DIM)
    target = recentre(linear_gaussian(), mean, root)
    u = prior_samples(1)
    z = mean[:, None] + u @ root.mT
    nats = linear_gaussian().log_likelihood(z).abs().max().item() + z.square().sum(-1).max().item()
    rounded = sum_error(SHAPE.size + 2 * LATENT_DIM, float(np.linalg.cond(covariance)) * nats, FLOAT64)
    assert rounded < 1e-6
    expected = TRUTH[:, None].expand(NUM_IMAGES, NUM_CHAINS)
    assert torch.allclose(target.log_likelihood(u), expected, rtol=0, atol=rounded)
    assert target.gradient(u).abs().max() < rounded


def test_from_a_gaussian_that_is_off_weights_are_unbiased_too() -> None:
    generic = torch.tril(0.2 * torch.randn(NUM_IMAGES, LATENT_DIM, LATENT_DIM, generator=generator(6)).double())
    mean = 0.3 * torch.randn(NUM_IMAGES, LATENT_DIM, generator=generator(7)).double()
    root = generic - torch.diag_embed(generic.diagonal(dim1=1, dim2=2)) + 0.5 * torch.eye(LATENT_DIM)
    target = recentre(linear_gaussian(), mean, root)
    assert torch.allclose(
        target.gradient(prior_samples(1)), automatic_gradient(target.log_likelihood)(prior_samples(1))
    )
    annealing = Annealing(target, sigmoidal_schedule(100), num_leapfrog=5)
    steps = annealing.adapt(prior_samples(1), generator=generator(1))
    forward = annealing.forward(prior_samples(2), steps, generator=generator(2))
    assert_mean_is_one(torch.exp(forward.log_weight - TRUTH[:, None]))
    u = torch.linalg.solve_triangular(root, (posterior_samples() - mean[:, None]).mT, upper=False).mT
    backward = annealing.backward(u, steps, generator=generator(4))
    assert_mean_is_one(torch.exp(TRUTH[:, None] - backward.log_weight))


def test_exploring_sees_the_posterior() -> None:
    annealing = Annealing(linear_gaussian(), sigmoidal_schedule(100), num_leapfrog=5)
    steps = annealing.adapt(prior_samples(1), generator=generator(1))
    seen = annealing.explore(posterior_samples(), steps[:, -1], 30, generator=generator(2))
    assert seen.shape == (NUM_IMAGES, 30 * NUM_CHAINS, LATENT_DIM)
    mean, root = fit_gaussian(seen)
    gain, covariance = ORACLE.posterior()
    expected = torch.from_numpy((X.reshape(NUM_IMAGES, -1) - ORACLE.bias) @ gain)
    scale = torch.from_numpy(np.sqrt(np.diag(covariance)))
    # Chains that start in the posterior are as good as their number of draws at least; so are all their places.
    error = float(sampling_error(math.sqrt(2), NUM_CHAINS, num_means=NUM_IMAGES * LATENT_DIM * (LATENT_DIM + 1)))
    assert ((mean - expected).abs() < error * scale).all()
    correlation = torch.from_numpy(covariance) / torch.outer(scale, scale)
    assert torch.allclose((root @ root.mT) / torch.outer(scale, scale), correlation, rtol=0, atol=error)


def test_both_of_two_modes_are_found() -> None:
    """p(x|z) with peaks at ±3, of which one search finds one: AIS and quadrature agree on the sum."""

    def log_likelihood(z: Tensor) -> Tensor:
        return -((z[..., 0].abs() - 3) ** 2) / (2 * 0.2**2)

    exact, _ = quad(
        lambda z: math.exp(-((abs(z) - 3) ** 2) / 0.08 - z * z / 2) / math.sqrt(2 * math.pi), -9, 9, points=[-3, 3]
    )
    target = Target(log_likelihood, automatic_gradient(log_likelihood))
    annealing, start = Annealing(target, sigmoidal_schedule(200), num_leapfrog=5), prior_samples(1, 1, num_images=1)
    steps = annealing.adapt(start, generator=generator(1))
    forward = annealing.forward(prior_samples(2, 1, num_images=1), steps, generator=generator(2))
    assert_mean_is_one(torch.exp(forward.log_weight - math.log(exact)))
    share = (resample(forward, generator=generator(3)) > 0).double().mean()
    assert abs(share - 0.5) < 0.5 * between_samples(forward)  # each is one or the other: σ = 1/2
