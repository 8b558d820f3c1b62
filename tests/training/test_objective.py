"""Bounds and gradients against closed forms of a linear-Gaussian model, all of it asymmetric and in float64."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence

from tests.rounding import FLOAT64, sum_error
from training.fit.objective import log_prior, log_weight, negative_elbo, negative_iwae_bound
from training.posterior import DiagonalGaussian

LOADING = torch.tensor([[1.2, 0.3], [-0.4, 0.9], [0.5, 0.1]], dtype=torch.float64)  # [P, D]
OFFSET = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
SCALE = 0.7
ROUNDED = sum_error(100, 1000, FLOAT64)
"""Of nats, and of gradients of them: fewer than a hundred terms, together below 1000."""
X = torch.tensor([[1.5, -0.2, 1.1], [-0.9, -2.5, 2.2]], dtype=torch.float64).reshape(2, 1, 1, 3)  # [B, C, H, W]


def log_prob(distribution: Distribution, value: Tensor) -> Tensor:
    found: Tensor = distribution.log_prob(value)
    return found


class LinearGaussian(nn.Module):
    """z ~ N(0, I), x ~ N(loading z + offset, scale² I); q(z|x) = N(slope x + shift, diag exp(log_var))."""

    def __init__(self, slope: Tensor, shift: Tensor, log_var: Tensor) -> None:
        super().__init__()
        self.loading = nn.Parameter(LOADING.clone())
        self.slope = nn.Parameter(slope)
        self.shift = nn.Parameter(shift)
        self.log_var = nn.Parameter(log_var)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.flatten(1) @ self.slope.T + self.shift
        return mean, self.log_var.expand_as(mean)

    def conditional_log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        loc = z @ self.loading.T + OFFSET  # [B, K, P]
        return log_prob(Normal(loc, SCALE), x.flatten(1).unsqueeze(1)).sum(-1)


def rough_model() -> LinearGaussian:
    slope = torch.tensor([[0.5, -0.1, 0.2], [0.0, 0.6, 0.1]], dtype=torch.float64)
    shift = torch.tensor([-0.3, 0.4], dtype=torch.float64)
    return LinearGaussian(slope, shift, torch.tensor([-0.8, -0.5], dtype=torch.float64))


def exact_model() -> LinearGaussian:
    """q(z|x) is the posterior itself: the loadings' columns are made orthogonal, so that its covariance is diagonal."""
    model = rough_model()
    with torch.no_grad():
        model.loading[:, 1] -= (
            model.loading[:, 0] * (model.loading[:, 0] @ model.loading[:, 1]) / (model.loading[:, 0].square().sum())
        )
        precision = 1 + model.loading.square().sum(0) / SCALE**2  # [D]
        model.slope.copy_((model.loading / SCALE**2 / precision).T)
        model.shift.copy_(-model.slope @ OFFSET)
        model.log_var.copy_(-precision.log())
    return model


def evidence(model: LinearGaussian, x: Tensor) -> Tensor:
    loading = model.loading.detach()
    covariance = loading @ loading.T + SCALE**2 * torch.eye(3, dtype=torch.float64)
    return log_prob(MultivariateNormal(OFFSET, covariance), x.flatten(1))


def exact_elbo(model: LinearGaussian, x: Tensor) -> Tensor:
    mean, log_var = model.encode(x)
    residual = (x.flatten(1) - mean @ model.loading.T - OFFSET).square() + log_var.exp() @ model.loading.T.square()
    fit = -0.5 * (math.log(2 * math.pi * SCALE**2) + residual / SCALE**2).sum(-1)
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    return (fit - kl_divergence(Independent(Normal(mean, (0.5 * log_var).exp()), 1), prior)).detach()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_densities_against_torch() -> None:
    mean, log_var, z = noise(3, 2, seed=1), noise(3, 2, seed=2), noise(3, 5, 2, seed=3)
    q = DiagonalGaussian(mean, log_var)
    scale = (0.5 * log_var).exp()
    normal = Independent(Normal(mean.unsqueeze(1), scale.unsqueeze(1)), 1)
    standard = Normal(torch.zeros(3, 2, dtype=torch.float64), 1.0)
    assert torch.allclose(q.log_prob(z), log_prob(normal, z))
    assert torch.allclose(log_prior(z), log_prob(Independent(standard, 1), z.transpose(0, 1)).T)
    assert torch.allclose(q.kl_to_prior(), kl_divergence(Normal(mean, scale), standard))


def test_the_elbo_is_the_analytic_one() -> None:
    model = rough_model()
    expected = exact_elbo(model, X)
    draws = noise(2, 40_000, 2)
    with torch.no_grad():
        analytic_kl = -negative_elbo(model, X, draws)
        log_weights = log_weight(model, X, draws)
        fits = model.conditional_log_likelihood(X, DiagonalGaussian(*model.encode(X)).draw(draws))  # all that is random
    for found, values in ((analytic_kl, fits), (log_weights.mean(1), log_weights)):
        error = values.std(1) / math.sqrt(40_000)  # standard error of the mean
        assert (error < 0.02).all()
        assert ((found - expected).abs() < 5 * error).all()
    assert (expected < evidence(model, X) - 0.05).all()


def test_warm_up_and_free_bits_change_the_gradient_and_not_the_value() -> None:
    draws = noise(2, 3, 2)
    plain, changed, expected = rough_model(), rough_model(), rough_model()
    value = negative_elbo(plain, X, draws)
    loss = negative_elbo(changed, X, draws, kl_weight=0.3, free_bits=0.4)
    assert torch.allclose(loss, value, rtol=0, atol=ROUNDED)
    q = DiagonalGaussian(*expected.encode(X))
    kl = q.kl_to_prior()
    assert (kl < 0.4).any()
    assert (kl > 0.4).any()
    fit = expected.conditional_log_likelihood(X, q.draw(draws)).mean(1)
    (0.3 * torch.where(kl < 0.4, 0.4, kl).sum(1) - fit).sum().backward()  # type: ignore[no-untyped-call]
    loss.sum().backward()  # type: ignore[no-untyped-call]
    value.sum().backward()  # type: ignore[no-untyped-call]
    for found, wanted, other in zip(changed.parameters(), expected.parameters(), plain.parameters(), strict=True):
        assert found.grad is not None
        assert wanted.grad is not None
        assert torch.allclose(found.grad, wanted.grad, rtol=0, atol=ROUNDED)
        assert other.grad is not None
    assert changed.slope.grad is not None
    assert plain.slope.grad is not None
    assert not torch.allclose(changed.slope.grad, plain.slope.grad, rtol=0.1)


def test_the_bound_rises_from_the_elbo_to_the_evidence() -> None:
    model = rough_model()
    with torch.no_grad():
        values = [
            -negative_iwae_bound(model, X.repeat_interleave(40_000 // k, 0), noise(2 * (40_000 // k), k, 2)).reshape(
                2, -1
            )
            for k in (1, 5, 100)
        ]
        bound = -negative_iwae_bound(model, X, noise(2, 40_000, 2))
        weight = torch.exp(log_weight(model, X, noise(2, 40_000, 2)) - bound.unsqueeze(1))
    bounds = [*(value.mean(1) for value in values), bound]
    errors = [
        value.std(1) / math.sqrt(value.shape[1]) for value in (*values, weight)
    ]  # standard errors; of log: weight's
    assert all((error < 0.01).all() for error in errors)
    assert ((bounds[0] - exact_elbo(model, X)).abs() < 5 * errors[0]).all()
    assert ((bounds[-1] - evidence(model, X)).abs() < 5 * errors[-1]).all()
    for low, high in pairwise(range(4)):
        assert (bounds[low] < bounds[high] + 5 * torch.hypot(errors[low], errors[high])).all()
    assert (bounds[0] < bounds[1] - 5 * torch.hypot(errors[0], errors[1])).all()


def test_with_the_exact_posterior_every_weight_is_the_evidence() -> None:
    model = exact_model()
    log_weights = log_weight(model, X, noise(2, 9, 2))
    assert torch.allclose(log_weights, evidence(model, X).unsqueeze(1).expand(2, 9), rtol=0, atol=ROUNDED)
    bound = -negative_iwae_bound(model, X, noise(2, 9, 2))
    assert torch.allclose(bound, evidence(model, X), rtol=0, atol=ROUNDED)


def ordinary_negative_iwae_bound(model: LinearGaussian, x: Tensor, draws: Tensor) -> Tensor:
    """The bound written out with torch.distributions, and differentiated as it stands."""
    mean, log_var = model.encode(x)
    q = Independent(Normal(mean.unsqueeze(1), (0.5 * log_var).exp().unsqueeze(1)), 1)
    z = mean.unsqueeze(1) + (0.5 * log_var).exp().unsqueeze(1) * draws
    prior = Independent(Normal(torch.zeros_like(z), torch.ones_like(z)), 1)
    log_weights = model.conditional_log_likelihood(x, z) + log_prob(prior, z) - log_prob(q, z)
    return math.log(draws.shape[1]) - torch.logsumexp(log_weights, 1)


def gradients(
    objective: Callable[[LinearGaussian, Tensor, Tensor], Tensor], num_samples: int, rounds: int
) -> dict[str, Tensor]:
    """Gradient of the bound by parameter, one row a round of 200 repetitions of both images: [rounds, …]."""
    found: dict[str, list[Tensor]] = {}
    for seed in range(rounds):
        model = rough_model()
        x = X.repeat_interleave(200, 0)
        objective(model, x, noise(len(x), num_samples, 2, seed=seed)).mean().backward()  # type: ignore[no-untyped-call]
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            found.setdefault(name, []).append(parameter.grad.flatten())
    return {name: torch.stack(rows) for name, rows in found.items()}


@pytest.mark.parametrize("num_samples", [1, 3, 16])
def test_dreg_expects_the_exact_gradient(num_samples: int) -> None:
    doubly = gradients(negative_iwae_bound, num_samples, rounds=60)
    ordinary = gradients(ordinary_negative_iwae_bound, num_samples, rounds=60)
    for name in doubly:
        error = ((doubly[name].var(0) + ordinary[name].var(0)) / 60).sqrt()
        difference = (doubly[name].mean(0) - ordinary[name].mean(0)).abs()
        assert (difference < 4.5 * error + 1e-9).all(), name
        assert (ordinary[name].mean(0).abs() > 5 * error).any(), f"{name}: nothing was compared"


def test_dreg_is_less_noisy_for_the_encoder() -> None:
    doubly = gradients(negative_iwae_bound, 16, rounds=60)
    ordinary = gradients(ordinary_negative_iwae_bound, 16, rounds=60)
    for name in ("slope", "shift", "log_var"):
        assert (doubly[name].var(0) < 0.5 * ordinary[name].var(0)).all(), name


def test_dreg_leaves_an_exact_encoder_in_peace() -> None:
    model = exact_model()
    negative_iwae_bound(model, X, noise(2, 5, 2)).sum().backward()  # type: ignore[no-untyped-call]
    for parameter in (model.slope, model.shift, model.log_var):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() < ROUNDED
    assert model.loading.grad is not None
    assert model.loading.grad.abs().max() > 0.1


def test_the_value_and_the_decoder_gradient_are_the_ordinary_ones() -> None:
    draws = noise(2, 6, 2)
    found, expected = rough_model(), rough_model()
    loss, reference = negative_iwae_bound(found, X, draws), ordinary_negative_iwae_bound(expected, X, draws)
    assert torch.allclose(loss, reference, rtol=0, atol=ROUNDED)
    loss.mean().backward()  # type: ignore[no-untyped-call]
    reference.mean().backward()  # type: ignore[no-untyped-call]
    assert found.loading.grad is not None
    assert expected.loading.grad is not None
    assert torch.allclose(found.loading.grad, expected.loading.grad, rtol=0, atol=ROUNDED)


@pytest.mark.parametrize("objective", [negative_iwae_bound, negative_elbo])
def test_parts_of_the_samples_add_up_to_all_of_them(objective: Callable[..., Tensor]) -> None:
    draws = noise(2, 7, 2)
    whole, parted = rough_model(), rough_model()
    loss = objective(whole, X, draws)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    total = torch.zeros(2, dtype=torch.float64)
    for part in torch.split(draws, 3, dim=1):
        if objective is negative_iwae_bound:
            share = negative_iwae_bound(parted, X, part, all_log_weights=log_weight(parted, X, draws).detach())
        else:
            share = negative_elbo(parted, X, part) * (part.shape[1] / 7)
        share.sum().backward()  # type: ignore[no-untyped-call]
        total += share.detach()
    assert torch.allclose(total, loss, rtol=0, atol=ROUNDED)
    for found, expected in zip(parted.parameters(), whole.parameters(), strict=True):
        assert found.grad is not None
        assert expected.grad is not None
        assert torch.allclose(found.grad, expected.grad, rtol=0, atol=ROUNDED)
