"""Bits per dimension of colour photographs under likelihoods that see channels apart, and under one that does not.

python benchmarks/mixture_gain.py --data path/to/cifar

One network is trained for each likelihood, by the same configuration, seed, images and number of epochs; then test
images, which no training saw, are scored by PyTorch. Two upper bounds of -log P(x) are reported, in bits a pixel and
channel: that of the evidence lower bound, and the importance weighted one of `--samples` samples from the encoder.
Beside them: PNG and WebP lossless of the same images, joined into strips; and JPEG XL, if pillow_jxl is installed.
"""

import argparse
import math
import tempfile
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from training.configuration import Configuration
from training.data.image_sets import Reading
from training.data.sources import open_source
from training.data.splits import DataSplits, derive_seed, evenly_spaced, split
from training.fit.gradients import log_weight_in_parts
from training.fit.loop import normal, prepare
from training.fit.memory import footprint
from training.fit.recipes import complete_configuration
from training.fit.run import create_run, describe_run
from training.fit.trainer import EpochFigures, fit
from training.networks.precision import full_float32
from training.networks.vae import Vae
from training.report.lossless import FORMATS, lossless_bits_per_dim

LIKELIHOODS = ("discretised_logistic", "discretised_logistic_mixture")
BATCH = 10
_SCORING = 5  # a stream of random numbers


def train(configuration: Configuration, splits: DataSplits, source: str) -> Vae:
    """The network after its last epoch."""

    def on_epoch(figures: EpochFigures, vae: Vae) -> None:
        bits = -figures.validation_bound / (math.prod(vae.image_shape) * math.log(2))
        print(f"  epoch {figures.epoch}: {bits:.4f} bits/dim of validation images", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        run = create_run(Path(folder) / "run", describe_run(configuration, splits, source=source))
        return fit(run, splits, device=torch.device("cpu"), on_epoch=on_epoch)


@full_float32()
@torch.no_grad()
def bits_per_dim(vae: Vae, images: Tensor, configuration: Configuration, num_samples: int) -> tuple[Tensor, Tensor]:
    """Of each image, by the evidence lower bound and by the importance weighted one: [N] each."""
    generator = torch.Generator().manual_seed(derive_seed(configuration.seed, _SCORING))
    sizes = footprint(vae)
    bounds: list[Tensor] = []
    for batch in torch.split(images, BATCH):
        x = prepare(batch, configuration, vae, generator=generator)
        noise = normal((len(batch), num_samples, vae.latent_dim), generator)
        log_weight = log_weight_in_parts(vae, x, noise, sizes).double()  # [B, K]
        bounds.append(torch.stack([log_weight.mean(1), torch.logsumexp(log_weight, 1) - math.log(num_samples)]))
    elbo, weighted = -torch.cat(bounds, dim=1) / (math.prod(vae.image_shape) * math.log(2))
    return elbo, weighted


def main() -> None:
    """Train, score and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("likelihoods", nargs="*", default=LIKELIHOODS, help="the one to compare with first")
    parser.add_argument("--data", required=True, help="8-bit colour images, as for `python -m training fit`")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--width", type=int, default=16, help="of a resnet")
    parser.add_argument("--images", type=int, default=500, help="test images, evenly spaced")
    parser.add_argument("--samples", type=int, default=64, help="from the encoder, of the importance weighted bound")
    given = parser.parse_args()
    torch.set_num_threads(1)
    source = open_source(Path(given.data), Reading())
    first: list[float] = []
    formats = {**FORMATS, **({"JXL": {"lossless": True, "effort": 9}} if find_spec("pillow_jxl") else {})}
    if "JXL" in formats:
        import_module("pillow_jxl")
    for likelihood in given.likelihoods:
        options = {"preset": "resnet", "width": given.width, "depth": 1, "likelihood": likelihood}
        options |= {"objective": "elbo", "num_samples": 1, "batch_size": 32, "epochs": given.epochs}
        options["finish_encoder"] = False  # the bits are by bounds, of encoders that were trained with their decoders
        configuration = complete_configuration(options, source.train)
        splits = split(source, configuration)
        print(f"{likelihood}: {len(splits.train)} training images of {list(splits.image_shape)}", flush=True)
        started = time.perf_counter()
        vae = train(configuration, splits, given.data)
        minutes = (time.perf_counter() - started) / 60
        images = torch.from_numpy(evenly_spaced(splits.test, given.images))
        for title, values in zip(
            ("elbo", "iwae"), bits_per_dim(vae, images, configuration, given.samples), strict=True
        ):
            first.append(values.mean().item())
            error = values.std().item() / math.sqrt(len(values))
            gain = first[-1] - first[(len(first) - 1) % 2]
            print(f"  {title}: {first[-1]:.4f} ± {error:.4f} bits/dim, {gain:+.4f} beside the first", flush=True)
        print(f"  trained in {minutes:.1f} minutes", flush=True)
        for name, bits in lossless_bits_per_dim(images.numpy(), formats).items():
            print(f"  {name} lossless: {bits:.4f} bits/dim", flush=True)


if __name__ == "__main__":
    main()
