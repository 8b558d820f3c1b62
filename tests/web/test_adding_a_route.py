"""CONTRIBUTING.md's recipe for a new route, followed in a copy: by the files it names and no others, it is served."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEP = re.compile(r"\d\. `([\w/.]+)`: .*?\n\n   ```python\n(.*?)\n   ```", re.DOTALL)


SERVED = """
import runpy, sys, time
import numpy as np
from fastapi.testclient import TestClient
import service
from service.web.app import create_app
from service.web.operations.settings import Settings

copy, store, test, digits = sys.argv[1:]
assert service.__file__.startswith(copy)
with np.load(digits, allow_pickle=False) as archive:
    images = archive["test"][:3]
with TestClient(create_app(Settings(model_store=store, model="digits"))) as client:
    while client.get("/readyz").status_code != 200:
        time.sleep(0.01)
    (function,) = (value for name, value in runpy.run_path(test).items() if name.startswith("test_"))
    function(client, images)
    posted = client.get("/openapi.json").json()["paths"]["/v1/code-norm"]["post"]
    assert posted["description"] == "How far the mean of each image's code is from the prior's."
    assert {one["name"] for one in posted["parameters"]} == {"model", "version", "resize", "X-Request-Timeout-Ms"}
    assert "image/png" in posted["requestBody"]["content"]
    assert client.post("/v1/code-norm?mode=l").status_code == 422
    assert client.post("/v1/code-norm", json={}, headers={"Accept": "image/png"}).status_code == 406
    assert 'route="/v1/code-norm",status="200"' in client.get("/metrics").text
print("served")
"""


def test_the_recipe_adds_a_route_that_is_described_and_served(store: Path, tmp_path: Path) -> None:
    recipe = (ROOT / "CONTRIBUTING.md").read_text().partition("## Add a route\n")[2].partition("\n## ")[0]
    steps = {file: textwrap.dedent(code) for file, code in STEP.findall(recipe)}
    assert len(steps) == 3
    assert "Three files" in recipe
    for folder in ("service", "model_store"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.onnx", "*.npz")
        )
    for file, code in steps.items():
        there = tmp_path / file
        assert there.exists() == (not file.startswith("tests/"))
        there.parent.mkdir(parents=True, exist_ok=True)
        before = f"{there.read_text()}\n\n" if there.exists() else ""
        there.write_text(f"{before}{code}\n")
    (test,) = (file for file in steps if file.startswith("tests/"))
    command = [sys.executable, "-c", SERVED, str(tmp_path), str(store), str(tmp_path / test)]
    digits = str(ROOT / "tests" / "data" / "digits.npz")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(  # noqa: S603
        [*command, digits], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("served\n")
