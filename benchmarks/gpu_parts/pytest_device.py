"""A plugin of pytest: the runtimes that tests ask for with `cpu` are of another device; what fails is written down.

python -m pytest -p gpu_parts.pytest_device --engine-device cuda --failures FILE tests/engine

References in the tests (plain sessions on the CPU provider) stay where they are: results are compared with the CPU's.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from service.engine.runtime import Choice, Runtime

EQUAL = re.compile(
    r"assert_array_equal|assert_equal|array_equal|Arrays are not equal|tobytes|^E +assert .* == ", re.MULTILINE
)
ABOUT_THE_CPU = re.compile(r"CPUExecutionProvider|'cpu'|Failed: DID NOT RAISE")
DIFFERENCE = re.compile(r"Max (?:absolute|relative) difference.*")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The device, and where failures are written."""
    parser.addoption("--engine-device", choices=("cpu", "cuda"), default="cpu")
    parser.addoption("--failures", type=Path, required=True)


def pytest_configure(config: pytest.Config) -> None:
    """Turn the engine's `cpu` into the device."""
    device: Choice = config.getoption("--engine-device")
    begin = Runtime.__init__

    def turned(runtime: Runtime, execution_provider: Choice = "auto", *arguments: Any, **keywords: Any) -> None:
        begin(runtime, device if execution_provider == "cpu" else execution_provider, *arguments, **keywords)

    if device != "cpu":
        setattr(Runtime, "__init__", turned)  # noqa: B010 — a type checker has no word for it
    config.pluginmanager.register(_Failures(config.getoption("--failures")))


class _Failures:
    def __init__(self, file: Path) -> None:
        self._file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._write({"test": report.nodeid, "when": report.when, **classify(report.longreprtext)})
        elif report.when == "call":
            self._write({"test": report.nodeid, "kind": "passed" if report.passed else "skipped"})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write({"test": report.nodeid, "when": "collect", **classify(report.longreprtext)})

    def _write(self, line: dict[str, Any]) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def classify(traceback: str) -> dict[str, str]:
    """What kind of failure it is: of equal bits, of the CPU expected by name, or another; and what it says.

    >>> classify("E   AssertionError: Arrays are not equal")["kind"]
    'equal bits'
    """
    said = [line[1:].strip() for line in traceback.splitlines() if line.startswith("E ")]
    if ABOUT_THE_CPU.search("\n".join(said)):
        kind = "about the CPU"
    elif EQUAL.search(traceback) and "Not equal to tolerance" not in traceback:
        kind = "equal bits"
    else:
        kind = "other"
    difference = "; ".join(DIFFERENCE.findall(traceback))
    return {"kind": kind, "said": " | ".join(said[:3])[:400], "difference": difference, "traceback": traceback[-4000:]}
