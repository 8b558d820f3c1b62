"""How many digits a second does each server encode, for 32 connections, with 2 cores for everything?

Each peer lives in an environment of its own (Triton's with Debian's Python 3.11, which its backend links):

    python3.11 -m venv VENVS/litserve
    VENVS/litserve/bin/pip install litserve==0.2.19 onnxruntime==1.31.1 pillow uvloop httptools
    python3.11 -m venv VENVS/bentoml
    VENVS/bentoml/bin/pip install bentoml==1.4.39 onnxruntime==1.31.1 pillow uvloop httptools
    python3.11 -m venv VENVS/mlserver
    VENVS/mlserver/bin/pip install mlserver==1.7.1 onnxruntime==1.31.1 pillow uvloop==0.21.0 httptools
    /usr/bin/python3.11 -m venv VENVS/triton
    VENVS/triton/bin/pip install nvidia-pytriton==0.7.0 onnxruntime==1.31.1 pillow
    apt-get install wrk
    python benchmarks/serving_peers.py \
        --litserve-python VENVS/litserve/bin/python --bentoml-python VENVS/bentoml/bin/python \
        --mlserver-python VENVS/mlserver/bin/python --triton-python VENVS/triton/bin/python

A peer without its flag is left out. `--processes 2` serves ours by two processes on one port. With `--v2` ours is asked
by the Open Inference Protocol: the PNG is an element of a binary tensor. All serve the bundled encoder's graph; one
server is alive at a time, and in every round each is started, must answer 100 digits rightly under load, is warmed up
and then measured. The client, wrk, shares the two cores. Digits are black and white, which our preparation leaves as
they are. Each server gets what it documents for its clients: ours a PNG; LitServe, BentoML and MLServer base64 in JSON;
Triton a binary tensor, which is the PNG, or pixels
that the client has decoded. Triton runs as itself, with a model.py, and once more behind pytriton's own interface. The
peers make batches as they document it; their numbers of workers and batch sizes are constants atop the files in
benchmarks/peers, chosen in short trials on a busy machine. Run it on an idle one (a quarter of an hour): beside other
load, a server of several processes gets more of the cores than a server of one.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np
import onnxruntime as ort
from contenders import (
    BATCH,
    BATCH_CONNECTIONS,
    CONNECTIONS,
    GRAPH,
    PEERS,
    Contender,
    Digits,
    Means,
    batch_contenders,
    contenders,
)

ROOT = Path(__file__).parents[1]
START_SECONDS, ANSWERS_AT_START = 60, 20
PEER_NAMES = ("litserve", "bentoml", "mlserver", "triton")


class ContenderError(Exception):
    """A server does not start, or gives a wrong answer or none."""


def free_port() -> int:
    """A port that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(contender: Contender, port: int, digits: Digits) -> bytes:
    """One answer's body; refuses any status but 200."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", contender.path, contender.body(digits), contender.headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise ContenderError(f"status {answer.status}: {body[:300]!r}")
        return body
    finally:
        connection.close()


def await_start(contender: Contender, process: "subprocess.Popen[bytes]", port: int, digits: Digits) -> None:
    """Return once it answers, and so do all its processes: each connection may be another's."""
    end, answered = time.monotonic() + START_SECONDS, 0
    while answered < ANSWERS_AT_START:
        try:
            ask(contender, port, digits)
        except (OSError, HTTPException, ContenderError) as error:
            if time.monotonic() > end or process.poll() is not None:
                raise ContenderError(f"does not answer: {error}") from error
            time.sleep(0.1)
            answered = 0
        else:
            answered += 1


def check_answers(contender: Contender, port: int, batches: list[Digits], truth: list[Means]) -> None:
    """Every batch's means, asked for concurrently, are the encoder's own."""
    with ThreadPoolExecutor(contender.connections) as pool:
        bodies = list(pool.map(lambda batch: ask(contender, port, batch), batches))
    if contender.means is None:
        return
    for body, expected in zip(bodies, truth, strict=True):
        found = contender.means(body)
        if found.shape != expected.shape or np.abs(found - expected).max() > 1e-3:
            raise ContenderError("other numbers than the encoder's")


@dataclass(frozen=True)
class Measured:
    """One round."""

    requests_per_second: float
    median_milliseconds: float
    p99_milliseconds: float


def load(port: int, connections: int, seconds: int, requests: Sequence[Path]) -> Measured:
    """Wrk's word for it; every answer must be 200."""
    options = ["-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(PEERS / "rotate.lua")]
    command = ["wrk", *options, f"http://127.0.0.1:{port}", "--", *map(str, requests)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise ContenderError(text)
    rate = re.search(r"Requests/sec: +([\d.]+)", text)
    latencies = [re.search(rf"{share}% +([\d.]+)(us|ms|s)\b", text) for share in (50, 99)]
    scale = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    assert rate is not None
    median, p99 = (float(found[1]) * scale[found[2]] for found in latencies if found is not None)
    return Measured(float(rate[1]), median, p99)


def round_of(contender: Contender, batches: list[Digits], truth: list[Means], given: argparse.Namespace) -> Measured:
    """Start it, hold its answers against the truth, warm it up, measure it, end it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        port = free_port()
        requests = write_requests(contender, port, batches, Path(folder))
        process = subprocess.Popen(
            [part.format(port=port) for part in contender.command],
            env={**os.environ, "LOGPX_PORT": str(port), "TMPDIR": folder},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            start_new_session=True,  # so that all its processes can be ended together
        )
        try:
            await_start(contender, process, port, batches[0])
            check_answers(contender, port, batches, truth)
            load(port, contender.connections, given.warm_up, requests)
            return load(port, contender.connections, given.seconds, requests)
        finally:
            end(process)


def write_requests(contender: Contender, port: int, batches: list[Digits], folder: Path) -> list[Path]:
    """Whole HTTP requests, for rotate.lua."""
    files = []
    for index, batch in enumerate(batches):
        body = contender.body(batch)
        headers = {"Host": f"127.0.0.1:{port}", **contender.headers, "Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        files.append(folder / f"{index}.http")
        files[-1].write_bytes(f"POST {contender.path} HTTP/1.1\r\n{head}\r\n".encode() + body)
    return files


def end(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM to the server, SIGKILL to what is left of it after ten seconds."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def open_graph() -> ort.InferenceSession:
    """ONNX Runtime with both cores, as fast as it goes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    return ort.InferenceSession(GRAPH, options, providers=["CPUExecutionProvider"])


def loop(session: ort.InferenceSession, x: Means, seconds: float) -> float:
    """Batches a second of ONNX Runtime alone."""
    count, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        session.run(None, {"x": x})
        count += 1
    return count / passed


def print_table(rounds: dict[str, list[Measured]], entries: list[Contender]) -> None:
    """Medians over rounds, and ours, which is the first, as a multiple of each."""
    print(
        f"{'':32} {'requests/s':>10} {'lowest':>8} {'highest':>8} {'p50 ms':>8} {'p99 ms':>8} {'ours is':>9} {'bar':>6}"
    )
    ours = statistics.median(measured.requests_per_second for measured in rounds[entries[0].name])
    for entry in entries:
        rates = [measured.requests_per_second for measured in rounds[entry.name]]
        rate = statistics.median(rates)
        median = statistics.median(measured.median_milliseconds for measured in rounds[entry.name])
        p99 = statistics.median(measured.p99_milliseconds for measured in rounds[entry.name])
        bar = f"{entry.bar} ×" if entry.bar else ""
        spread = f"{rate:10.0f} {min(rates):8.0f} {max(rates):8.0f}"
        print(f"{entry.name:32} {spread} {median:8.2f} {p99:8.2f} {ours / rate:7.2f} × {bar:>6}")


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for peer in PEER_NAMES:
        parser.add_argument(f"--{peer}-python", help=f"python of the environment that has {peer}")
    parser.add_argument("--v2", action="store_true", help="ask ours by the Open Inference Protocol")
    parser.add_argument("--processes", type=int, default=1, help="of ours, on one port")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of one measurement")
    parser.add_argument("--warm-up", type=int, default=2, help="seconds before it")
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("this benchmark's client is wrk: apt-get install wrk")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # every process started here inherits it
    with np.load(ROOT / "tests" / "data" / "digits.npz", allow_pickle=False) as archive:
        digits = np.where(archive["test"] > 127, np.uint8(255), np.uint8(0))  # [100, 28, 28]
    session = open_graph()

    def encode(batch: Digits) -> Means:
        mean: Means = session.run(["mean"], {"x": batch[:, None].astype(np.float32) / np.float32(255)})[0]
        return mean

    singles = [digits[i : i + 1] for i in range(len(digits))]
    batches = [digits[np.arange(i, i + BATCH) % len(digits)] for i in range(0, len(digits), 10)]
    single = contenders(
        {peer: getattr(given, f"{peer}_python") for peer in PEER_NAMES}, v2=given.v2, processes=given.processes
    )
    batched = batch_contenders(given.processes)
    rounds: dict[str, list[Measured]] = {entry.name: [] for entry in (*single, *batched)}
    alone = []
    x = batches[0][:, None].astype(np.float32) / np.float32(255)
    for _ in range(given.rounds):
        for entry in (*single, *batched):
            bodies = batches if entry in batched else singles
            try:
                measured = round_of(entry, bodies, [encode(body) for body in bodies], given)
            except ContenderError as error:
                if entry not in single[1:]:
                    raise  # ours
                print(f"{entry.name} is left out: {error}", file=sys.stderr)
                single.remove(entry)
            else:
                rounds[entry.name].append(measured)
                print(f"{entry.name}: {measured.requests_per_second:.0f} requests/s", file=sys.stderr)
        loop(session, x, given.warm_up)
        alone.append(loop(session, x, given.seconds))
    print(f"one digit, {CONNECTIONS} connections, 2 cores, {given.rounds} rounds of {given.seconds} s")
    print_table(rounds, single)
    base = statistics.median(alone)
    print(f"\nbatches of {BATCH} digits, {BATCH_CONNECTIONS} connections")
    print(f"{'ONNX Runtime alone in a loop':32} {BATCH * base:10.0f} images/s")
    for entry in batched:
        rate = statistics.median(measured.requests_per_second for measured in rounds[entry.name])
        print(f"{entry.name:32} {BATCH * rate:10.0f} images/s {rate / base:6.2f} × (bar 0.6 ×)")


if __name__ == "__main__":
    main()
