"""Bar 3: honest traffic is answered as fast as by an earlier commit, whose service runs beside this one's."""

import asyncio
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from load import ROOT, Answers, closed_loop, digits, median, npy, png

from hostile_parts.requests import FORM, JPEG, JSON, NPY, PNG, Honest, form_of, image_file, json_of, photograph
from tests.hostile.harness import ChildService

BAR = 0.95
WARM_SECONDS = 1.0


@dataclass(frozen=True)
class Case:
    """Requests that so many connections send in turn."""

    name: str
    requests: Sequence[Honest]
    connections: int


def cases() -> list[Case]:
    """Encode and log-likelihood in every form that clients send."""
    images = digits()
    photos = [photograph(seed) for seed in range(10)]
    resized = "/v1/encode?resize=true"
    pngs = [Honest("", "POST", "/v1/encode", png(image), PNG) for image in images]
    estimate = "/v1/log-likelihood?proposal=laplace"  # what an earlier commit estimated by unless asked
    scored = [Honest("", "POST", estimate, png(image), PNG) for image in images]
    judged = [Honest("", "POST", "/v1/anomaly-scores", png(image), PNG) for image in images]
    climbing = [Honest("", "POST", "/v1/log-likelihood?proposal=auto", png(image), PNG) for image in images]
    form = [Honest("", "POST", "/v1/encode", form_of([png(image) for image in images]), FORM)]
    return [
        *(Case(f"encode a PNG, {count} connections", pngs, count) for count in (1, 8, 32)),
        Case(
            "encode JSON, 8", [Honest("", "POST", "/v1/encode", json_of(images[i : i + 1]), JSON) for i in range(50)], 8
        ),
        Case("encode npy, 8", [Honest("", "POST", "/v1/encode", npy(images[i : i + 1]), NPY) for i in range(50)], 8),
        Case("encode npy of 100 to npy, 2", [Honest("", "POST", "/v1/encode", npy(images), NPY, NPY)], 2),
        Case("encode a form of 100 PNGs, 1", form, 1),
        Case("encode a form of 100 PNGs, 4", form, 4),
        Case("a JPEG of 300×300, 1", [Honest("", "POST", resized, image_file(one, "JPEG"), JPEG) for one in photos], 1),
        Case("a JPEG of 300×300, 8", [Honest("", "POST", resized, image_file(one, "JPEG"), JPEG) for one in photos], 8),
        Case("a PNG of 300×300, 8", [Honest("", "POST", resized, image_file(one, "PNG"), PNG) for one in photos], 8),
        *(Case(f"log-likelihood of a PNG, {count}", scored, count) for count in (1, 8, 32)),
        *(Case(f"anomaly scores of a PNG, {count}", judged, count) for count in (1, 8, 32)),
        *(Case(f"by auto, of a PNG, {count}", climbing, count) for count in (1, 8, 32)),
        Case("log-likelihood of npy of 10, 2", [Honest("", "POST", estimate, npy(images[:10]))], 2),
    ]


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """That commit's files, in a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="logpx-before-") as folder:
        packed = Path(folder) / "commit.tar"
        subprocess.run(["git", "archive", "--output", packed, commit], cwd=ROOT, check=True)
        with tarfile.open(packed) as opened:
            opened.extractall(folder, filter="data")
        yield Path(folder)


def measure(commit: str, *, rounds: int, seconds: float, chosen: str = "") -> bool:
    """Print answers a second of both, and their ratio; whether each case keeps the bar.

    Both services are alive, one of them at rest; in each round both are measured, the other first every time.
    """
    print(f"\nbar 3: answers a second of {commit} and of this checkout, medians of {rounds} rounds of {seconds:g} s")
    print(f"    {'':36} {'before':>9} {'now':>9} {'ratio':>7}   now, ms: p50, p99   ratios", flush=True)
    kept = True
    with checkout(commit) as folder, ChildService(cwd=folder) as before, ChildService() as now:
        for case in cases():
            if chosen in case.name:
                kept &= _compare(case, before, now, rounds, seconds)
    return kept


def _compare(case: Case, before: ChildService, now: ChildService, rounds: int, seconds: float) -> bool:
    first = case.requests[0]
    told = [service.ask(first.method, first.path, first.body, _headers(first)) for service in (before, now)]
    if told[0].status == 422:
        print(f"    {case.name:36} not there before", flush=True)
        return True
    same = "" if told[0].body == told[1].body else "; the answers differ"
    requests = [request.wire() for request in case.requests]
    answers: dict[int, list[Answers]] = {before.port: [], now.port: []}
    for port in answers:
        _ask(port, requests, case.connections, min(WARM_SECONDS, seconds))
    for number in range(rounds):
        for port in sorted(answers, reverse=bool(number % 2)):
            answers[port].append(_ask(port, requests, case.connections, seconds))
    rates = {port: [some.rate for some in found] for port, found in answers.items()}
    ratios = [new / old for old, new in zip(rates[before.port], rates[now.port], strict=True)]
    p50, p99 = (median([some.milliseconds(share) for some in answers[now.port]]) for share in (0.5, 0.99))
    ratio = median(ratios)
    failed = "" if ratio >= BAR else f"   FAILED: below {BAR}"
    told_ratios = " ".join(f"{one:.3f}" for one in sorted(ratios))
    middle = f"{median(rates[before.port]):9.1f} {median(rates[now.port]):9.1f} {ratio:7.3f}"
    print(f"    {case.name:36} {middle}   {p50:8.1f} {p99:8.1f}   {told_ratios}{same}{failed}", flush=True)
    return ratio >= BAR


def _headers(honest: Honest) -> dict[str, str]:
    return {"Content-Type": honest.content_type, "Accept": honest.accept}


def _ask(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Answers:
    answers = asyncio.run(closed_loop(port, requests, connections=connections, seconds=seconds))
    if set(answers.statuses) != {200}:
        raise SystemExit(f"honest requests were answered {dict(answers.statuses)}")
    return answers
