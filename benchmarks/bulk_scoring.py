"""`logpx score` beside the engine's own rate: time, memory, and whether it ends with the same files after three kills.

    python benchmarks/bulk_scoring.py --digits t10k-images-idx3-ubyte.gz [--images 100000] [--protocol encoder auto ...]

The digits (an IDX file, or an .npy) are repeated up to the number of images and written as one .npy. For each protocol:

- The engine: one process with one thread scores digits 256 at a time, as a program of one's own would, until 20 seconds
  are over; once alone, and once with one such process for each core at the same time. `estimates` is `log_likelihood`
  alone, `all columns` is what the command computes: also the scores, in one pass where the protocol is the
  calibration's.
- The command, once from beginning to end: images a second of its whole time, and the resident memory of all its
  processes each half second. The first fifth and the last twentieth, in which processes start and end, do not count.
- The command again, ended by SIGKILL three times at random moments, and then to its end.

It ends with status 1 if the command has less than 0.9 of the engine's rate alone (all columns) times cores, if memory
leaves 5 % around its median, or if files differ. Run it on an idle machine.
"""

import argparse
import gzip
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from model_store import BUNDLED, open_version
from service.cores import usable_cores
from service.engine.chunks import complete
from service.scoring.scorer import MOST_IMAGES, Options, Scorer

ROOT = Path(__file__).parents[1]
KILLS, SHARE, FLAT = 3, 0.9, 0.05
ENGINE_SECONDS, SAMPLE_SECONDS = 20.0, 0.5


def read_digits(file: Path) -> Any:
    """Images [N, H, W] of an IDX file, plain or packed, or of an .npy."""
    if file.suffix == ".npy":
        return np.load(file, allow_pickle=False)
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    count, height, width = np.frombuffer(content, ">i4", 3, offset=4)
    return np.frombuffer(content, np.uint8, offset=16).reshape(count, height, width)


def engine_rate(array: Path, options: Options, what: str) -> float:
    """Images a second of the engine, in this process, by wall time."""
    scorer = Scorer.of(open_version(BUNDLED, "mnist"), options)
    pixels = np.load(array, mmap_mode="r", allow_pickle=False)
    scorer({"image": np.array(pixels[:MOST_IMAGES])})
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < ENGINE_SECONDS:
        first = done % (len(pixels) - MOST_IMAGES)
        some = pixels[first : first + MOST_IMAGES, None] / np.float32(255)
        if what == "estimates":
            by = {"proposal": options.proposal, "num_samples": options.num_samples, "seed": options.seed}
            complete(scorer.model.log_likelihood(some, **by))  # type: ignore[arg-type]
        else:
            if not scorer.one_pass:
                by = {"proposal": options.proposal, "num_samples": options.num_samples, "seed": options.seed}
                complete(scorer.model.log_likelihood(some, **by))  # type: ignore[arg-type]
            complete(scorer.model.anomaly_scores(some))
        done += MOST_IMAGES
    return done / (time.perf_counter() - started)


def engine_rates(array: Path, options: Options, what: str, processes: int) -> float:
    """The rates of so many processes at once, added up."""
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return sum(pool.map(engine_rate, [array] * processes, [options] * processes, [what] * processes))


def start(array: Path, options: Options, out: Path) -> "subprocess.Popen[bytes]":
    """The command."""
    command = [
        sys.executable,
        "-m",
        "service",
        "score",
        f"--images={array}",
        "--model=mnist",
        f"--out={out}",
        "--fdr=0.1",
    ]
    command += [f"--proposal={options.proposal}", f"--num-samples={options.num_samples}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def resident(pid: int) -> float:
    """Resident memory of a process and its children, in MiB."""
    pids = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        pids += map(int, (task / "children").read_text().split())
    pages = sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in set(pids))
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def watched(process: "subprocess.Popen[bytes]") -> tuple[float, list[float]]:
    """Seconds until it has ended, and its memory meanwhile."""
    started = time.perf_counter()
    memory = []
    while process.poll() is None:
        with suppress(OSError, IndexError):  # it has just ended
            memory.append(resident(process.pid))
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise SystemExit(f"the command ended with status {process.returncode}")
    return time.perf_counter() - started, memory


def files(out: Path) -> dict[str, bytes]:
    """All parts."""
    return {file.name: file.read_bytes() for file in sorted(out.glob("*.parquet"))}


def measure(array: Path, num_images: int, options: Options, folder: Path) -> bool:
    """Print one protocol's figures; whether it passes."""
    cores = usable_cores()
    rates = {}
    for what in ("estimates", "all columns"):
        for processes in (1, cores):
            rates[what, processes] = engine_rates(array, options, what, processes)
            print(f"  engine, {what}, {processes} at once: {rates[what, processes]:.1f} images a second", flush=True)
    seconds, memory = watched(start(array, options, folder / "straight"))
    rate = num_images / seconds
    wanted = rates["all columns", 1] * cores
    print(f"  command: {num_images} images in {seconds:.0f} s, {rate:.1f} a second")
    print(f"    {rate / wanted:.3f} of the engine alone times {cores} cores,")
    print(f"    {rate / rates['all columns', cores]:.3f} of the engine {cores} times at once, and")
    print(f"    {rate / (rates['estimates', 1] * cores):.3f} of the engine's estimates alone, times cores")
    steady = np.array(memory[len(memory) // 5 : -max(3, len(memory) // 20)])
    middle = float(np.median(steady))
    spread = max(steady.max() / middle - 1, 1 - steady.min() / middle)
    tenths = " ".join(f"{part.mean():.0f}" for part in np.array_split(steady, min(10, len(steady))))
    print(f"    memory {middle:.0f} MiB in all, at most {spread:.1%} from it; by tenths of the time: {tenths}")
    random.seed(num_images)
    for _ in range(KILLS):
        process = start(array, options, folder / "killed")
        time.sleep(random.uniform(0.05, 0.3) * seconds)
        process.kill()
        process.wait()
        print(f"    killed with {len(files(folder / 'killed'))} parts", flush=True)
    watched(start(array, options, folder / "killed"))
    same = files(folder / "killed") == files(folder / "straight")
    print(
        f"    killed {KILLS} times: {'the same' if same else 'OTHER'} {len(files(folder / 'straight'))} files",
        flush=True,
    )
    return same and rate >= SHARE * wanted and spread <= FLAT


def main() -> int:
    """Measure each protocol; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=Path, required=True, help="an IDX file of 28×28 digits, or an .npy")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--protocol", nargs="+", default=["encoder", "auto", "laplace"], help="proposals")
    given = parser.parse_args()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    passed = []
    with tempfile.TemporaryDirectory() as folder:
        array = Path(folder) / "digits.npy"
        digits = read_digits(given.digits)
        np.save(array, np.resize(digits, (given.images, *digits.shape[1:])))
        for protocol in given.protocol:
            print(f"{protocol}, {given.images} images")
            passed.append(measure(array, given.images, Options.of(protocol), Path(folder) / protocol))
            print(f"  {'passed' if passed[-1] else 'FAILED'}", flush=True)
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
