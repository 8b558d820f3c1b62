"""Runs that begin with the weights of another."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model_store import open_version
from training.__main__ import main
from training.data.splits import DataSplits
from training.errors import RunError
from training.fit.loaded_model import load_model
from training.fit.run import CHECKPOINT, RUN, Run, create_run, describe_run, open_run
from training.fit.start import begin, check_start, fingerprint, start_of
from training.fit.trainer import fit

CPU = torch.device("cpu")
SHORT = ["--epochs=2", "--finish-epochs=1", "--num-samples=2", "--batch-size=40", "--device=cpu"]


def fit_from(start: Run, data: Path, out: Path, *more: str) -> list[str]:
    return ["fit", f"--start-from={start.folder}", f"--data={data}", f"--out={out}", *SHORT, *more]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_model(run).vae.state_dict()


def same(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def test_training_goes_on_from_the_other_run(finished_run: Run, digits: Path, tmp_path: Path) -> None:
    assert main(fit_from(finished_run, digits, tmp_path / "run")) == 0
    run = open_run(tmp_path / "run")
    configuration, before = run.description.configuration, finished_run.description.configuration
    assert (configuration.width, configuration.latent_dim) == (before.width, before.latent_dim)
    assert run.description.start == fingerprint(weights(finished_run))
    first, last = run.read_metrics(1)[0], finished_run.read_metrics(before.epochs)[-1]
    scratch = finished_run.read_metrics(1)[0]
    assert abs(first["validation_bound"] - last["validation_bound"]) < 2
    assert last["validation_bound"] - scratch["validation_bound"] > 20


def test_the_manifest_says_so_and_the_split_is_still_known(finished_run: Run, digits: Path, tmp_path: Path) -> None:
    with np.load(digits) as arrays:
        np.save(tmp_path / "whole.npy", arrays["train"])  # no test images of its own
    assert main(fit_from(finished_run, tmp_path / "whole.npy", tmp_path / "run")) == 0
    scoring = ["--num-samples=4", "--device=cpu"]
    store = tmp_path / "store"
    assert main(["publish", str(tmp_path / "run"), "--name=more", f"--store={store}", *scoring]) == 0
    configuration = open_version(store, "more").manifest.provenance.configuration
    assert configuration["start"] == f"weights SHA-256 {fingerprint(weights(finished_run))}"
    assert main(["evaluate", str(store / "more"), f"--data={tmp_path / 'whole.npy'}", *scoring]) == 0


@pytest.mark.parametrize("lost", [False, True])
def test_a_run_killed_before_its_first_epochs_end_is_resumed(
    finished_run: Run, digits: Path, tmp_path: Path, lost: bool
) -> None:
    """Killed in the first epoch, or even before the weights were written."""
    assert main(fit_from(finished_run, digits, tmp_path / "whole")) == 0
    killed = create_run(tmp_path / "killed", open_run(tmp_path / "whole").description)
    if not lost:
        begin(killed, start_of(finished_run))
        assert same(weights(killed), weights(finished_run))
    assert main(fit_from(finished_run, digits, killed.folder, "--resume")) == 0
    assert same(weights(killed), weights(open_run(tmp_path / "whole")))


def test_a_run_is_resumed_only_with_its_own_start(
    finished_run: Run, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit_from(finished_run, digits, tmp_path / "run")) == 0
    before = weights(open_run(tmp_path / "run"))
    arguments = fit_from(finished_run, digits, tmp_path / "run", "--resume", "--width=48")
    without = [argument for argument in arguments if not argument.startswith("--start-from")]
    assert main(without) == 0  # what is not said stays as it was, the start too
    assert main(fit_from(open_run(tmp_path / "run"), digits, tmp_path / "run", "--resume")) == 2
    assert "is another run: start is" in capsys.readouterr().err
    assert same(weights(open_run(tmp_path / "run")), before)


def test_other_random_numbers_than_the_start_drew(finished_run: Run, splits: DataSplits, tmp_path: Path) -> None:
    configuration = replace(finished_run.description.configuration, epochs=1)
    first = start_of(finished_run)
    ends = []
    for start in (None, "0" * 64, fingerprint(first.weights)):
        description = describe_run(configuration, splits, source="", start=start)
        run = create_run(tmp_path / f"from {start}", description)
        begin(run, first)
        fit(run, splits, device=CPU, on_epoch=lambda figures, model: None)
        ends.append(weights(run))
    assert not any(same(ends[one], ends[other]) for one, other in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--width=16"], "width is 48 there, 16 now"),
        (["--preset=resnet"], "preset is 'mlp' there, 'resnet' now"),
        (["--likelihood=gaussian", "--binarisation=none"], "likelihood is 'bernoulli' there, 'gaussian' now"),
        (["--seed=1"], "seed is 0 there, 1 now"),
        (["--num-validation=5"], "num_validation is None there, 5 now"),
    ],
)
def test_what_does_not_fit_is_refused(
    finished_run: Run,
    digits: Path,
    tmp_path: Path,
    options: list[str],
    problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(fit_from(finished_run, digits, tmp_path / "run", *options)) == 2
    assert f"cannot be the start: {problem}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_images_of_another_shape_are_refused_and_other_images_may_be_split_otherwise(finished_run: Run) -> None:
    description = finished_run.description
    with pytest.raises(RunError, match=r"image_shape is \(1, 28, 28\) there, \(3, 28, 28\) now"):
        check_start(start_of(finished_run), replace(description, image_shape=(3, 28, 28)))
    otherwise = replace(description.configuration, seed=1)
    with pytest.raises(RunError, match="seed is 0 there, 1 now"):
        check_start(start_of(finished_run), replace(description, configuration=otherwise))
    check_start(start_of(finished_run), replace(description, configuration=otherwise, sha256="cd" * 32))


def test_a_start_without_weights_is_refused(
    finished_run: Run, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = create_run(tmp_path / "empty", finished_run.description)
    assert main(fit_from(empty, digits, tmp_path / "run")) == 2
    assert "no epoch has finished yet" in capsys.readouterr().err
    assert main(["fit", f"--start-from={tmp_path}", f"--data={digits}", f"--out={tmp_path / 'run'}"]) == 2
    assert "no training run there" in capsys.readouterr().err


def test_runs_of_before_there_was_a_start_are_still_opened(finished_run: Run, tmp_path: Path) -> None:
    fields = json.loads((finished_run.folder / RUN).read_text())
    assert fields.pop("start") is None
    (tmp_path / RUN).write_text(json.dumps(fields))
    (tmp_path / CHECKPOINT).write_bytes((finished_run.folder / CHECKPOINT).read_bytes())
    assert open_run(tmp_path).description == finished_run.description
