from typing import Any

import pytest
import torch

from tests.rounding import FLOAT64, FUNCTION, gamma, sum_error
from training.configuration import Configuration
from training.networks.resnet import ResidualBlock, halved_sizes
from training.networks.vae import Vae, build_vae

MEAN = torch.rand(3, 17, 20, generator=torch.Generator().manual_seed(2))
PRESETS = ("mlp", "resnet")
PIXELS: list[dict[str, Any]] = [
    {},
    {"likelihood": "discretised_logistic", "binarisation": "none"},
    {"likelihood": "gaussian", "binarisation": "none", "gaussian_scale": 0.1},
    {"likelihood": "gaussian", "binarisation": "none"},
]


def build(preset: str = "mlp", seed: int = 0, mean: torch.Tensor = MEAN, **more: Any) -> Vae:
    return build_vae(Configuration(**{"preset": preset, "width": 4, "latent_dim": 7, "seed": seed, **more}), mean)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("pixels", PIXELS)
def test_shapes_of_colour_images_that_are_not_square(preset: str, pixels: dict[str, Any]) -> None:
    vae = build(preset, depth=1, **pixels)
    mean, log_var = vae.encode(torch.rand(2, 3, 17, 20))
    assert mean.shape == log_var.shape == (2, 7)
    parameters = vae.decoder(torch.zeros(6, 7))
    assert [parameter.shape for parameter in parameters] == [(6, 3, 17, 20)] * len(vae.likelihood.outputs)
    assert vae.expected_image(torch.zeros(6, 7)).shape == (6, 3, 17, 20)
    assert vae.conditional_log_likelihood(torch.rand(2, 3, 17, 20), torch.zeros(2, 9, 7)).shape == (2, 9)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("pixels", PIXELS)
def test_an_untrained_decoder_knows_the_mean_pixel(preset: str, pixels: dict[str, Any]) -> None:
    vae = build(preset, **pixels)
    for parameter in vae.decoder.parameters():
        if parameter.numel() != MEAN.numel() * len(vae.likelihood.outputs):
            parameter.data.zero_()  # all but the bias of the outputs
    clipped = 1e-3  # of a Bernoulli's mean, which its logit is of
    assert torch.allclose(vae.expected_image(torch.ones(1, 7))[0], MEAN, rtol=0, atol=clipped + gamma(4 * FUNCTION))


@pytest.mark.parametrize("preset", PRESETS)
def test_numbers_of_the_whole_image_are_a_layer_of_their_own(preset: str) -> None:
    vae = build(preset, likelihood="discretised_logistic_neighbours", binarisation="none")
    loc, log_scale, coefficients = vae.decoder(torch.randn(6, 7, generator=torch.Generator().manual_seed(1)))
    assert loc.shape == log_scale.shape == (6, *MEAN.shape)
    assert coefficients.shape == (6, *vae.likelihood.outputs["coefficients"])
    assert (coefficients == coefficients[:1]).all()  # before training, of any z
    assert {name: scale for name, scale in vae.rate_scales().items() if "encoder" not in name} == {
        "decoder.of_image.weight": 10.0,
        "decoder.of_image.bias": 10.0,
    }
    vae.conditional_log_likelihood(torch.rand(1, *MEAN.shape), torch.ones(1, 2, 7)).sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in vae.decoder.parameters())
    assert "decoder.of_image.bias" not in build(preset).rate_scales()


@pytest.mark.parametrize("preset", PRESETS)
def test_pixels_that_never_change_have_finite_densities(preset: str) -> None:
    x = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])
    for pixels in PIXELS:
        vae = build(preset, mean=x[0], **pixels)
        assert vae.conditional_log_likelihood(x, torch.zeros(1, 1, 7)).isfinite().all()


@pytest.mark.parametrize("preset", PRESETS)
def test_weights_come_from_the_seed_and_nowhere_else(preset: str) -> None:
    state = torch.get_rng_state()
    first, again, other = build(preset), build(preset), build(preset, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    pairs = list(zip(first.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(one, two) for one, two in pairs)
    assert not torch.equal(first.encoder.mean.weight, other.encoder.mean.weight)


@pytest.mark.parametrize("preset", PRESETS)
def test_depth_and_width_size_the_networks(preset: str) -> None:
    sizes = [
        [sum(weight.numel() for weight in network.parameters()) for network in (vae.encoder, vae.decoder)]
        for vae in (build(preset), build(preset, depth=3), build(preset, width=8))
    ]
    assert all(one < deeper < wider * 2 for one, deeper, wider in zip(*sizes, strict=True))
    assert all(one < wider for one, _, wider in zip(*sizes, strict=True))


@pytest.mark.parametrize(("preset", "width", "depth"), [("mlp", 512, 2), ("mlp", 512, 6), ("resnet", 16, 1)])
def test_layers_keep_signals_in_their_range(preset: str, width: int, depth: int) -> None:
    mean = torch.full((1, 28, 28), 0.1)
    vae = build(preset, mean=mean, width=width, depth=depth, latent_dim=50)
    mean, log_var = vae.encode((torch.rand(100, 1, 28, 28, generator=torch.Generator().manual_seed(0)) < 0.13).float())
    lowest = 0.05 if depth < 6 else 0.002
    assert lowest < mean.std().item() < 2
    assert lowest < log_var.std().item() < 2


@pytest.mark.parametrize("preset", PRESETS)
def test_an_image_is_encoded_the_same_alone_and_in_a_batch(preset: str) -> None:
    encoder = build(preset).encoder.double()  # kernels of other batches may add in another order: rounding, of float64
    x = torch.rand(5, 3, 17, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    features = encoder.body(x)
    error = sum_error(3 * 17 * 20, 100, FLOAT64, roundings_of_a_term=1000)  # ten layers or so before the last sum
    assert torch.allclose(features[3:4], encoder.body(x[3:4]), rtol=0, atol=error)
    assert (features[3] - features[2]).abs().max() > 1e6 * error


def test_residual_blocks_begin_as_the_identity() -> None:
    block = ResidualBlock(3, torch.Generator().manual_seed(0))
    hidden = torch.rand(2, 3, 5, 4)
    assert torch.equal(block(hidden), hidden)
    block(hidden).square().sum().backward()
    assert block.second.weight.grad is not None
    assert block.second.weight.grad.abs().max() > 0


@pytest.mark.parametrize("height", [16, 28, 33, 100, 128])
@pytest.mark.parametrize("width", [16, 127])
def test_every_size_is_halved_to_8_and_doubled_back(height: int, width: int) -> None:
    sizes = halved_sizes(height, width)
    assert sizes[0] == (height, width)
    assert 4 < max(sizes[-1]) <= 8
    vae = build("resnet", mean=torch.full((1, height, width), 0.4), width=2, depth=1)
    assert vae.decoder(vae.encode(torch.rand(1, 1, height, width))[0])[0].shape == (1, 1, height, width)


def test_in_bfloat16_only_the_networks_are_imprecise() -> None:
    vae = build("mlp", width=32, likelihood="discretised_logistic", binarisation="none")
    x = torch.randint(0, 256, (4, 3, 17, 20), generator=torch.Generator().manual_seed(3)) / 255
    with torch.autocast("cpu", torch.bfloat16):
        mean, log_var = vae.encode(x)
        found = vae.conditional_log_likelihood(x, mean.unsqueeze(1))
        parameters = vae.decoder(mean)
    assert mean.dtype == log_var.dtype == found.dtype == torch.float32
    flat = [parameter.float().reshape(4, 1, -1) for parameter in parameters]
    assert torch.equal(found, vae.likelihood.log_prob(x.reshape(4, 1, -1), *flat))
    exact = vae.conditional_log_likelihood(x, mean.unsqueeze(1))
    assert 0 < (found - exact).abs().max() < 0.02 * exact.abs().max()
