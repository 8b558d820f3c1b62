import torch

from training.configuration import Configuration
from training.networks import Vae, build_vae

MEAN = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(2))


def build(seed: int = 0) -> Vae:
    return build_vae(Configuration(width=16, latent_dim=7, seed=seed), (3, 5, 4), MEAN)


def test_shapes_of_colour_images_that_are_not_square() -> None:
    vae = build()
    mean, log_var = vae.encode(torch.rand(2, 3, 5, 4))
    assert mean.shape == log_var.shape == (2, 7)
    assert vae.decoder(torch.zeros(6, 7)).shape == (6, 3, 5, 4)
    assert vae.conditional_log_likelihood(torch.rand(2, 3, 5, 4), torch.zeros(2, 9, 7)).shape == (2, 9)


def test_an_untrained_decoder_knows_the_mean_pixel() -> None:
    decoder = build().decoder
    assert torch.allclose(torch.sigmoid(decoder.logits.bias).reshape(3, 5, 4), MEAN, atol=2e-3)


def test_a_pixel_that_is_always_black_has_a_finite_bias() -> None:
    vae = build_vae(Configuration(width=4, latent_dim=2), (1, 1, 2), torch.tensor([[[0.0, 1.0]]]))
    assert vae.decoder.logits.bias.abs().max() < 7


def test_weights_come_from_the_seed_and_nowhere_else() -> None:
    state = torch.get_rng_state()
    first, again, other = build(), build(), build(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    pairs = list(zip(first.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(one, two) for one, two in pairs)
    assert not torch.equal(first.encoder.hidden1.weight, other.encoder.hidden1.weight)


def test_layers_keep_signals_in_their_range() -> None:
    vae = build_vae(Configuration(width=512, latent_dim=50), (1, 28, 28), torch.full((1, 28, 28), 0.1))
    mean, log_var = vae.encode((torch.rand(100, 1, 28, 28) < 0.13).float())
    assert 0.05 < mean.std().item() < 2
    assert 0.05 < log_var.std().item() < 2
