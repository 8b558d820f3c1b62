"""The truth about the bundled model: log P(x) by annealed importance sampling, and how far the engine is from it.

python benchmarks/truth.py truth.npz --inside ../shared/data/mnist --outside ../shared/data/fashion-mnist    # measures
python benchmarks/truth.py truth.npz                                                     # compares the engine again

Chains from the prior find the posterior; a Gaussian fitted to where they then go starts the chains that count. Those
bound log P(x) from below; chains back bound it from above. They start from a posterior sample: for images that the
model itself drew, the latent code that made them, which is exact. For other images it is the ends of the forward
chains, drawn by weight, which is about right: there the upper bound is approximate, the lower one is not. The truth is
taken to lie in the middle. Nothing here looks at the encoder or climbs to a mode, but a mode that no chain finds is
missed here too: where an estimate lies far above the upper bound, the estimate has seen more.
"""

import argparse
import copy
import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

from model_store import BUNDLED, DECODER, StoredModel, open_version
from service.engine.chunks import complete
from service.engine.model import Model, Pixels
from service.engine.runtime import Runtime
from training.annealing import (
    Annealing,
    Target,
    fit_gaussian,
    lower_bound,
    recentre,
    resample,
    sigmoidal_schedule,
    upper_bound,
)
from training.configuration import Configuration
from training.evaluate import fresh_binarisation
from training.networks import Decoder, build_vae
from training.sources import read_source

SEED = 3
NUM_IMAGES = {"simulated": 50, "test digits": 50, "upside down": 25, "thresholded elsewhere": 25, "noise": 15}
FROM_PRIOR = {"thresholded elsewhere": 1000, "noise": 2000}
"""Temperatures of the first run: the less an image fits the model, the further its posterior is from the prior."""
FAMILIAR_FROM_PRIOR = 250
FROM_GAUSSIAN = 400
"""Temperatures of the run that counts."""
NUM_MOVES = 100
"""Within the posterior, to fit a Gaussian to."""
FORMER_NAMES = {"hidden1": "body.hidden.0", "hidden2": "body.hidden.2", "logits": "body.pixels"}
"""Of the weights, in graphs that were exported before there was a second preset."""
TOLERANCE = 1e-5
"""Of the logits, relative to the largest: how far PyTorch may be from ONNX Runtime."""
COMPARED = (("laplace", 400), ("laplace", 50_000), ("encoder", 5000))


@dataclass(frozen=True)
class Truth:
    """What is known of one set of images; nats, [N] each."""

    images: Pixels
    """[N, C, H, W], black and white."""
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    std_error: NDArray[np.float64]
    """Of the middle, from the spread of the chains."""

    @property
    def log_likelihood(self) -> NDArray[np.float64]:
        """The middle of the two bounds."""
        return np.asarray((self.lower + self.upper) / 2)


def save(file: Path, stored: StoredModel, sets: dict[str, Truth]) -> None:
    """Write all sets, and which decoder they are true of; images eight pixels a byte."""
    np.savez_compressed(
        file,
        decoder=np.array(_digest(stored)),
        shape=np.array(stored.manifest.image.chw),
        set=np.concatenate([np.full(len(truth.lower), name) for name, truth in sets.items()]),
        images=np.concatenate([np.packbits(t.images.reshape(len(t.images), -1) > 0, axis=1) for t in sets.values()]),
        lower=np.concatenate([truth.lower for truth in sets.values()]),
        upper=np.concatenate([truth.upper for truth in sets.values()]),
        std_error=np.concatenate([truth.std_error for truth in sets.values()]),
    )


def load(file: Path, stored: StoredModel) -> dict[str, Truth]:
    """What `save` wrote; a truth about another decoder is none."""
    with np.load(file) as found:
        if str(found["decoder"]) != _digest(stored):
            raise SystemExit(f"{file} was measured with another decoder than {stored.path / DECODER}")
        shape = tuple(found["shape"])
        pixels = np.unpackbits(found["images"], axis=1, count=math.prod(shape)).astype(np.float32).reshape(-1, *shape)
        return {
            name: Truth(pixels[chosen], *(found[key][chosen] for key in ("lower", "upper", "std_error")))
            for name in NUM_IMAGES
            if (chosen := found["set"] == name).any()
        }


def _digest(stored: StoredModel) -> str:
    return hashlib.sha256(stored.decoder).hexdigest()


def read_decoder(stored: StoredModel) -> Decoder:
    """The stored graph as training's `mlp` decoder, by the names of its weights. Checked on ONNX Runtime."""
    graph = onnx.load_from_string(stored.decoder).graph
    chw, latent_dim = stored.manifest.image.chw, stored.manifest.latent_dim
    arrays: dict[str, Tensor] = {}
    for item in graph.initializer:
        layer, _, part = item.name.rpartition(".")
        arrays[f"{FORMER_NAMES.get(layer, layer)}.{part}"] = torch.from_numpy(numpy_helper.to_array(item).copy())
    hidden = [name for name in arrays if name.startswith("body.hidden.") and name.endswith(".bias")]
    configuration = Configuration(width=len(arrays[hidden[0]]), depth=len(hidden), latent_dim=latent_dim)
    decoder = build_vae(configuration, torch.full(chw, 0.5)).decoder
    decoder.load_state_dict({name: arrays[name] for name in decoder.state_dict()})
    decoder.requires_grad_(False)
    z = 2 * torch.randn(500, latent_dim, generator=torch.Generator().manual_seed(SEED))
    expected = Runtime("cpu").open(stored.decoder, stored.path / DECODER).run({"z": z.numpy()})["logits"]
    difference = float(np.abs(decoder(z)[0].numpy() - expected).max() / np.abs(expected).max())
    if not difference <= TOLERANCE:
        raise SystemExit(f"the decoder in PyTorch differs from ONNX Runtime's by {difference:.2g}, relatively")
    print(f"decoder in PyTorch against ONNX Runtime: logits differ by at most {difference:.1e} of the largest")
    return decoder


def target_of(decoder: Decoder, images: Tensor) -> Target:
    """log p(x|z) = Σ x·l − log(1 + exp(l)) in float64, and its gradient in float32, exact enough to move by."""
    precise = copy.deepcopy(decoder).double()
    x = images.flatten(1)  # [B, P]

    def log_likelihood(z: Tensor) -> Tensor:
        logits = precise(z.flatten(0, 1))[0].reshape(*z.shape[:2], -1)  # [B, K, P]
        return torch.bmm(logits, x.double()[:, :, None]).squeeze(-1) - F.softplus(logits).sum(-1)

    def gradient(z: Tensor) -> Tensor:
        z = z.float().requires_grad_()
        logits = decoder(z.flatten(0, 1))[0].reshape(*z.shape[:2], -1)
        (found,) = torch.autograd.grad(logits, z, x[:, None] - torch.sigmoid(logits.detach()))
        return found

    return Target(log_likelihood, gradient)


def image_sets(
    inside: Path, outside: Path, decoder: Decoder, latent_dim: int
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Name, black and white images [N, C, H, W], and the latent codes [N, D] that made them, where that is known."""
    rng, generator = np.random.default_rng(SEED), torch.Generator().manual_seed(SEED)

    def draw(source: Path, count: int) -> NDArray[np.float32]:
        test = read_source(source).test
        if test is None:
            raise SystemExit(f"{source} has no test images")
        chosen = test[rng.choice(len(test), count, replace=False)]
        return chosen.astype(np.float32) / np.float32(255 if test.dtype == np.uint8 else 1)

    z = torch.randn(NUM_IMAGES["simulated"], latent_dim, generator=generator, dtype=torch.float64)
    yield "simulated", torch.bernoulli(torch.sigmoid(decoder(z.float())[0]), generator=generator), z
    grey = draw(inside, NUM_IMAGES["test digits"])
    digits = torch.from_numpy(fresh_binarisation(grey, "dynamic", seed=SEED)).float()
    yield "test digits", digits, None
    yield "upside down", digits[: NUM_IMAGES["upside down"]].flip(2), None
    clothes = draw(outside, NUM_IMAGES["thresholded elsewhere"]) > 0.5
    yield "thresholded elsewhere", torch.from_numpy(clothes).float(), None
    noise = rng.random((NUM_IMAGES["noise"], *digits.shape[1:])) < 0.5
    yield "noise", torch.from_numpy(noise).float(), None


def anneal(
    target: Target, z: Tensor | None, shape: tuple[int, int, int], from_prior: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lower bound, upper bound, standard error of their middle, and acceptance, for images whose latent code is z.

    First from the prior to the posterior; then a Gaussian is fitted to what the chains see there; then from that
    Gaussian to the posterior and back, which is a short way. Only the last run counts, so the bounds hold whatever the
    Gaussian is.
    """
    generator = torch.Generator().manual_seed(SEED + 1)  # SEED's first numbers are the codes that chains must not know

    def standard_normal() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def adapted(moved: Target, num_temperatures: int, num_leapfrog: int) -> tuple[Annealing, Tensor]:
        trial = Annealing(moved, sigmoidal_schedule(max(num_temperatures // 4, 60)), num_leapfrog=num_leapfrog)
        steps = trial.adapt(standard_normal(), generator=generator)
        return Annealing(moved, sigmoidal_schedule(num_temperatures), num_leapfrog=num_leapfrog), steps

    annealing, steps = adapted(target, from_prior, 10)
    ends = resample(annealing.forward(standard_normal(), steps, generator=generator), generator=generator)
    seen = annealing.explore(ends, steps[:, -1], NUM_MOVES, generator=generator)
    for _ in range(2):
        mean, root = fit_gaussian(seen)
        annealing, steps = adapted(recentre(target, mean, root), 60, 5)
        seen = annealing.explore(
            _within(seen[:, -shape[1] :], mean, root), steps[:, -1], NUM_MOVES, generator=generator
        )
        seen = mean[:, None] + seen @ root.mT
    mean, root = fit_gaussian(seen)
    annealing, steps = adapted(recentre(target, mean, root), FROM_GAUSSIAN, 5)
    forward = annealing.forward(standard_normal(), steps, generator=generator)
    exact = None if z is None else _within(z[:, None].expand(shape), mean, root)
    posterior = resample(forward, generator=generator) if exact is None else exact
    backward = annealing.backward(posterior, steps, generator=generator)
    variance = _relative_variance(forward.log_weight) + _relative_variance(-backward.log_weight)
    acceptance = torch.stack([forward.acceptance, backward.acceptance]).mean(0)
    return lower_bound(forward.log_weight), upper_bound(backward.log_weight), variance.sqrt() / 2, acceptance


def _within(z: Tensor, mean: Tensor, root: Tensor) -> Tensor:
    """u with z = mean + root·u, [B, K, D]."""
    columns: Tensor = torch.linalg.solve_triangular(root, (z - mean[:, None]).mT, upper=False)
    return columns.mT


def _relative_variance(log_weight: Tensor) -> Tensor:
    """Of the mean weight, [B, K] → [B]: the delta method's variance of its logarithm."""
    weight = torch.softmax(log_weight, 1)
    return weight.var(1) * log_weight.shape[1]


def measure(stored: StoredModel, inside: Path, outside: Path, file: Path, num_chains: int) -> None:
    """Anneal set after set; each is saved as soon as it is known."""
    torch.set_float32_matmul_precision("medium")  # on a CPU, oneDNN's kernels: on AMD twice as fast, and as exact
    decoder = read_decoder(stored)
    sets: dict[str, Truth] = {}
    print(f"{num_chains} chains each way, {FROM_GAUSSIAN} temperatures")
    for name, images, z in image_sets(inside, outside, decoder, stored.manifest.latent_dim):
        started = time.perf_counter()
        shape = (len(images), num_chains, stored.manifest.latent_dim)
        lower, upper, std_error, acceptance = anneal(
            target_of(decoder, images), z, shape, FROM_PRIOR.get(name, FAMILIAR_FROM_PRIOR)
        )
        sets[name] = Truth(images.numpy(), lower.numpy(), upper.numpy(), std_error.numpy())
        save(file, stored, sets)
        print(
            f"{name:22} acceptance {acceptance.mean():.2f},"
            f" in an image's worst band {acceptance.min():.2f};"
            f" {time.perf_counter() - started:.0f} s",
            flush=True,
        )


def compare(stored: StoredModel, sets: dict[str, Truth]) -> None:
    """How wide the bounds are, and how far the engine's estimates are from their middle."""
    print(f"\n{'nats':22} {'images':>6} {'log P(x)':>9} {'gap: med':>8} {'largest':>8} {'se: med':>8} {'largest':>8}")
    for name, truth in sets.items():
        gap, error = truth.upper - truth.lower, truth.std_error
        print(
            f"{name:22} {len(gap):6} {truth.log_likelihood.mean():9.2f} {np.median(gap):8.3f} {gap.max():8.3f}"
            f" {np.median(error):8.3f} {error.max():8.3f}"
        )
    threadpool_limits(1, user_api="blas")  # as the service does
    model = Model.open(stored, runtime=Runtime("cpu"))
    heads = ("RMSE", "med |e|", "bias", "lowest", "highest", "below", "above")
    print(f"\n{'':22} {'estimate':>14} " + " ".join(f"{head:>8}" for head in heads))
    for name, truth in sets.items():
        for proposal, num_samples in COMPARED:
            found = complete(model.log_likelihood(truth.images, proposal=proposal, num_samples=num_samples, seed=1000))
            error = found.log_likelihood - truth.log_likelihood
            # More than both error bars can explain: who is below has missed mass that the other has seen.
            margin = 0.5 + 4 * np.hypot(found.std_error, 2 * truth.std_error)
            below = (truth.lower - found.log_likelihood > margin).sum()
            above = (found.log_likelihood - truth.upper > margin).sum()
            figures = (np.sqrt((error**2).mean()), np.median(np.abs(error)), error.mean(), error.min(), error.max())
            print(
                f"{name:22} {proposal:>8} {num_samples:5} "
                + " ".join(f"{figure:8.2f}" for figure in figures)
                + f" {below:8} {above:8}",
                flush=True,
            )


def main() -> None:
    """Measure where data is given, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--inside", type=Path)
    parser.add_argument("--outside", type=Path)
    parser.add_argument("--chains", type=int, default=16)
    given = parser.parse_args()
    stored = open_version(BUNDLED, "mnist")
    if given.inside and given.outside:
        measure(stored, given.inside, given.outside, given.file, given.chains)
    compare(stored, load(given.file, stored))


if __name__ == "__main__":
    main()
