"""A hundred reloads of the running service: resident memory, and what clients notice meanwhile.

python benchmarks/reloads.py

The service runs in a process of its own over a copy of the bundled model, whose manifest is touched before each reload:
the whole version is read, checked, built and run again, and takes the place of the old one.
"""

import shutil
import tempfile
import threading
import time
from pathlib import Path

import httpx2
import numpy as np
from running_service import ROOT, quantiles, resident_mebibytes, score, start

from model_store import BUNDLED

RELOADS = 100
KEY = "a-key-of-the-benchmark"
TOLD = (0, 1, 10, 25, 50, 75, 100)
SECONDS = 15


def probe(url: str, route: str, stop: threading.Event, taken: list[float]) -> None:
    """Ask for a route again and again on a kept connection, until told to stop; milliseconds of each answer."""
    body = (ROOT / "docs" / "seven.png").read_bytes() if route == "/v1/encode" else None
    headers = {"content-type": "image/png"}
    with httpx2.Client(base_url=url, timeout=60) as client:
        while not stop.is_set():
            started = time.perf_counter()
            answer = client.post(route, content=body, headers=headers) if body else client.get(route)
            answer.raise_for_status()
            taken.append(1000 * (time.perf_counter() - started))
            time.sleep(0.005)


def main() -> None:
    """Print latency without and with reloads, the time that one takes, and memory after some of them."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        shutil.copytree(BUNDLED, store)
        manifest = next(store.glob("mnist/*/manifest.json"))
        process, url = start(LOGPX_MODEL_STORE=str(store), LOGPX_ADMIN_KEYS=KEY)
        memory, reloads = [], []
        print(f"{'ms':46} {'median':>8} {'p99':>8} {'max':>8}")
        for reloading in (False, True):
            stop = threading.Event()
            taken: dict[str, list[float]] = {"/livez": [], "/v1/encode": []}
            clients = [threading.Thread(target=probe, args=(url, *item[:1], stop, item[1])) for item in taken.items()]
            for client in clients:
                client.start()
            if not reloading:
                time.sleep(SECONDS)
                score(url, np.zeros((64, 28, 28), np.uint8), "num_samples=400")  # so that memory has seen some use
            for count in range(RELOADS + 1 if reloading else 0):
                if count:
                    manifest.touch()
                    started = time.perf_counter()
                    httpx2.post(f"{url}/v1/admin/reload", headers={"X-API-Key": KEY}, timeout=60).raise_for_status()
                    reloads.append(1000 * (time.perf_counter() - started))
                if count in TOLD:
                    memory.append(resident_mebibytes(process, "VmRSS"))
            stop.set()
            for client in clients:
                client.join()
            for route, milliseconds in taken.items():
                print(f"{route + (', reloads going on' if reloading else ''):46} {quantiles(milliseconds)}")
        print(f"{'one reload':46} {quantiles(reloads)}")
        told = ", ".join(f"{count}: {mebibytes:.0f}" for count, mebibytes in zip(TOLD, memory, strict=True))
        print(f"resident memory, MiB, after reloads: {told}")
        changed = 'logpx_reloads_total{outcome="changed"} ' + f"{RELOADS:.1f}"
        assert changed in httpx2.get(f"{url}/metrics").text
        process.terminate()
        print(f"exit status {process.wait()}")


if __name__ == "__main__":
    main()
