"""`finish-encoder`: the encoder of a finished run or a published version, trained alone."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from model_store import ENCODER, MANIFEST, StoredModel, open_version
from service.engine.runtime import Runtime
from tests.training.test_command_line import refused
from training.__main__ import main
from training.errors import ParityError, RunError
from training.fit.loaded_model import load_model
from training.fit.run import Run, create_run, open_run
from training.fit.start import fingerprint, start_of
from training.publish.provenance import FINISHED_ENCODER
from training.publish.stored_start import stored_start

FAST = ["--width=16", "--latent-dim=3", "--num-samples=2", "--epochs=2", "--batch-size=40", "--learning-rate=0.01"]
SCORING = ["--num-samples=4", "--encoder-samples=0", "--device=cpu"]
SHORT = ["--finish-epochs=2", "--device=cpu"]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_model(run).vae.state_dict()


def same(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


@pytest.fixture(scope="module")
def folder(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without the phase, published; and a run that finishes the encoder of the published version."""
    folder = tmp_path_factory.mktemp("finish")
    data, store = f"--data={digits}", f"--store={folder / 'store'}"
    assert main(["fit", data, f"--out={folder / 'run'}", "--no-finish-encoder", "--device=cpu", *FAST]) == 0
    assert main(["publish", str(folder / "run"), "--name=tiny", store, *SCORING]) == 0
    assert main(["finish-encoder", str(folder / "store" / "tiny"), data, f"--out={folder / 'out'}", *SHORT]) == 0
    return folder


@pytest.fixture(scope="module")
def first(folder: Path) -> StoredModel:
    return open_version(folder / "store", "tiny", 1)


def test_the_next_version_has_the_same_density_and_another_encoder(folder: Path, first: StoredModel) -> None:
    assert main(["publish", str(folder / "out"), "--name=tiny", f"--store={folder / 'store'}", *SCORING]) == 0
    second = open_version(folder / "store", "tiny", 2)
    assert (second.decoder, second.likelihood) == (first.decoder, first.likelihood)
    assert second.encoder != first.encoder
    before, after = (dict(stored.manifest.provenance.configuration) for stored in (first, second))
    assert (before.pop("finish_encoder"), after.pop("finish_encoder")) == (False, True)
    assert (before.pop("finish_epochs"), after.pop("finish_epochs")) == (None, 2)
    assert FINISHED_ENCODER not in before
    gain = after.pop(FINISHED_ENCODER)
    assert gain["elbo_after"] > gain["elbo_before"]
    assert after.pop("start") == f"weights SHA-256 {fingerprint(weights(open_run(folder / 'run')))}"
    assert before.pop("trained_on").startswith("from epoch 1: cpu")
    assert after.pop("trained_on").startswith("from epoch 3: cpu")
    assert after == before  # what trained the decoder is still said
    assert second.manifest.provenance.data_set == first.manifest.provenance.data_set


def test_a_run_and_the_version_made_of_it_give_the_same_bits(folder: Path, digits: Path, tmp_path: Path) -> None:
    arguments = ["finish-encoder", str(folder / "run"), f"--data={digits}", f"--out={tmp_path}", *SHORT]
    assert main(arguments) == 0
    run = open_run(tmp_path)
    assert same(weights(run), weights(open_run(folder / "out")))
    assert [line["epoch"] for line in run.read_metrics()] == [1, 2, 3, 4]  # the curve goes on
    assert [line["epoch"] for line in open_run(folder / "out").read_metrics()] == [3, 4]
    assert [session.first_epoch for session in run.read_sessions()] == [1, 3]


@pytest.mark.parametrize("command", ["fit", "finish-encoder"])
def test_a_killed_one_is_resumed(
    folder: Path,
    digits: Path,
    tmp_path: Path,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = str(folder / "store" / "tiny" / "1")
    arguments = [f"--data={digits}", f"--out={tmp_path}", "--device=cpu"]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.fit_command.print_epoch", interrupt)
        assert main(["finish-encoder", start, *arguments, "--finish-epochs=2"]) == 130
    assert not load_model(open_run(tmp_path)).finished
    publish = ["publish", str(tmp_path), "--name=tiny", f"--store={tmp_path / 'store'}", *SCORING]
    assert "its encoder is not done; finish it with fit --resume" in refused(capsys, publish)
    assert main([command, *([start] if command == "finish-encoder" else []), *arguments, "--resume"]) == 0
    assert same(weights(open_run(tmp_path)), weights(open_run(folder / "out")))


def test_a_run_can_start_from_a_published_version(folder: Path, digits: Path, tmp_path: Path) -> None:
    start = f"--start-from={folder / 'store' / 'tiny' / '1'}"
    more = ["--epochs=1", "--no-finish-encoder", "--device=cpu"]
    assert main(["fit", start, f"--data={digits}", f"--out={tmp_path}", *more]) == 0
    run, before = open_run(tmp_path), open_run(folder / "run")
    assert run.description.start == fingerprint(weights(before))
    assert run.description.configuration.width == 16
    bounds = [found.read_metrics()[-1]["validation_bound"] for found in (before, run)]
    assert abs(bounds[1] - bounds[0]) < abs(before.read_metrics()[0]["validation_bound"] - bounds[1])


def test_what_cannot_be_finished_is_refused(
    folder: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], finished_run: Run
) -> None:
    with np.load(digits) as arrays:
        np.savez(tmp_path / "digits.npz", train=arrays["train"][::-1], test=arrays["test"])
    out = f"--out={tmp_path / 'out'}"
    run = str(folder / "run")
    error = refused(capsys, ["finish-encoder", run, f"--data={tmp_path / 'digits.npz'}", out])
    assert "run was not trained on these images of digits.npz: their SHA-256 differs" in error
    broken = create_run(tmp_path / "broken", finished_run.description)
    checkpoint = finished_run.load_checkpoint(torch.device("cpu"))
    assert checkpoint is not None
    broken.save_checkpoint({**checkpoint, "epoch": 3, "encoder_phase": None, "best": None})
    error = refused(capsys, ["finish-encoder", str(broken.folder), f"--data={digits}", out])
    assert "its decoder is not trained to the end; finish it with fit --resume" in error
    assert "no model 'nothing'" in refused(
        capsys, ["finish-encoder", str(tmp_path / "nothing"), f"--data={digits}", out]
    )
    assert not (tmp_path / "out").exists()
    description = open_run(folder / "out").description
    create_run(tmp_path / "killed", description)  # before its weights were written
    arguments = ["fit", f"--data={digits}", f"--out={tmp_path / 'killed'}", "--resume", "--device=cpu"]
    assert "ended before the weights that it begins with were there" in refused(capsys, arguments)


def test_a_version_that_is_not_an_export_of_the_networks_is_refused(first: StoredModel, tmp_path: Path) -> None:
    """Its graph computes something else than the networks do with its weights, or has not all of them."""
    graph = onnx.load_from_string(first.encoder)
    (gemm,) = [node for node in graph.graph.node if "mean.bias" in node.input]
    (alpha,) = [attribute for attribute in gemm.attribute if attribute.name == "alpha"]
    alpha.f = 2.0
    doubled = stored_with(first, tmp_path / "doubled", ENCODER, graph.SerializeToString())
    with pytest.raises(ParityError, match=r"'mean' is off by"):
        stored_start(doubled, runtime=Runtime("cpu"))
    graph = onnx.load_from_string(first.encoder)
    (bias,) = [item for item in graph.graph.initializer if item.name == "mean.bias"]
    bias.CopyFrom(numpy_helper.from_array(np.zeros(3, np.float32), "offset"))
    (gemm,) = [node for node in graph.graph.node if "mean.bias" in node.input]
    gemm.input[list(gemm.input).index("mean.bias")] = "offset"
    renamed = stored_with(first, tmp_path / "renamed", ENCODER, graph.SerializeToString())
    with pytest.raises(RunError, match="cannot be the start: not an export of networks that are known"):
        stored_start(renamed, runtime=Runtime("cpu"))


def stored_with(stored: StoredModel, folder: Path, file: str, content: bytes) -> Path:
    """The version with another file, whole, in a store of its own."""
    version = folder / stored.manifest.name / "1"
    version.mkdir(parents=True)
    for other in stored.path.iterdir():
        (version / other.name).write_bytes(other.read_bytes())
    (version / file).write_bytes(content)
    manifest = json.loads((version / MANIFEST).read_text())
    manifest["sha256"][file] = hashlib.sha256(content).hexdigest()
    (version / MANIFEST).write_text(json.dumps(manifest))
    return version


def test_the_weights_of_a_version_are_those_of_its_run(folder: Path, first: StoredModel) -> None:
    found, expected = stored_start(first.path, runtime=Runtime("cpu")), start_of(open_run(folder / "run"))
    assert fingerprint(found.weights) == fingerprint(expected.weights)
    assert (found.configuration, found.sha256, found.image_shape) == (
        expected.configuration,
        expected.sha256,
        expected.image_shape,
    )
