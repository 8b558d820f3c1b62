"""From a folder of photographs to a served model, as `make train` does it: how long it takes, and how much memory.

    PYTHONPATH=. python benchmarks/full_training.py FOLDER [--minutes 12] [--count 20] [--work DIR] [--no-limits]

`fit --size auto` and `publish` run with their defaults, each as a process of its own, whose largest memory is the
kernel's figure. Then the service starts with the published model, and images of the folder that were not trained on
are sent one at a time, prepared, as PNG: `Server-Timing` says what an anomaly score and a log P(x) compute. The
answers are checked: finite numbers, and which share of the estimates is reliable. Ends with 1 if a bar is missed: 15
minutes, 3 GB, 60 ms a score, 300 ms a log P(x), 90 % reliable (issue 18, bar 1). `OMP_NUM_THREADS` is left as it is.
"""

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import httpx2
import numpy as np
from PIL import Image
from running_service import compute_milliseconds, start

from training.data.image_sets import Reading
from training.data.preparation import Preparation
from training.data.sources import open_source
from training.data.splits import split
from training.fit.run import open_run

ROOT = Path(__file__).parents[1]
NAME = "photographs"
BARS = {"minutes": 15.0, "GB": 3.0, "score, ms": 60.0, "log P(x), ms": 300.0, "unreliable": 0.1}
_WARM_UP = 3


def command(*arguments: str) -> tuple[float, float]:
    """Run `python -m training` to its end: seconds, and the most memory of it or a process that it started, in GB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "training", *arguments], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{arguments[0]} ended with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e9


def test_images(run: Path, count: int) -> list[bytes]:
    """Images of the data's test part, evenly spaced, as the model takes them: PNG files."""
    description = open_run(run).description
    preparation = Preparation.asked(asdict(description.configuration))
    source = open_source(Path(description.source), Reading(preparation=preparation))
    test = split(source, description.configuration).test
    files: list[bytes] = []
    for index in np.linspace(0, len(test) - 1, min(count, len(test))).astype(int):
        pixels = np.asarray(test[index]).transpose(1, 2, 0)  # uint8 [H, W, C]
        stream = io.BytesIO()
        Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).save(stream, "png")
        files.append(stream.getvalue())
    return files


def ask(url: str, route: str, files: list[bytes]) -> tuple[list[float], list[dict[str, object]]]:
    """Milliseconds of compute for each image, and its result."""
    taken: list[float] = []
    results: list[dict[str, object]] = []
    with httpx2.Client(base_url=url, timeout=300) as client:
        for file in [*files[:_WARM_UP], *files]:
            answer = client.post(f"/v1/{route}?model={NAME}", content=file, headers={"content-type": "image/png"})
            taken.append(compute_milliseconds(answer.raise_for_status()))
            results.append(answer.json()["results"][0])
    return taken[_WARM_UP:], results[_WARM_UP:]


def main() -> None:
    """Train, publish, serve, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, help="of `fit`, in place of its default")
    parser.add_argument("--count", type=int, default=20, help="images that are sent")
    parser.add_argument("--work", type=Path, help="where run and store are kept; a temporary folder without it")
    parser.add_argument("--no-limits", action="store_true", help="print figures, and end with 0 whatever they are")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (given.work or Path(temporary)).absolute()
        run, store = work / "run", work / "store"
        planned = ["--minutes", str(given.minutes)] if given.minutes else []
        fitted, fit_memory = command("fit", "--data", str(given.folder), "--out", str(run), "--size", "auto", *planned)
        published, publish_memory = command("publish", str(run), "--name", NAME, "--store", str(store))
        files = test_images(run, given.count)
        process, url = start(LOGPX_MODEL_STORE=str(store))
        try:
            scores, scored = ask(url, "anomaly-scores", files)
            likelihoods, estimated = ask(url, "log-likelihood", files)
        finally:
            process.terminate()
            process.wait()
    bits = [result["bits_per_dim"] for result in estimated]
    reliable = statistics.mean(bool(result["reliable"]) for result in estimated)
    found = {
        "minutes": (fitted + published) / 60,
        "GB": max(fit_memory, publish_memory),
        "score, ms": statistics.median(scores),
        "log P(x), ms": statistics.median(likelihoods),
        "unreliable": 1 - reliable,
    }
    print(f"fit {fitted / 60:.1f} min, {fit_memory:.2f} GB; publish {published / 60:.1f} min, {publish_memory:.2f} GB")
    print(f"{len(files)} images that were not trained on: {statistics.mean(map(float, map(str, bits))):.3f} bits/dim")
    print(f"compute of a score: median {statistics.median(scores):.1f} ms, at most {max(scores):.1f}")
    print(f"compute of log P(x): median {statistics.median(likelihoods):.1f} ms, at most {max(likelihoods):.1f}")
    print(f"reliable: {reliable:.2f}; of scores {statistics.mean(bool(one['reliable']) for one in scored):.2f}")
    missed = [f"{name} {found[name]:.3g}, at most {bar:g}" for name, bar in BARS.items() if not found[name] <= bar]
    print(f"missed: {'; '.join(missed)}" if missed else "every bar is met")
    sys.exit(bool(missed) and not given.no_limits)


if __name__ == "__main__":
    main()
