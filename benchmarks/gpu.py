r"""Everything to be known about a GPU, in half an hour.

python benchmarks/gpu.py PART... --out FOLDER

    environment   the card, the driver, which file each CUDA library came from, the engine's probe         1 minute
    graphs        every graph, CUDA against the CPU and against float64; the same with TF32 must fail      5
    tests         the engine's tests with `cpu` turned into `cuda`, failures of equal bits apart           4.5
    shapes        a resnet with alternating shapes: does cuDNN plan anew?                                  1
    memory        of the device, by chunk size and by the arena's strategy                                 2
    speed         encode, decode, log P(x), scores, by images and chunk; PyTorch, compiled and not; CPU    8
    serving       images a second over HTTP, mixed and not, at 1, 8 and 32 connections                     3
    training      images a second of `fit`, float32 and bfloat16, compiled and not; their bounds           4
    placement     no results: does every graph open on CUDA whole, beside the table of operators           2
    export        no measurement: write every preset's graphs, for machines without PyTorch (--models)     5

Each case of a part runs in a process of its own, so a crash ends that case alone; a failure is recorded with its
traceback, and the next case goes on. FOLDER/results.jsonl and results.txt grow line by line, so that what was measured
before a kill is there; log.txt has what the processes wrote to standard error. Times are limits: cases for which none
is left are recorded as failures. The exit status is 0 where every check held.

On a machine with a GPU that reaches no registry, with PyTorch for CUDA 13, onnx and Python 3.12 on it: put wheels of
onnxruntime-gpu, and of what the service and the tests import and the machine lacks, into `.wheels` (ignored by git):

    pip download -c constraints.txt --no-deps --only-binary=:all: --python-version 3.12 -d .wheels \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        onnxruntime-gpu fastapi starlette pydantic pydantic-core pydantic-settings python-dotenv typing-inspection \
        fastapi-offline httptools orjson opentelemetry-api python-multipart structlog uvicorn httpx2 httpcore2 \
        truststore arviz-stats

A wheel that is too large for one transfer travels in pieces (`split -b 40m`, and `cat` there). There, first of all:

    python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target /tmp/site .wheels/*.whl
    export PYTHONPATH=$PWD:/tmp/site PYTHONUNBUFFERED=1
    # `preload_dlls` looks for cuBLAS and cuDNN beside onnxruntime
    ln -s "$(python3 -c 'import nvidia; print(list(nvidia.__path__)[0])')" /tmp/site/nvidia
    python3 benchmarks/gpu.py environment graphs --out OUT             # the first call, 6 minutes
    python3 benchmarks/gpu.py tests shapes memory --out OUT            # the second, 8 minutes
    python3 benchmarks/gpu.py speed --out OUT                          # the third, 8 minutes
    python3 benchmarks/gpu.py serving training --out OUT               # the last, 7 minutes

Onnxruntime and onnxruntime-gpu share their files: where the machine has the one, the other must come first on the
path, as above. Without a GPU every part can be tried: `--device cpu --quick`. The results go to RESULTS.md.
"""

import argparse
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpu_parts.record import LOG, Case, Options, Record

ROOT = Path(__file__).parents[1]
SECONDS = {
    "environment": 60,
    "graphs": 300,
    "tests": 270,
    "shapes": 60,
    "memory": 120,
    "speed": 480,
    "serving": 180,
    "training": 240,
    "placement": 120,
    "export": 300,
}
"""Of each part, at most."""
WITHOUT_GPU = 10
"""How much longer the parts may take where they are only tried."""
SHARE = 0.6
"""Of what is left to a part, that one case may take."""


def cases_of(part: str, options: Options) -> dict[str, Case]:
    """A part's cases, by name."""
    if part == "export":
        from gpu_parts.models import export_all

        return {"export": export_all}
    found: dict[str, Case] = importlib.import_module(f"gpu_parts.{part}").cases(options)
    return found


def run_case(case: Case, record: Record, options: Options) -> int:
    """In this process; the exit status."""
    with record.attempt("the case"):
        case(record, options)
    record.finish()
    return int(record.failures > 0)


def run_part(part: str, arguments: list[str], options: Options) -> int:
    """Each case in a process of its own; how many did not pass."""
    seconds = SECONDS[part] * (1 if options.device == "cuda" else WITHOUT_GPU)
    end = time.perf_counter() + seconds
    failed = 0
    try:
        names = list(cases_of(part, options))
    except Exception as error:  # noqa: BLE001 — the next part goes on
        Record(options, part, "cases").fail("the list of cases", repr(error))
        return 1
    for name in names:
        left = end - time.perf_counter()
        if left < 1:
            Record(options, part, name).fail("not run", f"the part's {seconds} seconds were over")
            failed += 1
            continue
        status, said = _run(part, name, arguments, options, left if len(names) == 1 else max(left * SHARE, 30))
        if status not in (0, 1):
            reason = f"signal {-status}" if status < 0 else f"status {status}"
            Record(options, part, name).fail("the process", f"ended with {reason}\n{said}")
        failed += status != 0
    return failed


def _run(part: str, name: str, arguments: list[str], options: Options, seconds: float) -> tuple[int, str]:
    """The status of a case's process, and the end of what it wrote to standard error."""
    command = [sys.executable, str(Path(__file__)), part, *arguments, "--case", name]
    with (options.out / LOG).open("ab") as log:
        start = log.tell()
        log.write(f"\n== {part}: {name}\n".encode())
        log.flush()
        environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
        process = subprocess.Popen(command, stderr=log, env=environment, start_new_session=True)
        try:
            status = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            status = -signal.SIGKILL
        finally:
            with contextlib.suppress(ProcessLookupError):  # what the case started ends with it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = (options.out / LOG).read_bytes()[start:].decode(errors="replace")
    return status, said[-3000:]


def main() -> None:
    """Run the parts, or one case of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=SECONDS, metavar="PART")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, added to")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the parts themselves")
    parser.add_argument("--models", type=Path, help="the folder `models` that `export` wrote, in place of exporting")
    parser.add_argument("--case", help="this one alone, in this process")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    options = Options(given.device, given.quick, given.out, given.models)
    options.out.mkdir(parents=True, exist_ok=True)
    if given.case is not None:
        (part,) = given.parts
        record = Record(options, part, given.case)
        sys.exit(run_case(cases_of(part, options)[given.case], record, options))
    arguments = ["--out", str(given.out), "--device", given.device]
    arguments += ["--quick"] if given.quick else []
    arguments += ["--models", str(given.models)] if given.models else []
    failed = {part: run_part(part, arguments, options) for part in given.parts}
    print(
        "\n"
        + "\n".join(f"{part}: {count} cases failed" if count else f"{part}: passed" for part, count in failed.items())
    )
    sys.exit(int(any(failed.values())))


if __name__ == "__main__":
    main()
