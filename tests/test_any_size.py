"""From a folder of photographs of many sizes and modes to answers over HTTP; and the same bits in both."""

import io
import json
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.testing import assert_array_equal
from PIL import Image

from model_store import CHANNELS, ImageShape, open_version
from service.images.fitting import Fit, Fitting
from service.images.reader import ImageReader
from service.web.app import create_app
from service.web.operations.settings import Settings
from tests.exporter import operators_looked_up_once
from tests.images.written import png
from tests.training.photographs import photographs
from tests.trials import TrialsInProcess
from training.__main__ import main
from training.data.image_sets import Reading
from training.data.preparation import Preparation
from training.data.sources import StreamedSource, open_source, read_source
from training.errors import CorruptImageError

TINY = ["--width=16", "--latent-dim=3", "--num-samples=1", "--epochs=2", "--objective=elbo", "--device=cpu"]
SIZES = [(1, 1), (1, 40), (37, 2), (16, 12), (12, 16), (9, 9), (50, 31), (33, 64)]
MODES = ["1", "L", "LA", "I;16", "P", "P with transparency", "RGB", "RGBA", "CMYK", "animated"]


def odd_image(mode: str, height: int, width: int, rng: np.random.Generator) -> Image.Image:
    """Noise in one of Pillow's modes."""
    grey = Image.fromarray(rng.integers(0, 256, (height, width), np.uint8))
    colour = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    match mode:
        case "1" | "LA" | "L":
            image = grey.convert(mode)
        case "I;16":
            image = Image.fromarray(rng.integers(0, 2**16, (height, width)).astype(np.uint16))
        case "P" | "P with transparency":
            image = colour.quantize(7)
        case "RGB" | "RGBA" | "CMYK":
            image = colour.convert(mode)
        case _:
            image = grey.convert("RGB")
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(rng.integers(0, 256, (height, width), np.uint8)))
    return image


def odd_file(index: int, mode: str, size: tuple[int, int], rng: np.random.Generator) -> tuple[str, bytes]:
    """The name and the bytes of one file, with an orientation by its number."""
    image = odd_image(mode, *size, rng)
    exif = Image.Exif()
    exif[0x0112] = 1 + index % 8
    named = "JPEG" if mode == "CMYK" or (mode in ("L", "RGB") and index % 3 == 0) else "PNG"
    if mode in ("RGB", "RGBA", "animated") and index % 3 == 1:
        named = "WEBP"
    options: dict[str, Any] = {"exif": exif}
    if mode == "P with transparency":
        options["transparency"] = 3
    if mode == "animated":
        options |= {"save_all": True, "append_images": [image.rotate(180)]}
        named = "PNG" if named == "JPEG" else named
    if named == "WEBP":
        options["lossless"] = bool(index % 2)
    stream = io.BytesIO()
    image.save(stream, named, **options)
    return f"{index:03}.{'jpg' if named == 'JPEG' else named.lower()}", stream.getvalue()


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than 200 files: every mode in every size, each orientation among them; and colour of 16 bits."""
    folder, rng = tmp_path_factory.mktemp("odd"), np.random.default_rng(12)
    kinds = [(mode, size) for _ in range(3) for size in SIZES for mode in MODES]
    for index, (mode, size) in enumerate(kinds):
        name, content = odd_file(index + index // 8, mode, size, rng)
        (folder / f"{index:03}-{name}").write_bytes(content)
    for index, size in enumerate(SIZES):
        samples = rng.integers(0, 2**16, (*size, 3 if index % 2 else 4))
        (folder / f"deep-{index}.png").write_bytes(png(samples, 2 if index % 2 else 6, 16, interlaced=index % 3 == 0))
    return folder


@pytest.mark.parametrize(
    ("fit", "colour", "invert"),
    [("crop", "rgb", True), ("pad", "grey", False), ("stretch", "rgb", False)],
)
def test_training_and_service_read_the_same_bits(odd_files: Path, fit: Fit, colour: Any, invert: bool) -> None:
    preparation = Preparation((16, 12), fit, colour, invert)
    trained = read_source(odd_files, preparation=preparation).train
    assert trained.dtype == np.uint8
    assert len(trained) >= 200
    reader = ImageReader(
        ImageShape(channels=CHANNELS[colour], height=16, width=12),
        resize=False,
        max_pixels=10**7,
        fitting=Fitting(fit, invert),
    )
    served = reader.read_items([file.read_bytes() for file in sorted(odd_files.iterdir())])
    assert_array_equal(trained.astype(np.float32) / np.float32(255), served)


def test_a_stream_reads_the_same_bits(odd_files: Path) -> None:
    preparation = Preparation((16, 12), "pad", "rgb")
    streamed = open_source(odd_files, Reading(max_memory=0, preparation=preparation))
    assert isinstance(streamed, StreamedSource)
    loaded = read_source(odd_files, preparation=preparation)
    assert streamed.sha256 == loaded.sha256
    assert_array_equal(streamed.train.read(np.arange(len(streamed.train))), loaded.train)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 photographs in 12 sizes and five modes, some turned by EXIF; all are grey to the eye."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(5)
    for index, image in enumerate(photographs(60, 64, 64)[:, 0]):
        height, width = (30 + 3 * (index % 4), 26 + 5 * (index % 3))
        top, left = rng.integers(0, (64 - height, 64 - width))
        part = Image.fromarray(image[top : top + height, left : left + width])
        exif = Image.Exif()
        exif[0x0112] = 1 + index % 8
        name, mode = [("a.png", "L"), ("b.jpg", "RGB"), ("c.webp", "RGB"), ("d.png", "LA"), ("e.jpg", "L")][index % 5]
        part.convert(mode).save(folder / f"{index:02}{name}", exif=exif)
    return folder


@pytest.fixture(scope="module")
def _trials_in_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("service.web.models.registry.Trials", TrialsInProcess)
        yield


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a command that must fail."""
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


@pytest.mark.usefixtures("_trials_in_process")
def test_a_mixed_folder_from_training_to_answers(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, store = tmp_path / "run", tmp_path / "store"
    fit = ["fit", f"--data={photos}", f"--out={run}", *TINY]
    error = refused(capsys, *fit)
    assert re.search(r"01b\.jpg: is 33×31 .*00a\.png is 30×26: .*--size auto, or for example --size 64\n$", error)

    assert main([*fit, "--size=auto", "--fit=pad"]) == 0
    said = capsys.readouterr().out
    assert "--size auto: 60 images of 12 sizes, 30 to 39 pixels high and 26 to 36 wide; grey (by the " in said
    assert "--size auto chose 24x24 (height x width), grey, fit pad: at most a quarter of the images are enl" in said
    assert "60 images are few: --flip and --shift make more of them, where that makes sense\n" in said
    assert "images of [1, 24, 24], fit pad; mlp, discretised_logistic" in said
    assert json.loads((run / "run.json").read_text())["configuration"]["size"] == [24, 24]
    assert main([*fit, "--resume", "--size=auto", "--fit=pad"]) == 0
    assert main([*fit, "--resume"]) == 0

    scoring = ["--proposal=encoder", "--num-samples=8", "--device=cpu", "--workers=0"]
    with operators_looked_up_once():
        assert main(["publish", str(run), "--name=photos", f"--store={store}", "--encoder-samples=0", *scoring]) == 0
    manifest = open_version(store, "photos").manifest
    preparation = manifest.preparation
    assert (preparation.size, preparation.fit, preparation.colour) == ((24, 24), "pad", "grey")
    assert 0 < manifest.provenance.configuration["brightness"]["lowest"] < 0.5
    capsys.readouterr()
    assert main(["evaluate", str(store / "photos"), f"--data={photos}", *scoring]) == 0
    figure = next(metric for metric in manifest.metrics if metric.name == "log_likelihood")
    assert f"{figure.value:.4f} ± {figure.std_error:.4f} nats/image" in capsys.readouterr().out

    with TestClient(create_app(Settings(model_store=store))) as client:
        while client.get("/readyz").status_code != 200:
            pass
        shown = client.get("/v1/models/photos").json()["manifest"]["preparation"]
        assert (shown["size"], shown["fit"], shown["colour"]) == ([24, 24], "pad", "grey")
        files = [("images", (file.name, file.read_bytes())) for file in sorted(photos.iterdir())]
        for route in ("encode", "log-likelihood?proposal=encoder&num_samples=8", "anomaly-scores?explain=true"):
            answer = client.post(f"/v1/{route}", files=files)
            assert answer.status_code == 200, answer.text
        assert len(answer.json()["results"]) == 60
        large = np.random.default_rng(0).integers(0, 256, (400, 300, 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(large).save(stream, "PNG")
        noise = client.post("/v1/anomaly-scores", files=[("images", ("noise.png", stream.getvalue()))])
        assert noise.status_code == 200


def test_auto_keeps_colour_that_is_there(tmp_path: Path) -> None:
    for index, image in enumerate(photographs(12, 40, 56, channels=3)):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{index}.png")
    source = read_source(tmp_path, preparation=Preparation("auto", "crop"))
    assert source.preparation == Preparation((32, 40), "crop", "rgb")
    assert source.train.shape[1:] == (3, 32, 40)
    source = read_source(tmp_path, preparation=Preparation("auto", "crop", "grey"))
    assert source.train.shape[1:] == (1, 40, 56)


def test_arrays_are_prepared_like_files(tmp_path: Path) -> None:
    images = photographs(9, 40, 30)
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "files").mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image[0]).save(tmp_path / "files" / f"{index}.png")
    preparation = Preparation((16, 24), "crop", None, invert=True)
    arrays, files = (read_source(tmp_path / name, preparation=preparation) for name in ("images.npy", "files"))
    assert arrays.sha256 == files.sha256
    assert arrays.preparation == files.preparation == Preparation((16, 24), "crop", "grey", invert=True)
    inverted = read_source(tmp_path / "files", preparation=Preparation(invert=True))
    assert_array_equal(inverted.train, 255 - images)
    assert read_source(tmp_path / "images.npy", preparation=Preparation(invert=True)).sha256 == inverted.sha256


def test_what_does_not_belong_together_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ["fit", f"--data={tmp_path / 'nowhere'}", f"--out={tmp_path / 'run'}"]
    assert "fit pad belongs to a size: --size auto" in refused(capsys, *fit, "--fit=pad")
    assert "colour belongs to a size: --size auto" in refused(capsys, *fit, "--colour=grey")
    for size in ("0", "64x", "x64", "64x64x3", "-4", "large", "5000", "¹6"):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main([*fit, f"--size={size}"])
        assert f"such as 64 or 64x48, each from 1 to 4096, not {size!r}" in capsys.readouterr().err


@pytest.mark.parametrize("max_memory", [1, 0])
def test_files_of_zeros_and_ones_are_refused_because_the_service_reads_them_as_dark(
    tmp_path: Path, max_memory: float, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(20):
        levels = np.random.default_rng(index).integers(0, 2, (8 + index, 9), np.uint8)
        Image.fromarray(levels).save(tmp_path / f"{index:02}.png")
    fit = ["fit", f"--data={tmp_path}", f"--out={tmp_path / 'run'}", f"--max-memory={max_memory}", "--workers=0"]
    for options in (["--size=8"], ["--size=8", "--invert"]):
        assert "brighter than 1 of 255: if 1 is meant to be white" in refused(capsys, *fit, *options)


def test_unreadable_files_are_named_and_counted_as_ever(photos: Path, tmp_path: Path) -> None:
    for file in sorted(photos.iterdir())[:20]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "cut.png").write_bytes((photos / "00a.png").read_bytes()[:200])
    preparation = Preparation((16, 16), "crop")
    with pytest.raises(CorruptImageError, match=r"cut\.png: .*; 1 of 21 images cannot be read: --skip-corrupt"):
        read_source(tmp_path, preparation=preparation)
    source = read_source(tmp_path, skip_corrupt=True, preparation=preparation)
    assert (len(source.train), len(source.skipped)) == (20, 1)


def test_large_files_are_held_one_at_a_time(tmp_path: Path) -> None:
    """What is kept of each image is its 16×16 levels, whatever its own size."""
    for index in range(16):
        Image.fromarray(np.full((700, 900 + index), 15 * index + 1, np.uint8)).save(tmp_path / f"{index}.png")
    tracemalloc.start()
    try:
        source = read_source(tmp_path, preparation=Preparation((16, 16), "crop"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert source.train.shape == (16, 1, 16, 16)
    assert peak < 7 * 700 * 900


def test_a_model_of_one_size_can_be_the_start_for_images_of_many(photos: Path, tmp_path: Path) -> None:
    """What it inherits from the first model, `exact` among it, gives way to the size that is asked for."""
    np.save(tmp_path / "images.npy", photographs(40, 16, 16))
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["fit", f"--data={tmp_path / 'images.npy'}", f"--out={first}", *TINY, "--no-finish-encoder"]) == 0
    more = [f"--start-from={first}", "--size=16", "--epochs=1", "--objective=elbo", "--num-samples=1", "--device=cpu"]
    assert main(["fit", f"--data={photos}", f"--out={second}", *more, "--colour=grey", "--no-finish-encoder"]) == 0
    configuration = json.loads((second / "run.json").read_text())["configuration"]
    assert (configuration["size"], configuration["fit"], configuration["width"]) == ([16, 16], "crop", 16)


def test_defects_beside_ordinary_images_are_named_and_not_measured(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index, file in enumerate(sorted(photos.iterdir())):
        folder = "train/good" if index < 40 else ("test/good", "test/scratch", "ground_truth/scratch")[index % 3]
        (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / folder / file.name).write_bytes(file.read_bytes())
    fit = ["fit", f"--data={tmp_path / 'set'}", f"--out={tmp_path / 'run'}", *TINY, "--size=8", "--no-finish-encoder"]
    assert main([*fit, "--epochs=1"]) == 0
    said = capsys.readouterr().out
    assert "32 train, 4 validation, 4 calibration, 6 test images of [3, 8, 8]" in said
    assert "test image files of another class than the training images' (test/scratch/" in said
    assert "mask files (ground_truth/scratch/" in said
    (tmp_path / "set" / "test" / "scratch" / "cut.png").write_bytes(file.read_bytes()[:200])
    options = ["--name=tiny", f"--store={tmp_path / 'store'}", "--num-samples=4", "--encoder-samples=0", "--device=cpu"]
    with operators_looked_up_once():
        assert main(["publish", str(tmp_path / "run"), *options, "--proposal=encoder"]) == 0
    said, errors = capsys.readouterr()
    assert "warning: 1 images cannot be read and are left out:\n" in errors
    assert "/test/scratch/cut.png: cannot be decoded" in errors
    metrics = {metric.name: metric for metric in open_version(tmp_path / "store", "tiny").manifest.metrics}
    for method in ("log_likelihood", "input_complexity", "reconstruction"):
        metric = metrics[f"auroc.scratch.{method}"]
        assert 0 <= metric.value <= 1
        assert metric.num_images == sum(1 for _ in (tmp_path / "set" / "test" / "scratch").iterdir()) - 1
    assert metrics["reliable"].num_images == 6
    assert re.search(r"\nAUROC +images +.*log_likelihood.*\nscratch +\d+ +\d\.\d{3} ", said)
    assert "\nverdict: " in said
    report = (tmp_path / "run" / "report.html").read_text()
    first, *others = re.findall("<h2>(.*?)</h2>", report)
    assert first == "Verdict"
    assert {"Defects", "How images are prepared"} < set(others)
    examples = read_source(tmp_path / "set", preparation=Preparation((8, 8), "crop")).originals.read(3)
    assert [example.prepared.shape for example in examples] == [(3, 8, 8)] * 3
    assert len({example.original.shape for example in examples}) > 1
    for example in examples:
        whole = Fitting("crop").levels(example.original[None], (3, 8, 8))
        assert np.array_equal(whole[0], example.prepared)
