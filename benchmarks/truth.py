"""The truth about a bundled model: log P(x) by annealed importance sampling, and how far the engine is from it.

python benchmarks/truth.py truth.npz --inside ../shared/data/mnist --outside ../shared/data/fashion-mnist    # measures
python benchmarks/truth.py truth.npz                                                     # compares the engine again
python benchmarks/truth.py clothes.npz --model fashion-mnist …                           # the same of the 8-bit model
python benchmarks/truth.py ground.npz --ground 4 --inside DIGITS --omniglot FOLDER --font FONT.ttf    # of new ground

Chains from the prior find the posterior; a Gaussian fitted to where they then go starts the chains that count. Those
bound log P(x) from below; chains back bound it from above. They start from a posterior sample: for images that the
model itself drew, the latent code that made them, which is exact. For other images it is the ends of the forward
chains, drawn by weight, which is about right: there the upper bound is approximate, the lower one is not. The truth is
taken to lie in the middle. Nothing here uses the encoder or a mode search, but a mode that no chain finds is missed
here too: where an estimate lies far above the upper bound, the estimate has seen more.
"""

import argparse
import copy
import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from threadpoolctl import threadpool_limits
from torch import Tensor
from truth_images import NUM_IMAGES, ground_sets, image_sets

from model_store import BUNDLED, DECODER, StoredModel, open_version
from service.engine.chunks import complete
from service.engine.model import Model, Pixels
from service.engine.runtime import Runtime
from training.configuration import Configuration
from training.data.splits import to_levels
from training.networks.precision import full_float32
from training.networks.vae import Decoder, build_vae
from training.publish.annealing import (
    Annealing,
    Target,
    automatic_gradient,
    fit_gaussian,
    lower_bound,
    recentre,
    resample,
    sigmoidal_schedule,
    upper_bound,
)

SEED = 3
FROM_PRIOR = {"noise": 2000, "turned by 90 degrees": 500, "shifted": 500}
FROM_PRIOR |= dict.fromkeys(("thresholded elsewhere", "elsewhere", "inverted", "omniglot", "letters"), 1000)
"""Temperatures of the first run: the less an image fits the model, the further its posterior is from the prior."""
FAMILIAR_FROM_PRIOR = 250
FROM_GAUSSIAN = 400
"""Temperatures of the run that counts."""
NUM_MOVES = 100
"""Within the posterior, to fit a Gaussian to."""
TOLERANCE = 1e-5
"""Of the decoder's outputs, relative to the largest: how far PyTorch may be from ONNX Runtime."""
COMPARED = (("auto", 400), ("laplace", 400), ("laplace", 50_000), ("encoder", 5000))


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is known of one set of images; nats, [N] each."""

    images: Pixels
    """[N, C, H, W], as the model takes them."""
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    std_error: NDArray[np.float64]
    """Of the middle, from the spread of the chains."""

    @property
    def log_likelihood(self) -> NDArray[np.float64]:
        """The middle of the two bounds."""
        return np.asarray((self.lower + self.upper) / 2)


def save(file: Path, stored: StoredModel, sets: dict[str, Truth]) -> None:
    """Write all sets, and which decoder they are true of; images in 8 bits."""
    levels = [np.rint(255 * truth.images).astype(np.uint8) for truth in sets.values()]
    np.savez_compressed(
        file,
        decoder=np.array(_digest(stored)),
        set=np.concatenate([np.full(len(truth.lower), name) for name, truth in sets.items()]),
        images=np.concatenate(levels),
        lower=np.concatenate([truth.lower for truth in sets.values()]),
        upper=np.concatenate([truth.upper for truth in sets.values()]),
        std_error=np.concatenate([truth.std_error for truth in sets.values()]),
    )


def load(file: Path, stored: StoredModel) -> dict[str, Truth]:
    """What `save` wrote; a truth about another decoder is none."""
    with np.load(file) as found:
        if str(found["decoder"]) != _digest(stored):
            raise SystemExit(f"{file} was measured with another decoder than {stored.path / DECODER}")
        pixels = found["images"].astype(np.float32) / np.float32(255)
        sets = {name: found["set"] == name for name in dict.fromkeys(found["set"].tolist())}
        return {
            name: Truth(pixels[chosen], *(found[key][chosen] for key in ("lower", "upper", "std_error")))
            for name, chosen in sets.items()
        }


def _digest(stored: StoredModel) -> str:
    return hashlib.sha256(stored.decoder).hexdigest()


def read_decoder(stored: StoredModel) -> Decoder:
    """The stored graph as training's decoder, by the names of its weights. Checked on ONNX Runtime."""
    chosen = stored.manifest.provenance.configuration
    known = {field.name for field in dataclasses.fields(Configuration)}
    configuration = Configuration(**{name: value for name, value in chosen.items() if name in known})
    decoder = build_vae(configuration, torch.full(stored.manifest.image.chw, 0.5)).decoder
    graph = onnx.load_from_string(stored.decoder).graph
    arrays = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    decoder.load_state_dict({name: arrays[name] for name in decoder.state_dict()})
    decoder.requires_grad_(False)
    z = 2 * torch.randn(500, stored.manifest.latent_dim, generator=torch.Generator().manual_seed(SEED))
    found = Runtime("cpu").open(stored.decoder, stored.path / DECODER).run({"z": z.numpy()})
    for name, parameter in zip(decoder.likelihood.outputs, decoder(z), strict=True):
        difference = float(np.abs(parameter.numpy() - found[name]).max() / np.abs(found[name]).max())
        if not difference <= TOLERANCE:
            raise SystemExit(f"the decoder in PyTorch differs from ONNX Runtime's by {difference:.2g}, relatively")
        print(f"decoder in PyTorch against ONNX Runtime: {name} differs by at most {difference:.1e} of the largest")
    return decoder


def target_of(decoder: Decoder, images: Tensor) -> Target:
    """log p(x|z) in float64, and its gradient in float32, exact enough to move by."""
    precise = copy.deepcopy(decoder).double()
    x = images.flatten(1).unsqueeze(1)  # [B, 1, P]
    levels = decoder.likelihood.levels
    exact = x.double() if levels is None else to_levels(x.double(), levels)

    def log_prob(network: Decoder, x: Tensor, z: Tensor) -> Tensor:
        parameters = (each.flatten(1).unflatten(0, z.shape[:2]) for each in network(z.flatten(0, 1)))  # [B, K, P]
        return network.likelihood.log_prob(x, *parameters)

    coarse = automatic_gradient(lambda z: log_prob(decoder, x, z))
    return Target(lambda z: log_prob(precise, exact, z), lambda z: coarse(z.float()))


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


Sets = Callable[[Decoder], Iterator[tuple[str, Tensor, Tensor | None]]]


@full_float32()
def measure(stored: StoredModel, sets_of: Sets, file: Path, num_chains: int) -> None:
    """Anneal set after set; each is saved as soon as it is known."""
    decoder = read_decoder(stored)
    sets: dict[str, Truth] = {}
    print(f"{num_chains} chains each way, {FROM_GAUSSIAN} temperatures")
    for name, images, z in sets_of(decoder):
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
    heads = ("RMSE", "med |e|", "bias", "lowest", "highest", "below", "above", "reliable", "covered")
    print(f"\n{'':22} {'estimate':>14} " + " ".join(f"{head:>8}" for head in heads))
    for name, truth in sets.items():
        for proposal, num_samples in COMPARED:
            found = complete(model.log_likelihood(truth.images, proposal=proposal, num_samples=num_samples, seed=1000))
            error = found.log_likelihood - truth.log_likelihood
            # More than both error bars can explain: who is below has missed mass that the other has seen.
            margin = 0.5 + 4 * np.hypot(found.std_error, 2 * truth.std_error)
            below = (truth.lower - found.log_likelihood > margin).sum()
            above = (found.log_likelihood - truth.upper > margin).sum()
            within = np.abs(error) < 1.96 * np.hypot(found.std_error, truth.std_error)
            covered = f"{within[found.reliable].mean():.2f}" if found.reliable.any() else "–"
            figures = (np.sqrt((error**2).mean()), np.median(np.abs(error)), error.mean(), error.min(), error.max())
            print(
                f"{name:22} {proposal:>8} {num_samples:5} "
                + " ".join(f"{figure:8.2f}" for figure in figures)
                + f" {below:8} {above:8} {found.reliable.mean():8.2f} {covered:>8}",
                flush=True,
            )


def main() -> None:
    """Measure where data is given, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--store", type=Path, default=BUNDLED)
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--inside", type=Path)
    parser.add_argument("--outside", type=Path)
    parser.add_argument("--chains", type=int, default=16)
    parser.add_argument("--ground", type=int, default=0, help="images a set of ground that nothing was tuned on")
    parser.add_argument("--omniglot", type=Path, help="folder of omniglot.npz, for --ground")
    parser.add_argument("--font", type=Path, help="TrueType file to draw letters with, for --ground")
    given = parser.parse_args()
    stored = open_version(given.store, given.model)
    if given.ground:
        if not (given.inside and given.omniglot and given.font):
            parser.error("--ground needs --inside, --omniglot and --font")
        new = {"omniglot": given.omniglot, "font": given.font, "count": given.ground}
        sets = partial(ground_sets, stored, inside=given.inside, seed=SEED, **new)
        measure(stored, sets, given.file, given.chains)
    elif given.inside and given.outside:
        if given.model not in NUM_IMAGES:
            parser.error(f"--outside is for {', '.join(NUM_IMAGES)}")
        sets = partial(image_sets, stored, inside=given.inside, outside=given.outside, seed=SEED)
        measure(stored, sets, given.file, given.chains)
    compare(stored, load(given.file, stored))


if __name__ == "__main__":
    main()
