"""From a folder of colour files to answers over HTTP: trained from a stream, published, reported and served."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageDraw

from model_store import open_version
from service.web.app import create_app
from service.web.operations.settings import Settings
from tests.exporter import operators_looked_up_once
from training.__main__ import main
from training.data.sources import read_source

SIZE = 44  # large enough to be read in patches
TINY = ["--width=8", "--latent-dim=3", "--num-samples=2", "--epochs=4", "--batch-size=16", "--ema-decay=0.5"]


def disc(random: np.random.Generator) -> Image.Image:
    """A disc of some colour, somewhere on black."""
    image = Image.new("RGB", (SIZE, SIZE))
    x, y, radius = (int(random.integers(*limits)) for limits in ((11, 33), (11, 33), (4, 10)))
    colour = tuple(random.integers(100, 256, 3).tolist())
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 training and 12 test images, PNG, JPEG and WebP by turns, and two that are broken."""
    path = tmp_path_factory.mktemp("discs")
    random = np.random.default_rng(8)
    for part, count in {"train": 150, "test": 12}.items():
        (path / part / "all").mkdir(parents=True)
        for index in range(count):
            disc(random).save(path / part / "all" / f"{index:03}.{('png', 'jpg', 'webp')[index % 3]}")
    (path / "train" / "broken.png").write_bytes((path / "train" / "all" / "000.png").read_bytes()[:90])
    (path / "test" / "empty.webp").write_bytes(b"")
    return path


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="png")
    return stream.getvalue()


def test_a_colour_folder_from_training_to_answers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, store = tmp_path / "run", tmp_path / "store"
    fit = ["fit", f"--data={folder}", f"--out={run}", "--device=cpu", "--max-memory=0", *TINY]
    assert main([*fit, "--workers=0"]) == 2
    assert "2 of 164 images cannot be read: --skip-corrupt leaves them out" in capsys.readouterr().err
    assert main([*fit, "--workers=1", "--skip-corrupt", "--num-calibration=25"]) == 0
    output, errors = capsys.readouterr()
    assert "110 train, 15 validation, 25 calibration, 12 test images of [3, 44, 44]" in output
    assert "training images stream" in output
    assert "2 images cannot be read and are left out:" in errors
    assert "broken.png: " in errors
    assert "empty.webp: " in errors
    listed = (run / "skipped.txt").read_text().splitlines()
    assert {line.split(": ")[0].rpartition("/")[2] for line in listed} == {"broken.png", "empty.webp"}

    scoring = ["--num-samples=8", "--device=cpu", "--workers=0"]
    with operators_looked_up_once():
        assert main(["publish", str(run), "--name=discs", f"--store={store}", "--encoder-samples=20", *scoring]) == 0
    manifest = open_version(store, "discs").manifest
    assert manifest.image.chw == (3, SIZE, SIZE)
    assert manifest.calibration.num_images == 25
    assert (run / "report.html").stat().st_size > 10_000
    source = read_source(folder, skip_corrupt=True)
    assert source.sha256 in manifest.provenance.data_set

    capsys.readouterr()
    evaluate = ["evaluate", str(store / "discs"), f"--data={folder}", "--skip-corrupt", *scoring]
    assert main(evaluate) == 0
    (figure,) = [metric for metric in manifest.metrics if metric.name == "log_likelihood"]
    assert f"{figure.value:.4f} ± {figure.std_error:.4f} nats/image" in capsys.readouterr().out

    with TestClient(create_app(Settings(model_store=store))) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        random = np.random.default_rng(3)
        content = {"content-type": "image/png"}
        familiar, strange = png(disc(random)), png(Image.effect_noise((SIZE, SIZE), 120).convert("RGB"))
        posterior = client.post("/v1/encode", content=familiar, headers=content)
        assert np.shape(posterior.json()["mean"]) == (1, 3)
        *ordinary, noise = (
            client.post("/v1/anomaly-scores", content=image, headers=content).json()["results"][0]
            for image in (familiar, *(png(disc(random)) for _ in range(5)), strange)
        )
        assert noise["p_value"] == 1 / 18
        assert max(score["p_value"] for score in ordinary) > noise["p_value"]
        assert all(score["log_likelihood"] > noise["log_likelihood"] for score in ordinary)
        decoded = client.post("/v1/decode", json={"latents": posterior.json()["mean"]}, headers={"accept": "image/png"})
        with Image.open(io.BytesIO(decoded.content)) as picture:
            assert (picture.mode, picture.size) == ("RGB", (SIZE, SIZE))
        assert client.get("/v1/samples?n=4&seed=1", headers={"accept": "image/png"}).status_code == 200
