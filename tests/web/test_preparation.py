"""Models that take images of any size: every route and content type gives them the pixels of training."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from model_store import ImageShape, PixelPreparation
from service.images.brightness import BRIGHTNESS
from service.images.resampler import installed_resampler
from service.web.app import create_app
from service.web.operations.settings import Settings
from tests.images.test_fitting import by_pillow
from tests.toys import bernoulli_toy
from tests.web.conftest import put, wait_until_ready
from tests.web.forms import base64_png, image_file, json_body, npy

SHAPE = ImageShape(channels=1, height=12, width=16)
PHOTO = np.random.default_rng(1).integers(0, 256, (90, 70), np.uint8)
COLOUR = np.stack([PHOTO] * 3, axis=-1)
TYPES = {
    "png": (image_file(PHOTO), "image/png"),
    "colour png": (image_file(COLOUR), "image/png"),
    "sixteen bits": (image_file(PHOTO.astype(np.uint16) * 257), "image/png"),
    "lossless webp": (image_file(COLOUR, "WEBP", lossless=True), "image/webp"),
    "base64": (json_body([base64_png(PHOTO)]), "application/json"),
    "numbers": (json_body([(PHOTO.astype(np.float32) / np.float32(255)).tolist()]), "application/json"),
    "levels": (npy(PHOTO[None]), "application/x-npy"),
    "colour levels": (npy(COLOUR.transpose(2, 0, 1)[None]), "application/x-npy"),
    "floats": (npy(PHOTO[None].astype(np.float32) / np.float32(255)), "application/x-npy"),
}


def preparation(fit: str, **changes: Any) -> PixelPreparation:
    fields = {"size": (12, 16), "fit": fit, "colour": "grey", "resampler": installed_resampler(), **changes}
    return PixelPreparation.model_validate(fields)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`crop`, `pad`, `stretch`, `inverted` and `dark` take any size, `exact` does not; all have the same graphs."""
    root = tmp_path_factory.mktemp("any-size")
    for fit in ("crop", "pad", "stretch"):
        put(root, bernoulli_toy(SHAPE, name=fit, preparation=preparation(fit)))
    put(root, bernoulli_toy(SHAPE, name="inverted", preparation=preparation("crop", invert=True)))
    put(root, bernoulli_toy(SHAPE, name="exact"))
    toy = bernoulli_toy(SHAPE, name="dark", preparation=preparation("crop"))
    known = toy.description.provenance.model_copy(
        update={"configuration": {BRIGHTNESS: {"lowest": 0.05, "highest": 0.3}}}
    )
    put(root, replace(toy, description=toy.description.model_copy(update={"provenance": known})))
    return root


@pytest.fixture(scope="module")
def client(store: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(model_store=store, max_pixels=20_000)), raise_server_exceptions=False) as app:
        wait_until_ready(app)
        yield app


def ask(client: TestClient, path: str, body: bytes, content_type: str, **query: Any) -> Any:
    answer = client.post(path, content=body, headers={"content-type": content_type}, params=query)
    assert answer.status_code == 200, answer.text
    return {key: value for key, value in answer.json().items() if key not in ("model", "version")}


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_photo_is_prepared_the_same_in_every_content_type(client: TestClient, fit: Any) -> None:
    prepared = image_file(by_pillow(PHOTO, fit, 12, 16))
    expected = ask(client, "/v1/encode", prepared, "image/png", model="exact")
    for name, (body, content_type) in TYPES.items():
        assert ask(client, "/v1/encode", body, content_type, model=fit) == expected, name
        assert ask(client, "/v1/encode", body, content_type, model=fit, resize="true") == expected, name
    form = client.post("/v1/encode", params={"model": fit}, files=[("images", ("a.png", TYPES["png"][0]))])
    assert form.json()["mean"] == expected["mean"]


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/v1/log-likelihood", {"num_samples": 10, "proposal": "laplace"}),
        ("/v1/anomaly-scores", {"explain": True}),
        ("/v1/reconstruct", {"as": "array"}),
    ],
)
def test_every_route_takes_any_size(client: TestClient, path: str, query: dict[str, Any]) -> None:
    """The toy's own images have black and white pixels too: it is not binarised."""
    prepared = image_file(by_pillow(PHOTO, "crop", 12, 16))
    expected = ask(client, path, prepared, "image/png", model="exact", **query)
    assert ask(client, path, *TYPES["png"], model="crop", **query) == expected


def test_an_inverted_model_takes_the_negative(client: TestClient) -> None:
    expected = ask(client, "/v1/encode", image_file(255 - PHOTO), "image/png", model="crop")
    for name, (body, content_type) in TYPES.items():
        assert ask(client, "/v1/encode", body, content_type, model="inverted") == expected, name


def test_images_of_many_sizes_are_taken_together(client: TestClient) -> None:
    sizes = [(1, 1), (5, 90), (90, 5), (12, 16), (16, 12), (100, 99)]
    images = [np.random.default_rng(2).integers(0, 256, size, np.uint8) for size in sizes]
    together = ask(
        client, "/v1/encode", json_body([base64_png(image) for image in images]), "application/json", model="pad"
    )
    alone = [ask(client, "/v1/encode", image_file(image), "image/png", model="pad") for image in images]
    assert together["mean"] == [answer["mean"][0] for answer in alone]


def test_limits_and_refusals_stay(client: TestClient) -> None:
    for body, content_type in (
        (image_file(np.zeros((150, 150), np.uint8)), "image/png"),
        (npy(np.zeros((9, 50, 50), np.uint8)), "application/x-npy"),
    ):
        answer = client.post("/v1/encode?model=crop", content=body, headers={"content-type": content_type})
        assert (answer.status_code, answer.json()["type"]) == (413, "urn:logpx:problem:limit-exceeded")
    answer = client.post("/v1/encode?model=exact", content=TYPES["png"][0], headers={"content-type": "image/png"})
    assert answer.status_code == 422
    assert "90×70 (height × width), the model takes 12×16; add ?resize=true" in answer.json()["detail"]
    answer = client.post("/v1/encode?model=crop", content=TYPES["png"][0][:99], headers={"content-type": "image/png"})
    assert (answer.status_code, answer.json()["index"]) == (422, 0)


def test_the_models_preparation_is_shown(client: TestClient) -> None:
    told = client.get("/v1/models/inverted").json()["manifest"]["preparation"]
    assert told["resampler"].pop("sha256") == installed_resampler().sha256
    assert told == {
        "size": [12, 16],
        "fit": "crop",
        "colour": "grey",
        "invert": True,
        "resampler": {
            "library": "pillow",
            "version": installed_resampler().version,
            "filter": "bilinear",
            "antialiased": True,
        },
        "scale": 1.0,
        "binarisation": "none",
        "binarisation_seed": 0,
    }
    assert client.get("/v1/models/exact").json()["manifest"]["preparation"]["fit"] == "exact"


def test_images_that_are_far_too_bright_are_answered_with_a_warning(client: TestClient) -> None:
    png, headers = image_file(np.full((12, 16), 40, np.uint8)), {"content-type": "image/png"}
    white = npy(np.full((3, 40, 30), 250, np.uint8))
    for route in ("encode", "log-likelihood?num_samples=10&proposal=encoder", "anomaly-scores"):
        path = f"/v1/{route}{'&' if '?' in route else '?'}model=dark"
        assert "x-warning" not in client.post(path, content=png, headers=headers).headers
        answer = client.post(path, content=white, headers={"content-type": "application/x-npy"})
        assert answer.status_code == 200
        assert answer.headers["x-warning"] == (
            "image 0 has a mean pixel of 0.98, the training images 0.05 to 0.30: are black and white exchanged? "
            "(3 of 3 looked at are like this)"
        )
    answer = client.post("/v1/encode?model=crop", content=white, headers={"content-type": "application/x-npy"})
    assert "x-warning" not in answer.headers  # it is not known how bright its images were


def test_another_resampler_is_refused_or_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    older = installed_resampler().model_copy(update={"version": "1.0"})
    other = older.model_copy(update={"sha256": "0" * 64})
    put(tmp_path, bernoulli_toy(SHAPE, name="older", preparation=preparation("crop", resampler=older)))
    put(tmp_path, bernoulli_toy(SHAPE, name="other", preparation=preparation("crop", resampler=other)))
    with TestClient(create_app(Settings(model_store=tmp_path, model="older"))) as client:
        wait_until_ready(client)
        models = {model["name"]: model for model in client.get("/v1/models").json()["models"]}
        ask(client, "/v1/encode", *TYPES["png"], model="older")
    (refused,) = models["other"]["refused"]
    assert refused["version"] == 1
    assert refused["reason"].startswith(
        "manifest.json: its images were resampled by pillow 1.0 (bilinear, antialiased)"
    )
    assert models["older"]["refused"] == []
    assert "images are resampled by another version" in capfd.readouterr().out
