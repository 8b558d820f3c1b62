"""How `/v2` compares with `/v1` on the way of a request: 64 images a request, and one PNG on 32 connections.

python benchmarks/v2_throughput.py

The service runs in a process of its own with its bundled models, and encodes. Batches come as npy to `/v1/encode`, and
as a binary tensor to `/v2/models/mnist.encode/infer`, with answers of the same kind, in both element types, on 4
connections. A PNG comes as itself and as an element of BYTES, on 32 connections, with answers in JSON, and once more
with a binary one. Client and service share the cores that there are. Rounds take turns; what is told is the median of
the ratios of a round, and the lowest and highest. Against other servers: benchmarks/serving_peers.py --v2.
"""

import argparse
import asyncio
import json
import os
from collections.abc import Callable

import numpy as np
from load import closed_loop, digits, median, npy, png, post, served
from numpy.typing import NDArray

BATCH, BATCH_CONNECTIONS, CONNECTIONS = 64, 4, 32
NPY = "application/x-npy"
Digits = NDArray[np.uint8]


def infer(datatype: str, shape: list[int], data: bytes, *, binary: bool) -> bytes:
    """A whole request of `/v2`, as tritonclient writes it."""
    one = {"name": "images", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(data)}}
    document: dict[str, object] = {"inputs": [one]}
    if binary:
        document["parameters"] = {"binary_data_output": True}
    head = json.dumps(document, separators=(",", ":")).encode()
    lines = [
        "POST /v2/models/mnist.encode/infer HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {len(head) + len(data)}",
    ]
    lines.append(f"Inference-Header-Content-Length: {len(head)}")
    return "\r\n".join([*lines, "", ""]).encode() + head + data


def unit(images: Digits) -> NDArray[np.float32]:
    """Pixels in [0, 1]."""
    return images.astype(np.float32) / np.float32(255)


def tensor(images: Digits | NDArray[np.float32]) -> bytes:
    """A batch as a binary tensor, and back."""
    datatype = "UINT8" if images.dtype == np.uint8 else "FP32"
    return infer(datatype, [len(images), 1, 28, 28], images.tobytes(), binary=True)


def element(image: Digits, *, binary: bool) -> bytes:
    """A PNG as the one element of a tensor."""
    file = png(image)
    return infer("BYTES", [1], len(file).to_bytes(4, "little") + file, binary=binary)


WAYS: dict[str, tuple[int, Callable[[Digits], bytes], Callable[[Digits], bytes]]] = {
    # name: (connections, the request of /v1, the request of /v2), of 64 digits or of one
    "64 uint8": (
        BATCH_CONNECTIONS, lambda batch: post("/v1/encode", npy(batch), NPY, NPY), tensor,
    ),
    "64 float32": (
        BATCH_CONNECTIONS,
        lambda batch: post("/v1/encode", npy(unit(batch)), NPY, NPY),
        lambda batch: tensor(unit(batch)),
    ),
    "one PNG, JSON back": (
        CONNECTIONS,
        lambda batch: post("/v1/encode", png(batch[0]), "image/png"),
        lambda batch: element(batch[0], binary=False),
    ),
    "one PNG, bytes back": (
        CONNECTIONS,
        lambda batch: post("/v1/encode", png(batch[0]), "image/png"),
        lambda batch: element(batch[0], binary=True),
    ),
}  # fmt: skip


def rate(port: int, requests: list[bytes], connections: int, seconds: float) -> float:
    """Answers a second; every one must be 200."""
    answers = asyncio.run(closed_loop(port, requests, connections=connections, seconds=seconds))
    if answers.statuses.keys() != {200}:
        raise RuntimeError(f"statuses {dict(answers.statuses)}")
    return answers.rate


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one measurement")
    given = parser.parse_args()
    images = digits()
    batches = [images[np.arange(first, first + BATCH) % len(images)] for first in range(0, len(images), 5)]
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    with served() as port:
        for round_number in range(-1, given.rounds):  # the first warms up
            for name, (connections, first, second) in WAYS.items():
                pair = [[make(batch) for batch in batches] for make in (first, second)]
                order = (0, 1) if round_number % 2 else (1, 0)
                found = {which: rate(port, pair[which], connections, given.seconds) for which in order}
                if round_number >= 0:
                    rates[name].append((found[0], found[1]))
    print(f"{os.cpu_count()} cores, {given.rounds} rounds of {given.seconds:g} s")
    print(f"{'requests a second':22} {'/v1':>8} {'/v2':>8} {'/v2 of /v1':>11} {'lowest':>7} {'highest':>8}")
    for name, pairs in rates.items():
        ratios = [second / first for first, second in pairs]
        v1, v2 = (median([pair[which] for pair in pairs]) for which in (0, 1))
        print(f"{name:22} {v1:8.0f} {v2:8.0f} {median(ratios):11.2f} {min(ratios):7.2f} {max(ratios):8.2f}")


if __name__ == "__main__":
    main()
