"""`compare A B`: two models on the same images."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model_store import Provenance
from tests.training.conftest import TINY
from training.__main__ import main
from training.data.sources import Source
from training.data.splits import split
from training.errors import RunError
from training.fit.run import Run, RunDescription
from training.publish.evaluation import Protocol
from training.publish.publication import describe
from training.report.comparison import common_images

FEW = ["--proposal=encoder", "--num-samples=20", "--device=cpu"]


def test_two_models_are_compared_image_by_image(
    digits: Path, finished_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = tmp_path / "worse"
    options = ["--width=48", "--latent-dim=6", "--num-samples=1", "--epochs=1", "--no-finish-encoder", "--device=cpu"]
    assert main(["fit", f"--data={digits}", f"--out={worse}", *options]) == 0
    capsys.readouterr()
    better = finished_run.folder
    assert main(["compare", str(worse), str(better), f"--data={digits}", *FEW]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"A {worse}, B {better}: 100 images, the test images of digits.npz\n")
    row = re.search(r"log_likelihood, nats +(-[\d.]+) +(-[\d.]+) +\+([\d.]+) ± ([\d.]+)\n", said)
    assert row is not None
    a, b, gain, error = map(float, row.groups())
    assert b - a == pytest.approx(gain, abs=2e-4)
    assert 0 < error < gain / 2
    assert re.search(rf"\nB is better \({re.escape(str(better))}\): likelier for \d+ % of the images\n$", said)

    assert main(["compare", str(better), str(better), f"--data={digits}", *FEW, "--images=7"]) == 0
    said = capsys.readouterr().out
    assert ": 7 images, " in said
    assert said.count(" +0.0000 ± 0.0000\n") == 4
    assert said.endswith("no clear difference: 2 standard errors are more than it\n")


def source(seed: int, sha256: str, test: bool = False) -> Source:
    images = np.random.default_rng(seed).integers(0, 256, (50, 1, 28, 28)).astype(np.uint8)
    return Source("set", sha256, images, test=images[:5] if test else None)


def test_the_images_are_those_that_neither_model_was_trained_on(finished_run: Run) -> None:
    a, b = source(1, "a" * 64), source(1, "b" * 64)  # prepared in two ways
    run = finished_run.description

    def provenance(run: RunDescription) -> Provenance:
        return describe(run, "n", Protocol("encoder", 10, 0)).provenance

    of_a, of_b = (provenance(replace(run, sha256=each.sha256)) for each in (a, b))
    other = provenance(replace(run, sha256="c" * 64))
    for provenances in ([of_a, of_b], [of_a, other], [other, of_b]):
        (first, second), what = common_images([a, b], provenances)
        assert what == "those of set held out of training as test"
        assert isinstance(first, np.ndarray)
        assert isinstance(second, np.ndarray)
        assert np.array_equal(first, split(a, TINY).test)
        assert np.array_equal(second, first)
    found, what = common_images([a, b], [other, other])
    assert (found[0] is a.train, found[1] is b.train, what) == (True, True, "set")
    own = [source(1, "a" * 64, test=True), source(1, "b" * 64, test=True)]
    assert common_images(own, [of_a, of_b])[1] == "the test images of set"
    seeded = replace(run, sha256=b.sha256, configuration=replace(run.configuration, seed=5))
    with pytest.raises(RunError, match=r"set: the models were trained on different parts of these images"):
        common_images([a, b], [of_a, provenance(seeded)])
