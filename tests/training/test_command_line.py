import io
import json
import os
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

from model_store import list_versions, open_version
from service.__main__ import main as serve
from service.engine.proposal import DEFAULT_NUM_SAMPLES, PROPOSALS
from training.__main__ import main
from training.configuration import Configuration
from training.data.sources import read_source
from training.data.splits import DataSplits, split
from training.fit.run import METRICS, RUN, Run, open_run
from training.fit.trainer import EpochFigures

TRAINING = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
FAST = ["--width=16", "--latent-dim=3", "--num-samples=2", "--epochs=2", "--batch-size=40", "--device=cpu"]


def fit_arguments(data: Path | str, out: Path, *more: str) -> list[str]:
    return ["fit", f"--data={data}", f"--out={out}", *FAST, *more]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line on stderr of a command that must fail."""
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_from_images_to_the_store(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, store = tmp_path / "run", tmp_path / "store"
    assert main(fit_arguments(digits, run)) == 0
    output = capsys.readouterr().out
    assert "digits.npz: 160 train, 20 validation, 20 calibration, 100 test images of [1, 28, 28]" in output
    assert "; mlp, bernoulli, binarisation dynamic; on cpu, float32" in output
    assert "300 images are few: --flip and --shift make more of them, where that makes sense\n" in output
    assert "with 14 images to compare with, alpha = 0.01 never fires; 99 are needed\n" in output
    assert "--num-calibration 30 keeps enough of them for alpha = 0.05\n" in output
    assert "epoch 2/2: train -" in output
    assert "images/s" in output
    assert {file.name for file in run.iterdir()} == {
        "run.json",
        "checkpoint.pt",
        "metrics.jsonl",
        "sessions.jsonl",
        "curves.png",
        "reconstructions.png",
        "samples.png",
    }
    assert re.search(r"\nencoder, epoch 2/2: train -.* nats; \d+ images/s, at most 0 s left\nencoder: ", output)
    table = pandas.read_json(run / METRICS, lines=True)  # as docs/training.md says
    assert list(table["epoch"]) == [1, 2, 3, 4]
    assert set(table.columns) == {field.name for field in fields(EpochFigures)}
    assert all(f"`{name}`" in TRAINING for name in table.columns)

    scoring = ["--num-samples=20", "--encoder-samples=10", "--device=cpu"]
    assert main(["publish", str(run), "--name=tiny", f"--store={store}", *scoring]) == 0
    output, errors = capsys.readouterr()
    assert not re.search("error|warning", errors)
    assert "proposal auto, 20 samples" in output
    assert re.search(r"reliable +\d+\.\d % of images", output)
    assert "proposal encoder, 10 samples" in output
    assert "ONNX and PyTorch differ by at most" in output
    assert re.search(r"active_units +\d of 3 latent units", output)
    assert f"published {store}/tiny/1" in output
    assert list_versions(store) == {"tiny": [1]}
    calibration = open_version(store, "tiny").manifest.calibration
    assert (calibration.proposal, calibration.num_samples) == ("laplace", 20)

    for model in (run, store / "tiny", store / "tiny" / "1"):
        options = [f"--data={digits}", "--num-samples=20", "--device=cpu"]
        assert main(["evaluate", str(model), *options]) == 0
        output = capsys.readouterr().out
        assert f"{model} on digits.npz: 100 images; importance sampling" in output
        value = next(metric for metric in open_version(store, "tiny").manifest.metrics if metric.name == "elbo")
        assert f"{value.value:.4f} ± {value.std_error:.4f} nats/image" in output

    assert main(fit_arguments(digits, run, "--resume")) == 0
    error = refused(capsys, fit_arguments(digits, run))
    assert "is not empty: continue it with --resume" in error
    error = refused(capsys, fit_arguments(digits, run, "--resume", "--seed=1", "--learning-rate=0.5"))
    assert "learning_rate is 0.002 there, 0.5 now; seed is 0 there, 1 now" in error
    error = refused(capsys, fit_arguments(digits, run, "--resume", "--precision=bfloat16"))
    assert "is another run: precision is 'float32' there, 'bfloat16' now" in error
    assert "compiled is False there, True now" in refused(
        capsys, fit_arguments(digits, run, "--resume", "--compile=on")
    )
    other = tmp_path / "digits.npz"
    with np.load(digits) as arrays:
        np.savez(other, train=arrays["train"][::-1], test=arrays["test"])
    assert "data set's sha256 is" in refused(capsys, fit_arguments(other, run, "--resume"))


def test_a_run_that_moves_to_another_device_says_so(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(fit_arguments(digits, run, "--epochs=1", "--precision=bfloat16")) == 0
    assert "note" not in capsys.readouterr().err
    description = json.loads((run / RUN).read_text())
    assert (description["acceleration"], description["device"]) == ({"precision": "bfloat16", "compiled": False}, "cpu")
    (run / RUN).write_text(json.dumps({**description, "device": "cuda"}))
    assert main(fit_arguments(digits, run, "--epochs=1", "--resume")) == 0  # what is not said stays: bfloat16
    output, errors = capsys.readouterr()
    assert "on cpu, bfloat16" in output
    assert errors == "note: begun on cuda; on cpu it continues within rounding, not bit for bit\n"


def test_progress_is_told_where_there_is_no_terminal(
    digits: Path, finished_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.progress._SECONDS_AT_LEAST", 0.0)
    scoring = ["--num-samples=8", "--encoder-samples=4", "--device=cpu", f"--data={digits}"]
    assert main(["publish", str(finished_run.folder), "--name=tiny", f"--store={tmp_path}", *scoring]) == 0
    lines = capsys.readouterr().err.splitlines()
    for what, count in {"scoring by auto, K = 8": 100, "scoring by encoder, K = 4": 100, "calibrating": 20}.items():
        told = [line for line in lines if line.startswith(f"{what}: ")]
        done = [int(re.split(r": (\d+) of", line)[1]) for line in told]
        assert f" of {count} images (" in told[0]
        assert told[0].endswith(" left")
        assert done == sorted(done)
        assert done[-1] == count
    assert main(["evaluate", str(tmp_path / "tiny"), *scoring]) == 0
    assert "scoring by auto, K = 8: 16 of 100 images (16 %), " in capsys.readouterr().err


def test_names_that_are_not_utf_8_go_all_the_way(
    splits: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    images = odd / "images" / os.fsdecode(b"\xff")
    images.mkdir(parents=True)
    for index in range(30):
        Image.fromarray(splits.test[index, 0]).save(images / f"{index}.png")
    written = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr("sys.stdout", written)
    assert main(fit_arguments(images, odd / "run")) == 0
    assert main(fit_arguments(images, odd / "run", "--resume")) == 0
    scoring = ["--num-samples=4", "--encoder-samples=0", "--device=cpu"]
    assert main(["publish", str(odd / "run"), "--name=cafe", f"--store={odd / 'store'}", *scoring]) == 0
    report = odd / "report.html"
    assert main(["evaluate", str(odd / "run"), f"--data={images}", f"--report={report}", *scoring]) == 0
    written.flush()
    text = written.buffer.getvalue().decode()
    assert rf"published {tmp_path}/caf\udce9/store/cafe/1" in text
    assert report.read_text(encoding="utf-8")
    stored = open_version(odd / "store", "cafe")
    assert stored.manifest.provenance.data_set.startswith(r"\xff (pixels")
    assert serve(["calibrate", "--model=cafe", f"--store={odd / 'store'}", f"--images={images}", "--device=cpu"]) == 2
    allowed = ["--allow-training-images", f"--store={odd / 'store'}", f"--images={images}", "--device=cpu"]
    assert serve(["calibrate", "--model=cafe", *allowed]) == 0


def test_images_without_a_test_part_are_scored_whole(
    finished_run: Run, tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(digits) as arrays:
        np.save(tmp_path / "some.npy", arrays["test"][:7] > 100)
    arguments = ["evaluate", str(finished_run.folder), f"--data={tmp_path / 'some.npy'}", "--num-samples=5"]
    assert main([*arguments, "--device=cpu"]) == 0
    assert "on some.npy: 7 images" in capsys.readouterr().out


def test_some_of_the_images_are_scored_as_if_they_were_all(
    finished_run: Run, tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(digits) as arrays:
        np.save(tmp_path / "four.npy", arrays["test"][[0, 33, 66, 99]])
    scoring = ["evaluate", str(finished_run.folder), "--num-samples=5", "--device=cpu"]
    told = []
    for options in (["--images=4", f"--data={digits}"], [f"--data={tmp_path / 'four.npy'}", "--images=4"]):
        assert main([*scoring, *options]) == 0
        told.append(capsys.readouterr().out.splitlines())
    (some, *figures), (every, *expected) = told
    assert "on 4 of the 100 images of digits.npz, evenly spaced: 4 images" in some
    assert "on four.npy: 4 images" in every
    assert figures == expected


def test_a_run_is_scored_on_the_test_images_it_held_out(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(digits) as arrays:
        np.save(tmp_path / "whole.npy", arrays["train"])
        np.save(tmp_path / "other.npy", arrays["train"][::-1])
    run, store = tmp_path / "run", tmp_path / "store"
    scoring = ["--num-samples=4", "--device=cpu"]
    assert main(fit_arguments(tmp_path / "whole.npy", run)) == 0
    assert main(["publish", str(run), "--name=whole", f"--store={store}", "--encoder-samples=0", *scoring]) == 0
    capsys.readouterr()
    test = split(read_source(tmp_path / "whole.npy"), open_run(run).description.configuration).test
    np.save(tmp_path / "test.npy", test)
    assert main(["evaluate", str(run), f"--data={tmp_path / 'test.npy'}", *scoring]) == 0
    figures = capsys.readouterr().out.splitlines()[1:]
    for model in (run, store / "whole"):
        assert main(["evaluate", str(model), f"--data={tmp_path / 'whole.npy'}", *scoring]) == 0
        title, *lines = capsys.readouterr().out.splitlines()
        assert f"{model} on the part of whole.npy that was held out of training as its test: 20 images" in title
        assert lines == figures
    assert main(["evaluate", str(run), f"--data={tmp_path / 'other.npy'}", *scoring]) == 0
    assert "on other.npy: 200 images" in capsys.readouterr().out


def test_what_the_calibration_cannot_promise_is_said(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(fit_arguments(digits, run, "--num-calibration=12")) == 0
    capsys.readouterr()
    scoring = ["--num-samples=4", "--encoder-samples=0", "--device=cpu"]
    assert main(["publish", str(run), "--name=tiny", f"--store={tmp_path / 'store'}", *scoring]) == 0
    output = capsys.readouterr().out
    assert "of 12 calibration images 4 fit the scores and 8 are compared with: the smallest p-value is 0.11\n" in output
    assert "with 8 images to compare with, alpha = 0.05 never fires; 19 are needed\n" in output


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_the_number_of_samples_is_the_proposals_own(
    finished_run: Run, tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str], proposal: str
) -> None:
    with np.load(digits) as arrays:
        np.save(tmp_path / "one.npy", arrays["test"][:1])
    arguments = ["evaluate", str(finished_run.folder), f"--data={tmp_path / 'one.npy'}", f"--proposal={proposal}"]
    assert main([*arguments, "--device=cpu"]) == 0
    assert f"proposal {proposal}, {DEFAULT_NUM_SAMPLES[proposal]} samples" in capsys.readouterr().out


def test_divergence_is_an_error_with_the_step(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = fit_arguments(digits, tmp_path / "run", "--learning-rate=1e30", "--warm-up-epochs=0")
    assert main(arguments) == 2
    *warnings, error = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in warnings] == ["warning", "warning"]
    assert all("the loss is nan at step 2 (epoch 1): back to the weights of epoch 0" in line for line in warnings)
    assert error.startswith("error: training has diverged at each of the learning rates 1e+30, 2.5e+29, ")
    assert "--learning-rate 1.6e+28" in error


def test_errors_of_the_users_making(
    digits: Path, finished_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(finished_run.folder), tmp_path / "out"
    assert "nowhere: does not exist" in refused(capsys, fit_arguments(tmp_path / "nowhere", out))
    error = refused(capsys, fit_arguments(digits, out, "--num-validation=100", "--num-calibration=100"))
    assert "200 images cannot be divided" in error
    (tmp_path / "images.npy").write_bytes(b"no array")
    assert "images.npy: not a readable array file" in refused(capsys, fit_arguments(tmp_path / "images.npy", out))
    assert not out.exists()
    assert "no training run there" in refused(capsys, fit_arguments(digits, out, "--resume"))
    assert "no training run there" in refused(capsys, ["publish", str(out), "--name=tiny"])
    assert "no model 'nothing'" in refused(capsys, ["evaluate", str(tmp_path / "nothing"), f"--data={digits}"])
    np.save(tmp_path / "small.npy", np.ones((12, 4, 4), np.uint8))
    error = refused(capsys, ["evaluate", run, f"--data={tmp_path / 'small.npy'}"])
    assert "images: [1, 4, 4] each, but the model takes [1, 28, 28]" in error
    (tmp_path / "file").write_text("where a folder belongs")
    error = refused(
        capsys,
        ["publish", run, "--name=tiny", f"--store={tmp_path / 'file'}", "--num-samples=4", "--encoder-samples=0"],
    )
    assert "file" in error
    error = refused(capsys, ["publish", run, "--name=tiny", "--num-samples=2"])
    assert "num_samples is 2; the proposal auto takes at least 4" in error
    assert "the proposal auto" in refused(capsys, ["evaluate", run, f"--data={digits}", "--num-samples=2"])
    (tmp_path / "images.npy").write_bytes(b"\x93NUMPY\x01\0\x02\0(\n")
    assert "images.npy: not a readable array file" in refused(capsys, fit_arguments(tmp_path / "images.npy", out))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["train"],
        ["fit", "--data=mnist"],
        ["fit", "--data=mnist", "--out=run", "--objective=vae"],
        ["publish", "run", "--name=../escape"],
        ["publish", "run", "--name=tiny", "--num-samples=0"],
        ["evaluate", "run", "--data=mnist", "--proposal=posterior"],
        ["evaluate", "run", "--data=mnist", "--seed=-1"],
        ["evaluate", "run", "--data=mnist", "--images=0"],
        ["evaluate", "run", "--data=mnist", "--workers=-1"],
    ],
)
def test_wrong_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("--width=0", "must be at least 1, not 0"),
        ("--width=many", "must be a whole number, at least 1, not 'many'"),
        ("--latent-dim=4097", "must be at least 1 and at most 4096, not 4097"),
        ("--first-samples=0", "must be at least 1, not 0"),
        ("--shift=-1", "must be at least 0, not -1"),
        ("--seed=9223372036854775808", "must be at least 0 and less than 2**63, not 9223372036854775808"),
        ("--ema-decay=1", "must be at least 0 and less than 1, not 1.0"),
        ("--learning-rate=nan", "must be positive and finite, not nan"),
        ("--gaussian-scale=0", "must be positive and finite, not 0.0"),
        ("--max-memory=inf", "must be at least 0 and finite, not inf"),
    ],
)
def test_a_number_out_of_its_range_is_refused_before_the_data_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, problem: str
) -> None:
    """In one line that names the option and its range, which its help tells too."""
    name = option.partition("=")[0]
    with pytest.raises(SystemExit) as caught:
        main(["fit", f"--data={tmp_path / 'nowhere'}", f"--out={tmp_path / 'out'}", option])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: argument {name}: {problem}")
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    told = problem.removeprefix("must be ").removeprefix("a whole number, ").partition(", not")[0]
    text = " ".join(capsys.readouterr().out.split())
    metavar = name.removeprefix("--").replace("-", "_").upper()
    words = text.partition(f" {name} {metavar} ")[2].partition(" (default: ")[0]
    assert words.endswith(f"; {told}")


@pytest.mark.parametrize("command", ["evaluate", "publish"])
@pytest.mark.parametrize("option", ["--num-samples=1048577", "--num-samples=0"])
def test_what_the_store_would_refuse_after_hours_is_refused_at_once(
    capsys: pytest.CaptureFixture[str], command: str, option: str
) -> None:
    more = ["--data=mnist"] if command == "evaluate" else ["--name=tiny"]
    with pytest.raises(SystemExit) as caught:
        main([command, "run", *more, option])
    assert caught.value.code == 2
    assert "argument --num-samples: must be at least 1 and at most 2**20, not" in capsys.readouterr().err


def test_help_shows_every_option_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: None)" not in text
    for field in fields(Configuration):
        assert f"--{field.name.replace('_', '-')} " in text
        by_others = ("preset", "likelihood", "warm_up_epochs", "epochs", "patience")
        if field.default is not None and field.name not in by_others:
            assert re.search(rf"\(default: {re.escape(str(field.default))}[;,)]", text), field.name
    by_images = "discretised_logistic for 8-bit images if more than a fifth of the pixels are grey, else bernoulli"
    assert f"(default: {by_images})" in text
    assert "(default: auto, an mlp up to 64×64 numbers an image, a resnet for larger ones" in text
    assert "(default: 1, or as many as have 100 steps, but at most a tenth of all)" in text
    steps = "as many as have 12 000 steps, at least 120 and at most 1000, if there is time"
    assert f"(default: planned by --minutes: {steps})" in text
    assert "; positive and finite (default: 12, without --epochs)" in text
    assert "(default: 512; 32 for resnet; 16 for resnet in patches)" in text


@pytest.mark.parametrize("command", ["evaluate", "publish"])
def test_help_tells_how_images_are_scored(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: None)" not in text
    assert "how log P(x) is estimated (default: auto)" in text
    for proposal, num_samples in DEFAULT_NUM_SAMPLES.items():
        assert f"{num_samples} by {proposal}" in text
