import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.conftest import TINY
from training.configuration import Configuration
from training.data.splits import DataSplits
from training.errors import ConfigurationError, RunError
from training.fit.devices import Acceleration
from training.fit.run import (
    CHECKPOINT,
    METRICS,
    RUN,
    SESSIONS,
    RunDescription,
    create_run,
    describe_run,
    open_run,
    resume_run,
)
from training.fit.session import Session

CPU = torch.device("cpu")
DESCRIPTION = RunDescription(
    configuration=Configuration(width=8),
    data_set="digits",
    sha256="ab" * 32,
    image_shape=(1, 4, 3),
    num_images={"train": 10, "validation": 1, "calibration": 1, "test": 2},
    source="somewhere/digits",
)


def test_a_run_comes_back_as_it_was(tmp_path: Path) -> None:
    created = create_run(tmp_path / "deep" / "run", DESCRIPTION)
    assert open_run(created.folder) == created
    assert resume_run(created.folder, replace(DESCRIPTION, source="moved")) == created
    assert [file.name for file in created.folder.iterdir()] == [RUN]


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty: continue it with --resume"):
        create_run(tmp_path, DESCRIPTION)
    with pytest.raises(RunError, match=r"notes\.txt: cannot be written"):
        create_run(tmp_path / "notes.txt", DESCRIPTION)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("changed", "phrase"),
    [
        (replace(DESCRIPTION, configuration=Configuration(width=9)), "width is 8 there, 9 now"),
        (replace(DESCRIPTION, sha256="cd" * 32), "data set's sha256 is 'abab"),
        (replace(DESCRIPTION, image_shape=(1, 3, 4)), r"image shape is \(1, 4, 3\) there, \(1, 3, 4\) now"),
        (
            replace(DESCRIPTION, data_set="letters", configuration=Configuration(width=8, seed=1)),
            "seed is 0 there, 1 now; data set is 'digits' there, 'letters' now",
        ),
    ],
)
def test_another_configuration_or_data_set_is_named(tmp_path: Path, changed: RunDescription, phrase: str) -> None:
    create_run(tmp_path, DESCRIPTION)
    with pytest.raises(RunError, match=phrase):
        resume_run(tmp_path, changed)


ON_A_GPU = replace(DESCRIPTION, acceleration=Acceleration("bfloat16", compiled=True), device="cuda")


def test_how_it_was_computed_comes_back(tmp_path: Path) -> None:
    run = create_run(tmp_path, ON_A_GPU)
    assert json.loads((tmp_path / RUN).read_text())["acceleration"] == {"precision": "bfloat16", "compiled": True}
    assert json.loads((tmp_path / RUN).read_text())["device"] == "cuda"
    assert open_run(tmp_path).description == run.description == ON_A_GPU


@pytest.mark.parametrize(
    ("changed", "phrase"),
    [
        (replace(ON_A_GPU, acceleration=Acceleration("float32", True)), "precision is 'bfloat16' there, 'float32' now"),
        (replace(ON_A_GPU, acceleration=Acceleration("float32"), device="cpu"), "precision is 'bfloat16' there"),
        (replace(ON_A_GPU, acceleration=Acceleration("bfloat16")), "compiled is True there, False now"),
    ],
)
def test_a_run_is_not_resumed_in_another_way(tmp_path: Path, changed: RunDescription, phrase: str) -> None:
    create_run(tmp_path, ON_A_GPU)
    with pytest.raises(RunError, match=phrase):
        resume_run(tmp_path, changed)


def test_a_run_may_move_to_another_device(tmp_path: Path) -> None:
    run = create_run(tmp_path, ON_A_GPU)
    assert resume_run(tmp_path, replace(ON_A_GPU, acceleration=Acceleration("bfloat16"), device="cpu")) == run


def test_a_run_begun_before_it_was_recorded_is_resumed_in_any_way(tmp_path: Path) -> None:
    create_run(tmp_path, DESCRIPTION)
    fields = json.loads((tmp_path / RUN).read_text())
    del fields["acceleration"], fields["device"]
    (tmp_path / RUN).write_text(json.dumps(fields))
    assert open_run(tmp_path).description == DESCRIPTION
    assert resume_run(tmp_path, ON_A_GPU).description.acceleration is None
    assert open_run(tmp_path).read_sessions() == []


def session(first_epoch: int, device: str = "cpu (AVX2)") -> Session:
    return Session(first_epoch, device, "float32", False, 2, 1, {"python": "3.12.1", "torch": "2.13.0"})


def test_a_session_without_a_finished_epoch_is_forgotten(tmp_path: Path) -> None:
    run = create_run(tmp_path, DESCRIPTION)
    for each in (session(1), session(4, "killed"), session(4), session(9)):
        run.append_session(each)
    assert open_run(tmp_path).read_sessions() == [session(1), session(4), session(9)]
    assert len((tmp_path / SESSIONS).read_text().splitlines()) == 3
    (tmp_path / SESSIONS).write_text("{}")
    with pytest.raises(RunError, match=r"sessions\.jsonl: not a run's sessions"):
        run.read_sessions()


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no training run there"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not a run's description"),
        ("[]", "not a run's description"),
        ('{"format_version": 3}', "format version 3, not 2"),
        ('{"format_version": 2}', "not a run's description"),
    ],
)
def test_a_broken_description_is_named(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / RUN).write_text(text)
    with pytest.raises(RunError, match=rf"run\.json: {problem}"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("width", 0, "width must be at least 1, not 0"),
        ("width", "8", "width must be a whole number, at least 1, not '8'"),
        ("flip", 1, "flip must be true or false, not 1"),
        ("polarity", "light", "there is no option polarity"),
        ("colour", "blue", "colour must be one of grey, rgb, not 'blue'"),
        ("size", 64, "size must be 2 whole numbers, each at least 1 and at most 4096, not 64"),
        ("size", [64, 64], "size and a fit other than exact belong together"),
        ("fit", "crop", "size and a fit other than exact belong together"),
    ],
)
def test_a_description_with_a_configuration_that_cannot_be_is_named(
    tmp_path: Path, name: str, value: object, problem: str
) -> None:
    create_run(tmp_path, DESCRIPTION)
    content = json.loads((tmp_path / RUN).read_text())
    content["configuration"][name] = value
    (tmp_path / RUN).write_text(json.dumps(content))
    with pytest.raises(RunError, match=rf"run\.json: not a run's description \({problem}\)"):
        open_run(tmp_path)


def test_a_description_of_before_some_option_was_there_is_read(tmp_path: Path) -> None:
    """What it lacks is the default; a whole number is a number."""
    create_run(tmp_path, DESCRIPTION)
    content = json.loads((tmp_path / RUN).read_text())
    del content["configuration"]["shift"], content["configuration"]["skip_corrupt"]
    content["configuration"]["warm_up_epochs"] = 1
    (tmp_path / RUN).write_text(json.dumps(content))
    assert open_run(tmp_path).description == DESCRIPTION


def test_checkpoints_are_replaced_whole(tmp_path: Path) -> None:
    run = create_run(tmp_path, DESCRIPTION)
    assert run.load_checkpoint(CPU) is None
    run.save_checkpoint({"epoch": 1, "weights": torch.arange(3)})
    run.save_checkpoint({"epoch": 2, "weights": torch.arange(4)})
    checkpoint = run.load_checkpoint(CPU)
    assert checkpoint is not None
    assert checkpoint["epoch"] == 2
    assert checkpoint["weights"].tolist() == [0, 1, 2, 3]
    assert {file.name for file in tmp_path.iterdir()} == {RUN, CHECKPOINT}


def test_a_write_that_fails_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    run = create_run(tmp_path, DESCRIPTION)
    run.save_checkpoint({"epoch": 1})
    with pytest.raises((TypeError, AttributeError, RuntimeError), match="pickle"):
        run.save_checkpoint({"epoch": 2, "broken": (number for number in range(3))})
    checkpoint = run.load_checkpoint(CPU)
    assert checkpoint is not None
    assert checkpoint["epoch"] == 1


@pytest.mark.parametrize("keep", [0, 100])
def test_a_truncated_checkpoint_is_named(tmp_path: Path, keep: int) -> None:
    run = create_run(tmp_path, DESCRIPTION)
    run.save_checkpoint({"epoch": 1, "weights": torch.zeros(1000)})
    (tmp_path / CHECKPOINT).write_bytes((tmp_path / CHECKPOINT).read_bytes()[:keep])
    with pytest.raises(RunError, match=r"checkpoint\.pt: not a readable checkpoint"):
        run.load_checkpoint(CPU)


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    run = create_run(tmp_path, DESCRIPTION)
    torch.save({"epoch": 1, "format_version": 7}, tmp_path / CHECKPOINT)
    with pytest.raises(RunError, match="format version 7, not 2"):
        run.load_checkpoint(CPU)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    run = create_run(tmp_path, DESCRIPTION)
    torch.save({"epoch": 1, "code": Path}, tmp_path / CHECKPOINT)
    with pytest.raises(RunError, match="not a readable checkpoint"):
        run.load_checkpoint(CPU)


def test_epochs_without_a_checkpoint_are_dropped_from_the_figures(tmp_path: Path) -> None:
    run = create_run(tmp_path, DESCRIPTION)
    assert run.truncate_metrics(0) == []
    for epoch in (1, 2, 3):
        run.append_metrics({"epoch": epoch, "train_bound": -epoch})
    with (tmp_path / METRICS).open("a") as stream:
        stream.write('{"epoch": 4, "trai')
    assert [line["epoch"] for line in run.truncate_metrics(2)] == [1, 2]
    run.append_metrics({"epoch": 3, "train_bound": -3.5})
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]


@pytest.mark.parametrize(
    ("limit", "most", "problem"),
    [
        ("MAX_IMAGE_SIZE", 8, "images of .* pixels and channels are too large: at most 8 are taken"),
        ("max_calibration_images", lambda latent_dim: latent_dim, "num_calibration must be at most"),
    ],
)
def test_what_no_store_would_take_is_refused_before_training(
    splits: DataSplits, monkeypatch: pytest.MonkeyPatch, limit: str, most: object, problem: str
) -> None:
    monkeypatch.setattr(f"training.fit.limits.{limit}", most)
    with pytest.raises(ConfigurationError, match=problem):
        describe_run(TINY, splits, source="here")
