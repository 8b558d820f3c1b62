"""Variational autoencoders: the PyTorch modules that are trained and then exported."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from training.configuration import Configuration, Preset
from training.likelihoods import Likelihood, build_likelihood
from training.likelihoods.base import ImageShape
from training.networks.layers import constant, linear
from training.networks.linear import LinearDecoder, LinearEncoder
from training.networks.mlp import MlpDecoder, MlpEncoder
from training.networks.precision import at_least_float32
from training.networks.resnet import ResnetDecoder, ResnetEncoder

LOWEST_LOG_VAR, HIGHEST_LOG_VAR = -30.0, 10.0
"""Of the posterior's log variance. Beyond them z is the mean, in float32, or is 150 times as wide as the prior; within
them no density that training or serving forms leaves float32."""

UNKNOWN_SPREAD = 0.4
"""Of pixels in [0, 1], whose standard deviation is at most a half."""

OF_IMAGE_RATE = 10.0
"""Of the few weights that all pixels of an image share: at the others' rate they would not arrive in a short run."""

SOLVED_RATE = 0.1
"""Of weights that begin as a least squares' solution: at the others' rate they would lose it."""

# For each preset: images [B, C, H, W] to features [B, num_features], and codes [N, D] to raw outputs [N, *shape].
_BODIES: dict[Preset, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "mlp": (MlpEncoder, MlpDecoder),
    "resnet": (ResnetEncoder, ResnetDecoder),
    "linear": (LinearEncoder, LinearDecoder),
}


class Encoder(nn.Module):
    """q(z|x) = N(mean, diag exp(log_var)): x [B, C, H, W] to `mean` and `log_var`, both [B, D]."""

    def __init__(self, body: nn.Module, num_features: int, latent_dim: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.body = body
        self.mean = linear(num_features, latent_dim, generator)
        self.log_var = linear(num_features, latent_dim, generator)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latent code, [B, D] each; these two layers are float32 under autocast, too."""
        features = self.body(x)  # [B, F]
        with torch.autocast(x.device.type, enabled=False):
            features = at_least_float32(features)
            return self.mean(features), self.log_var(features).clamp(LOWEST_LOG_VAR, HIGHEST_LOG_VAR)


class Decoder(nn.Module):
    """p(x|z): z [N, D] to the likelihood's parameters in their order, each [N, *its shape].

    Those that belong to the whole image come of z by a layer of their own, and are the same for all z before training.
    """

    def __init__(self, body: nn.Module, likelihood: Likelihood, latent_dim: int) -> None:
        super().__init__()
        self.body = body
        self.likelihood = likelihood
        bias = likelihood.initial_image_bias()
        self.of_image = None if bias is None else constant(latent_dim, bias)
        self.of_likelihood = likelihood.network

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        """The parameters, each [N, *its shape], float32 under autocast, too."""
        parameters = self.likelihood.parameters(at_least_float32(self.body(z)))
        if self.of_image is None:
            return parameters
        with torch.autocast(z.device.type, enabled=False):
            return parameters + self.likelihood.image_parameters(self.of_image(at_least_float32(z)))


class Vae(nn.Module):
    """A variational autoencoder (Kingma and Welling 2013, arXiv 1312.6114) with prior N(0, I).

    >>> configuration = Configuration(width=8, latent_dim=2, likelihood="gaussian", binarisation="none")
    >>> vae = build_vae(configuration, torch.full((1, 4, 3), 0.1))
    >>> mean, log_var = vae.encode(torch.zeros(5, 1, 4, 3))
    >>> loc, log_scale = vae.decoder(mean)
    >>> mean.shape, loc.shape
    (torch.Size([5, 2]), torch.Size([5, 1, 4, 3]))
    """

    def __init__(self, image_shape: ImageShape, latent_dim: int, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.latent_dim = latent_dim
        self.encoder = encoder
        self.decoder = decoder

    @property
    def likelihood(self) -> Likelihood:
        """The decoder's."""
        return self.decoder.likelihood

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), [B, D] each, of images x [B, C, H, W]; float32 under autocast, too."""
        mean, log_var = self.encoder(x)
        return mean, log_var

    def rate_scales(self) -> dict[str, float]:
        """By a weight's name, what the learning rate is multiplied by, where not by 1; see `MlpEncoder.rate_scales`."""
        body: Any = self.encoder.body
        scales = {f"encoder.body.{name}": scale for name, scale in body.rate_scales().items()}
        of_image = [name for name, _ in self.named_parameters() if name.startswith("decoder.of_image.")]
        solved = [name for name, _ in self.named_parameters() if ".of_likelihood." in name and ".linear." in name]
        return scales | dict.fromkeys(of_image, OF_IMAGE_RATE) | dict.fromkeys(solved, SOLVED_RATE)

    def expected_image(self, z: Tensor) -> Tensor:
        """E[x|z], [N, C, H, W], of latent codes z [N, D]."""
        flat = (parameter.flatten(1).unsqueeze(1) for parameter in self.decoder(z))  # [N, 1, Q]
        return self.likelihood.mean(*flat).reshape(-1, *self.image_shape)

    def conditional_log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) in nats, [B, K], of images x [B, C, H, W] under latent codes z [B, K, D].

        Under autocast, only the decoder runs in the lower precision: a sum over pixels would lose whole nats in it.
        """
        parameters = self.decoder(z.flatten(0, 1))  # [B·K, *shape]
        with torch.autocast(x.device.type, enabled=False):
            flat = (parameter.flatten(1).unflatten(0, z.shape[:2]) for parameter in parameters)  # [B, K, Q]
            return self.likelihood.log_prob(x.flatten(1).unsqueeze(1), *flat)


def build_vae(
    configuration: Configuration,
    pixel_mean: Tensor,
    pixel_spread: Tensor | None = None,
    examples: Callable[[], Tensor] | None = None,
) -> Vae:
    """The configured preset and likelihood with freshly drawn weights, for images of `pixel_mean`'s shape [C, H, W].

    An untrained decoder knows what an average image looks like, and how far its pixels are from it: by `pixel_spread`,
    [C, H, W]; None is a spread for which every pixel is possible. `examples`, which give [N, C, H, W] in
    [0, 1], are what a likelihood with weights of its own begins with. The same arguments give the same weights.
    """
    channels, height, width_in_pixels = pixel_mean.shape
    generator = torch.Generator().manual_seed(configuration.seed)
    image_shape = (channels, height, width_in_pixels)
    likelihood = build_likelihood(configuration.likelihood, image_shape, **configuration.likelihood_options)
    encoder_body, decoder_body = _BODIES[configuration.preset]
    if examples is not None and likelihood.network is not None:
        likelihood.begin(examples())
    width = configuration.latent_dim if configuration.preset == "linear" else configuration.width
    sizes = {"width": width, "depth": configuration.depth, "generator": generator}
    features = encoder_body(image_shape, **sizes)
    spread = torch.full_like(pixel_mean, UNKNOWN_SPREAD) if pixel_spread is None else pixel_spread
    bias = likelihood.initial_bias(pixel_mean, spread)
    return Vae(
        image_shape,
        configuration.latent_dim,
        Encoder(features, features.num_features, configuration.latent_dim, generator=generator),
        Decoder(decoder_body(bias, configuration.latent_dim, **sizes), likelihood, configuration.latent_dim),
    )
