"""The graphs that come with the service for versions of format 1 compute what today's classes do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model_store import InvalidArtifactError
from service.engine.format1 import likelihood_of_format_1
from tests.likelihoods import discretised_logistic, run_likelihood
from tests.rounding import FLOAT32, FUNCTION, gamma
from training.likelihoods import Bernoulli, DiscretisedLogistic, Gaussian, GaussianWithScale, Likelihood, spec_of

CLASSES: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "gaussian": GaussianWithScale,
    "discretised_logistic": DiscretisedLogistic,
}
SHAPES = [(1, 4, 5), (3, 3, 5), (1, 33, 35), (1, 1, 1)]
"""The first is a multiple of four up to 1024; the others are not."""


def likelihoods(shape: tuple[int, int, int]) -> list[Likelihood]:
    return [*(kind(shape) for kind in CLASSES.values()), Gaussian(shape, 0.3), DiscretisedLogistic(shape, 5)]


def example(likelihood: Likelihood, *, rows: int) -> tuple[Tensor, list[Tensor]]:
    """x [2, 1, P] and parameters [2, rows, P]."""
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(2, 1, likelihood.num_pixels, generator=generator)
    if likelihood.name == "bernoulli":
        x = torch.round(x)
    elif likelihood.levels is not None:
        x = torch.round(x * (likelihood.levels - 1)) / (likelihood.levels - 1)
    shape = 2, rows, likelihood.num_pixels
    drawn = {
        "logits": 3 * torch.randn(shape, generator=generator),
        "loc": 0.5 + 0.3 * torch.randn(shape, generator=generator),
        "log_scale": 4 * torch.rand(shape, generator=generator) - 5,
    }
    return x, [drawn[name] for name in likelihood.outputs]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("index", range(5), ids=["bernoulli", "gaussian", "logistic", "one scale", "five levels"])
def test_each_is_its_class(shape: tuple[int, int, int], index: int) -> None:
    likelihood = likelihoods(shape)[index]
    content = likelihood_of_format_1(spec_of(likelihood), likelihood.num_pixels, Path("manifest.json"))
    x, parameters = example(likelihood, rows=3)
    inputs = {"x": x, **dict(zip(likelihood.outputs, parameters, strict=True))}
    (log_prob,) = run_likelihood(content, ["log_prob"], {name: value.numpy() for name, value in inputs.items()})
    wide = [parameter.double() for parameter in parameters]
    expected = likelihood.pixel_log_prob(x.double(), *wide)
    # Pixels' terms, of u² and more, lose some of float32's digits to x - loc; P of them lose as many as one, each.
    allowed = gamma(likelihood.num_pixels + 6 * FUNCTION, FLOAT32) * (4 + 4 * expected.abs()).sum(-1)
    assert (np.abs(log_prob - expected.sum(-1).numpy()) <= allowed.numpy()).all()

    one = [parameter[:, :1] for parameter in parameters]
    tangents = [torch.randn(2, 4, value.shape[-1], generator=torch.Generator().manual_seed(5)) for value in one]
    uniform = torch.rand(2, 1, likelihood.num_uniforms, generator=torch.Generator().manual_seed(6))
    given = {"x": x, "uniform": uniform, **dict(zip(likelihood.outputs, one, strict=True))}
    given |= {f"tangent.{name}": value for name, value in zip(likelihood.outputs, tangents, strict=True)}
    wanted = ["pixel_log_prob", "entropy", "mean", "sample", "gradient", "information"]
    found = run_likelihood(content, wanted, {name: value.numpy() for name, value in given.items()})
    wide = [parameter.double() for parameter in one]
    slopes, information = likelihood.curvature(x, one, tangents)
    same = [
        likelihood.pixel_log_prob(x.double(), *wide),
        likelihood.entropy(*wide),
        likelihood.mean(*one),
        likelihood.sample(uniform, *one),
        slopes,
        information,
    ]
    for name, value, wants in zip(wanted, found, same, strict=True):
        largest = float(wants.abs().max())
        tolerance = gamma(likelihood.num_pixels + 6 * FUNCTION, FLOAT32) * (1 + largest)
        np.testing.assert_allclose(value, wants.numpy(), rtol=0, atol=tolerance, err_msg=name)


def test_more_levels_than_bytes_have_are_refused() -> None:
    with pytest.raises(InvalidArtifactError, match=r"likelihood\.levels is 257; of format version 1, up to 256"):
        likelihood_of_format_1(discretised_logistic(257), 10, Path("manifest.json"))
