"""How far is each proposal's estimate of log P(x) from the truth, at what cost, and is its error bar honest?

python benchmarks/accuracy.py --inside ../shared/data/mnist --outside ../shared/data/fashion-mnist

The truth is a long run of the Laplace proposal with noise of its own (50 000 samples; its standard error is printed):
so what both miss, a mode that neither finds, does not show here.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from model_store import BUNDLED, open_version
from service.engine.chunks import complete
from service.engine.model import Model, Pixels
from service.engine.posterior.estimate import LogLikelihood
from service.engine.runtime import Runtime
from training.data.sources import read_source

TRUTH_SAMPLES = 50_000
PROPOSALS = (("laplace", 400), ("laplace", 1000), ("encoder", 400), ("encoder", 5000))


def image_sets(inside: Path, outside: Path, count: int) -> dict[str, Pixels]:
    """Test digits, the same upside down, thresholded images from elsewhere, and noise; float32 [N, 1, 28, 28]."""
    rng = np.random.default_rng(3)

    def draw(source: Path) -> Pixels:
        test = read_source(source).test
        if test is None:
            raise SystemExit(f"{source} has no test images")
        chosen = test[rng.choice(len(test), count, replace=False)]
        return chosen.astype(np.float32) / np.float32(255 if test.dtype == np.uint8 else 1)

    digits = draw(inside)
    return {
        "test digits": digits,
        "upside down": np.ascontiguousarray(digits[:, :, ::-1]),
        "thresholded elsewhere": (draw(outside)[: count // 2] > 0.5).astype(np.float32),
        "noise": (rng.random((count // 4, *digits.shape[1:])) < 0.5).astype(np.float32),
    }


def row(error: NDArray[np.float64], records: list[LogLikelihood], milliseconds: float) -> str:
    """One line: errors over seeds × images, and how honest the error bars are."""
    std_error = np.array([record.std_error for record in records])
    reliable = np.array([record.reliable for record in records])
    share = np.array([record.effective_sample_size / record.num_samples for record in records])
    inside = np.abs(error) < 1.96 * std_error
    covered = f"{inside[reliable].mean():8.2f}" if reliable.any() else f"{'–':>8}"
    far = (np.abs(error) > 4 * std_error + 0.1)[reliable]
    beyond = f"{far.mean():8.3f}" if reliable.any() else f"{'–':>8}"
    return (
        f"{np.sqrt((error**2).mean()):8.2f} {np.median(np.abs(error)):8.2f} {error.mean():8.2f} {np.median(share):8.3f}"
        f" {reliable.mean():8.2f} {covered} {inside.mean():8.2f} {beyond} {milliseconds:8.2f}"
    )


def main() -> None:
    """Print one table a set of images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inside", type=Path, required=True)
    parser.add_argument("--outside", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=6)
    given = parser.parse_args()
    threadpool_limits(1, user_api="blas")  # as the service does
    model = Model.open(open_version(BUNDLED, "mnist"), runtime=Runtime("cpu"))
    for name, pixels in image_sets(given.inside, given.outside, given.images).items():
        truth = complete(model.log_likelihood(pixels, proposal="laplace", seed=1000, num_samples=TRUTH_SAMPLES))
        print(
            f"\n{name}: {len(pixels)} images x {given.seeds} seeds, log P(x) {truth.log_likelihood.mean():.1f} nats; "
            f"truth's standard error: median {np.median(truth.std_error):.3f}, largest {truth.std_error.max():.2f}"
        )
        heads = ("RMSE", "med |e|", "bias", "ESS/K", "reliable", "covered", "cov. all", "> 4 se", "ms/image")
        print(f"{'':14}" + " ".join(f"{head:>8}" for head in heads))
        for proposal, num_samples in PROPOSALS:
            records, seconds = [], []
            for seed in range(given.seeds if num_samples < 5000 else 2):
                started = time.perf_counter()
                chunks = model.log_likelihood(pixels, proposal=proposal, num_samples=num_samples, seed=seed)
                records.append(complete(chunks))
                seconds.append(time.perf_counter() - started)
            error = np.array([record.log_likelihood for record in records]) - truth.log_likelihood
            milliseconds = 1000 * statistics.median(seconds) / len(pixels)
            print(f"{proposal:>8} {num_samples:<5}{row(error, records, milliseconds)}", flush=True)


if __name__ == "__main__":
    main()
