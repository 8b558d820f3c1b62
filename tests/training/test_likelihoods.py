"""Every class of training/likelihoods/ against closed forms in NumPy and float64, at its extremes, and as a graph."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from scipy.special import expit, logsumexp
from torch import Tensor

from model_store import ImageShape, LikelihoodSpec
from service.engine import graphs
from service.engine.likelihood_graph import LikelihoodGraph
from service.engine.runtime import Runtime
from tests.likelihoods import DiscretisedLogistic as DiscretisedLogisticReference
from tests.likelihoods import reference_of, run_likelihood
from tests.rounding import density_error, gamma, sampling_error
from tests.toys import constant, describe, graph, node
from tests.training.conftest import ExportOnce
from tests.training.in_passes import IN_PASSES, moved, with_drawn_weights
from training.configuration import Configuration
from training.errors import ConfigurationError, LikelihoodError
from training.likelihoods import LIKELIHOODS, Likelihood, build_likelihood, likelihood_of, spec_of
from training.likelihoods.discretised_logistic_neighbours import DiscretisedLogisticNeighbours
from training.likelihoods.location_scale import LOG_SCALE_CEILING

COLOUR, GREY, ONE = (3, 3, 5), (1, 7, 5), (1, 1, 1)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bernoulli": ("bernoulli", {}),
    "gaussian": ("gaussian", {}),
    "gaussian of a scale": ("gaussian", {"scale": 0.3}),
    "discretised_logistic": ("discretised_logistic", {}),
    "of 5 levels": ("discretised_logistic", {"levels": 5}),
    "mixture": ("discretised_logistic_mixture", {"num_components": 3}),
    "neighbours": ("discretised_logistic_neighbours", {}),
    "interlaced": ("discretised_logistic_interlaced", {}),
}
DIRECTIONS = 4
LATENT = 5


def make(kind: str, shape: tuple[int, int, int]) -> Likelihood:
    name, options = KINDS[kind]
    return with_drawn_weights(build_likelihood(name, shape, **options))


def example(likelihood: Likelihood, *, images: int = 3, rows: int = 2, seed: int = 8) -> tuple[Tensor, list[Tensor]]:
    """x [B, 1, P] and parameters [B, K, Q]: pixels of both ends among them, some far from where they are expected."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(images, 1, likelihood.num_pixels, generator=generator)
    if likelihood.is_binary:
        x = x.round()
    elif likelihood.levels is not None:
        x = torch.round(x * (likelihood.levels - 1)) / (likelihood.levels - 1)
        x[0, :, :2], x[-1, :, -1] = torch.tensor([0.0, 1.0])[: x.shape[2]], 1.0
    found = []
    for name, shape in likelihood.outputs.items():
        drawn = torch.randn(images, rows, math.prod(shape), generator=generator)
        offset, spread = {"loc": (0.5, 0.6), "log_scale": (-3.0, 1.2), "logits": (0.0, 3.0)}.get(name, (0.0, 0.4))
        found.append(offset + spread * drawn)
    return x, found


def parameters_of(likelihood: Likelihood, raw: Tensor) -> tuple[Tensor, ...]:
    """All of the decoder's outputs, those of the whole image as they are before training."""
    bias = likelihood.initial_image_bias()
    of_image = () if bias is None else likelihood.image_parameters(bias.expand(len(raw), -1))
    return likelihood.parameters(raw) + of_image


def double(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


def bins(x: NDArray[np.float64], loc: Any, log_scale: Any, levels: int = 256) -> NDArray[np.float64]:
    """P(x) of a logistic over a bin as a plain difference; exact enough where neither is next to 0 or 1."""
    half, inverse = 0.5 / (levels - 1), np.exp(-np.asarray(log_scale, np.float64))
    above = np.where(x > 1 - half, 1.0, expit((x + half - loc) * inverse))
    return np.asarray(above - np.where(x < half, 0.0, expit((x - half - loc) * inverse)))


def mixture_reference(likelihood: Likelihood, x: Tensor, parameters: list[Tensor]) -> NDArray[np.float64]:
    """log P(x|z), [B, K], place by place and component by component."""
    channels, height, width = likelihood.image_shape
    n, places = KINDS["mixture"][1]["num_components"], height * width
    logits, loc, log_scale, *rest = (
        parameter.double().numpy().reshape(*parameter.shape[:2], n, -1, places) for parameter in parameters
    )
    values = x.double().numpy().reshape(len(x), 1, channels, places)
    weight = logits[:, :, :, 0] - logsumexp(logits, axis=2)[:, :, None, 0]
    joint = weight  # [B, K, n, places]
    pairs = [(later, earlier) for later in range(channels) for earlier in range(later)]
    for channel in range(channels):
        centre = loc[:, :, :, channel]
        for index, (later, earlier) in enumerate(pairs):
            if later == channel:
                centre = centre + rest[0][:, :, :, index] * values[:, :, None, earlier]
        with np.errstate(divide="ignore"):
            joint = joint + np.log(bins(values[:, :, None, channel], centre, log_scale[:, :, :, channel]))
    return np.asarray(logsumexp(joint, axis=2).sum(-1))


def whitened(likelihood: Likelihood, x: Tensor, parameters: list[Tensor]) -> NDArray[np.float64]:
    """What the steps leave of x - loc, [B, K, C, H, W], number by number."""
    assert isinstance(likelihood, DiscretisedLogisticNeighbours)
    rest = (x.double() - parameters[0].double()).numpy().reshape(*parameters[0].shape[:2], *likelihood.image_shape)
    for step, (channel, row, column) in enumerate(likelihood.shifts):
        before = rest.copy()
        shares = parameters[2].double().numpy()[:, :, step * len(rest[0, 0]) :]  # of each channel
        for c, y, w in np.ndindex(*likelihood.image_shape):
            place = c - channel, y - row, w - column
            if min(place) >= 0 and w - column < likelihood.image_shape[2]:
                rest[:, :, c, y, w] -= shares[:, :, c] * before[(slice(None), slice(None), *place)]
    return np.asarray(rest)


@pytest.mark.parametrize("shape", [COLOUR, GREY, ONE, IN_PASSES], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_density_is_the_closed_form(kind: str, shape: tuple[int, int, int]) -> None:
    likelihood = make(kind, shape)
    x, parameters = example(likelihood)
    if kind == "mixture":
        parameters[2] = parameters[2].clamp(min=-2.5)  # for a reference that subtracts
        expected = mixture_reference(likelihood, x, parameters)
    elif kind == "neighbours":
        left = whitened(likelihood, x, parameters).reshape(3, 2, -1)
        of_pixels = {"loc": x.double().numpy() - left, "log_scale": parameters[1].double().numpy()}
        expected = DiscretisedLogisticReference().pixel_log_prob(x.double().numpy(), of_pixels).sum(-1)
    elif kind == "interlaced":
        of_pixels = dict(zip(likelihood.outputs, moved(likelihood, x, parameters), strict=True))
        expected = DiscretisedLogisticReference().pixel_log_prob(x.double().numpy(), of_pixels).sum(-1)
    else:
        shaped = {
            name: parameter.double().numpy().reshape(3, 2, *shape)
            for name, parameter in zip(likelihood.outputs, parameters, strict=True)
        }
        expected = reference_of(spec_of(likelihood)).log_prob(x.double().numpy().reshape(3, 1, *shape), shaped)
    found = likelihood.log_prob(x.double(), *double(parameters))
    assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)
    pixels = likelihood.pixel_log_prob(x.double(), *double(parameters))
    assert pixels.shape == (3, 2, likelihood.num_pixels)
    assert_allclose(pixels.sum(-1).numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["discretised_logistic", "of 5 levels", "mixture", "neighbours", "interlaced"])
def test_the_probabilities_of_all_levels_sum_to_one(kind: str) -> None:
    likelihood = make(kind, ONE)
    assert likelihood.levels is not None
    for seed in range(5):
        _, parameters = example(likelihood, images=1, rows=1, seed=seed)
        levels = torch.arange(likelihood.levels, dtype=torch.float64).reshape(-1, 1, 1) / (likelihood.levels - 1)
        total = likelihood.log_prob(levels, *double(parameters)).exp().sum()
        assert abs(total.item() - 1) < 1e-12


def test_each_channel_is_a_distribution_given_the_earlier_ones() -> None:
    likelihood = make("mixture", (3, 1, 1))
    x, parameters = example(likelihood, images=4, rows=1)
    levels = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(3):
        every = x.double().repeat_interleave(256, dim=0)
        every[:, 0, channel] = levels.repeat(4)
        rows = [parameter.double().repeat_interleave(256, dim=0) for parameter in parameters]
        conditional = likelihood.pixel_log_prob(every, *rows)[:, 0, channel].exp().reshape(4, 256)
        assert (conditional.sum(1) - 1).abs().max() < 1e-12
    blue = x.double()[:1].repeat(256 * 16, 1, 1)  # a slice: any green and blue at one red
    blue[:, 0, 1], blue[:, 0, 2] = levels.repeat_interleave(16), levels[::16].repeat(256)
    rows = [parameter.double()[:1].expand(256 * 16, -1, -1) for parameter in parameters]
    joint = likelihood.log_prob(blue, *rows)
    assert_allclose(joint[:, 0], likelihood.pixel_log_prob(blue, *rows)[:, 0].sum(-1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 3, 3), (3, 1, 3)], ids=str)
def test_the_probabilities_of_all_images_sum_to_one(shape: tuple[int, int, int]) -> None:
    """Also under coefficients that are next to 1, and where neighbours lie beyond the levels."""
    likelihood = DiscretisedLogisticNeighbours(shape, levels=2)
    assert len(likelihood.shifts) == (5 if shape[0] == 1 else 4)
    _, parameters = example(likelihood, images=1, rows=1)
    parameters[1], parameters[2] = parameters[1] + 2, torch.tanh(4 * parameters[2])
    images = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * likelihood.num_pixels).unsqueeze(1)
    total = likelihood.log_prob(images.double(), *double(parameters)).exp().sum()
    assert abs(total.item() - 1) < 1e-12


@pytest.mark.parametrize("shape", [COLOUR, GREY], ids=str)
def test_a_draw_of_neighbours_is_noise_of_which_the_steps_are_undone(shape: tuple[int, int, int]) -> None:
    likelihood = DiscretisedLogisticNeighbours(shape, levels=2**40)  # as if there were none
    _, parameters = example(likelihood)
    parameters[0], parameters[1] = 0.5 + 0.01 * parameters[0], parameters[1] - 5  # inside of [0, 1]
    wide = double(parameters)
    uniform = torch.rand(3, 2, likelihood.num_uniforms, generator=torch.Generator().manual_seed(1)).double()
    x = likelihood.sample(uniform, *wide)
    assert 0 < x.min() < x.max() < 1
    noise = torch.exp(wide[1]) * torch.logit(uniform)
    found = whitened(likelihood, x, wide).reshape(noise.shape)
    assert_allclose(found, noise.numpy(), rtol=0, atol=1e-9)
    assert np.abs((x - wide[0]).numpy() - noise.numpy()).max() > 1e-3  # which neighbours did not change


def test_pixels_depend_on_what_comes_before_them_alone() -> None:
    likelihood = make("neighbours", GREY)
    x, parameters = example(likelihood, images=1, rows=1)
    changed = x.clone()
    changed[0, 0, 17] = 1 - x[0, 0, 17]  # row 3, column 2
    one, two = (likelihood.pixel_log_prob(values.double(), *double(parameters))[0, 0] for values in (x, changed))
    differs = (one - two).abs() > 1e-9
    assert not differs[:17].any()
    assert differs[[17, 18, 21, 22]].all()  # itself, to the right, below to the left, below


def test_channels_depend_on_one_another() -> None:
    likelihood = make("mixture", (3, 1, 1))
    x, parameters = example(likelihood, images=1, rows=1)
    other = x.clone()
    other[0, 0, 0] = 1 - x[0, 0, 0]
    one, two = (likelihood.pixel_log_prob(values.double(), *double(parameters))[0, 0] for values in (x, other))
    assert (one - two).abs().min() > 1e-4  # red's own, and green's and blue's for it


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_probabilities_that_are_told(kind: str) -> None:
    """By mean, by the mean of their squares, and by their entropy."""
    shape, draws = ((3, 1, 1) if kind == "mixture" else ONE), 40_000
    likelihood = make(kind, shape)
    _, parameters = example(likelihood, images=1, rows=1, seed=3)
    wide = double(parameters)
    if "log_scale" in likelihood.outputs:
        wide[2 if kind == "mixture" else 1] -= 1  # so that bins at the ends hold little
    uniform = torch.rand(1, draws, likelihood.num_uniforms, generator=torch.Generator().manual_seed(1)).double()
    x = likelihood.sample(uniform, *wide)
    assert x.shape == (1, draws, likelihood.num_pixels)
    if likelihood.levels is not None:
        on_level = x * (likelihood.levels - 1)
        assert torch.equal(on_level, on_level.round())
        assert 0 <= x.min() <= x.max() <= 1
    cost = -likelihood.pixel_log_prob(x, *wide)
    entropy = likelihood.entropy(*wide)
    bound = sampling_error(cost.std(1)[0].numpy(), draws, num_means=20)
    # Where there is no closed form, 32 draws stand for all.
    own = 3 * cost.std(1)[0].numpy() / math.sqrt(32) if kind == "mixture" else 1e-12
    assert (np.abs((cost.mean(1) - entropy[:, 0])[0].numpy()) < bound + own).all()
    if likelihood.levels is not None:
        values = torch.arange(likelihood.levels).double().reshape(-1, 1, 1) / (likelihood.levels - 1)
        first = torch.cat([values, torch.zeros(len(values), 1, likelihood.num_pixels - 1).double()], dim=2)
        chance = likelihood.pixel_log_prob(first, *wide)[:, 0, 0].exp().numpy()
        counts = np.bincount((x[0, :, 0] * (likelihood.levels - 1)).round().long().numpy(), minlength=len(chance))
        deviation = np.sqrt(chance * (1 - chance)) + 1e-3
        assert (np.abs(counts / draws - chance) < sampling_error(deviation, draws, num_means=len(chance))).all()
    elif likelihood.is_binary:
        assert abs((x.mean() - likelihood.mean(*wide).mean()).item()) < sampling_error(0.5, draws, num_means=1)
    else:
        spread = x.std().item()
        assert abs((x.mean() - likelihood.mean(*wide).mean()).item()) < sampling_error(spread, draws, num_means=1)
        log_density = -0.5 * (1 + math.log(2 * math.pi)) - math.log(spread)
        assert abs(-cost.mean().item() - log_density) < 0.05


def test_the_means_of_a_mixture_follow_earlier_channels() -> None:
    likelihood = make("mixture", (3, 1, 1))
    _, (logits, loc, log_scale, coefficients) = example(likelihood, images=1, rows=1)
    loc, log_scale = 0.3 + 0.1 * loc, log_scale - 3  # inside of [0, 1], where binning moves no mean
    parameters = double([logits, loc, log_scale, 0.2 * coefficients])
    uniform = torch.rand(1, 20_000, likelihood.num_uniforms, generator=torch.Generator().manual_seed(2)).double()
    x = likelihood.sample(uniform, *parameters)
    bound = sampling_error(x.std(1)[0].numpy(), 20_000, num_means=3) + 1 / 255
    assert (np.abs((x.mean(1) - likelihood.mean(*parameters)[:, 0])[0].numpy()) < bound).all()


@pytest.mark.parametrize("shape", [COLOUR, GREY], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_slopes_and_information_are_those_of_automatic_differentiation(kind: str, shape: tuple[int, int, int]) -> None:
    likelihood = make(kind, shape)
    x, parameters = example(likelihood, rows=1)
    wide = double(parameters)
    tangents = [
        torch.randn(3, DIRECTIONS, p.shape[2], generator=torch.Generator().manual_seed(4)).double() for p in wide
    ]
    found, expected = (
        method(x.double(), wide, tangents)
        for method in (likelihood.curvature, lambda *these: Likelihood.curvature(likelihood, *these))
    )
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert_allclose(one.numpy(), other.numpy(), rtol=1e-8, atol=1e-8 * other.abs().max().item())


@pytest.mark.parametrize("size", [1.0, 1e3])
@pytest.mark.parametrize("kind", KINDS)
def test_no_raw_output_breaks_a_density_or_its_gradient(kind: str, size: float) -> None:
    likelihood = make(kind, (3, 2, 2))
    bias = likelihood.initial_bias(torch.full((3, 2, 2), 0.4), torch.full((3, 2, 2), 0.3))
    x = torch.tensor([0.0, 1.0] * 6).reshape(1, 1, 12).expand(5, 1, 12)
    for sign in (1, -1):  # of scales, so that they are as large and as small as can be
        raw = bias + size * torch.randn(5, *bias.shape, generator=torch.Generator().manual_seed(5))
        raw = (sign * raw.abs() if sign < 0 else raw).requires_grad_()
        parameters = parameters_of(likelihood, raw)
        assert [one.shape[1:] for one in parameters] == list(likelihood.outputs.values())
        flat = [parameter.flatten(1).unsqueeze(1) for parameter in parameters]
        value = likelihood.log_prob(x, *flat)
        assert value.isfinite().all()
        (gradient,) = torch.autograd.grad(value.sum(), raw)
        assert gradient.isfinite().all()
        with torch.no_grad():
            assert all(part.isfinite().all() for part in likelihood.curvature(x, flat, flat))
            assert likelihood.entropy(*double(flat)).isfinite().all()


@pytest.mark.parametrize("kind", ["gaussian", "discretised_logistic", "mixture", "neighbours", "interlaced"])
def test_the_scale_has_a_floor_and_a_ceiling(kind: str) -> None:
    likelihood = make(kind, ONE)
    bias = likelihood.initial_bias(torch.full(ONE, 0.5), torch.full(ONE, 0.3)).unsqueeze(0)
    at = list(likelihood.outputs).index("log_scale")
    lowest, highest = (likelihood.parameters(torch.full_like(bias, raw))[at] for raw in (-1e4, 1e4))
    floor = {"gaussian": -math.log(255)}.get(kind, -7.0)
    assert_allclose(lowest.numpy(), floor, rtol=1e-6)
    assert_allclose(highest.numpy(), LOG_SCALE_CEILING, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_decoder_gives_the_average_image(kind: str) -> None:
    likelihood = make(kind, COLOUR)
    pixel_mean = 0.2 + 0.6 * torch.rand(COLOUR, generator=torch.Generator().manual_seed(0))
    parameters = parameters_of(likelihood, likelihood.initial_bias(pixel_mean, torch.full(COLOUR, 0.2)).unsqueeze(0))
    flat = [parameter.flatten(1).unsqueeze(1) for parameter in parameters]
    near = 0.15 if kind == "mixture" else gamma(100)  # components lie apart, and are cut at 0 and 1
    assert (likelihood.mean(*flat).flatten() - pixel_mean.flatten()).abs().max() < near


@pytest.mark.parametrize("kind", ["gaussian", "discretised_logistic", "mixture"])
@pytest.mark.parametrize("spread", [0.02, 0.1, 0.5])
def test_an_untrained_decoder_is_as_wide_as_the_pixels(kind: str, spread: float) -> None:
    """It was as wide for pixels of every spread: at 64×64, hundreds of steps were for this alone."""
    likelihood = make(kind, COLOUR)
    at = list(likelihood.outputs).index("log_scale")
    ratio = {"gaussian": 1.0}.get(kind, math.sqrt(3) / math.pi)  # of a logistic to its standard deviation

    def scales(pixel_spread: float) -> Tensor:
        bias = likelihood.initial_bias(torch.full(COLOUR, 0.4), torch.full(COLOUR, pixel_spread))
        return likelihood.parameters(bias.unsqueeze(0))[at].exp()

    assert_allclose(scales(spread).numpy(), ratio * spread, rtol=1e-4)
    assert_allclose(scales(0.0).numpy(), ratio * 2 / 255, rtol=1e-4)  # of pixels that never change


@pytest.fixture(
    scope="module",
    params=[
        ("bernoulli", GREY),
        ("gaussian", COLOUR),
        ("mixture", COLOUR),
        ("neighbours", COLOUR),
        ("interlaced", IN_PASSES),
    ],
    ids=str,
)
def exported(request: pytest.FixtureRequest, exported_once: ExportOnce) -> tuple[Likelihood, bytes]:
    likelihood = make(*request.param)
    return likelihood, exported_once(likelihood)


def as_inputs(likelihood: Likelihood, x: Tensor, parameters: list[Tensor]) -> dict[str, NDArray[Any]]:
    return {"x": x.numpy()} | {
        name: parameter.numpy() for name, parameter in zip(likelihood.outputs, parameters, strict=True)
    }


def test_the_graph_computes_what_the_class_does(exported: tuple[Likelihood, bytes]) -> None:
    likelihood, content = exported
    x, parameters = example(likelihood, rows=1)
    uniform = torch.rand(3, 1, likelihood.num_uniforms, generator=torch.Generator().manual_seed(6))
    tangents = [torch.randn(3, DIRECTIONS, p.shape[2], generator=torch.Generator().manual_seed(4)) for p in parameters]
    inputs = as_inputs(likelihood, x, parameters) | {"uniform": uniform.numpy()}
    inputs |= {f"tangent.{name}": t.numpy() for name, t in zip(likelihood.outputs, tangents, strict=True)}
    names = ["log_prob", "pixel_log_prob", "entropy", "mean", "sample", "gradient", "information"]
    found = dict(zip(names, run_likelihood(content, names, inputs), strict=True))
    wide = double(parameters)
    gradient, information = likelihood.curvature(x.double(), wide, double(tangents))
    expected = {
        "log_prob": likelihood.log_prob(x.double(), *wide),
        "pixel_log_prob": likelihood.pixel_log_prob(x.double(), *wide),
        "entropy": likelihood.entropy(*wide),
        "mean": likelihood.mean(*wide),
        "gradient": gradient,
        "information": information,
    }
    for name, value in expected.items():
        size = value.abs().max().item()
        exact = name in ("pixel_log_prob", "entropy")  # float64; numbers in the graph are float32
        error = 1e-6 * max(size, 1) if exact else density_error(4 * likelihood.num_pixels, max(size, 1) * 30)
        if name == "entropy" and likelihood.name == "discretised_logistic_interlaced":
            # About a draw, of which rounding moves few pixels to the next level, and later ones a little with those.
            apart = np.abs(found[name] - value.numpy())
            assert np.mean(apart > error) < 0.25
            error = 0.2
        assert_allclose(found[name], value.numpy(), rtol=0, atol=error, err_msg=name)
    drawn = likelihood.sample(uniform, *parameters)
    apart = np.abs(found["sample"] - drawn.numpy())
    assert np.mean(apart > gamma(10_000)) < 0.1  # rounding moves few draws to the next level or component


def test_an_image_is_as_likely_alone_as_in_any_batch(exported: tuple[Likelihood, bytes]) -> None:
    likelihood, content = exported
    x, parameters = example(likelihood, images=7, rows=9)
    (batch,) = run_likelihood(content, ["log_prob"], as_inputs(likelihood, x, parameters))
    for image in range(7):
        one = slice(image, image + 1)
        alone = as_inputs(likelihood, x[one], [parameter[one] for parameter in parameters])
        assert np.array_equal(run_likelihood(content, ["log_prob"], alone)[0], batch[one])


def test_the_engine_derives_its_gradient(exported: tuple[Likelihood, bytes]) -> None:
    """Of log P(x|z) in z, through outputs that are linear in z; with the same digits alone and in a batch."""
    likelihood, content = exported
    x, parameters = example(likelihood, images=7, rows=1)
    generator = torch.Generator().manual_seed(9)
    z = torch.randn(7, LATENT, generator=generator)
    weights = [0.2 * torch.randn(LATENT, parameter.shape[2], generator=generator) for parameter in parameters]
    biases = [parameter[0] for parameter in parameters]
    session = Runtime("cpu").open(gradient_of(likelihood, content, weights, biases), Path("gradient"))
    found = session.run({"z": z.numpy(), graphs.X: x.numpy()})

    at = z.double().requires_grad_()
    rows = [(at @ w.double() + b.double()).unsqueeze(1) for w, b in zip(weights, biases, strict=True)]
    value = likelihood.log_prob(x.double(), *rows)
    (expected,) = torch.autograd.grad(value.sum(), at)
    for name, exact in [(graphs.LOG_LIKELIHOOD, value), (graphs.GRADIENT, expected)]:
        error = density_error(4 * likelihood.num_pixels, 30 * exact.abs().max().item())
        assert_allclose(found[name], exact.detach().numpy(), rtol=0, atol=error, err_msg=name)
    for image in range(7):
        alone = session.run({"z": z[image : image + 1].numpy(), graphs.X: x[image : image + 1].numpy()})
        for name, every in found.items():
            assert np.array_equal(alone[name], every[image : image + 1])


def gradient_of(likelihood: Likelihood, content: bytes, weights: list[Tensor], biases: list[Tensor]) -> bytes:
    """The graph of log P(x|z) and its gradient, whose decoder gives z·weight + bias."""
    nodes, outputs = [], {}
    for (name, shape), weight, bias in zip(likelihood.outputs.items(), weights, biases, strict=True):
        outputs[name] = ["n", *shape]
        nodes += [
            node("MatMul", "z", constant(f"w_{name}", weight.numpy()), out=f"product_{name}"),
            node("Add", f"product_{name}", constant(f"b_{name}", bias.numpy()), out=f"rows_{name}"),
            node("Reshape", f"rows_{name}", constant(f"shape_{name}", np.array([-1, *shape])), out=name),
        ]
    decoder = onnx.load_from_string(graph(nodes, inputs={"z": ["n", LATENT]}, outputs=outputs))
    channels, height, width = likelihood.image_shape
    size = ImageShape(channels=channels, height=height, width=width)
    description = describe("toy", size, LATENT, spec_of(likelihood), num_images=50)
    stored = LikelihoodGraph(content, Path(), num_pixels=likelihood.num_pixels)
    written = graphs.DecoderGraphs(decoder, stored, description).gradient()
    assert written is not None
    return written


def test_extremes_are_finite_in_the_graph(exported: tuple[Likelihood, bytes]) -> None:
    likelihood, content = exported
    x, parameters = example(likelihood, images=4, rows=1)
    floor = -7.0 if likelihood.levels else -math.log(255)
    for index, (loc, scale, logit) in enumerate([(100.0, floor, 1e3), (-100.0, 10.0, -1e3), (0.0, floor, 1e3)]):
        values = {"loc": loc, "log_scale": scale, "logits": logit * (-1) ** index}
        ends = [
            torch.full_like(parameter, values.get(name, 0.99))
            for name, parameter in zip(likelihood.outputs, parameters, strict=True)
        ]
        inputs = as_inputs(likelihood, x, ends)
        inputs |= {f"tangent.{name}": inputs[name] for name in likelihood.outputs}
        names = ["log_prob", "pixel_log_prob", "entropy", "mean", "gradient"]
        for name, value in zip(names, run_likelihood(content, names, inputs), strict=True):
            assert np.isfinite(value).all(), name


def test_graphs_are_small_and_tell_nothing_of_the_machine(exported: tuple[Likelihood, bytes]) -> None:
    _, content = exported
    nodes = onnx.load_from_string(content).graph.node
    assert len(nodes) < 1000
    assert "Shape" not in {node.op_type for node in nodes}
    assert b".py" not in content
    assert b"/site-packages/" not in content


def test_an_image_of_few_pixels_is_exported_too(exported_once: ExportOnce) -> None:
    """Its number of pixels is one that tracing would take for the same as its own examples' sizes."""
    for num_pixels in (3, 4, 5):
        likelihood = make("gaussian of a scale", (1, 1, num_pixels))
        x, parameters = example(likelihood, rows=6)
        (found,) = run_likelihood(exported_once(likelihood), ["log_prob"], as_inputs(likelihood, x, parameters))
        assert_allclose(found, likelihood.log_prob(x.double(), *double(parameters)), atol=density_error(5, 100))


def test_a_manifest_names_a_likelihood() -> None:
    for kind in KINDS.keys() - {"interlaced"}:
        likelihood = make(kind, COLOUR)
        spec = spec_of(likelihood)
        again = likelihood_of(LikelihoodSpec.model_validate_json(spec.model_dump_json()), COLOUR)
        assert type(again) is type(likelihood)
        assert again.outputs == likelihood.outputs
    for wrong, message in [
        (LikelihoodSpec(kind="poisson"), "there is no likelihood poisson"),
        (LikelihoodSpec(kind="bernoulli", levels=5), "bernoulli cannot be made with levels 5"),
        (LikelihoodSpec(kind="discretised_logistic"), "cannot be made with levels None"),
        (LikelihoodSpec(kind="gaussian", options={"width": 2}), "cannot be made with width 2"),
        (spec_of(make("interlaced", COLOUR)), "interlaced has weights of its own, which no manifest holds"),
    ]:
        with pytest.raises(LikelihoodError, match=message):
            likelihood_of(wrong, COLOUR)


def test_a_likelihood_takes_its_own_options_and_no_other() -> None:
    grey: dict[str, Any] = {"binarisation": "none"}
    for name in LIKELIHOODS:
        configuration = Configuration(likelihood=name, **grey)
        assert build_likelihood(name, COLOUR, **configuration.likelihood_options).name == name
    mixture = Configuration(likelihood="discretised_logistic_mixture", num_components=4, **grey)
    assert mixture.likelihood_options == {"num_components": 4}
    with pytest.raises(ConfigurationError, match="num_components belongs to the likelihood discretised_logistic_mix"):
        Configuration(likelihood="gaussian", num_components=4, **grey)
    with pytest.raises(ConfigurationError, match="num_components must be a"):
        Configuration(likelihood="discretised_logistic_mixture", num_components=0, **grey)
    with pytest.raises(ConfigurationError, match=r"likelihood must be one of bernoulli, .*, not 'poisson'"):
        Configuration(likelihood="poisson")
    with pytest.raises(ConfigurationError, match="binarisation must be none"):
        Configuration(likelihood="discretised_logistic_mixture")
