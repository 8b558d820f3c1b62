"""Does `/livez` stay quick while a 5000-sample request runs? The service in a process of its own, the bundled model.

python benchmarks/liveness.py
"""

import os
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import numpy as np

SECONDS = 15
IMAGES = 64


def quantiles(milliseconds: list[float]) -> str:
    """Median, 99th percentile and maximum."""
    ordered = sorted(milliseconds)
    return f"{statistics.median(ordered):8.2f} {ordered[int(0.99 * len(ordered))]:8.2f} {ordered[-1]:8.2f}"


def probe(url: str, seconds: float) -> list[float]:
    """Ask for `/livez` once every 10 ms on a kept connection; milliseconds of each answer."""
    taken: list[float] = []
    with httpx2.Client(base_url=url) as client:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            started = time.perf_counter()
            client.get("/livez").raise_for_status()
            taken.append(1000 * (time.perf_counter() - started))
            time.sleep(0.01)
    return taken


def main() -> None:
    """Print a table: idle, and under an endless 5000-sample request."""
    process = subprocess.Popen(
        [sys.executable, "-m", "service"],
        env={**os.environ, "LOGPX_PORT": "0"},
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout is not None
    url = next(found[0] for line in process.stdout if (found := re.search(r"http://[\d.:]+", line)))
    threading.Thread(target=process.stdout.read, daemon=True).start()
    while httpx2.get(f"{url}/readyz").status_code != 200:
        time.sleep(0.05)
    idle = probe(url, SECONDS / 3)

    stop, done = threading.Event(), []
    body = (np.random.default_rng(0).random((IMAGES, 28, 28)) < 0.3).astype(np.float32)
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    header += f"{{'descr': '<f4', 'fortran_order': False, 'shape': {body.shape}, }}".ljust(117).encode() + b"\n"

    def load() -> None:
        while not stop.is_set():
            answer = httpx2.post(
                f"{url}/v1/log-likelihood?proposal=encoder&num_samples=5000",
                content=header + body.tobytes(),
                headers={"content-type": "application/x-npy"},
                timeout=300,
            )
            done.append(answer.raise_for_status())

    worker = threading.Thread(target=load)
    worker.start()
    time.sleep(1)
    busy = probe(url, SECONDS)
    stop.set()
    worker.join()
    process.terminate()
    print(f"{'/livez, ms':42} {'median':>8} {'p99':>8} {'max':>8}")
    print(f"{'idle':42} {quantiles(idle)}")
    print(f"{f'{IMAGES} images x 5000 samples, always one running':42} {quantiles(busy)}")
    print(f"{len(busy)} probes beside {len(done)} such requests; exit status {process.wait()}")


if __name__ == "__main__":
    main()
