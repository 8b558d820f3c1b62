"""How much memory does training take, loaded and streamed, and does a stream's grow with its length?

python benchmarks/streaming.py

Random 3×64×64 JPEG files, and the same in Parquet, at three sizes. Memory is the largest sum of proportional set sizes
(PSS) over the command and its workers, so shared pages count once; most of it is PyTorch itself: see the first lines.
"""

import argparse
import io
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIZE = 64
HELD_OUT = 500
RECIPE = ["--width=16", "--latent-dim=4", "--num-samples=1", "--binarisation=none", "--epochs=2", "--device=cpu"]
PARTS = [f"--num-{part}={HELD_OUT}" for part in ("validation", "calibration", "test")]


def write_images(folder: Path, count: int) -> tuple[Path, Path]:
    """A folder of files and a folder of Parquet with the same images, 1000 a row group."""
    files, parquet = folder / f"files-{count}", folder / f"parquet-{count}"
    files.mkdir()
    parquet.mkdir()
    random = np.random.default_rng(0)
    contents = []
    for index in range(count):
        small = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        stream = io.BytesIO()
        small.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(stream, format="jpeg")
        contents.append(stream.getvalue())
        (files / f"{index:06}.jpg").write_bytes(contents[-1])
    table = pa.table({"image": pa.array([{"bytes": content, "path": None} for content in contents])})
    pq.write_table(table, parquet / "train-00000-of-00001.parquet", row_group_size=1000)
    return files, parquet


def tree(process: int) -> list[int]:
    """A process and all that it started."""
    try:
        started = [
            int(child)
            for task in Path(f"/proc/{process}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return []
    return [process, *(descendant for child in started for descendant in tree(child))]


def proportional_set_size(process: int) -> int:
    """In bytes; 0 once it has ended."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def train(data: Path, out: Path, *options: str) -> tuple[float, float, float]:
    """Peak memory in MiB, images a second in the last epoch, and seconds in all."""
    command = [sys.executable, "-m", "training", "fit", f"--data={data}", f"--out={out}", *RECIPE, *PARTS, *options]
    started, peak = time.perf_counter(), 0
    with (out.parent / f"{out.name}.log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            peak = max(peak, sum(map(proportional_set_size, tree(process.pid))))
            time.sleep(0.1)
        log.seek(0)
        text = log.read()
    if process.returncode:
        raise SystemExit(text)
    return peak / 2**20, float(re.findall(r"(\d+) images/s", text)[-1]), time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="of the smaller set; the larger has twice as many")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    stream = ["--max-memory=0", f"--workers={arguments.workers}"]
    print(f"{'data':<28}{'images':>8}{'pixels, MiB':>13}{'peak, MiB':>11}{'images/s':>10}{'s in all':>10}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in (4 * HELD_OUT, arguments.images, 2 * arguments.images):
            files, parquet = write_images(folder, count)
            settings: list[tuple[str, Path, list[str]]] = [
                ("files, loaded", files, []),
                (f"files, streamed ({arguments.workers})", files, stream),
                (f"Parquet, streamed ({arguments.workers})", parquet, stream),
            ]
            for label, data, options in settings:
                peak, speed, seconds = train(data, folder / f"run-{label}-{count}", *options)
                pixels = count * 3 * SIZE**2 / 2**20
                print(f"{label:<28}{count:>8}{pixels:>13.0f}{peak:>11.0f}{speed:>10.0f}{seconds:>10.1f}", flush=True)


if __name__ == "__main__":
    main()
