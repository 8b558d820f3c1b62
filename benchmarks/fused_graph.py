"""What does a log weight cost beside the decoder alone, and beside pythae on the same weights?

python benchmarks/fused_graph.py                                                  # ours alone
python -m venv VENV && VENV/bin/pip install torch==2.13.0 pythae==0.1.2           # the peer, in its own environment
python benchmarks/fused_graph.py --pythae-python VENV/bin/python

The bundled model; every way has 2 threads and takes its turn in every round. The peer runs in a process of its own
(benchmarks/peers/pythae_scorer.py), which loads the same weights, and its estimates of the same images must agree with
ours. Its `get_nll` is timed as documented and, kinder, without gradients and with a larger batch. It asks for 1000
samples: a multiple of the batch, as `get_nll` silently drops the rest (200 when asked for 250). Run it on an idle
machine: beside other load, PyTorch's threads, which spin for each other, lose more than ours do.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from model_store import BUNDLED, DECODER, StoredModel, open_version
from service.engine import graphs
from service.engine.chunks import complete
from service.engine.format1 import likelihood_graph_of
from service.engine.model import Model, Pixels
from service.engine.runtime import Runtime
from service.engine.verification import read_graphs

ROOT = Path(__file__).parents[1]
THREADS = 2
ROWS = 512
IMAGES = 4
NUM_SAMPLES = 1000
WARM_UP = 0.1  # share of the rounds
Way = Callable[[], float]
"""One round: microseconds a row."""


def timed(run: Callable[[], object], rows: int) -> Way:
    """Microseconds a row of one call."""

    def measure() -> float:
        started = time.perf_counter()
        run()
        return 1e6 * (time.perf_counter() - started) / rows

    return measure


def ours(stored: StoredModel, images: Pixels) -> dict[str, Way]:
    """The decoder alone, the fused graph, and the whole estimate."""
    manifest, runtime = stored.manifest, Runtime("cpu", THREADS)
    written = read_graphs(manifest, stored.encoder, stored.decoder, likelihood_graph_of(stored), stored.path)
    pixels, latent_dim = manifest.image.size, manifest.latent_dim
    fused = runtime.open(written.log_weight(), stored.path / DECODER)
    decoder = runtime.open(stored.decoder, stored.path / DECODER)
    model = Model.open(stored, runtime=runtime)
    z = np.random.default_rng(0).standard_normal((ROWS, latent_dim)).astype(np.float32)
    x = images[:1].reshape(1, 1, pixels)
    zeros = np.zeros((1, 1, latent_dim), np.float32)
    inputs = {
        graphs.X: x,
        graphs.MEAN: zeros,
        graphs.LOG_VAR: zeros,
        graphs.NOISE: z[None],
        graphs.SHAPE: np.array([1, ROWS, -1], np.int64),
    }

    def decode_then_numpy() -> NDArray[np.float32]:
        logits = decoder.run({"z": z})["logits"].reshape(ROWS, pixels)
        return np.asarray((x[0] * logits - np.logaddexp(0, logits)).sum(axis=1))

    def estimate() -> object:
        return complete(model.log_likelihood(images, proposal="encoder", num_samples=NUM_SAMPLES))

    return {
        "decoder alone": timed(lambda: decoder.run({"z": z}), ROWS),
        "fused log weight": timed(lambda: fused.run(inputs), ROWS),
        "decoder, then NumPy": timed(decode_then_numpy, ROWS),
        "log_likelihood, encoder proposal": timed(estimate, len(images) * NUM_SAMPLES),
    }


class Peer:
    """The child process; it answers one way's name with one round's time and estimate."""

    def __init__(self, python: Path, stored: StoredModel, images: Pixels) -> None:
        arrays = {"x": images}
        for prefix, graph in (("encoder", stored.encoder), ("decoder", stored.decoder)):
            for tensor in onnx.load_from_string(graph).graph.initializer:
                arrays[f"{prefix}.{tensor.name}"] = numpy_helper.to_array(tensor)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "weights.npz"
            np.savez(file, allow_pickle=False, **arrays)
            script = ROOT / "benchmarks" / "peers" / "pythae_scorer.py"
            self._process = subprocess.Popen(
                [python, script, file, str(THREADS), str(NUM_SAMPLES)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self.names: list[str] = self._read()
        self._rows = len(images) * NUM_SAMPLES
        self.estimates: dict[str, list[float]] = {name: [] for name in self.names}

    def way(self, name: str) -> Way:
        """Ask for one round."""

        def measure() -> float:
            assert self._process.stdin is not None
            self._process.stdin.write(name + "\n")
            self._process.stdin.flush()
            answer = self._read()
            self.estimates[name].append(answer["log_likelihood"])
            return float(1e6 * answer["seconds"] / self._rows)

        return measure

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the peer ended with status {self._process.wait()}")
        return json.loads(line)


def interleave(ways: dict[str, Way], rounds: int) -> dict[str, float]:
    """Median microseconds a row; each way takes one turn a round."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            time.sleep(0.005)  # the other process's threads spin for a while after their work
            taken[name].append(way())
    return {name: statistics.median(values[int(WARM_UP * rounds) :]) for name, values in taken.items()}


def check_agreement(stored: StoredModel, images: Pixels, peer: Peer) -> None:
    """The same images, the same number of samples, different noise: the means over rounds must agree."""
    model = Model.open(stored, runtime=Runtime("cpu", THREADS))
    repeats = min(len(values) for values in peer.estimates.values())

    def estimate(seed: int) -> float:
        record = complete(model.log_likelihood(images, proposal="encoder", num_samples=NUM_SAMPLES, seed=seed))
        return float(record.log_likelihood.mean())

    estimates = {"ours": [estimate(seed) for seed in range(repeats)], **peer.estimates}
    print(f"\nmean log P(x) of {len(images)} test digits, K = {NUM_SAMPLES}, in nats")
    for name, values in estimates.items():
        std_error = statistics.stdev(values) / len(values) ** 0.5
        print(f"{name:36} {statistics.mean(values):9.3f} ± {std_error:.3f} over {len(values)} rounds")
        if abs(statistics.mean(values) - statistics.mean(estimates["ours"])) > 0.3:
            raise SystemExit(f"{name} does not estimate the same quantity")


def main() -> None:
    """Print microseconds a row, interleaved round by round, and rates relative to the decoder alone and the peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythae-python", type=Path, help="python of the environment that has pythae")
    parser.add_argument("--rounds", type=int, default=50)
    given = parser.parse_args()
    stored = open_version(BUNDLED, "mnist")
    with np.load(ROOT / "tests" / "data" / "digits.npz", allow_pickle=False) as archive:
        images = (archive["test"][:IMAGES, None] > 127).astype(np.float32)  # [N, 1, 28, 28]
    ways = ours(stored, images)
    peer = Peer(given.pythae_python, stored, images) if given.pythae_python else None
    if peer is not None:
        ways |= {name: peer.way(name) for name in peer.names}
    median = interleave(ways, given.rounds)
    base, fused = median["decoder alone"], median["fused log weight"]
    heads = f"{'µs/row':>8} {'rate of decoder alone':>22} {'× fused log weight':>19}"
    print(f"{f'{THREADS} threads, {given.rounds} rounds':36} {heads}")
    for name, value in median.items():
        print(f"{name:36} {value:8.2f} {base / value:22.2f} {value / fused:19.2f}")
    if peer is not None:
        check_agreement(stored, images, peer)
        peer.close()


if __name__ == "__main__":
    main()
