"""Minutes of mixed traffic: does memory grow, does the event loop block, does anything fail?

python benchmarks/soak.py --minutes 10

The service runs in a process of its own. Eight clients ask for everything at random, among it 5000-sample requests,
malformed bodies, and requests whose client goes away. One more process asks for `/livez` every 10 ms: the event loop
cannot have been blocked for longer than the slowest answer took. That also holds what the prober and the loop waited
for a core; by how much the prober's sleeps overran shows how long such waits are.
"""

import argparse
import io
import json
import random
import socket
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPConnection
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import httpx2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from running_service import resident_mebibytes, start

ROOT = Path(__file__).parents[1]
CLIENTS = 8
PAUSE = 0.04  # seconds between two requests of a client, at most
NPY = "application/x-npy"
Digits = NDArray[np.uint8]
Action = Callable[["Traffic", httpx2.Client, random.Random], int]
"""Asks for something and returns the answer's status, or 0 where the client did not wait for one."""


class Traffic:
    """What is asked, and what was answered."""

    def __init__(self, url: str, digits: Digits) -> None:
        self.url = url
        self.stop = threading.Event()
        self.answers: Counter[tuple[str, int]] = Counter()
        self._digits = digits
        self._counting = threading.Lock()

    def client(self, seed: int) -> None:
        """One client's life."""
        rng = random.Random(seed)
        names = list(ACTIONS)
        with httpx2.Client(base_url=self.url, timeout=120) as client:
            while not self.stop.is_set():
                name = rng.choice(names)
                try:
                    status = ACTIONS[name](self, client, rng)
                except (httpx2.HTTPError, OSError):
                    status = -1
                with self._counting:
                    self.answers[name, status] += 1
                time.sleep(rng.random() * PAUSE)

    def digits(self, rng: random.Random, count: int) -> Digits:
        """Some digits [count, 28, 28]."""
        return self._digits[[rng.randrange(len(self._digits)) for _ in range(count)]]

    def encode_png(self, client: httpx2.Client, rng: random.Random) -> int:
        """The commonest request."""
        body = png(self.digits(rng, 1)[0])
        return client.post("/v1/encode", content=body, headers={"content-type": "image/png"}).status_code

    def encode_npy(self, client: httpx2.Client, rng: random.Random) -> int:
        """Arrays in and out."""
        headers = {"content-type": NPY, "accept": NPY}
        return client.post("/v1/encode", content=npy(self.digits(rng, 64)), headers=headers).status_code

    def encode_json(self, client: httpx2.Client, rng: random.Random) -> int:
        """Nested numbers."""
        return client.post("/v1/encode", json={"images": (self.digits(rng, 4) / 255).tolist()}).status_code

    def decode(self, client: httpx2.Client, rng: random.Random) -> int:
        """Latents of any count."""
        latents = [[rng.gauss(0, 1) for _ in range(50)] for _ in range(rng.randint(1, 16))]
        return client.post("/v1/decode", json={"latents": latents}).status_code

    def samples(self, client: httpx2.Client, rng: random.Random) -> int:
        """A grid."""
        return client.get(f"/v1/samples?n={rng.randint(1, 64)}", headers={"accept": "image/png"}).status_code

    def log_likelihood(self, client: httpx2.Client, rng: random.Random) -> int:
        """The default estimate."""
        body = png(self.digits(rng, 1)[0])
        return client.post("/v1/log-likelihood", content=body, headers={"content-type": "image/png"}).status_code

    def many_samples(self, client: httpx2.Client, rng: random.Random) -> int:
        """The longest request."""
        body = npy(self.digits(rng, 8))
        return client.post(LONG, content=body, headers={"content-type": NPY}).status_code

    def anomaly_scores(self, client: httpx2.Client, rng: random.Random) -> int:
        """A form with files."""
        files = [("images", (f"{i}.png", png(digit), "image/png")) for i, digit in enumerate(self.digits(rng, 2))]
        return client.post("/v1/anomaly-scores", files=files).status_code

    def malformed(self, client: httpx2.Client, rng: random.Random) -> int:
        """Noise, or a good body cut short, under any content type; a PNG's last 16 bytes hold no pixel."""
        whole = rng.choice(
            (png(self.digits(rng, 1)[0]), npy(self.digits(rng, 2)), json.dumps({"images": [[0]]}).encode())
        )
        body = (
            whole[: rng.randrange(1, max(2, len(whole) - 16))]
            if rng.random() < 0.5
            else rng.randbytes(rng.randrange(1, 3000))
        )
        kind = rng.choice(("image/png", NPY, "application/json", "multipart/form-data; boundary=x", "text/plain"))
        return client.post("/v1/encode", content=body, headers={"content-type": kind}).status_code

    def disconnect(self, client: httpx2.Client, rng: random.Random) -> int:
        """Go away in the middle of the upload, or of the work."""
        body = npy(self.digits(rng, 64))
        host, port = self.url.removeprefix("http://").split(":")
        head = f"POST {LONG} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {NPY}\r\nContent-Length: {len(body)}\r\n\r\n"
        sent = rng.choice((len(body) // 2, len(body)))
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + body[:sent])
            time.sleep(rng.random() * PAUSE)
        return 0

    def look_around(self, client: httpx2.Client, rng: random.Random) -> int:
        """What machines and people look at."""
        return client.get(rng.choice(("/v1/models", "/v1/models/mnist", "/metrics", "/readyz"))).status_code


LONG = "/v1/log-likelihood?proposal=encoder&num_samples=5000"
ACTIONS: dict[str, Action] = {
    "encode PNG": Traffic.encode_png,
    "encode npy": Traffic.encode_npy,
    "encode JSON": Traffic.encode_json,
    "decode": Traffic.decode,
    "samples": Traffic.samples,
    "log-likelihood": Traffic.log_likelihood,
    "log-likelihood, 5000 samples": Traffic.many_samples,
    "anomaly scores": Traffic.anomaly_scores,
    "malformed": Traffic.malformed,
    "disconnect": Traffic.disconnect,
    "models, metrics, readiness": Traffic.look_around,
}
SPECIAL = {0: "no answer wanted", -1: "no answer"}
EXPECTED = {"malformed": {415, 422}, "disconnect": {0}}


def png(digit: Digits) -> bytes:
    """An image file."""
    stream = io.BytesIO()
    Image.fromarray(digit).save(stream, "PNG")
    return stream.getvalue()


def npy(array: Digits) -> bytes:
    """An npy file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def probe(url: str, results: Connection) -> None:
    """Until told to stop: milliseconds of `/livez`, and by how much the sleeps in between overran."""
    connection = HTTPConnection(url.removeprefix("http://"))
    taken, overran = [], []
    while not results.poll():
        started = time.perf_counter()
        connection.request("GET", "/livez")
        connection.getresponse().read()
        answered = time.perf_counter()
        time.sleep(0.01)
        taken.append(1000 * (answered - started))
        overran.append(1000 * (time.perf_counter() - answered - 0.01))
    results.send((taken, overran))


def watch(process: "subprocess.Popen[str]", minutes: float) -> tuple[float, float]:
    """Resident MiB at the end of the first minute and of the last: medians over ten seconds."""
    memory: list[float] = []
    started = time.monotonic()
    while time.monotonic() - started < 60 * minutes:
        memory.append(resident_mebibytes(process, "VmRSS"))
        if len(memory) % 60 == 0:
            print(f"minute {len(memory) // 60}: {memory[-1]:.0f} MiB", flush=True)
        time.sleep(1 - (time.monotonic() - started) % 1)
        if process.poll() is not None:
            raise SystemExit(f"the service ended with status {process.returncode}")
    return statistics.median(memory[50:60]), statistics.median(memory[-10:])


def main() -> None:
    """Print what was asked and answered, then the three bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    minutes = parser.parse_args().minutes
    if minutes < 2:
        parser.error("the first minute is the measure: at least 2")
    with np.load(ROOT / "tests" / "data" / "digits.npz", allow_pickle=False) as archive:
        digits = np.concatenate([archive["test"], archive["train"]])  # [300, 28, 28]
    process, url = start()
    traffic = Traffic(url, digits)
    clients = [threading.Thread(target=traffic.client, args=(seed,)) for seed in range(CLIENTS)]
    context = get_context("spawn")
    results, theirs = context.Pipe()
    prober = context.Process(target=probe, args=(url, theirs))
    try:
        prober.start()
        theirs.close()  # so that a prober that dies ends the wait for its results
        for client in clients:
            client.start()
        first, last = watch(process, minutes)
        results.send("stop")
        taken, overran = (sorted(values) for values in results.recv())
        traffic.stop.set()
        for client in clients:
            client.join()
    finally:
        traffic.stop.set()
        process.terminate()
        status = process.wait()
        prober.terminate()

    wrong = 0
    for name in ACTIONS:
        answers = {code: count for (asked, code), count in sorted(traffic.answers.items()) if asked == name}
        wrong += sum(count for code, count in answers.items() if code not in EXPECTED.get(name, {200}))
        shown = ", ".join(f"{count} × {SPECIAL.get(code, code)}" for code, count in answers.items())
        print(f"{name:30} {shown}")
    print(f"answers of another status than they should have: {wrong}; exit status {status}")
    print(f"resident memory: {first:.0f} MiB after a minute, {last:.0f} at the end, {last / first - 1:+.1%} (bar 5 %)")
    p99, slowest = taken[int(0.99 * len(taken))], taken[-1]
    print(f"/livez, {len(taken)} times: p99 {p99:.1f} ms, slowest {slowest:.1f} (bar 50); ", end="")
    print(f"the prober's sleeps overran by {overran[int(0.99 * len(overran))]:.1f} at p99, {overran[-1]:.1f} at most")
    raise SystemExit(1 if wrong or status else 0)


if __name__ == "__main__":
    main()
