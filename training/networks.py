"""Encoders and decoders: the PyTorch modules that are trained and then exported."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.configuration import Configuration

ImageShape = tuple[int, int, int]


class Encoder(nn.Module):
    """q(z|x) = N(mean, diag exp(log_var)): x [B, C, H, W] to `mean` and `log_var`, both [B, D]; two hidden layers."""

    def __init__(self, image_shape: ImageShape, width: int, latent_dim: int, *, generator: torch.Generator) -> None:
        super().__init__()
        channels, height, width_in_pixels = image_shape
        self.num_pixels = channels * height * width_in_pixels
        self.hidden1 = _linear(self.num_pixels, width, generator)
        self.hidden2 = _linear(width, width, generator)
        self.mean = _linear(width, latent_dim, generator)
        self.log_var = _linear(width, latent_dim, generator)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latent code, [B, D] each."""
        hidden = F.silu(self.hidden1(x.reshape(-1, self.num_pixels)))  # [B, width]
        hidden = F.silu(self.hidden2(hidden))
        return self.mean(hidden), self.log_var(hidden)


class Decoder(nn.Module):
    """p(x|z) = Π Bernoulli(x; sigmoid(logits)): z [N, D] to `logits` [N, C, H, W]; two hidden layers.

    The output bias starts at the logit of the training pixels' mean (Burda et al. 2015, arXiv 1509.00519), so that the
    first step already knows what an average image looks like.
    """

    def __init__(
        self, image_shape: ImageShape, width: int, latent_dim: int, pixel_mean: Tensor, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.hidden1 = _linear(latent_dim, width, generator)
        self.hidden2 = _linear(width, width, generator)
        self.logits = _linear(width, pixel_mean.numel(), generator)
        with torch.no_grad():
            self.logits.bias.copy_(torch.logit(pixel_mean.flatten(), eps=1e-3))

    def forward(self, z: Tensor) -> Tensor:
        """Logits of the pixels, [N, C, H, W]."""
        hidden = F.silu(self.hidden1(z))  # [N, width]
        hidden = F.silu(self.hidden2(hidden))
        logits: Tensor = self.logits(hidden)  # [N, C·H·W]
        return logits.reshape(-1, *self.image_shape)


class Vae(nn.Module):
    """A variational autoencoder (Kingma and Welling 2013, arXiv 1312.6114) with prior N(0, I) and Bernoulli pixels.

    >>> vae = Vae((1, 4, 3), width=8, latent_dim=2, pixel_mean=torch.full((1, 4, 3), 0.1),
    ...           generator=torch.Generator().manual_seed(0))
    >>> mean, log_var = vae.encode(torch.zeros(5, 1, 4, 3))
    >>> mean.shape, vae.decoder(mean).shape
    (torch.Size([5, 2]), torch.Size([5, 1, 4, 3]))
    """

    def __init__(
        self, image_shape: ImageShape, *, width: int, latent_dim: int, pixel_mean: Tensor, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.latent_dim = latent_dim
        self.encoder = Encoder(image_shape, width, latent_dim, generator=generator)
        self.decoder = Decoder(image_shape, width, latent_dim, pixel_mean, generator=generator)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), [B, D] each, of images x [B, C, H, W]."""
        mean, log_var = self.encoder(x)
        return mean, log_var

    def conditional_log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) in nats, [B, K], of images x [B, C, H, W] under latent codes z [B, K, D].

        Σ_i x_i l_i - log(1 + e^{l_i}) over the pixels i, with l the logits: exact for x in {0, 1}.
        """
        batch, num_samples, latent_dim = z.shape
        logits = self.decoder(z.reshape(-1, latent_dim)).reshape(batch, num_samples, -1)  # [B, K, C·H·W]
        agreement = torch.bmm(logits, x.reshape(batch, -1, 1)).squeeze(-1)  # [B, K]
        return agreement - F.softplus(logits).sum(-1)


def build_vae(configuration: Configuration, image_shape: ImageShape, pixel_mean: Tensor) -> Vae:
    """The configured preset with freshly drawn weights; the same configuration and mean give the same weights."""
    return Vae(
        image_shape,
        width=configuration.width,
        latent_dim=configuration.latent_dim,
        pixel_mean=pixel_mean,
        generator=torch.Generator().manual_seed(configuration.seed),
    )


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A layer with Glorot-uniform weights and no bias yet, drawn from `generator` and not from global state."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer  # type: ignore[no-any-return]
