"""`benchmarks/gpu.py` can be relied on when there is a GPU for half an hour: tried here without one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(folder: Path, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit status, and the lines of the results, with the bundled models alone and no GPU in sight."""
    (folder / "models").mkdir(exist_ok=True)
    command = [sys.executable, str(SCRIPT), *arguments, "--quick", "--models", str(folder / "models")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.run(  # noqa: S603
        [*command, "--out", str(folder / "out")], env=environment, capture_output=True, timeout=240, check=False
    )
    lines = (folder / "out" / "results.jsonl").read_text().splitlines()
    assert (folder / "out" / "results.txt").stat().st_size > 0
    return process.returncode, [json.loads(line) for line in lines]


def test_the_environment_is_recorded(tmp_path: Path) -> None:
    status, lines = run(tmp_path, "environment", "--device", "cpu", "--case", "onnxruntime")
    assert status == 0
    assert [line["got"] for line in lines if line["table"] == "probe"] == ["CPUExecutionProvider"] * 2
    assert all(line["holds"] for line in lines if line["table"] == "check")
    assert lines[-1]["failures"] == 0
    assert {"build", "libraries after", "check"} <= {line["table"] for line in lines}


def test_a_failure_is_recorded_and_the_next_check_goes_on(tmp_path: Path) -> None:
    """CUDA is asked for where there is none."""
    status, lines = run(tmp_path, "environment", "--device", "cuda", "--case", "onnxruntime")
    assert status == 1
    failures = [line for line in lines if line["table"] == "failure"]
    assert [line["check"] for line in failures][-1] == "Relu"
    assert any("ExecutionProviderError: CUDA cannot be used" in line["reason"] for line in failures)
    assert lines[-2]["table"] == "libraries after"  # after the failures
    assert lines[-1]["failures"] >= len(failures) > 1


def test_a_case_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    """Of four models the one has no files."""
    (tmp_path / "models" / "broken").mkdir(parents=True)
    status, lines = run(tmp_path, "placement", "--device", "cpu")
    assert status == 1
    failures = {line["case"]: line["failures"] for line in lines if line["table"] == "case"}
    assert failures == {"broken": 1, "fashion-mnist": 0, "fruits": 0, "mnist": 0}
    opened = [line for line in lines if line["table"] == "graphs"]
    assert {line["model"] for line in opened} == {"fashion-mnist", "fruits", "mnist"}
    assert all(line["by_the_table"] for line in opened)


def test_the_comparison_of_graphs_sees_the_rounding_of_tf32(tmp_path: Path) -> None:
    status, lines = run(tmp_path, "graphs", "--device", "cpu", "--case", "TF32 must fail")
    assert status == 0
    rows = {(line["graph"], line["output"]): line for line in lines if line["table"] == "errors"}
    curvature = next(row for (graph, output), row in rows.items() if output == "logpx.information")
    for row in (rows["log weight", "logpx.log_weight"], rows["mixture", "logpx.log_weight"], curvature):
        assert not row["passes"]
        assert row["units"] > 8 * row["cpu_units"]


def test_every_graph_of_a_bundled_model_is_compared_with_float64(tmp_path: Path) -> None:
    status, lines = run(tmp_path, "graphs", "--device", "cpu", "--case", "mnist")
    assert status == 0
    rows = [line for line in lines if line["table"] == "errors"]
    assert all(line["passes"] and line["same_bits"] for line in rows)
    assert {line["graph"].split(" in ")[0] for line in rows} == {
        "encoder",
        "decoder",
        "log weight",
        "mixture",
        "curvature",
        "mean",
        "sample",
        "surprise",
    }
    errors = [
        line["units"]
        for line in rows
        if line["graph"] != "sample" and line["output"] in ("mean", "logits", "logpx.log_weight")
    ]
    assert 0 < max(errors) < 100  # float64 is another computation, and the same one
