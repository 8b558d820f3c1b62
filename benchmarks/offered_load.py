"""Latency against offered load of five operations of `mnist`; encode beside an endless job; and at twice the load.

    python benchmarks/offered_load.py sweep --write docs/latency-by-load.csv       # seven minutes
    python benchmarks/offered_load.py beside                                       # one minute
    python benchmarks/offered_load.py draw --write docs/latency-by-load.csv        # the picture beside the table

`sweep`: of each operation first the sustainable rate, the best of a few seconds with as many connections as requests
may wait, each of which asks for one thing after another. Then requests come at random (a Poisson process; `--constant`:
at equal distances) at 10 to 200 % of it. Latencies count from when a request was due, see open_loop.py; refusals (429,
503) and failures are counted apart. The service has default settings but for the queue, which is short, as for one who
would rather refuse than be late (`--queued`). `beside` has default settings. Client and service share the machine: run
it on an idle one.

A percentile is left out where no answer is beyond it. The bars: at twice the sustainable rate at least 0.9 of the best
throughput, and a p99 at most 3 times that at half of it; beside the job a p99 at most 4 times that alone.
"""

import argparse
import asyncio
import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import uvloop
from load import Answers, closed_loop, connect, digits, npy, png, post, served
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from open_loop import Client, constant, poisson

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0)
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
REFUSALS = ("429", "503")
FIELDS = ("operation", "share", "offered", "answered", *PERCENTILES, *REFUSALS, "failed", "late")
ROUNDS = 2
BESIDE_SECONDS = 8.0
COLOURS = ("#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7")  # of Okabe and Ito: told apart by all
Row = Mapping[str, str | float]


def operations() -> Mapping[str, tuple[Sequence[bytes], int]]:
    """The requests of each operation, and how many of them may wait."""
    images = [png(image) for image in digits()]
    latents = np.random.default_rng(0).normal(size=(100, 50)).round(3).tolist()
    bodies = [json.dumps({"latents": [latent]}).encode() for latent in latents]
    drawn = [f"GET /v1/samples?n=1&seed={seed} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for seed in range(100)]
    return {
        "encode": ([post("/v1/encode", image, "image/png") for image in images], 32),
        "decode": ([post("/v1/decode", body, "application/json") for body in bodies], 32),
        "samples": (drawn, 32),
        "log-likelihood": ([post("/v1/log-likelihood", image, "image/png") for image in images], 8),
        "anomaly-scores": ([post("/v1/anomaly-scores", image, "image/png") for image in images], 8),
    }


async def sweep(
    port: int, name: str, requests: Sequence[bytes], connections: int, given: argparse.Namespace
) -> tuple[list[Row], float]:
    """A row for each share of the sustainable rate, and that rate."""
    await closed_loop(port, requests, connections=connections, seconds=2)  # to warm up
    found = [
        await closed_loop(port, requests, connections=connections, seconds=given.seconds / 2) for _ in range(ROUNDS)
    ]
    best = max(answers.rate for answers in found)
    print(f"\n{name}: {best:.0f} a second are sustainable ({connections} connections)")
    print(f"    {'':6} {'offered':>9} {'answered':>9} {'p50 ms':>9} {'p90':>9} {'p99':>9} {'p99.9':>9}", end="")
    print(f" {'429':>7} {'503':>5} {'failed':>6}   sent late, p99 ms")
    client = Client(port, requests)
    rows: list[Row] = []
    for share in SHARES:
        rate = share * best
        due = (constant if given.constant else poisson)(rate, given.seconds)
        record = await client.run(due)
        statuses = record.statuses
        row: dict[str, str | float] = {"operation": name, "share": share, "offered": rate, "answered": record.rate}
        row |= {percentile: record.milliseconds(quantile) for percentile, quantile in PERCENTILES.items()}
        row |= {refusal: statuses[int(refusal)] for refusal in REFUSALS}
        row["failed"] = sum(count for status, count in statuses.items() if status not in (200, 429, 503))
        row["late"] = record.late_milliseconds
        rows.append(row)
        numbers = " ".join(_shown(row[percentile]) for percentile in PERCENTILES)
        counts = f"{row['429']:7} {row['503']:5} {row['failed']:6} {row['late']:8.2f}"
        print(f"    {share:6.0%} {rate:9.0f} {record.rate:9.0f} {numbers} {counts}", flush=True)
    return rows, best


def _shown(milliseconds: str | float) -> str:
    value = float(milliseconds)
    return f"{'–' if math.isnan(value) else f'{value:.2f}':>9}"


def print_bars(name: str, rows: Sequence[Row], best: float) -> bool:
    """What twice the load costs; whether the bars are met."""
    by_share = {float(row["share"]): row for row in rows}
    most = max(best, *(float(row["answered"]) for row in rows))
    throughput = float(by_share[2.0]["answered"]) / most
    latency = float(by_share[2.0]["p99"]) / float(by_share[0.5]["p99"])  # NaN, and missed, with under 100 answers
    lost = sum(int(row["failed"]) for row in rows)
    met = throughput >= 0.9 and latency <= 3 and not lost
    print(
        f"    {name} at twice the rate: {throughput:.2f} of the best throughput (bar 0.9), p99 {latency:.2f} ×", end=""
    )
    print(f" that at half (bar 3), {lost} failed (bar 0): {'met' if met else 'MISSED'}", flush=True)
    return met


async def beside(port: int) -> bool:
    """Encode's latency alone and beside a job that is always running."""
    encode, _ = operations()["encode"]
    long = post("/v1/log-likelihood?proposal=encoder&num_samples=5000", npy(digits()[:64]), "application/x-npy")
    ended, met = False, True

    async def endless() -> None:
        connection = await connect(port)
        while not ended:
            await connection.ask(long)

    print(f"encode of one PNG, {BESIDE_SECONDS:g} s each {'200/s':>21} {'p50 ms':>9} {'p99 ms':>9}    answers")
    for connections in (1, 8, 32):
        ended = False
        alone = await closed_loop(port, encode, connections=connections, seconds=BESIDE_SECONDS)
        job = asyncio.create_task(endless())
        await asyncio.sleep(1)
        busy = await closed_loop(port, encode, connections=connections, seconds=BESIDE_SECONDS)
        ended = True
        await job
        _print(f"{connections} connections, alone", alone)
        _print(f"{connections} connections, beside the job", busy)
        ratio = busy.milliseconds(0.99) / alone.milliseconds(0.99)
        met &= ratio <= 4
        print(f"    p99 beside the job: {ratio:.2f} × alone (bar 4): {'met' if ratio <= 4 else 'MISSED'}", flush=True)
    return met


def _print(name: str, answers: Answers) -> None:
    statuses = ", ".join(f"{count} × {status}" for status, count in sorted(answers.statuses.items()))
    p50, p99 = answers.milliseconds(0.5), answers.milliseconds(0.99)
    print(f"    {name:34}{answers.rate:9.0f} {p50:9.2f} {p99:9.2f}    {statuses}", flush=True)


def print_capacity(rows: Sequence[Row]) -> None:
    """The table of docs/operations.md: what one service does, and under which load p99 at most doubles."""
    print(f"\n| {'operation':<16} | a second, at most | without refusals, p99 ≤ 2 × that of calm | p99 there, ms |")
    print("|---|---|---|---|")
    for name in dict.fromkeys(str(row["operation"]) for row in rows):
        here = [row for row in rows if row["operation"] == name]
        told = [row for row in here if not math.isnan(float(row["p99"]))] or here
        bearable = [row for row in told if float(row["p99"]) <= 2 * float(told[0]["p99"]) and not int(row["429"])]
        last = bearable[-1] if bearable else told[0]
        most = max(float(row["answered"]) for row in here)
        print(f"| {name:<16} | {most:.0f} | {float(last['offered']):.0f} | {float(last['p99']):.1f} |")


def draw(rows: Sequence[Row], file: Path) -> None:
    """Left: p50 and p99 against offered load. Right: what is answered of what is offered."""
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    for name, colour in zip(dict.fromkeys(str(row["operation"]) for row in rows), COLOURS, strict=False):
        here = [row for row in rows if row["operation"] == name]
        shares = [100 * float(row["share"]) for row in here]
        left.plot(shares, [float(row["p99"]) for row in here], "o-", color=colour, markersize=3.5, label=name)
        left.plot(shares, [float(row["p50"]) for row in here], "--", color=colour, linewidth=0.9)
        best = max(float(row["answered"]) for row in here)
        right.plot(shares, [100 * float(row["answered"]) / best for row in here], "o-", color=colour, markersize=3.5)
    left.set(yscale="log", ylabel="ms from when a request was due", title="p99 (solid) and median (dashed)")
    right.set(ylabel="answered with 200, % of the best", title="Throughput; the rest is refused (429)", ylim=(0, 105))
    left.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        _finish(axes)
    figure.savefig(file, dpi=150, metadata={"Software": None})


def _finish(axes: Axes) -> None:
    axes.set_xlabel("offered load, % of the sustainable rate")
    axes.axvline(100, color="black", linewidth=0.8, linestyle=":")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(10)
    axes.yaxis.set_major_formatter("{x:g}")


def read(file: Path) -> list[Row]:
    """What was measured before."""
    with file.open(newline="") as stream:
        return [dict(row) for row in csv.DictReader(stream)]


def write(rows: Sequence[Row], file: Path) -> None:
    """Comma-separated, three decimals."""
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()} for row in rows)


def main() -> None:
    """Measure, print, and draw what is asked for; the exit status is 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("sweep", "beside", "draw"))
    parser.add_argument("--only", nargs="*", default=[], choices=[*operations()], help="operations; default: all")
    parser.add_argument("--seconds", type=float, default=8, help="of each offered load")
    parser.add_argument("--queued", type=int, help="LOGPX_MAX_QUEUED_REQUESTS; default: 32, and 8 of what takes long")
    parser.add_argument("--constant", action="store_true", help="requests at equal distances")
    parser.add_argument("--write", type=Path, help="the table as a CSV file; its picture is written beside it")
    given = parser.parse_args()
    met = True
    if given.part == "beside":
        with served() as port:
            met = uvloop.run(beside(port))
    elif given.part == "sweep":
        rows: list[Row] = []
        for name, (requests, queued) in operations().items():
            if given.only and name not in given.only:
                continue
            waiting = given.queued or queued
            with served(max_queued_requests=waiting) as port:
                found, best = uvloop.run(sweep(port, name, requests, waiting, given))
            met &= print_bars(name, found, best)
            rows += found
        print_capacity(rows)
        if given.write:
            write(rows, given.write)
    if given.write and given.part != "beside":
        draw(read(given.write), given.write.with_suffix(".png"))
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    main()
