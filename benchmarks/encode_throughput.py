"""Encode over HTTP beside what bounds it: a bare FastAPI route that only reads the body, and ONNX Runtime alone.

python benchmarks/encode_throughput.py

Each server runs in a process of its own and shares the machine with the client. Requests a second, the median of some
rounds that take turns: bare, ours, bare, ours.
"""

import time
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
import uvloop
from load import Answers, closed_loop, digits, median, npy, png, post, served

from model_store import BUNDLED, open_version

SECONDS = 5.0
ROUNDS = 5
IMAGES = 64
BARE = """
import uvicorn
from fastapi import FastAPI, Request, Response

app = FastAPI()

@app.post("/v1/encode")
async def encode(request: Request) -> Response:
    await request.body()
    return Response(b"{}", media_type="application/json")

uvicorn.run(app, port=0, access_log=False)
"""


def measure(port: int, requests: Sequence[bytes], connections: int) -> Answers:
    """One round; every answer must be a 200."""
    answers = uvloop.run(closed_loop(port, requests, connections=connections, seconds=SECONDS))
    if set(answers.statuses) != {200}:
        raise SystemExit(f"port {port} answered with {dict(answers.statuses)}")
    return answers


def line(name: str, rounds: Sequence[Answers], against: Sequence[float]) -> None:
    """One line of a table; `against` are the rates that the last column divides by."""
    rates = [answers.rate for answers in rounds]
    p50, p99 = (median([answers.milliseconds(share) for answers in rounds]) for share in (0.5, 0.99))
    ratio = median([rate / other for rate, other in zip(rates, against, strict=True)])
    print(f"{name:50}{median(rates):9.0f} {p50:9.2f} {p99:9.2f} {ratio:7.2f}", flush=True)


def alone(session: ort.InferenceSession, x: np.ndarray) -> float:
    """Runs a second of ONNX Runtime in a loop, one after the other."""
    session.run(None, {"x": x})
    started, runs = time.perf_counter(), 0
    while time.perf_counter() < started + SECONDS:
        session.run(None, {"x": x})
        runs += 1
    return runs / (time.perf_counter() - started)


def main() -> None:
    """Print both tables."""
    images = digits()
    one = [post("/v1/encode", png(image), "image/png") for image in images]
    with served() as ours, served("-c", BARE) as bare:
        for port in (ours, bare):
            measure(port, one, 32)
        rounds = [(measure(bare, one, 32), measure(ours, one, 32)) for _ in range(ROUNDS)]
        rates = [first.rate for first, _ in rounds]
        print(f"{'one PNG, 32 connections':50}{'a second':>9} {'p50 ms':>9} {'p99 ms':>9} {'ratio':>7}")
        line("bare FastAPI route", [first for first, _ in rounds], rates)
        line("ours (bar: 0.5 of the bare route)", [second for _, second in rounds], rates)

    batch = images[:IMAGES]
    x = (batch[:, None] / np.float32(255) > 0.5).astype(np.float32)  # [64, 1, 28, 28]
    session = ort.InferenceSession(open_version(BUNDLED, "mnist").encoder, providers=["CPUExecutionProvider"])
    forms = {
        "float32": post("/v1/encode", npy(x), "application/x-npy", "application/x-npy"),
        "uint8": post("/v1/encode", npy(batch), "application/x-npy", "application/x-npy"),
    }
    ways = [(form, connections) for form in forms for connections in (1, 8)]
    loop: list[float] = []
    found: dict[tuple[str, int], list[Answers]] = {way: [] for way in ways}
    with served() as ours:
        for _ in range(ROUNDS):
            loop.append(alone(session, x))
            for form, connections in ways:
                found[form, connections].append(measure(ours, [forms[form]], connections))
    print(f"\n{f'batches of {IMAGES}, npy in and out':50}{'a second':>9} {'p50 ms':>9} {'p99 ms':>9} {'ratio':>7}")
    print(f"{'ONNX Runtime alone in a loop':50}{median(loop):9.0f} {'':9} {'':9} {1:7.2f}")
    for (form, connections), answers in found.items():
        line(f"ours, {form}, {connections} connections (bar: 0.6)", answers, loop)


if __name__ == "__main__":
    main()
