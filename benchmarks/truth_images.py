"""The images that benchmarks/truth.py finds the truth about."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from ladder import letters
from numpy.typing import NDArray
from torch import Tensor

from model_store import StoredModel
from training.data.sources import read_source
from training.networks.vae import Decoder
from training.publish.evaluation import fresh_binarisation

NUM_IMAGES = {
    "mnist": {"simulated": 50, "test digits": 50, "upside down": 25, "thresholded elsewhere": 25, "noise": 15},
    "fashion-mnist": {"simulated": 10, "test clothes": 10, "upside down": 5, "elsewhere": 5},
}
"""By model: drawn by it; of its own test images; the first of those turned over; of another data set; and noise."""


def image_sets(
    stored: StoredModel, decoder: Decoder, inside: Path, outside: Path, *, seed: int
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Name, images [N, C, H, W] as the model takes them, and the latent codes [N, D] that made them, where known."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    num_images = NUM_IMAGES[stored.manifest.name]
    drawn, own, turned, foreign, *noisy = num_images
    binary = decoder.likelihood.levels == 2

    def draw(source: Path, count: int) -> NDArray[np.float32]:
        test = read_source(source).test
        if test is None:
            raise SystemExit(f"{source} has no test images")
        chosen = test[rng.choice(len(test), count, replace=False)]
        return chosen.astype(np.float32) / np.float32(255 if test.dtype == np.uint8 else 1)

    pixels, z = _simulated(stored, decoder, num_images[drawn], generator)
    yield drawn, pixels, z
    grey = draw(inside, num_images[own])
    familiar = fresh_binarisation(grey, "dynamic", seed=seed) if binary else grey
    images = torch.from_numpy(familiar).float()
    yield own, images, None
    yield turned, images[: num_images[turned]].flip(2), None
    strange = draw(outside, num_images[foreign])
    yield foreign, torch.from_numpy(strange > 0.5 if binary else strange).float(), None
    for name in noisy:
        yield name, torch.from_numpy(rng.random((num_images[name], *images.shape[1:])) < 0.5).float(), None


def ground_sets(
    stored: StoredModel, decoder: Decoder, inside: Path, omniglot: Path, font: Path, *, count: int, seed: int
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """As `image_sets`, of ground that nothing was tuned on: `count` images a set.

    Simulated ones, drawn with other codes than there; test images from 3000 on, turned by 90 degrees, inverted and
    shifted by four pixels; Omniglot from 1000 on; and letters of the font. Where the model is binary, so are the
    images.
    """
    binary = decoder.likelihood.levels == 2
    pixels, z = _simulated(stored, decoder, count, torch.Generator().manual_seed(seed + 1000))
    yield "simulated", pixels, z
    test = read_source(inside).test
    if test is None:
        raise SystemExit(f"{inside} has no test images")
    own = test[3000 : 3000 + count].astype(np.float32) / np.float32(255)
    images = torch.from_numpy(fresh_binarisation(own, "dynamic", seed=seed) if binary else own).float()
    yield "turned by 90 degrees", images.rot90(1, (2, 3)).contiguous(), None
    yield "inverted", 1 - images, None
    shifted = torch.zeros_like(images)
    shifted[:, :, 4:, 4:] = images[:, :, :-4, :-4]
    yield "shifted", shifted, None
    with np.load(omniglot / "omniglot.npz") as archive:
        drawn = archive[archive.files[0]].reshape(-1, 1, 28, 28)[1000 : 1000 + count]
    yield "omniglot", torch.from_numpy(drawn > 100 if binary else drawn / np.float32(255)).float(), None
    yield "letters", torch.from_numpy(letters(font, count)), None


def _simulated(stored: StoredModel, decoder: Decoder, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images [N, C, H, W] that the model draws, and the codes [N, D] that made them."""
    z = torch.randn(count, stored.manifest.latent_dim, generator=generator, dtype=torch.float64)
    parameters = [each.flatten(1).unsqueeze(1) for each in decoder(z.float())]
    uniform = torch.rand(len(z), 1, decoder.likelihood.num_uniforms, generator=generator)
    pixels = decoder.likelihood.sample(uniform, *parameters)
    return pixels.reshape(-1, *stored.manifest.image.chw), z
