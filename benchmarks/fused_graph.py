"""What does a log weight cost beside the decoder alone? The bundled model, the same latents, one process.

python benchmarks/fused_graph.py
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray

from model_store import BUNDLED, DECODER, open_version
from service.engine import graphs
from service.engine.graphs import DecoderGraphs
from service.engine.likelihood import likelihood_of
from service.engine.runtime import Runtime

ROWS = 512
ROUNDS = 200


def measure(run: Callable[[], object]) -> float:
    """Microseconds of one call."""
    started = time.perf_counter()
    run()
    return 1e6 * (time.perf_counter() - started)


def main() -> None:
    """Print microseconds a sample, interleaved round by round, and the rate relative to the decoder alone."""
    stored = open_version(BUNDLED, "mnist")
    manifest, runtime = stored.manifest, Runtime("cpu")
    likelihood = likelihood_of(manifest.likelihood)
    pixels, latent_dim = manifest.image.size, manifest.latent_dim
    fused = runtime.open(
        DecoderGraphs(onnx.load_from_string(stored.decoder), likelihood, manifest).log_weight(), stored.path / DECODER
    )
    decoder = runtime.open(stored.decoder, stored.path / DECODER)
    rng = np.random.default_rng(0)
    z = rng.standard_normal((ROWS, latent_dim)).astype(np.float32)
    x = (rng.random((1, 1, pixels)) < 0.2).astype(np.float32)
    zeros = np.zeros((1, 1, latent_dim), np.float32)
    inputs = {
        graphs.X: x,
        graphs.MEAN: zeros,
        graphs.LOG_VAR: zeros,
        graphs.NOISE: z[None],
        graphs.SHAPE: np.array([1, ROWS, pixels], np.int64),
    }

    def decode_then_numpy() -> NDArray[np.float32]:
        logits = decoder.run({"z": z})["logits"].reshape(ROWS, pixels)
        return np.asarray((x[0] * logits - np.logaddexp(0, logits)).sum(axis=1))

    ways: dict[str, Callable[[], object]] = {
        "decoder alone": lambda: decoder.run({"z": z}),
        "fused log weight": lambda: fused.run(inputs),
        "decoder, then NumPy": decode_then_numpy,
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, run in ways.items():
            taken[name].append(measure(run) / ROWS)
    base = statistics.median(taken["decoder alone"][20:])
    print(f"{f'{ROWS} rows, {ROUNDS} rounds':24} {'µs/row':>8} {'rate of decoder alone':>24}")
    for name, values in taken.items():
        median = statistics.median(values[20:])
        print(f"{name:24} {median:8.2f} {base / median:24.2f}")


if __name__ == "__main__":
    main()
