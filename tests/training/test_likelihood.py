"""PyTorch's densities against the engine's: the NumPy reference, and by autograd the scores of its graphs."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from service.engine.likelihood import likelihood_of
from torch import Tensor

from tests.engine.test_likelihood_curvature import inverse_scale, rounding, run
from tests.rounding import FLOAT32, density_error, gamma
from training.configuration import Configuration
from training.likelihoods.likelihood import (
    LOG_SCALE_CEILING,
    Bernoulli,
    DiscretisedLogistic,
    Gaussian,
    GaussianWithScale,
    Likelihood,
    build_likelihood,
)

LIKELIHOODS = [Bernoulli(), Gaussian(0.3), GaussianWithScale(), DiscretisedLogistic(), DiscretisedLogistic(5)]
NUM_PIXELS = 60


def name(likelihood: Likelihood) -> str:
    return f"{type(likelihood).__name__} {likelihood.levels}"


def example(likelihood: Likelihood) -> tuple[Tensor, list[Tensor]]:
    """x [2, 1, P] and parameters [2, 3, P]: pixels of both ends among them, far from where they are expected."""
    generator = torch.Generator().manual_seed(8)
    x = torch.rand(2, 1, NUM_PIXELS, generator=generator)
    if isinstance(likelihood, Bernoulli):
        x = (x < 0.5).float()
    elif likelihood.levels is not None:
        x = torch.round(x * (likelihood.levels - 1)) / (likelihood.levels - 1)
        x[..., :6] = torch.tensor([0.0, 0, 0, 1, 1, 1])
    drawn = {
        "logits": torch.randn(2, 3, NUM_PIXELS, generator=generator) * 4,
        "loc": 0.5 + torch.randn(2, 3, NUM_PIXELS, generator=generator) * 0.6,
        "log_scale": torch.rand(2, 3, NUM_PIXELS, generator=generator) * 7 - 7,
    }
    return x, [drawn[output] for output in likelihood.outputs]


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=name)
def test_the_density_is_the_engines(likelihood: Likelihood) -> None:
    x, parameters = example(likelihood)
    shaped = {
        output: value.double().reshape(2, 3, 1, 6, 10).numpy()
        for output, value in zip(likelihood.outputs, parameters, strict=True)
    }
    expected = likelihood_of(likelihood.spec).log_prob(x.double().reshape(2, 1, 1, 6, 10).numpy(), shaped)
    found = likelihood.log_prob(x, *parameters)
    assert found.shape == (2, 3)
    assert_allclose(found.numpy(), expected, rtol=0, atol=density_error(NUM_PIXELS, np.abs(expected).max()))
    assert_allclose(
        likelihood.mean(*parameters).numpy(),
        likelihood_of(likelihood.spec).mean(shaped).reshape(2, 3, -1),
        rtol=gamma(8),
    )


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=name)
def test_autograd_gives_the_engines_scores(likelihood: Likelihood) -> None:
    x, parameters = example(likelihood)
    x, parameters = x[:, :1], [value[:, :1].clone().requires_grad_() for value in parameters]
    gradients = torch.autograd.grad(likelihood.log_prob(x, *parameters).sum(), parameters)
    given = {
        output: value.detach().flatten().numpy() for output, value in zip(likelihood.outputs, parameters, strict=True)
    }
    stated, levels = likelihood_of(likelihood.spec), x.flatten().numpy()
    engine = run(stated, levels, given)
    exact = levels.astype(np.float64), {output: value.astype(np.float64) for output, value in given.items()}
    for output, gradient in zip(likelihood.outputs, gradients, strict=True):
        scale = inverse_scale(stated, exact[1]) ** (output == "loc")
        error = 2 * scale * rounding(stated, *exact, FLOAT32)  # both are float32
        assert (np.abs(gradient.flatten().numpy() - engine[f"{output} score"]) <= error).all(), output


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=name)
@pytest.mark.parametrize("size", [1.0, 1e3])
def test_no_raw_output_breaks_a_density_or_its_gradient(likelihood: Likelihood, size: float) -> None:
    generator = torch.Generator().manual_seed(5)
    raw = (size * torch.randn(3, len(likelihood.outputs), 1, 2, 6, generator=generator)).requires_grad_()
    if size > 1 and len(likelihood.outputs) == 2:
        raw = torch.stack([raw[:, 0], -raw[:, 1].abs()], 1).detach().requires_grad_()  # a scale as small as can be
    x = torch.tensor([0.0, 1.0] * 6).reshape(1, 1, 12).expand(3, 1, 12)
    flat = [parameter.reshape(3, 1, 12) for parameter in likelihood.parameters(raw)]
    value = likelihood.log_prob(x, *flat)
    assert value.isfinite().all()
    (gradient,) = torch.autograd.grad(value.sum(), raw)
    assert gradient.isfinite().all()


def test_the_scale_has_a_floor() -> None:
    for likelihood in (GaussianWithScale(), DiscretisedLogistic()):
        _, log_scale = likelihood.parameters(torch.full((1, 2, 1, 1, 1), -1e4))
        assert log_scale.item() == pytest.approx(likelihood.floor)
        _, log_scale = likelihood.parameters(torch.full((1, 2, 1, 1, 1), 2.0))
        bent = math.exp(likelihood.floor - 2.0) + math.exp(2.0 - LOG_SCALE_CEILING)  # what softplus adds far from 0
        assert log_scale.item() == pytest.approx(2.0, abs=bent + gamma(4) * LOG_SCALE_CEILING)
        _, log_scale = likelihood.parameters(torch.full((1, 2, 1, 1, 1), 1e4))
        assert log_scale.item() == pytest.approx(10.0)


def test_a_configuration_names_its_likelihood() -> None:
    grey: dict[str, Any] = {"binarisation": "none"}
    assert isinstance(build_likelihood(Configuration()), Bernoulli)
    assert isinstance(build_likelihood(Configuration(likelihood="discretised_logistic", **grey)), DiscretisedLogistic)
    assert isinstance(build_likelihood(Configuration(likelihood="gaussian", **grey)), GaussianWithScale)
    fixed = build_likelihood(Configuration(likelihood="gaussian", gaussian_scale=0.2, **grey))
    assert isinstance(fixed, Gaussian)
    assert fixed.scale == 0.2
    assert np.isclose(
        fixed.log_prob(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)).item(), -np.log(0.2 * np.sqrt(2 * np.pi))
    )
