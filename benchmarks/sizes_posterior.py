"""What an estimate of log P(x) costs, at the size of any model: decoder rows an image, and time over rows.

    PYTHONPATH=. python benchmarks/sizes_posterior.py --model STORE/NAME --images IMAGES.npy [--count 16] [--thorough]

IMAGES.npy has uint8 images [N, H, W] or [N, C, H, W] of the model's size that it was not trained on. "time/rows":
processor time of the estimates over what as many decoder rows take by themselves. `--thorough` compares with 2000
particles and another seed; modes are searched for as in `auto`, so a mode that both miss is not seen.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store import open_version
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.posterior.estimate import LogLikelihood
from service.engine.runtime import Runtime

_ROWS = 2048


def main() -> None:
    """Print a line for each proposal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="STORE/NAME, the latest version")
    parser.add_argument("--images", type=Path, required=True, help="uint8 array, .npy")
    parser.add_argument("--count", type=int, default=16, help="images")
    parser.add_argument("--thorough", action="store_true", help="compare with 2000 particles and another seed")
    parsed = parser.parse_args()
    model = Model.open(open_version(parsed.model.parent, parsed.model.name), runtime=Runtime("cpu", 1))
    chw = model.description.image.chw
    pixels = np.load(parsed.images)[: parsed.count].reshape(-1, *chw).astype(np.float32) / np.float32(255)
    print(f"{'':10}{'reliable':>9}{'rows':>8}{'ms':>8}{'time/rows':>11}   ({len(pixels)} images of {list(chw)})")
    for proposal in ("auto", "laplace"):
        before, started = model.decoder_rows, time.process_time()
        record = complete(model.log_likelihood(pixels, proposal=proposal))
        rows, seconds = model.decoder_rows - before, time.process_time() - started
        share = seconds / (rows * _seconds_a_row(model))
        each = f"{rows / len(pixels):8.0f}{1000 * seconds / len(pixels):8.1f}{share:11.2f}"
        print(f"{proposal:10}{record.reliable.mean():9.2f}{each}", flush=True)
        if parsed.thorough and proposal == "auto":
            _compare(record, model, pixels)


def _seconds_a_row(model: Model) -> float:
    """Of log p(x|z) at points drawn from the prior."""
    sampler, size = model._sampler, model.description.image.size
    points = np.random.default_rng(0).standard_normal((1, _ROWS, sampler.latent_dim))
    x = np.full((1, size), 0.5, np.float32)
    started = time.process_time()
    complete(sampler.log_likelihoods(x, points))
    return (time.process_time() - started) / _ROWS


def _compare(record: LogLikelihood, model: Model, pixels: NDArray[np.float32]) -> None:
    thorough = complete(model.log_likelihood(pixels, proposal="annealed", num_samples=2000, seed=901))
    error = (record.log_likelihood - thorough.log_likelihood)[record.reliable]
    width = 1.96 * np.hypot(record.std_error, thorough.std_error)[record.reliable]
    print(f"  of the reliable ones {(np.abs(error) < width).mean():.2f} are within both error bars; RMSE "
          f"{np.sqrt((error**2).mean()):.2f} nats", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
