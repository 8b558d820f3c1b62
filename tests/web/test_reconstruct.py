"""`POST /v1/reconstruct`: each image as the model sees it, and E[x|z] at its code's mean."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tests.web.conftest import Serve
from tests.web.forms import image_file, npy

ROUTE = "/v1/reconstruct"
AS_NPY = {"content-type": "application/x-npy"}


def pixels_of(png: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def test_it_is_decode_at_the_mean_of_encode(client: TestClient, digits: Any) -> None:
    answer = client.post(f"{ROUTE}?as=array", content=npy(digits), headers=AS_NPY).json()
    assert (answer["model"], answer["version"]) == ("digits", 2)
    means = client.post("/v1/encode", content=npy(digits), headers=AS_NPY).json()["mean"]
    decoded = client.post("/v1/decode?as=array", json={"latents": means}).json()["images"]
    np.testing.assert_array_equal(answer["reconstructions"], decoded)
    prepared = np.array(answer["prepared"])
    assert prepared.shape == (len(digits), 1, 28, 28)
    assert set(np.unique(prepared)) == {0.0, 1.0}  # the model binarises
    assert ((prepared[:, 0] == 1) <= (digits > 0)).all()


def test_pngs_npy_and_one_picture_show_the_same(client: TestClient, digits: Any) -> None:
    three = npy(digits[:3])
    arrays = client.post(f"{ROUTE}?as=array", content=three, headers=AS_NPY).json()
    shown = client.post(ROUTE, content=three, headers=AS_NPY).json()
    stacked = np.load(
        io.BytesIO(client.post(ROUTE, content=three, headers=AS_NPY | {"accept": "application/x-npy"}).content)
    )
    assert stacked.shape == (3, 2, 1, 28, 28)
    picture = client.post(ROUTE, content=three, headers=AS_NPY | {"accept": "image/png"})
    grid = np.asarray(Image.open(io.BytesIO(picture.content)))
    assert grid.shape == (3 * 29 - 1, 2 * 29 - 1)
    for column, name in enumerate(("prepared", "reconstructions")):
        np.testing.assert_allclose(stacked[:, column], arrays[name], atol=1e-7)
        for row in range(3):
            levels = np.rint(255 * np.array(arrays[name][row][0]))
            np.testing.assert_array_equal(pixels_of(shown[name][row]), levels)
            np.testing.assert_array_equal(grid[29 * row : 29 * row + 28, 29 * column : 29 * column + 28], levels)


def test_colour_and_other_sizes(client: TestClient) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    asked: dict[str, Any] = {"content": image_file(photo), "headers": {"content-type": "image/png"}}
    assert client.post(f"{ROUTE}?model=colour", **asked).status_code == 422
    answer = client.post(f"{ROUTE}?model=colour&resize=true", **asked).json()
    assert pixels_of(answer["reconstructions"][0]).shape == (8, 6, 3)


@pytest.mark.parametrize(("limit", "count"), [({"max_pixels": 28 * 28 * 5}, 3), ({"max_answer_bytes": 10_000}, 3)])
def test_both_pictures_count(serve: Serve, digits: Any, limit: dict[str, int], count: int) -> None:
    client = serve(**limit)
    few = client.post(f"{ROUTE}?as=array", content=npy(digits[:1]), headers=AS_NPY | {"accept": "application/x-npy"})
    assert few.status_code == 200
    many = client.post(f"{ROUTE}?as=array", content=npy(digits[:count]), headers=AS_NPY)
    assert many.status_code == 413
    assert "at most" in many.json()["detail"]
