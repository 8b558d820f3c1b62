"""How long does the event loop wait while long answers are written? The bar: never 50 ms.

    python benchmarks/loop_stalls.py                     # four minutes
    python benchmarks/loop_stalls.py --only PNGs

The service runs in this process, with room for 40 000 images a request; its clients are processes of their own. A timer
on the event loop is due every 2 ms. Of the longest time between two of its calls, each line tells what the loop itself
used (`own`), what it waited for a processor that somebody else had (`core`), and the rest (`held`), in which another
thread of the service held Python's lock. What counts is `own` + `held`. It is never more than what all threads of the
service used in that time, so most of what others do on the machine does not count as ours; but on a busy one the thread
that holds the lock waits for a processor, too, while others of ours compute. The bar is meant for an idle one.

To compare with an earlier commit, run this file in a checkout of it.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from load import digits, npy
from request_way import on_loop, wait_until_ready

from service import serve

BAR_SECONDS = 0.05
IMAGES = 40_000
SETTINGS = {"max_pixels": 2**25, "max_memory_bytes": 2**31, "port": 0}
TICK_SECONDS = 0.002
JSON, NPY, CSV, NDJSON, PNG = "application/json", "application/x-npy", "text/csv", "application/x-ndjson", "image/png"
CHEAP = "/v1/log-likelihood?proposal=encoder&num_samples=4"


def request(path: str, accept: str, images: bytes = b"") -> bytes:
    """A whole request; the connection closes after its answer."""
    head = f"{'POST' if images else 'GET'} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n"
    head += f"Connection: close\r\nContent-Type: {NPY}\r\nContent-Length: {len(images)}\r\n\r\n"
    return head.encode() + images


def cases() -> Mapping[str, tuple[int, bytes]]:
    """How many clients ask at once, and what."""
    found = digits()
    images = npy(found[np.arange(IMAGES) % len(found)])
    return {
        "encode, JSON": (1, request("/v1/encode", JSON, images)),
        "6 × encode, JSON": (6, request("/v1/encode", JSON, images)),
        "6 × encode, npy": (6, request("/v1/encode", NPY, images)),
        "12 × samples, 21 MB of numbers": (12, request("/v1/samples?n=2600&as=array", JSON)),
        "32 × samples, 10 MB of numbers": (32, request("/v1/samples?n=1300&as=array", JSON)),
        "32 × PNGs": (32, request("/v1/samples?n=1300&as=png", JSON)),
        "8 × samples, npy": (8, request("/v1/samples?n=20000", NPY)),
        "4 × a grid": (4, request("/v1/samples?n=20000", PNG)),
        "3 × log-likelihood, CSV": (3, request(CHEAP, CSV, images)),
        "3 × log-likelihood, JSON": (3, request(CHEAP, JSON, images)),
        "3 × log-likelihood, lines": (3, request(CHEAP, NDJSON, images)),
    }


@dataclass(frozen=True)
class Moment:
    """What the clocks said on the event loop: seconds of time, of the process, and of the loop's thread."""

    time: float
    process: float
    own: float
    waited: float

    def since(self, before: "Moment") -> "Moment":
        """What passed."""
        passed = (vars(self)[name] - vars(before)[name] for name in vars(self))
        return Moment(*passed)

    @property
    def held(self) -> float:
        """The time in which neither the loop ran nor waited for a processor, as far as others of ours ran in it."""
        idle = self.time - self.own - self.waited - TICK_SECONDS
        return max(0.0, min(idle, self.process - self.own))


class Watch:
    """A timer on the event loop that looks at the clocks."""

    def __init__(self, server: serve.Server) -> None:
        self._loop = server.servers[0].get_loop()
        self._last: Moment | None = None
        self.passed: list[Moment] = []
        on_loop(self._loop, self._begin)

    def _begin(self) -> None:
        self._clock = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
        self._tick()

    def _tick(self) -> None:
        own, waited = (int(part) / 1e9 for part in os.pread(self._clock, 100, 0).split()[:2])
        now = Moment(time.perf_counter(), time.process_time(), own, waited)
        if self._last is not None:
            self.passed.append(now.since(self._last))
        self._last = now
        self._loop.call_later(TICK_SECONDS, self._tick)


def ask(port: int, asked: bytes, clients: int) -> "Counter[str]":
    """What a child does: ask so many times at once; the statuses."""
    statuses: Counter[str] = Counter()

    def one() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=300) as connection:
            connection.sendall(asked)
            first = connection.recv(2**18)
            while connection.recv(2**18):
                pass
        statuses[first[9:12].decode() or "none"] += 1

    threads = [threading.Thread(target=one) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def measure(server: serve.Server, only: str, out: int) -> None:
    """Print a line for each case."""
    port, _ = wait_until_ready(server)
    watch = Watch(server)
    worst = 0.0
    with os.fdopen(out, "w", buffering=1) as stream, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "request"
        print(f"{'':34} {'own ms':>8} {'held ms':>8} {'core ms':>8}   answers (bar: own + held below 50)", file=stream)
        for name, (clients, asked) in cases().items():
            if only not in name:
                continue
            file.write_bytes(asked)
            watch.passed.clear()
            command = [sys.executable, __file__, "--ask", str(port), str(file), str(clients)]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
            longest = max(list(watch.passed), key=lambda moment: moment.own + moment.held)
            worst = max(worst, longest.own + longest.held)
            shown = (1000 * seconds for seconds in (longest.own, longest.held, longest.waited))
            print(f"{name:34} {' '.join(f'{value:8.1f}' for value in shown)}   {told}", file=stream)
        print(f"longest: {1000 * worst:.0f} ms, {'within' if worst < BAR_SECONDS else 'MISSED'} the bar", file=stream)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--ask", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ask:
        statuses = ask(int(given.ask[0]), Path(given.ask[1]).read_bytes(), int(given.ask[2]))
        print(", ".join(f"{count} × {status}" for status, count in sorted(statuses.items())))
        return
    os.environ |= {f"LOGPX_{name.upper()}": str(value) for name, value in SETTINGS.items()}
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the service's log
    make = serve.make_server

    def make_watched(*arguments: Any, **named: Any) -> serve.Server:
        server = make(*arguments, **named)

        def work() -> None:
            try:
                measure(server, given.only, out)
            finally:
                server.should_exit = True

        threading.Thread(target=work).start()
        return server

    serve.make_server = make_watched  # what `python -m service` does, and not a part of it
    serve.serve()


if __name__ == "__main__":
    main()
