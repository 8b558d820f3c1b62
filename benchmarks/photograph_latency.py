"""A model of features by the defaults: seconds to train on 1000 photographs, and milliseconds of a score over HTTP.

PYTHONPATH=. python benchmarks/photograph_latency.py features.onnx FOLDER [--images 1000] [--requests 200] [--work DIR]

The photographs of FOLDER, brought to the size that the graph takes and moved by a pixel each time that they are used
again, are the 1000. `fit` and `publish` run as processes of their own, then the service with the published model: one
client on a kept connection sends a PNG file at a time to `/v1/anomaly-scores` and waits for the answer, which is the
default score with its p-value. Milliseconds are the client's, the request's way, decoding and the feature stage
included. Ends with 1 if a bar is missed: 600 seconds, 40 ms in the median (issue 22, bar 3, on two cores).
"""

import argparse
import io
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import numpy as np
from full_training import command
from photographs import SUFFIXES, read
from PIL import Image
from running_service import quantiles, start

from service.engine.runtime import Runtime
from training.features.graph import read_feature_graph

NAME = "photographs"
MOST_SECONDS, MOST_MILLISECONDS = 600.0, 40.0
WARM_UP = 10


def write_photographs(folder: Path, shape: tuple[int, int, int], count: int, out: Path) -> list[bytes]:
    """PNG files of this shape, C, H, W, in `out`; their contents."""
    if not any(file.suffix in SUFFIXES for file in folder.iterdir()):
        sys.exit(f"{folder}: no {', '.join(sorted(SUFFIXES))} files there")
    levels = np.rint(255 * read(folder, shape)).astype(np.uint8)
    out.mkdir(parents=True)
    files = []
    for index in range(count):
        again, which = divmod(index, len(levels))
        pixels = np.roll(levels[which], again, axis=2).transpose(1, 2, 0)
        stream = io.BytesIO()
        Image.fromarray(pixels[..., 0] if shape[0] == 1 else pixels).save(stream, "PNG")
        files.append(stream.getvalue())
        (out / f"{index}.png").write_bytes(stream.getvalue())
    return files


def ask(url: str, files: list[bytes], requests: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each answer as the client has them, and of its computation as the service says."""
    taken, computed = [], []
    with httpx2.Client(base_url=url, timeout=60) as client:
        for number in range(WARM_UP + requests):
            content = files[number % len(files)]
            started = time.perf_counter()
            answer = client.post(
                f"/v1/anomaly-scores?model={NAME}", content=content, headers={"content-type": "image/png"}
            )
            milliseconds = 1000 * (time.perf_counter() - started)
            answer.raise_for_status()
            found = re.search(r"compute;dur=([\d.]+)", answer.headers["server-timing"])
            assert found is not None
            if number >= WARM_UP:
                taken.append(milliseconds)
                computed.append(float(found[1]))
    return taken, computed


def measure(graph: Path, folder: Path, images: int, requests: int, work: Path) -> bool:
    """Print the figures; whether both bars are met."""
    shape = read_feature_graph(graph, Runtime("cpu")).image
    files = write_photographs(folder, shape, images, work / "data")
    run, store = work / "run", work / "store"
    seconds, gigabytes = command("fit", f"--data={work / 'data'}", f"--features={graph}", f"--out={run}")
    print(f"fit: {seconds:.1f} s of {images} images {list(shape)}, {gigabytes:.1f} GB at most")
    published, _ = command("publish", str(run), "--name", NAME, f"--store={store}")
    print(f"publish: {published:.1f} s")
    process, url = start(LOGPX_MODEL_STORE=str(store), LOGPX_MODEL=NAME)
    try:
        taken, computed = ask(url, files, requests)
    finally:
        process.terminate()
        process.wait()
    print(f"{'ms':46} {'median':>8} {'p99':>8} {'max':>8}")
    print(f"{'a score of a PNG file over HTTP':46} {quantiles(taken)}")
    print(f"{'of that, computed':46} {quantiles(computed)}")
    return seconds <= MOST_SECONDS and statistics.median(taken) <= MOST_MILLISECONDS


def main() -> None:
    """Measure in a folder that is removed, or in one that stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--work", type=Path, help="a new folder, which stays")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        met = measure(given.features.resolve(), given.folder, given.images, given.requests, work.resolve())
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
