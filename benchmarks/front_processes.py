"""What several processes on one port give: `logpx serve` beside `logpx serve --processes N`, in turn.

    python benchmarks/front_processes.py --processes 1 2           # three minutes

Answers a second and p99 of one PNG to encode, of batches of 64 as npy, and of anomaly scores of one PNG; and the memory
of each arrangement with all its children. Each round measures every arrangement for each case. Client and services
share the machine, which should be idle: the first number of `--processes` is what others are compared with.
"""

import argparse
import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import uvloop
from load import Answers, closed_loop, digits, median, npy, png, post, ready, served

from tests.hostile.processes import family, memory

SECONDS = 3.0
BATCH = 64
NPY = "application/x-npy"


def cases() -> dict[str, tuple[Sequence[bytes], int]]:
    """Requests, and how many connections ask for them."""
    images = digits()
    pngs = [png(image) for image in images]
    encode = [post("/v1/encode", image, "image/png") for image in pngs]
    scores = [post("/v1/anomaly-scores", image, "image/png") for image in pngs]
    parts = [images[np.arange(start, start + BATCH) % len(images)] for start in range(0, len(images), 10)]
    batches = [post("/v1/encode", npy(part), NPY, NPY) for part in parts]
    return {
        "encode, 1 connection": (encode, 1),
        "encode, 8": (encode, 8),
        "encode, 32": (encode, 32),
        f"encode npy of {BATCH}, 8": (batches, 8),
        "anomaly scores, 1": (scores, 1),
        "anomaly scores, 32": (scores, 32),
    }


async def measure(ports: dict[int, int], rounds: int) -> None:
    """A line for each case and arrangement."""
    for name, (requests, connections) in cases().items():
        found: dict[int, list[Answers]] = {processes: [] for processes in ports}
        for _ in range(rounds):
            for processes, port in ports.items():
                found[processes].append(await closed_loop(port, requests, connections=connections, seconds=SECONDS))
        first = median([answers.rate for answers in next(iter(found.values()))])
        for processes, answered in found.items():
            rate = median([answers.rate for answers in answered])
            p99 = median([answers.milliseconds(0.99) for answers in answered])
            other = sum(count for answers in answered for status, count in answers.statuses.items() if status != 200)
            print(f"{name:24} {processes:9} {rate:10.0f} {p99:8.2f} {rate / first:8.2f} {other:12}", flush=True)


def main() -> None:
    """Print the table, then the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with ExitStack() as running:
        ports = {}
        for processes in given.processes:
            options = () if processes == 1 else ("--processes", str(processes))
            ports[processes] = running.enter_context(served("-m", "service", "serve", *options))
            for _ in range(20 * processes):  # each connection may be another process's
                asyncio.run(ready(ports[processes]))
        print(f"{'':24} {'processes':>9} {'200/s':>10} {'p99 ms':>8} {'ratio':>8} {'other answers':>12}")
        uvloop.run(measure(ports, given.rounds))
        for processes, root in zip(ports, _children(), strict=True):
            total = sum(memory(one, "VmRSS") for one in family(root)) / 2**20
            print(f"memory of {processes} with decoders and supervisor: {total:.0f} MiB resident")


def _children() -> list[int]:
    return [int(number) for number in Path("/proc/thread-self/children").read_text().split()]


if __name__ == "__main__":
    main()
