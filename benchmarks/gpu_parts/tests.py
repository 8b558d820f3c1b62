"""(c) The engine's tests with `cpu` turned into CUDA: see pytest_device.py. Failures of equal bits are listed apart."""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

from gpu_parts.record import Case, Options, Record

ROOT = Path(__file__).parents[2]
FILES: tuple[str, ...] = (
    "tests/test_oracle.py",
    "tests/engine",
    "tests/test_calibrate.py",
    "tests/web/test_oracle_http.py",
)
FILES += ("tests/web/test_batching.py", "tests/web/test_anomaly_scores.py", "tests/web/test_registry.py")
QUICK = ("tests/engine/test_runtime.py", "tests/engine/test_proposal.py")
NOT_FAILURES = ("passed", "about the CPU")


def cases(options: Options) -> dict[str, Case]:
    """A case a file; of a folder, a case for each file in it."""
    found: list[str] = []
    for name in QUICK if options.quick else FILES:
        path = ROOT / name
        files = sorted(path.glob("test_*.py")) if path.is_dir() else [path]
        found += [str(file.relative_to(ROOT)) for file in files]
    groups = {"engine's files": [name for name in found if "engine" in name]}
    groups |= {name: [name] for name in found if "engine" not in name}
    return {name: partial(run, files) for name, files in groups.items() if files}


def run(files: list[str], record: Record, options: Options) -> None:
    """One run of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "failures.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-p"]
        command += ["gpu_parts.pytest_device", "--engine-device", options.device, "--failures", str(file)]
        command += ["-o", "filterwarnings=default", *files]
        path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
        process = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
        )
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    counts = Counter(line["kind"] for line in lines)
    record.row("tests", **{kind.replace(" ", "_"): counts[kind] for kind in ("passed", "skipped", *KINDS)})
    for kind in KINDS:
        for line in (line for line in lines if line["kind"] == kind):
            record.row(kind, test=line["test"], difference=line["difference"], said=line["said"])
            if kind not in NOT_FAILURES:
                record.expect(line["test"], holds=False, kind=kind, traceback=line["traceback"])
    if process.returncode not in (0, 1) or not lines:
        record.fail("pytest", f"status {process.returncode}\n{(process.stdout + process.stderr)[-4000:]}")


KINDS = ("equal bits", "other", "about the CPU")
