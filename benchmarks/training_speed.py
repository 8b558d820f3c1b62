"""Training speed beside a minimal PyTorch loop: the same network, images, batch, precision and threads.

python benchmarks/training_speed.py --data ../shared/data/mnist --pythae-python /tmp/venvs/pythae/bin/python

Epochs alternate, so that whatever else the machine does falls on all alike. The minimal loop is what one writes first:
draw a batch, binarise it, one loss, Adam; no averaged weights, no schedule, no checks, no resuming. All of that is in
ours. Both share the network's modules; the loop's loss is written out here. pythae's own trainer (its VAE class around
a plain network of the same layers, ELBO with one sample, fixed binarisation) runs in its own environment, beside ours
with the same objective, in float32 too.
"""

import argparse
import math
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.configuration import Configuration, Objective
from training.data.sources import read_source
from training.data.splits import LoadedImages
from training.fit.devices import PLAIN, Acceleration
from training.fit.distributed import ALONE
from training.fit.loop import Loop
from training.fit.recipes import complete_configuration
from training.fit.state import build_state
from training.networks.precision import full_float32
from training.networks.vae import Vae, build_vae

PYTHAE_TRAINER = Path(__file__).parent / "peers" / "pythae_trainer.py"


def negative_bound(vae: Vae, x: Tensor, objective: Objective, num_samples: int) -> Tensor:
    """The loss as one writes it for Bernoulli pixels: -ELBO, or the importance weighted bound as it stands."""
    mean, log_var = (parameter.float() for parameter in vae.encoder(x))
    noise = torch.randn(len(x), num_samples, mean.shape[1])
    z = mean[:, None] + torch.exp(0.5 * log_var)[:, None] * noise  # [B, K, D]
    logits = vae.decoder(z.reshape(-1, z.shape[2]))[0].float().reshape(len(x), num_samples, -1)
    target = x.reshape(len(x), 1, -1).expand_as(logits)
    fit = -F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)  # [B, K]
    if objective == "elbo":
        kl = 0.5 * (mean**2 + log_var.exp() - log_var - 1).sum(-1)  # [B]
        return torch.mean(kl) - torch.mean(fit)
    log_ratio = (-0.5 * z**2 + 0.5 * (log_var[:, None] + noise**2)).sum(-1)
    return torch.mean(math.log(num_samples) - torch.logsumexp(fit + log_ratio, 1))


class MinimalLoop:
    """A hand-written epoch: the images are floats in memory, Adam is PyTorch's default."""

    def __init__(self, configuration: Configuration, images: Tensor, acceleration: Acceleration) -> None:
        self.configuration = configuration
        self.low_precision = acceleration.precision == "bfloat16"
        self.images = images.float() / 255
        self.vae = build_vae(configuration, self.images.mean(0))
        self.optimiser = torch.optim.Adam(self.vae.parameters(), lr=configuration.learning_rate)

    def train_epoch(self, _epoch: int) -> None:
        """One pass over the images."""
        for batch in torch.split(torch.randperm(len(self.images)), self.configuration.batch_size):
            x = torch.bernoulli(self.images[batch])
            self.optimiser.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.low_precision):
                loss = negative_bound(self.vae, x, self.configuration.objective, self.configuration.num_samples)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()


def compare(
    configuration: Configuration, images: Tensor, rounds: int, acceleration: Acceleration = PLAIN
) -> tuple[list[float], list[float]]:
    """Images a second of our loop and of the minimal one, epoch by epoch in turn; the first of each does not count."""
    state = build_state(configuration, images.float().mean(0) / 255, torch.device("cpu"))
    loaded = LoadedImages(images.numpy(), torch.device("cpu"))
    ours = Loop(configuration, state, loaded, ALONE, acceleration, False)
    minimal = MinimalLoop(configuration, images, acceleration)
    speeds: tuple[list[float], list[float]] = ([], [])
    for epoch in range(1, rounds + 2):
        for train_epoch, measured in zip((ours.train_epoch, minimal.train_epoch), speeds, strict=True):
            started = time.perf_counter()
            train_epoch(epoch)
            measured.append(len(images) / (time.perf_counter() - started))
    return speeds[0][1:], speeds[1][1:]


def pythae_speed(python: Path, configuration: Configuration, images: Tensor) -> float:
    """Images a second of one of pythae's epochs, as it says itself; its start and its first epoch do not count."""
    sizes = (configuration.width, configuration.latent_dim, configuration.batch_size, torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npy"
        np.save(file, images.numpy())
        command = [str(python), str(PYTHAE_TRAINER), str(file), *map(str, sizes)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"pythae's trainer failed: {process.stderr[-2000:]}")
    return float(process.stdout.split()[-1])


def head(title: str, other: str) -> None:
    """The heads of a table's columns."""
    print(f"\n{title:44} {'ours':>9} {other:>9} {'ratio':>8} {'least':>8} {'most':>8}")


def report(title: str, ours: list[float], theirs: list[float]) -> None:
    """Medians, and the median of the ratios of neighbouring epochs."""
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    print(
        f"{title:44} {statistics.median(ours):9.0f} {statistics.median(theirs):9.0f} {statistics.median(ratios):8.2f}"
        f" {min(ratios):8.2f} {max(ratios):8.2f}",
        flush=True,
    )


@full_float32()  # as `fit` trains
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="as for `python -m training fit`")
    parser.add_argument("--images", type=int, default=5120, help="in an epoch")
    parser.add_argument("--rounds", type=int, default=7, help="counted epochs of each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--pythae-python", type=Path, help="the interpreter of an environment that has pythae")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    images = torch.from_numpy(read_source(given.data).train[: given.images])
    recipes: dict[str, dict[str, object]] = {
        "mlp 512-512-50, IWAE k = 8": {},
        "mlp 512-512-50, ELBO": {"objective": "elbo", "num_samples": 1},
        "resnet, width 8, depth 1, ELBO": {
            "preset": "resnet",
            "width": 8,
            "depth": 1,
            "objective": "elbo",
            "num_samples": 1,
        },
    }
    print(f"{len(images)} images an epoch, {given.rounds} epochs each in turn, {given.threads} threads")
    for acceleration in (PLAIN, Acceleration("bfloat16")):
        head(f"{acceleration.precision}, images/s", "minimal")
        for title, options in recipes.items():
            options = {"likelihood": "bernoulli", "binarisation": "dynamic", **options}
            configuration = complete_configuration(options, images.numpy())
            report(title, *compare(configuration, images, given.rounds, acceleration))
    if given.pythae_python:
        configuration = Configuration(objective="elbo", num_samples=1)
        pairs = [
            (
                statistics.median(compare(configuration, images, 2)[0]),
                pythae_speed(given.pythae_python, configuration, images),
            )
            for _ in range(3)
        ]
        head("images/s", "pythae")
        report("mlp 512-512-50, ELBO", [ours for ours, _ in pairs], [theirs for _, theirs in pairs])


if __name__ == "__main__":
    main()
