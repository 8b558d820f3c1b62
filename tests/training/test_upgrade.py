"""`python -m training upgrade`: versions of the store's format 1, published again in format 2."""

import json
from pathlib import Path

import numpy as np
import pytest

from model_store import ImageShape, LikelihoodSpec, open_version, pin, publish
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.runtime import Runtime
from tests.likelihoods import BERNOULLI, discretised_logistic, gaussian
from tests.toys import nonlinear_toy
from tests.training.conftest import ExportOnce
from training.__main__ import main
from training.publish import upgrade

SHAPE = ImageShape(channels=1, height=3, width=5)
OLD: dict[str, tuple[LikelihoodSpec, dict[str, object]]] = {
    "bernoulli": (BERNOULLI, {"kind": "bernoulli"}),
    "levels": (discretised_logistic(8), {"kind": "discretised_logistic", "levels": 8}),
    "real": (gaussian(0.2), {"kind": "gaussian", "scale": 0.2}),
}
WEIGHTS = ("encoder.onnx", "decoder.onnx")


def add_format_1(store: Path, name: str, spec: LikelihoodSpec, said: dict[str, object]) -> Path:
    """A version as it was published before there was likelihood.onnx."""
    toy = nonlinear_toy(spec, SHAPE, 2)
    description = toy.description.model_copy(update={"name": name})
    stored = publish(
        store,
        description,
        encoder=toy.encoder,
        decoder=toy.decoder,
        likelihood=toy.likelihood,
        calibration=toy.calibration,
    )
    (stored.path / "likelihood.onnx").unlink()
    manifest = json.loads((stored.path / "manifest.json").read_text())
    del manifest["sha256"]["likelihood.onnx"]
    manifest |= {"format_version": 1, "likelihood": said}
    (stored.path / "manifest.json").write_text(json.dumps(manifest))
    return stored.path


@pytest.fixture(autouse=True)
def each_likelihood_is_exported_once(monkeypatch: pytest.MonkeyPatch, exported_once: ExportOnce) -> None:
    monkeypatch.setattr(upgrade, "export_likelihood", exported_once)


def test_every_model_of_format_1_gets_a_version_of_format_2_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], runtime: Runtime
) -> None:
    for name, (spec, said) in OLD.items():
        add_format_1(tmp_path, name, spec, said)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.parent != tmp_path}
    assert main(["upgrade", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    pixels = np.random.default_rng(1).random((4, *SHAPE.chw), np.float32)
    for name in OLD:
        assert f"{name}: published version 2, of format 2; log P(x) of 8 drawn images differs by at most" in told
        old, new = (open_version(tmp_path, name, version) for version in (1, 2))
        assert (old.manifest.format_version, new.manifest.format_version) == (1, 2)
        assert all((old.path / file).read_bytes() == (new.path / file).read_bytes() for file in WEIGHTS)
        same = ("name", "image", "preparation", "latent_dim", "likelihood", "calibration", "metrics", "provenance")
        assert all(getattr(old.manifest, field) == getattr(new.manifest, field) for field in same)
        assert {key: list(values) for key, values in old.calibration.items()} == {
            key: list(values) for key, values in new.calibration.items()
        }
        one, two = (
            complete(Model.open(stored, runtime=runtime).log_likelihood(pixels, num_samples=200)).log_likelihood
            for stored in (old, new)
        )
        assert np.abs(one - two).max() < upgrade.AGREEMENT
    assert all(file.read_bytes() == content for file, content in before.items())

    assert main(["upgrade", str(tmp_path)]) == 0  # once more: nothing is left to do
    assert capsys.readouterr().out.splitlines() == [f"{name} version 2: of format 2 already" for name in sorted(OLD)]
    assert all(open_version(tmp_path, name).manifest.version == 2 for name in OLD)


def test_one_model_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("bernoulli", "other"):
        add_format_1(tmp_path, name, *OLD["bernoulli"])
    assert main(["upgrade", str(tmp_path), "--model", "other"]) == 0
    assert open_version(tmp_path, "bernoulli").manifest.format_version == 1
    assert open_version(tmp_path, "other").manifest.format_version == 2
    assert main(["upgrade", str(tmp_path), "--model", "missing"]) == 2
    assert capsys.readouterr().err == "error: the store has no model 'missing'\n"


def test_a_pin_stays_and_is_told_and_the_newest_version_is_upgraded_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_format_1(tmp_path, "bernoulli", *OLD["bernoulli"])
    pin(tmp_path, "bernoulli", 1)
    assert main(["upgrade", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "bernoulli: published version 2" in told
    assert "bernoulli: version 1 is pinned and stays the default; `logpx models pin bernoulli 2` makes" in told
    assert open_version(tmp_path, "bernoulli").manifest.version == 1
    assert main(["upgrade", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "bernoulli version 2: of format 2 already\n"


def test_what_cannot_be_upgraded_is_said_and_keeps_no_other_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = add_format_1(tmp_path, "a-broken", *OLD["bernoulli"])
    (broken / "decoder.onnx").write_bytes(b"")
    unknown = add_format_1(tmp_path, "b-unknown", *OLD["bernoulli"])
    manifest = json.loads((unknown / "manifest.json").read_text())
    (unknown / "manifest.json").write_text(json.dumps(manifest | {"likelihood": {"kind": "poisson"}}))
    add_format_1(tmp_path, "c-good", *OLD["bernoulli"])
    assert main(["upgrade", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.err == "error: 2 of the models could not be upgraded\n"
    lines = said.out.splitlines()
    assert lines[0].startswith("a-broken: not upgraded: ")
    assert "SHA-256" in lines[0]
    assert lines[1].startswith("b-unknown: not upgraded: ")
    assert "poisson" in lines[1]
    assert open_version(tmp_path, "c-good").manifest.format_version == 2
    assert [entry.name for entry in broken.parent.iterdir()] == ["1"]


def test_answers_that_would_change_are_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_format_1(tmp_path, "real", *OLD["real"])
    other = nonlinear_toy(gaussian(0.2001), SHAPE, 2).likelihood
    monkeypatch.setattr(upgrade, "export_likelihood", lambda likelihood: other)
    assert main(["upgrade", str(tmp_path), "--model", "real"]) == 2
    assert "log P(x) of a drawn image would change by 0." in capsys.readouterr().err
    assert [entry.name for entry in (tmp_path / "real").iterdir()] == ["1"]


def test_a_store_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upgrade", str(tmp_path / "missing")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'missing'}: the model store is not a folder\n"
    assert main(["upgrade", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: no model is there\n"
