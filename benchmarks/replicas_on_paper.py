"""How many replicas for which load? A simulation from measured service times, up to a thousand replicas.

    python benchmarks/replicas_on_paper.py                          # anomaly scores; two minutes
    python benchmarks/replicas_on_paper.py --operation encode

It first asks one service on this machine for one thing after another; what each takes to compute is S. It simulates
requests that come at random (Poisson) to c replicas, each of which does one request after another, at a share of what
all together can do, with two balancers. `one queue` gives a request to whoever is idle first, as a balancer by least
connections nearly does (M/G/c). `at random` splits the load blindly, which a balancer by turns does a little better (c
times M/G/1). The mean wait of `one queue` is printed beside the Allen-Cunneen formula, (1 + CV²)/2 · W(M/M/c), by which
both can be checked: CV is the standard deviation of S by its mean. Requests that share a batch are cheaper than S says,
so a replica does better than this where many wait. The last table is what else grows with the replicas, by sizes that
are measured.
"""

import argparse
import heapq
import math
import re
import socket
import urllib.request
from collections.abc import Sequence

import numpy as np
from load import ROOT, served
from numpy.typing import NDArray
from offered_load import operations
from request_way import answer

LOADS = (0.5, 0.7, 0.8, 0.9, 0.95)
REPLICAS = (1, 2, 4, 8, 16, 64, 256, 1000)
ASKED = 400
WARM_UP = 50
BUNDLED = ROOT / "model_store" / "artifacts"
SCRAPE_SECONDS = 15
LINK_BYTES = 1.25e8
"""Of a second of a link of 1 Gbit/s."""


def measure(operation: str) -> tuple[NDArray[np.float64], int, int]:
    """Seconds of each request on one connection, and the bytes and the lines of `/metrics`."""
    requests, _ = operations()[operation]
    with served() as port, socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        seconds = []
        for number in range(WARM_UP + ASKED):
            head, _, _ = answer(connection, requests[number % len(requests)]).partition(b"\r\n\r\n")
            timing = re.search(rb"compute;dur=([\d.]+)", head)
            if timing is None:
                raise RuntimeError(head.decode())
            seconds.append(float(timing[1]) / 1000)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as found:
            text: bytes = found.read()
    series = sum(not line.startswith(b"#") for line in text.splitlines())
    return np.array(seconds[WARM_UP:]), len(text), series


def one_queue(arrivals: NDArray[np.float64], services: NDArray[np.float64], replicas: int) -> NDArray[np.float64]:
    """How long each request waits for the first of the replicas that is free."""
    free = [0.0] * replicas
    waits = np.empty(len(arrivals))
    for number, (arrival, service) in enumerate(zip(arrivals.tolist(), services.tolist(), strict=True)):
        begins = max(arrival, free[0])
        heapq.heapreplace(free, begins + service)
        waits[number] = begins - arrival
    return waits


def erlang_c(replicas: int, load: float) -> float:
    """The probability that a request of M/M/c waits; `load` is a share of what the replicas can do.

    >>> round(erlang_c(1, 0.8), 3), round(erlang_c(10, 0.8), 3)
    (0.8, 0.409)
    """
    offered, blocked = load * replicas, 1.0
    for servers in range(1, replicas + 1):
        blocked = offered * blocked / (servers + offered * blocked)
    return blocked / (1 - load * (1 - blocked))


def print_table(seconds: NDArray[np.float64], draws: int) -> None:
    """The p99 of each number of replicas and load."""
    mean, spread = float(seconds.mean()), float(seconds.std() / seconds.mean())
    p99 = 1000 * float(np.quantile(seconds, 0.99))
    print(f"S: mean {1000 * mean:.2f} ms, CV {spread:.2f}, p99 {p99:.2f} ms; one replica does {1 / mean:.0f} a second")
    print(
        f"\n{'replicas':>8} {'load':>5} {'a second':>9}   {'one queue: p99 ms':>18} {'mean wait':>10} {'formula':>8}",
        end="",
    )
    print(f"   {'at random: p99 ms':>18}")
    for replicas in REPLICAS:
        for load in LOADS:
            rng = np.random.default_rng(0)
            rate = load * replicas / mean
            services = rng.choice(seconds, draws)
            begun = slice(draws // 10, None)  # it starts empty
            waits = one_queue(rng.exponential(1 / rate, draws).cumsum(), services, replicas)
            alone = one_queue(rng.exponential(replicas / rate, draws).cumsum(), services, 1)
            formula = (1 + spread**2) / 2 * erlang_c(replicas, load) * mean / (replicas * (1 - load))
            common, split = (1000 * float(np.quantile((found + services)[begun], 0.99)) for found in (waits, alone))
            print(f"{replicas:8} {load:5.0%} {rate:9.0f}   {common:18.1f} {1000 * waits[begun].mean():10.2f}", end="")
            print(f" {1000 * formula:8.2f}   {split:18.1f}", flush=True)


def print_rest(mean: float, metrics_bytes: int, series: int, counts: Sequence[int]) -> None:
    """What else grows: connections of the proxy, reading the store at start, and scraping metrics."""
    store = sum(file.stat().st_size for file in BUNDLED.rglob("*") if file.is_file())
    print(f"\nat 70 % of what the replicas can do, latency twice S; a store of {store / 1e6:.0f} MB, ", end="")
    print(f"/metrics of {metrics_bytes / 1000:.0f} kB and {series} series each {SCRAPE_SECONDS} s, 1 Gbit/s\n")
    print(f"{'replicas':>8} {'requests/s':>11} {'under way':>10} {'proxy files':>12} {'all start, s':>13}", end="")
    print(f" {'series':>9} {'samples/s':>10} {'scrape MB/s':>12}")
    for count in counts:
        rate = 0.7 * count / mean
        under_way = math.ceil(rate * 2 * mean)  # Little's law
        start = count * store / LINK_BYTES
        scraped = count * metrics_bytes / SCRAPE_SECONDS / 1e6
        line = f"{count:8} {rate:11.0f} {under_way:10} {2 * under_way:12} {start:13.1f}"
        print(f"{line} {count * series:9} {count * series / SCRAPE_SECONDS:10.0f} {scraped:12.2f}")


def main() -> None:
    """Measure, simulate, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operation", choices=[*operations()], default="anomaly-scores")
    parser.add_argument("--draws", type=int, default=200_000, help="requests that each simulation has")
    given = parser.parse_args()
    seconds, metrics_bytes, series = measure(given.operation)
    print(f"{given.operation}, one PNG of `mnist` a request")
    print_table(seconds, given.draws)
    print_rest(float(seconds.mean()), metrics_bytes, series, (1, 10, 100, 1000))


if __name__ == "__main__":
    main()
