"""pythae's own trainer on given images, in an environment that has pythae; prints images/s of its training epochs.

Arguments: images.npy [N, C, H, W] uint8, width, latent_dim, batch_size, threads. See benchmarks/training_speed.py.
"""

import sys
import tempfile
import time

import numpy as np
import torch
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.pipelines import TrainingPipeline
from pythae.trainers import BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import nn

EPOCHS = 4


class Encoder(BaseEncoder):  # type: ignore[misc]  # the peer is not installed where types are checked
    """Two hidden layers with SiLU."""

    def __init__(self, num_pixels: int, width: int, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.hidden = nn.Sequential(
            nn.Flatten(), nn.Linear(num_pixels, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.mean, self.log_var = nn.Linear(width, latent_dim), nn.Linear(width, latent_dim)

    def forward(self, x: torch.Tensor) -> ModelOutput:
        """What pythae's VAE asks of an encoder."""
        hidden = self.hidden(x)
        return ModelOutput(embedding=self.mean(hidden), log_covariance=self.log_var(hidden))


class Decoder(BaseDecoder):  # type: ignore[misc]
    """Two hidden layers with SiLU; probabilities, which pythae's `bce` asks for."""

    def __init__(self, shape: tuple[int, ...], width: int, latent_dim: int) -> None:
        super().__init__()
        self.shape = shape
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, int(np.prod(shape))),
            nn.Sigmoid(),
        )

    def forward(self, z: torch.Tensor) -> ModelOutput:
        """What pythae's VAE asks of a decoder."""
        return ModelOutput(reconstruction=self.layers(z).reshape(len(z), *self.shape))


class Stopwatch(TrainingCallback):  # type: ignore[misc]
    """How long each epoch took from its beginning to its last batch: what pythae saves after that does not count."""

    def __init__(self) -> None:
        self.started = self.last = 0.0
        self.seconds: list[float] = []

    def on_epoch_begin(self, training_config: object, **_: object) -> None:
        """An epoch begins."""
        self.started = time.perf_counter()

    def on_train_step_end(self, training_config: object, **_: object) -> None:
        """A batch has been trained on."""
        self.last = time.perf_counter()

    def on_epoch_end(self, training_config: object, **_: object) -> None:
        """An epoch ends; there is no evaluation in it."""
        self.seconds.append(self.last - self.started)


def main() -> None:
    """Train, and print the median speed of all epochs but the first."""
    width, latent_dim, batch_size, threads = map(int, sys.argv[2:6])
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")  # as ours
    pixels = np.load(sys.argv[1]).astype(np.float32) / 255
    images = (np.random.default_rng(0).random(pixels.shape) < pixels).astype(np.float32)
    shape = images.shape[1:]
    config = VAEConfig(input_dim=shape, latent_dim=latent_dim, reconstruction_loss="bce")
    model = VAE(
        config, encoder=Encoder(int(np.prod(shape)), width, latent_dim), decoder=Decoder(shape, width, latent_dim)
    )
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        training = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=EPOCHS,
            learning_rate=2e-3,
            per_device_train_batch_size=batch_size,
            no_cuda=True,
        )
        TrainingPipeline(training_config=training, model=model)(train_data=images, callbacks=[watch])
    print(len(images) / float(np.median(watch.seconds[1:])))


if __name__ == "__main__":
    main()
