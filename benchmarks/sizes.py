"""What serving costs at each size of image, by network: encode, decode, log P(x), anomaly score, and memory.

    PYTHONPATH=. python benchmarks/sizes.py [--sizes 28 64 128 256] [--plot cost.png] [--write sizes.csv]

Weights are untrained but for the pixels' mean and spread: what a run of a graph costs does not depend on them. How many
decoder rows an estimate takes does, so log P(x) and scores are timed by importance sampling from the encoder, with as
many samples for all; `rows_per_second` tells what other proposals cost (`auto` takes 400 to 2000 rows an image). Every
model is measured in a process of its own, on one thread; times are of the processor. Images are made by a computer:
their spectrum falls as 1/f, as that of photographs does.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np

CHANNELS = {"grey": 1, "rgb": 3}
NETWORKS: dict[str, dict[str, object]] = {
    "mlp": {"preset": "mlp"},
    "resnet": {"preset": "resnet"},
    "resnet, width 8, depth 1": {"preset": "resnet", "width": 8, "depth": 1},
}
SAMPLES, BATCH, ROWS = 128, 16, 512
_SECONDS = 0.2  # that a figure is measured for, at least
FIELDS = ("size", "colour", "network", "weights_mib", "encode_ms", "encode_ms_in_batch", "decode_ms", "rows_per_second",
          "log_likelihood_ms", "score_ms", "score_ms_in_batch", "memory_mib")  # fmt: skip


def measure(size: int, colour: str, network: str) -> dict[str, object]:
    """All figures of one model, milliseconds an image."""
    import torch

    from service.engine.chunks import complete
    from service.engine.runtime import Runtime
    from tests.exporter import operators_looked_up_once
    from tests.training.photographs import photographs
    from training.data.splits import DataSplits
    from training.fit.recipes import complete_configuration
    from training.fit.run import describe_run
    from training.networks.vae import build_vae
    from training.publish.evaluation import Protocol, in_unit_interval
    from training.publish.export import export
    from training.publish.publication import describe, load_engine

    torch.set_num_threads(1)
    images = photographs(BATCH, size, size, channels=CHANNELS[colour])
    splits = DataSplits("photographs", "0" * 64, images, images, images, images)
    configuration = complete_configuration(NETWORKS[network], images)
    run = describe_run(configuration, splits, source="made")  # refuses what is too large
    vae = build_vae(configuration, splits.pixel_mean(), splits.pixel_spread())
    with operators_looked_up_once():
        graphs = export(vae)
    protocol = Protocol("encoder", SAMPLES, 0)
    del vae
    before = _memory_mib()
    model = load_engine(describe(run, "sizes", protocol), graphs, runtime=Runtime("cpu", 1))
    x = in_unit_interval(images)
    latents = np.random.default_rng(0).standard_normal((ROWS, configuration.latent_dim)).astype(np.float32)
    effort = {"proposal": "encoder", "num_samples": SAMPLES}

    def score(pixels: "np.typing.NDArray[np.float32]") -> object:
        return complete(model.statistics(pixels, **effort, seed=0))  # type: ignore[arg-type]

    rows = _seconds(lambda: complete(model.log_likelihood(x[:1], proposal="encoder", num_samples=10 * SAMPLES)))
    found = {
        "size": size,
        "colour": colour,
        "network": network,
        "weights_mib": model.graph_bytes / 2**20,
        "encode_ms": 1000 * _seconds(lambda: complete(model.encode(x[:1]))),
        "encode_ms_in_batch": 1000 * _seconds(lambda: complete(model.encode(x))) / BATCH,
        "decode_ms": 1000 * _seconds(lambda: complete(model.decode(latents[:1]))),
        "rows_per_second": 10 * SAMPLES / rows,
        "log_likelihood_ms": 1000 * _seconds(lambda: complete(model.log_likelihood(x[:1], **effort))),  # type: ignore[arg-type]
        "score_ms": 1000 * _seconds(lambda: score(x[:1])),
        "score_ms_in_batch": 1000 * _seconds(lambda: score(x)) / BATCH,
    }
    return found | {"memory_mib": _memory_mib() - before}


def _seconds(what: Callable[[], object]) -> float:
    """Of the processor, of the fastest call."""
    what()
    times: list[float] = []
    while sum(times) < _SECONDS or len(times) < 2:
        started = time.process_time()
        what()
        times.append(time.process_time() - started)
    return min(times)


def _memory_mib() -> float:
    """The most that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def plot(rows: list[dict[str, object]], file: Path) -> None:
    """Anomaly score of one image by its number of pixels times channels, a line a network."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.8), dpi=110)
    for colour, style in (("grey", "-"), ("rgb", "--")):
        for index, network in enumerate(NETWORKS):
            points = sorted(
                (row for row in rows if (row["colour"], row["network"]) == (colour, network)),
                key=lambda row: int(str(row["size"])),
            )
            if not points:
                continue
            numbers = [int(str(row["size"])) ** 2 * CHANNELS[colour] for row in points]
            times = [float(str(row["score_ms"])) for row in points]
            label = f"{network}, {'colour' if colour == 'rgb' else colour}"
            axes.plot(numbers, times, style, marker="o", markersize=3, color=f"C{index}", label=label)
    axes.set(xscale="log", yscale="log", xlabel="pixels × channels", ylabel=f"ms a score, {SAMPLES} decoder rows")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    """Measure every model, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[28, 64, 128, 256])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--colours", nargs="*", default=list(CHANNELS), choices=list(CHANNELS))
    parser.add_argument("--plot", type=Path, help="draw the anomaly score's time to this PNG file")
    parser.add_argument(
        "--write", type=Path, help="write the table to this CSV file; what is in it is not measured again"
    )
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # size, colour and network: in a process of its own
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(int(given.one[0]), given.one[1], given.one[2])))
        return
    rows = _read(given.write)
    print("  ".join(FIELDS))
    for network, colour, size in product(given.networks, given.colours, given.sizes):
        if any((row["size"], row["colour"], row["network"]) == (str(size), colour, network) for row in rows):
            continue
        command = [sys.executable, __file__, "--one", str(size), colour, network]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.splitlines() or ["no message"])[-1]
            print(f"{size}  {colour}  {network}: {last}", flush=True)
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        shown = (rows[-1][field] for field in FIELDS)
        print("  ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in shown), flush=True)
        _write(rows, given.write)
    if given.plot:
        plot(rows, given.plot)


def _read(file: Path | None) -> list[dict[str, object]]:
    """What was measured before."""
    if file is None or not file.exists():
        return []
    with file.open(newline="") as stream:
        return [dict(row) for row in csv.DictReader(stream)]


def _write(rows: list[dict[str, object]], file: Path | None) -> None:
    if file is None:
        return
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
