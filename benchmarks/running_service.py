"""The running service: `/livez` beside a long request, one image's latency, memory of a large request.

python benchmarks/running_service.py

The service runs in a process of its own, with the bundled model and default settings.
"""

import io
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
from numpy.typing import NDArray

SECONDS = 15
REQUESTS = 200
ROOT = Path(__file__).parents[1]


def start(**settings: str) -> tuple["subprocess.Popen[str]", str]:
    """The process and its address, once it is ready, with these `LOGPX_` settings."""
    process = subprocess.Popen(
        [sys.executable, "-m", "service"],
        env={**os.environ, "LOGPX_PORT": "0", **settings},
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    url = next(found[0] for line in process.stdout if (found := re.search(r"http://[\d.:]+", line)))
    threading.Thread(target=process.stdout.read, daemon=True).start()
    while httpx2.get(f"{url}/readyz").status_code != 200:
        time.sleep(0.05)
    return process, url


def score(url: str, images: NDArray[np.uint8], query: str) -> httpx2.Response:
    """POST images to `/v1/log-likelihood` as npy."""
    body = io.BytesIO()
    np.save(body, images)
    headers = {"content-type": "application/x-npy"}
    answer = httpx2.post(f"{url}/v1/log-likelihood?{query}", content=body.getvalue(), headers=headers, timeout=300)
    return answer.raise_for_status()


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


def probe_beside_long_requests(url: str, images: NDArray[np.uint8]) -> tuple[list[float], int]:
    """`/livez` while a 5000-sample request is always running; and how many of those there were."""
    stop = threading.Event()
    done: list[httpx2.Response] = []

    def load() -> None:
        while not stop.is_set():
            done.append(score(url, images, "proposal=encoder&num_samples=5000"))

    worker = threading.Thread(target=load)
    worker.start()
    time.sleep(1)
    taken = probe(url, SECONDS)
    stop.set()
    worker.join()
    return taken, len(done)


def compute_milliseconds(answer: httpx2.Response) -> float:
    """What the service says it computed."""
    found = re.search(r"compute;dur=([\d.]+)", answer.headers["server-timing"])
    assert found is not None
    return float(found[1])


def resident_mebibytes(process: "subprocess.Popen[str]", field: str) -> float:
    """`VmRSS` now, or `VmHWM` at most so far."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def main() -> None:
    """Print the three parts."""
    with np.load(ROOT / "tests" / "data" / "digits.npz", allow_pickle=False) as archive:
        digits = np.concatenate([archive["test"], archive["train"]])  # [300, 28, 28]
    process, url = start()
    print(f"{'ms':46} {'median':>8} {'p99':>8} {'max':>8}")
    print(f"{'/livez, idle':46} {quantiles(probe(url, SECONDS / 3))}")
    single = [compute_milliseconds(score(url, digits[i % 100, None], "proposal=laplace")) for i in range(REQUESTS)]
    print(f"{'one digit, laplace, compute':46} {quantiles(single[20:])}")
    before = resident_mebibytes(process, "VmRSS")
    score(url, digits[:256], "proposal=encoder&num_samples=5000")
    peak = resident_mebibytes(process, "VmHWM")
    busy, count = probe_beside_long_requests(url, digits[:64])
    print(f"{'/livez, 64 images x 5000 samples always running':46} {quantiles(busy)}")
    print(f"{len(busy)} probes beside {count} such requests")
    print(f"256 images x 5000 samples: resident memory {before:.0f} MiB before, {peak:.0f} at most")
    process.terminate()
    print(f"exit status {process.wait()}")


if __name__ == "__main__":
    main()
