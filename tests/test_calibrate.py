"""`python -m service calibrate`: a user's own images, from files to a version whose p-values are of them."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_store import Description, ImageShape, PixelPreparation, list_versions, open_version, pin, publish
from service.__main__ import main
from service.engine.anomaly.detector import fitting_images
from service.engine.chunks import complete
from service.engine.format1 import likelihood_graph_of
from service.engine.model import Model
from service.engine.runtime import DEVICE_ERRORS, Runtime
from service.images.bottom_k import BottomKSketch
from tests.rounding import density_error
from tests.toys import AnyArray, bernoulli_toy

ROOT = Path(__file__).parents[1]
SHAPE = ImageShape(channels=1, height=10, width=8)
COUNT = 24
NATS = density_error(SHAPE.size, 100)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of progress, however slow the machine is: tests compare what is printed."""
    monkeypatch.setattr("service.progress._SECONDS_AT_LEAST", math.inf)
    monkeypatch.setattr("service.progress._SECONDS_AT_MOST", math.inf)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    toy = bernoulli_toy(SHAPE, 3, name="toy", preparation=PixelPreparation(binarisation="dynamic"))
    root = tmp_path / "store"
    toy.publish(root)
    return root


@pytest.fixture
def pixels() -> AnyArray:
    return np.random.default_rng(4).integers(0, 256, (COUNT, 10, 8)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path, pixels: AnyArray) -> Path:
    """The images as files of several kinds, some in a folder within, in the order of their names."""
    root = tmp_path / "line-3"
    (root / "more").mkdir(parents=True)
    for index, image in enumerate(pixels):
        parent = root / "more" if index >= 16 else root
        suffix = ("png", "webp")[index % 2]
        Image.fromarray(image).save(parent / f"{index:02}.{suffix}", lossless=True)  # PNG always is
    (root / "notes.txt").write_text("not an image")
    return root


def calibrate(store: Path, images: Path, *more: str) -> int:
    return main(["calibrate", "--model=toy", f"--store={store}", f"--images={images}", "--device=cpu", *more])


def scored(store: Path, pixels: AnyArray) -> dict[str, AnyArray]:
    stored = open_version(store, "toy")
    protocol = stored.manifest.calibration
    model = Model.open(stored, runtime=Runtime("cpu"))
    unit = pixels[:, None].astype(np.float32) / np.float32(255)
    arguments: dict[str, Any] = {name: getattr(protocol, name) for name in ("proposal", "num_samples", "seed")}
    return complete(model.statistics(unit, **arguments)).measured()


def test_a_folder_of_images_becomes_a_version(
    store: Path, folder: Path, pixels: AnyArray, capsys: pytest.CaptureFixture[str]
) -> None:
    before = open_version(store, "toy")
    assert calibrate(store, folder) == 0
    after = open_version(store, "toy")
    assert (after.manifest.version, after.encoder, after.decoder) == (2, before.encoder, before.decoder)
    changed = {"version", "created", "sha256", "calibration"}
    assert after.manifest.model_dump(exclude=changed) == before.manifest.model_dump(exclude=changed)
    protocol = after.manifest.calibration
    assert (protocol.proposal, protocol.num_samples, protocol.seed) == ("encoder", 200, 0)
    assert protocol.num_images == COUNT
    assert protocol.source.startswith("images of line-3, prepared as the service prepares a request's; ")
    assert str(folder.parent) not in after.manifest.model_dump_json()
    for name, array in scored(store, pixels).items():
        np.testing.assert_allclose(np.sort(after.calibration[name]), np.sort(array), atol=NATS, err_msg=name)
    np.testing.assert_array_equal(after.calibration["fitting"], fitting_images(COUNT))
    output = capsys.readouterr().out
    assert "24 images; encoder, 200 samples, seed 0" in output
    assert "of 24 calibration images 8 fit the scores and 16 are compared with" in output
    assert "with 16 images to compare with, alpha = 0.05 never fires; 19 are needed" in output
    assert output.endswith(f"published {store / 'toy' / '2'}\n")
    scores = complete(Model.open(after, runtime=Runtime("cpu")).anomaly_scores(np.ones((2, 1, 10, 8), np.float32)))
    assert list(scores.by_method) == ["combined"]


def test_a_version_that_a_pin_keeps_from_being_the_default_is_told(
    store: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pin(store, "toy", 1)
    assert calibrate(store, folder) == 0
    published, notice = capsys.readouterr().out.splitlines()[-2:]
    assert published == f"published {store / 'toy' / '2'}"
    assert notice.startswith(
        "toy: version 1 is pinned and stays the default; `logpx models pin toy 2` makes version 2 "
    )
    assert open_version(store, "toy").manifest.version == 1


@pytest.mark.parametrize("form", ["uint8", "float32", "with channels"])
def test_an_array_gives_what_the_files_give(
    store: Path, folder: Path, pixels: AnyArray, tmp_path: Path, form: str
) -> None:
    array = {"uint8": pixels, "float32": (pixels / np.float32(255)), "with channels": pixels[:, None]}[form]
    np.save(tmp_path / "line-3.npy", array)
    assert calibrate(store, folder) == calibrate(store, tmp_path / "line-3.npy") == 0
    first, second = (open_version(store, "toy", version) for version in (2, 3))
    for name, expected in first.calibration.items():
        np.testing.assert_allclose(second.calibration[name], expected, atol=NATS)


def publish_trained_on(store: Path, trained: AnyArray) -> None:
    """Version 2 of the toy: the same, but its manifest knows what it was trained on."""
    stored = open_version(store, "toy")
    fields = {name: getattr(stored.manifest, name) for name in type(stored.manifest).model_fields}
    known = {"training_images": BottomKSketch.of([trained[:, None]]).as_json()}
    provenance = stored.manifest.provenance.model_copy(update={"configuration": known})
    publish(
        store,
        Description(**{name: fields[name] for name in Description.model_fields} | {"provenance": provenance}),
        encoder=stored.encoder,
        decoder=stored.decoder,
        likelihood=likelihood_graph_of(stored),
        calibration=stored.calibration,
    )


def test_training_images_are_refused(
    store: Path, folder: Path, pixels: AnyArray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(store, folder, "--version=1") == 0
    assert "does not record its training images" in capsys.readouterr().out
    publish_trained_on(store, pixels[:7])
    assert calibrate(store, folder) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the model was trained on 7 of these images: they look more familiar")
    assert "--allow-training-images" in error
    np.save(tmp_path / "a.npy", pixels[7:])
    assert calibrate(store, tmp_path / "a.npy") == 0
    assert capsys.readouterr().err == ""
    assert open_version(store, "toy").manifest.provenance.configuration["training_images"]
    assert calibrate(store, folder, "--allow-training-images") == 0
    assert "warning: the model was trained on 7 of these images\n" in capsys.readouterr().err


def test_one_in_a_hundred_may_be_there_by_chance(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(6).integers(0, 256, (100, 10, 8)).astype(np.uint8)
    np.save(tmp_path / "a.npy", images)
    publish_trained_on(store, images[:1])
    assert calibrate(store, tmp_path / "a.npy", "--proposal=prior", "--num-samples=2") == 0
    assert capsys.readouterr().err == "warning: the model was trained on 1 of these images\n"
    publish_trained_on(store, images[:2])
    assert calibrate(store, tmp_path / "a.npy") == 2


def test_images_more_familiar_than_those_before_are_remarked_on(
    store: Path, folder: Path, pixels: AnyArray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(store, folder) == 0
    likely = scored(store, pixels)["log_likelihood"].argmax()
    np.save(tmp_path / "a.npy", np.repeat(pixels[likely][None], 30, axis=0))
    capsys.readouterr()
    assert calibrate(store, tmp_path / "a.npy", "--num-samples=100") == 0  # another protocol: not compared
    assert calibrate(store, folder, "--version=2") == 0  # the same images
    assert capsys.readouterr().err == ""
    assert calibrate(store, tmp_path / "a.npy", "--version=2") == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: log P(x) of these images is on average ")
    assert "nats higher than of those that calibrated version 2: if the model was trained on any" in error


def test_folders_are_read_as_training_reads_them(
    store: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    root.mkdir()
    (root / "linked").symlink_to(folder)
    (root / "._00.png").write_bytes(b"macOS")
    (root / ".ipynb_checkpoints").mkdir()
    (root / ".ipynb_checkpoints" / "00.png").write_bytes((folder / "00.png").read_bytes())
    (root / "0.bmp").write_bytes(b"BM")
    Image.fromarray(np.zeros((10, 8), np.uint8)).save(root / "0.jfif", format="JPEG")
    assert calibrate(store, root) == 0
    assert open_version(store, "toy").manifest.calibration.num_images == COUNT + 1
    skipped = "2 hidden files (._00.png, …), 1 .bmp file (0.bmp), 1 .txt file (linked/notes.txt)"
    assert f"skipped: {skipped}\n" in capsys.readouterr().out
    (tmp_path / "bmp").mkdir()
    (tmp_path / "bmp" / "0.bmp").write_bytes(b"BM")
    assert calibrate(store, tmp_path / "bmp") == 2
    assert "bmp: no image that can be read; there are 1 .bmp file (0.bmp)" in capsys.readouterr().err


def test_parts_of_a_data_set_do_not_calibrate_together(
    store: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("training", "testing"):
        (tmp_path / "set" / part).mkdir(parents=True)
        (tmp_path / "set" / part / "0.png").write_bytes((folder / "00.png").read_bytes())
    assert calibrate(store, tmp_path / "set") == 2
    error = capsys.readouterr().err
    assert "has folders for the parts of a data set (training/0.png, testing/0.png): pass --images the one" in error
    assert calibrate(store, tmp_path / "set" / "testing") == 0


def test_progress_is_told_where_there_is_no_terminal(
    store: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.progress._SECONDS_AT_LEAST", 0.0)
    assert calibrate(store, folder) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("checking: 3 of 24 images (12 %), ")
    assert lines[-1].startswith("calibrating: 24 of 24 images in ")


def test_the_protocol_can_be_chosen(store: Path, folder: Path) -> None:
    assert calibrate(store, folder, "--proposal=laplace", "--num-samples=20", "--seed=5", "--max-images=10") == 0
    protocol = open_version(store, "toy").manifest.calibration
    assert (protocol.proposal, protocol.num_samples, protocol.seed, protocol.num_images) == ("laplace", 20, 5, 10)
    for proposal in ("annealed", "auto"):
        assert calibrate(store, folder, "--version=1", f"--proposal={proposal}", "--max-images=6") == 0
        stored = open_version(store, "toy")
        protocol = stored.manifest.calibration
        assert (protocol.proposal, protocol.num_samples, protocol.seed) == (proposal, 400, 0)
        Model.open(stored, runtime=Runtime("cpu"))
    assert calibrate(store, folder, "--version=1", "--proposal=prior", "--max-images=4") == 0
    protocol = open_version(store, "toy").manifest.calibration
    assert (protocol.proposal, protocol.num_samples, protocol.seed) == ("prior", 5000, 0)
    assert "those of version 1" in protocol.source


def test_a_part_is_chosen_by_the_seed(store: Path, folder: Path, pixels: AnyArray) -> None:
    for _ in range(2):
        assert calibrate(store, folder, "--max-images=9") == 0
    first, second = (open_version(store, "toy", version).calibration for version in (2, 3))
    every = scored(store, pixels)["log_likelihood"]
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array)
    found = [int(np.abs(every - value).argmin()) for value in first["log_likelihood"]]
    np.testing.assert_allclose(first["log_likelihood"], every[found], atol=NATS)
    assert len(set(found)) == 9
    assert found != sorted(found)  # in no order: every third one fits, and files named in turn must not all be that one


def test_images_that_cannot_be_read_are_named(store: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken.png").write_bytes((folder / "00.png").read_bytes()[:60])
    Image.fromarray(np.zeros((8, 10), np.uint8)).save(folder / "turned.png")
    assert calibrate(store, folder) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 2 images cannot be read; --skip-corrupt leaves them out:\n")
    assert f"{folder / 'broken.png'}: " in error
    assert f"{folder / 'turned.png'}: the image is 8×10 (height × width), the model takes 10×8; add --resize" in error
    assert list_versions(store) == {"toy": [1]}

    assert calibrate(store, folder, "--skip-corrupt") == 0
    assert "warning: 2 images cannot be read and are left out:" in capsys.readouterr().err
    assert open_version(store, "toy").manifest.calibration.num_images == COUNT
    (folder / "broken.png").unlink()
    assert calibrate(store, folder, "--resize") == 0
    assert open_version(store, "toy").manifest.calibration.num_images == COUNT + 1


def test_an_image_of_an_array_that_is_wrong_is_named(
    store: Path, tmp_path: Path, pixels: AnyArray, capsys: pytest.CaptureFixture[str]
) -> None:
    array = pixels / np.float32(255)
    array[3, 2, 1], array[7, 0, 0] = np.nan, 1.5
    np.save(tmp_path / "a.npy", array)
    assert calibrate(store, tmp_path / "a.npy") == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'a.npy'}[3]: a pixel is NaN" in error
    assert f"{tmp_path / 'a.npy'}[7]: pixels range from" in error
    assert calibrate(store, tmp_path / "a.npy", "--skip-corrupt") == 0
    assert open_version(store, "toy").manifest.calibration.num_images == COUNT - 2


def test_what_cannot_be_done_is_said_and_nothing_is_published(
    store: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npy").write_text("not npy")
    np.save(tmp_path / "doubles.npy", np.zeros((3, 10, 8)))
    for images, arguments, words in [
        (tmp_path / "empty", [], "empty: no image that can be read"),
        (tmp_path / "absent", [], "No such file or directory"),
        (tmp_path / "text.npy", [], "text.npy: the body is not an npy file"),
        (tmp_path / "doubles.npy", [], "doubles.npy: the array holds float64; accepted: float32, uint8"),
        (folder, ["--version=7"], "model 'toy' has no version 7"),
        (folder, ["--proposal=laplace", "--num-samples=3"], "the proposal laplace takes at least 4"),
        (folder, ["--proposal=auto", "--num-samples=3"], "the proposal auto takes at least 4"),
        (folder, ["--device=cuda"], "CUDA cannot be used"),
    ]:
        assert calibrate(store, images, *arguments) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert words in captured.err
    assert list_versions(store) == {"toy": [1]}


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ("--max-images=0", "must be at least 1, not 0"),
        ("--seed=-1", "must be at least 0 and at most 2**64 - 1, not -1"),
        ("--seed=18446744073709551616", "must be at least 0 and at most 2**64 - 1, not 18446744073709551616"),
        ("--num-samples=x", "must be a whole number, at least 1 and at most 2**20, not 'x'"),
        ("--num-samples=1048577", "must be at least 1 and at most 2**20, not 1048577"),
        ("--version=0", "must be at least 1 and at most 999999999, not 0"),
        ("--proposal=magic", "invalid choice: 'magic'"),
        ("--alpha=1", ""),
    ],
)
def test_a_wrong_option_is_refused(
    store: Path, folder: Path, capsys: pytest.CaptureFixture[str], wrong: str, problem: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        calibrate(store, folder, wrong)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert wrong.split("=")[0] in line
    assert problem in line


@pytest.mark.parametrize("error", DEVICE_ERRORS)
def test_a_gpu_that_fails_or_is_full_is_said(
    store: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Any
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error("so it is")

    monkeypatch.setattr("service.calibrate.calibrate", fails)
    assert calibrate(store, folder) == 2
    assert capsys.readouterr().err == "error: so it is\n"


def test_a_file_that_is_cut_off_after_it_was_checked_is_named(
    store: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut(*_: Any) -> list[str]:
        content = (folder / "02.png").read_bytes()
        (folder / "02.png").write_bytes(content[:-20])
        return []

    monkeypatch.setattr("service.calibrate.guarantees", cut)
    assert calibrate(store, folder) == 2
    assert (
        f"error: {folder / '02.png'}: has changed since it was checked: the file cannot be decoded"
        in capsys.readouterr().err
    )
    assert list_versions(store) == {"toy": [1]}


def test_an_interrupt_publishes_nothing(
    store: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("service.calibrate.calibrate", interrupted)
    assert calibrate(store, folder) == 130
    assert "interrupted; nothing was published" in capsys.readouterr().err
    assert list_versions(store) == {"toy": [1]}


def test_it_needs_no_torch(store: Path, folder: Path) -> None:
    """In a process of its own, where importing torch or the training package would fail."""
    script = f"""
import sys
sys.modules["torch"] = sys.modules["training"] = None
from service.__main__ import main
status = main(["calibrate", "--model=toy", "--store={store}", "--images={folder}", "--device=cpu"])
print(status, sorted(name for name, module in sys.modules.items() if name.startswith("torch") and module))
"""
    command = [sys.executable, "-c", script]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)  # noqa: S603
    assert process.stdout.endswith("0 []\n"), process.stderr
    assert open_version(store, "toy").manifest.version == 2


def test_more_images_than_a_calibration_may_have_are_refused_before_they_are_scored(
    store: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("service.calibrate.max_calibration_images", lambda latent_dim: latent_dim + 20)
    assert calibrate(store, folder) == 2
    assert capsys.readouterr().err == "error: 24 images are too many for this model: --max-images 23 or fewer\n"
    assert calibrate(store, folder, "--max-images=23") == 0
    assert list_versions(store) == {"toy": [1, 2]}
