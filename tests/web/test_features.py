"""A model of features over HTTP: what is said of it, and that it makes maps and no images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from model_store import open_version
from service.__main__ import main
from service.engine.chunks import complete
from service.engine.model import Model
from tests import reference
from tests.features import DENSITY, IMAGE, MAPS, PLAIN_MAPS, feature_toy, ordinary
from tests.web.conftest import Serve, put

PIXELS = ordinary(4, seed=11)
BODY = {"images": PIXELS[:, 0].tolist()}


@pytest.fixture(scope="module")
def model() -> Model:
    return reference.load(reference.calibrated(feature_toy(), ordinary(60, seed=10)))


@pytest.fixture(scope="module")
def client(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    root = tmp_path_factory.mktemp("features")
    put(root, reference.calibrated(feature_toy(), ordinary(60, seed=10)))
    return serve(model_store=root, model="maps")


def test_the_model_says_that_it_is_of_features(client: TestClient, serve: Serve) -> None:
    (found,) = client.get("/v1/models").json()["models"]
    assert found["space"] == "features"
    assert found["manifest"]["features"] == MAPS.model_dump()
    assert found["manifest"]["image"] == IMAGE.model_dump()
    assert {one["space"] for one in serve().get("/v1/models").json()["models"]} == {"pixels"}


def test_images_are_encoded_and_scored_by_their_features(client: TestClient, model: Model) -> None:
    code = complete(model.encode(PIXELS))
    assert client.post("/v1/encode", json=BODY).json()["mean"] == pytest.approx(code.mean, abs=1e-6)
    expected = complete(model.log_likelihood(PIXELS)).log_likelihood
    results = client.post("/v1/log-likelihood", json=BODY).json()["results"]
    assert [result["log_likelihood"] for result in results] == expected.tolist()
    judged = complete(model.anomaly_scores(PIXELS, methods=["local", "combined"], explain=True))
    answer = client.post("/v1/anomaly-scores?method=local,combined&explain=true&as=array", json=BODY).json()
    assert [result["score"] for result in answer["results"]] == judged.by_method["local"].score.tolist()
    maps = np.array([result["explanation"] for result in answer["results"]])
    assert maps.shape == (4, 1, IMAGE.height, IMAGE.width)
    assert judged.explanation is not None
    np.testing.assert_allclose(maps, judged.explanation, rtol=1e-12)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_maps_are_answered_as_numbers(client: TestClient, model: Model, method: str) -> None:
    """By default, too: what is not asked for as a PNG need not be one."""
    if method == "GET":
        answer = client.get("/v1/samples?n=3&seed=5").json()
        np.testing.assert_array_equal(np.float32(answer["images"]), complete(model.sample(3, seed=5)).images)
        return
    latents = np.array([[0.5, -2]], np.float32)
    expected = complete(model.decode(latents))
    body = {"latents": latents.tolist()}
    np.testing.assert_array_equal(np.float32(client.post("/v1/decode", json=body).json()["images"]), expected)
    reply = client.post("/v1/reconstruct?as=array", json=BODY).json()
    found = complete(model.reconstruct(PIXELS))
    np.testing.assert_array_equal(np.float32(reply["prepared"]), found.prepared)
    np.testing.assert_array_equal(np.float32(reply["reconstructions"]), found.reconstructed)


@pytest.mark.parametrize(
    ("path", "body", "accept"),
    [
        ("/v1/samples", None, "image/png"),
        ("/v1/samples?as=png", None, "application/json"),
        ("/v1/decode", {"latents": [[0, 0]]}, "image/png"),
        ("/v1/reconstruct?as=png", BODY, "*/*"),
        ("/v1/reconstruct", BODY, "image/png"),
    ],
)
def test_a_picture_is_refused_with_a_sentence(client: TestClient, path: str, body: Any, accept: str) -> None:
    headers = {"Accept": accept}
    reply = client.get(path, headers=headers) if body is None else client.post(path, json=body, headers=headers)
    assert reply.status_code == 409
    assert reply.json()["type"] == "urn:logpx:problem:no-images"
    assert reply.json()["detail"] == (
        "this model is of features: it makes maps [5, 3, 2], and no image; ask for npy or ?as=array"
    )


def test_a_method_of_pixels_is_refused(client: TestClient) -> None:
    reply = client.post("/v1/anomaly-scores?method=input_complexity", json=BODY)
    assert reply.status_code == 422
    assert "input_complexity is for models of pixels, which this is not; it can score by:" in reply.json()["detail"]


def test_calibrate_makes_another_version_with_the_same_features(
    client: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, reference.calibrated(feature_toy(), ordinary(60, seed=10)))
    np.save(tmp_path / "images.npy", ordinary(30, seed=12))
    arguments = ["--model", "maps", "--store", str(tmp_path), "--images", str(tmp_path / "images.npy")]
    assert main(["calibrate", *arguments]) == 0
    assert "published" in capsys.readouterr().out
    old, new = (open_version(tmp_path, "maps", version) for version in (1, 2))
    assert (new.features, new.manifest.features) == (old.features, old.manifest.features)
    assert len(new.calibration["local"]) == 30


def test_the_memory_of_maps_is_counted(model: Model) -> None:
    """4 bytes a number, for the maps that an image becomes; a model of pixels has none."""
    assert model.map_bytes == 4 * MAPS.size
    pixels = reference.load(DENSITY.toy(PLAIN_MAPS))  # as large, without the first stage
    assert pixels.map_bytes == 0
    assert model.estimates_bytes(7, 400) - pixels.estimates_bytes(7, 400) == 7 * 4 * MAPS.size


def test_the_open_inference_protocol_speaks_of_the_maps(client: TestClient, model: Model) -> None:
    image, maps = [-1, *IMAGE.chw], [-1, MAPS.channels, MAPS.height, MAPS.width]
    told = {name: client.get(f"/v2/models/maps.{name}").json() for name in ("encode", "decode", "samples")}
    assert told["encode"]["inputs"][0]["shape"] == image
    assert told["decode"]["outputs"][0]["shape"] == told["samples"]["outputs"][0]["shape"] == maps
    latents = np.array([[0.5, -2]], np.float32)
    tensor = {"name": "latents", "datatype": "FP32", "shape": [1, 2], "data": latents.ravel().tolist()}
    (output,) = client.post("/v2/models/maps.decode/infer", json={"inputs": [tensor]}).json()["outputs"]
    expected = complete(model.decode(latents))
    assert output["shape"] == list(expected.shape)
    np.testing.assert_array_equal(np.float32(output["data"]), expected.ravel())
