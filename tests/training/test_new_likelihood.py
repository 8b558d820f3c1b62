"""CONTRIBUTING.md's recipe for a likelihood, followed in a copy: trained, published, and served without knowing it."""

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from model_store import LIKELIHOOD, open_version
from service.web.app import create_app
from service.web.operations.settings import Settings
from tests.trials import TrialsInProcess

ROOT = Path(__file__).parents[2]
STUDENT_T = '''\
"""Real-valued pixels that are now and then far from where they are expected."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from training.likelihoods.base import Likelihood
from training.likelihoods.location_scale import LOC_UNIT, bounded_log_scale, initial_scale

DEGREES_OF_FREEDOM = 5.0
FLOOR = -5.0
_NORMALISER = (
    math.lgamma((DEGREES_OF_FREEDOM + 1) / 2)
    - math.lgamma(DEGREES_OF_FREEDOM / 2)
    - 0.5 * math.log(DEGREES_OF_FREEDOM * math.pi)
)


class StudentT(Likelihood):
    """log p(x_i|z) = c - log_scale - 3·log(1 + u²/5), with u = (x - loc)·exp(-log_scale) and 5 degrees of freedom."""

    name = "student_t"
    pixel = "real values, some of them far from the others"

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]:
        """Location, and logarithm of the scale."""
        return {"loc": self.image_shape, "log_scale": self.image_shape}

    @property
    def num_uniforms(self) -> int:
        """Two a pixel and channel."""
        return 2 * self.num_pixels

    def initial_bias(self, pixel_mean: Tensor, pixel_spread: Tensor) -> Tensor:
        """The mean, and the scale that gives this spread."""
        scale = initial_scale(pixel_spread, math.sqrt(1 - 2 / DEGREES_OF_FREEDOM), FLOOR)
        return torch.stack([pixel_mean / LOC_UNIT, scale])

    def parameters(self, raw: Tensor) -> tuple[Tensor, ...]:
        """Location, and the logarithm of the scale, bounded."""
        return LOC_UNIT * raw[:, 0], bounded_log_scale(raw[:, 1], FLOOR)

    def pixel_log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """As above; the logarithm is of float64: see reductions.py."""
        loc, log_scale = parameters
        standardised = (x - loc) * torch.exp(-log_scale)
        tail = torch.log((1 + standardised * standardised / DEGREES_OF_FREEDOM).double()).to(standardised.dtype)
        return _NORMALISER - log_scale - 0.5 * (DEGREES_OF_FREEDOM + 1) * tail

    def mean(self, *parameters: Tensor) -> Tensor:
        """The location."""
        return parameters[0]

    def sample(self, uniform: Tensor, *parameters: Tensor) -> Tensor:
        """loc + scale·√(5·(u^(-2/5) - 1))·cos(2πv), by two uniform numbers u and v (Bailey 1994)."""
        loc, log_scale = parameters
        first, second = uniform[..., : self.num_pixels], uniform[..., self.num_pixels :]
        radius = torch.exp(torch.log(1 - first) * (-2 / DEGREES_OF_FREEDOM)) - 1
        return loc + torch.exp(log_scale) * torch.sqrt(DEGREES_OF_FREEDOM * radius) * torch.cos(2 * math.pi * second)
'''
TEST = """\
import numpy as np
import torch
from scipy.stats import t

from training.likelihoods import build_likelihood

likelihood = build_likelihood("student_t", (1, 2, 3))
x, loc = torch.linspace(-9, 9, 6).double().reshape(1, 1, 6), torch.full((1, 1, 6), 0.3, dtype=torch.float64)
log_scale = torch.linspace(-2, 1, 6).double().reshape(1, 1, 6)
expected = t(5, 0.3, log_scale.exp().numpy()).logpdf(x.numpy())
assert np.allclose(likelihood.pixel_log_prob(x, loc, log_scale), expected, rtol=1e-12, atol=0)
uniform = torch.rand(1, 50_000, 12, generator=torch.Generator().manual_seed(0)).double()
assert abs(np.median(likelihood.sample(uniform, loc, log_scale)[..., 3].numpy()) - 0.3) < 0.02
"""
COMMANDS = """
import json
import sys

from tests.exporter import operators_looked_up_once
from training.__main__ import main

with operators_looked_up_once():
    for command in json.loads(sys.argv[1]):
        assert main(command) == 0, command
"""


def run(copy: Path, script: str, *arguments: str) -> None:
    """In one process, for importing PyTorch takes as long as what is done here."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(copy), str(ROOT)])}
    command = [sys.executable, "-c", script, *arguments]
    process = subprocess.run(  # noqa: S603
        command, cwd=copy, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert process.returncode == 0, process.stderr


def recipe() -> str:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    return page.split("## Add a likelihood")[1].split("\n## ")[0]


def follow_the_recipe(copy: Path) -> None:
    """One new file, and its class in the list of them."""
    shutil.copytree(ROOT / "training", copy / "training", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "training" / "likelihoods" / "student_t.py").write_text(STUDENT_T)
    listed = copy / "training" / "likelihoods" / "__init__.py"
    text = listed.read_text()
    last_import, last_class = "from training.likelihoods.gaussian import", "    Gaussian,\n)"
    assert text.count(last_import) == text.count(last_class) == 1
    text = text.replace(last_import, f"from training.likelihoods.student_t import StudentT\n{last_import}")
    listed.write_text(text.replace(last_class, "    Gaussian,\n    StudentT,\n)"))


def changed(copy: Path) -> set[str]:
    found: set[str] = set()

    def compare(comparison: "filecmp.dircmp[str]") -> None:
        names = [*comparison.diff_files, *comparison.left_only]
        found.update((Path(comparison.left) / name).relative_to(copy).as_posix() for name in names)
        for inner in comparison.subdirs.values():
            compare(inner)

    compare(filecmp.dircmp(copy / "training", ROOT / "training", ignore=["__pycache__"]))
    return found


def test_a_likelihood_is_one_file_and_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow_the_recipe(tmp_path)
    named = {name.replace("NAME", "student_t") for name in re.findall(r"`(training/\S+\.py)`", recipe())}
    assert changed(tmp_path) == named - {"training/likelihoods/base.py", "training/likelihoods/reductions.py"}

    rng = np.random.default_rng(0)
    images = rng.random((60, 1, 3, 4)).astype(np.float32)
    np.savez(tmp_path / "images.npz", train=images, test=images[:5])
    network = ["--width", "4", "--latent-dim", "2", "--epochs", "2", "--batch-size", "20", "--binarisation", "none"]
    data = ["--data", "images.npz", "--out", "run", "--likelihood", "student_t", "--workers", "0"]
    scoring = ["--proposal", "encoder", "--num-samples", "16", "--encoder-samples", "0", "--workers", "0"]
    publish = ["publish", "run", "--name", "heavy", "--store", "store", *scoring]
    run(tmp_path, TEST + COMMANDS, json.dumps([["fit", *data, *network], publish]))

    stored = open_version(tmp_path / "store", "heavy")
    assert stored.manifest.likelihood.kind == "student_t"
    assert (stored.path / LIKELIHOOD).is_file()
    monkeypatch.setattr("service.web.models.registry.Trials", TrialsInProcess)
    with TestClient(create_app(Settings(model_store=tmp_path / "store"))) as client:
        deadline = time.monotonic() + 60
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        body = {"images": images[:3, 0].tolist()}
        together = client.post("/v1/log-likelihood", json=body)
        assert together.status_code == 200, together.text
        alone = client.post("/v1/log-likelihood", json={"images": body["images"][1:2]}).json()
        assert alone["results"][0] == together.json()["results"][1]
        assert client.get("/v1/samples?n=2").status_code == 200
        assert client.post("/v1/anomaly-scores?explain=true", json=body).status_code == 200
