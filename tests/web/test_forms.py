"""Ten real digits through every route, in every form in and out: the same answer each time."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from pydantic import BaseModel

from service.web import schemas
from tests.rounding import density_error, gamma, network_error
from tests.toys import bernoulli_toy
from tests.web.conftest import DIGIT_SHAPE
from tests.web.forms import image_file, json_body, npy, read_npy, requests_in_every_form

ROUTES = ["encode", "log-likelihood?num_samples=50", "anomaly-scores"]
PNG_LEVEL = 0.5 / 255 + gamma(4)
"""Of a pixel in [0, 1], to the nearest of 256 levels, computed in float32."""
FORMS = sorted(requests_in_every_form(np.zeros((1, 28, 28), np.uint8)))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_answer_of_pngs(client: TestClient, digits: Any, route: str, form: str) -> None:
    """The same pixels in a batch of the same size: the same bytes."""
    sent = requests_in_every_form(digits)
    together = client.post(f"/v1/{route}", **sent[form])
    assert together.status_code == 200, together.text
    assert together.content == client.post(f"/v1/{route}", **sent["multipart"]).content


@pytest.mark.parametrize("route", ROUTES)
def test_pngs_together_give_the_answers_of_single_pngs(client: TestClient, digits: Any, route: str) -> None:
    """In batches of other sizes float32 may be added up in another order."""
    together = client.post(f"/v1/{route}", **requests_in_every_form(digits)["multipart"])
    alone = [
        client.post(f"/v1/{route}", content=image_file(digit), headers={"content-type": "image/png"}).json()
        for digit in digits
    ]
    if "results" in alone[0]:
        several = [result["log_likelihood"] for result in together.json()["results"]]
        single = [answer["results"][0]["log_likelihood"] for answer in alone]
        error = 2 * density_error(DIGIT_SHAPE.size, float(np.abs(single).max()))
        assert np.ptp(single) > error  # the answer of another image would show
        assert_allclose(several, single, rtol=0, atol=error)
    else:
        # Of binary images, no pixel of which is larger than 1.
        errors = network_error(bernoulli_toy(DIGIT_SHAPE, seed=6).encoder, x=np.ones((1, *DIGIT_SHAPE.chw)))
        for key, allowed in errors.items():
            difference = np.subtract(together.json()[key], [answer[key][0] for answer in alone])
            assert (np.abs(difference) <= 2 * allowed).all()


@pytest.mark.parametrize(("media_type", "file_format"), [("image/png", "PNG"), ("image/webp", "WEBP")])
def test_lossless_raw_bodies_agree(client: TestClient, digits: Any, media_type: str, file_format: str) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {}
    colour = np.repeat(digits[0][:, :, None], 3, axis=2)  # WebP has no grey mode
    body = image_file(colour, file_format, **options)
    answer = client.post("/v1/encode", content=body, headers={"content-type": media_type})
    reference = client.post("/v1/encode", content=npy(digits[:1]), headers={"content-type": "application/x-npy"})
    assert answer.content == reference.content


def test_jpeg_gives_what_its_decoded_pixels_give(client: TestClient, digits: Any) -> None:
    body = image_file(digits[0], "JPEG", quality=90)
    decoded = np.asarray(Image.open(io.BytesIO(body)))
    assert (decoded != digits[0]).any()
    answer = client.post("/v1/encode", content=body, headers={"content-type": "image/jpeg"})
    reference = client.post("/v1/encode", content=npy(decoded[None]), headers={"content-type": "application/x-npy"})
    assert answer.content == reference.content


def test_encode_as_npy_is_mean_then_log_var(client: TestClient, digits: Any) -> None:
    sent = requests_in_every_form(digits)["npy uint8 [B,H,W]"]
    answer = client.post("/v1/encode", **sent).json()
    sent["headers"] = {**sent["headers"], "accept": "application/x-npy"}
    array = read_npy(client.post("/v1/encode", **sent).content)
    assert array.dtype == np.float32
    assert array.shape == (10, 2, 3)
    # JSON has the shortest text that is read as the same float32.
    assert_array_equal(array[:, 0], np.float32(answer["mean"]))
    assert_array_equal(array[:, 1], np.float32(answer["log_var"]))


@pytest.mark.parametrize("path", ["/v1/decode", "/v1/samples?n=5&seed=11"])
@pytest.mark.parametrize("model", ["digits", "colour"])
def test_images_out_agree_in_every_form(client: TestClient, path: str, model: str) -> None:
    latents = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)

    def ask(accept: str, **query: str) -> Any:
        query["model"] = model
        headers = {"accept": accept}
        if path == "/v1/decode":
            return client.post(path, params=query, json={"latents": latents.tolist()}, headers=headers)
        return client.get(f"{path}&{'&'.join(f'{k}={v}' for k, v in query.items())}", headers=headers)

    exact = read_npy(ask("application/x-npy").content)
    assert exact.dtype == np.float32
    assert exact.shape == ((5, 1, 28, 28) if model == "digits" else (5, 3, 8, 6))
    nested = ask("application/json", **{"as": "array"}).json()
    assert_array_equal(np.float32(nested["images"]), exact)
    files = [Image.open(io.BytesIO(base64.b64decode(text))) for text in ask("application/json").json()["images"]]
    levels = [np.atleast_3d(np.asarray(file, np.float32)).transpose(2, 0, 1) / 255 for file in files]
    assert_allclose(levels, exact, rtol=0, atol=PNG_LEVEL)
    grid = np.atleast_3d(np.asarray(Image.open(io.BytesIO(ask("image/png").content)), np.float32)) / 255
    height, width = exact.shape[2:]
    assert grid.shape[:2] == (2 * height + 1, 3 * width + 2)  # five images in two rows of three
    last = grid[height + 1 :, width + 1 : 2 * width + 1].transpose(2, 0, 1)
    assert_allclose(last, exact[4], rtol=0, atol=PNG_LEVEL)


def test_decode_takes_npy_of_either_float(client: TestClient) -> None:
    latents = np.random.default_rng(0).standard_normal((4, 3))
    answers = [
        client.post(
            "/v1/decode",
            content=npy(latents.astype(dtype)),
            headers={"content-type": "application/x-npy", "accept": "application/x-npy"},
        ).content
        for dtype in (np.float32, np.float64)
    ]
    assert answers[0] == answers[1]


def test_one_sample_as_png_is_the_image_itself(client: TestClient) -> None:
    answer = client.get("/v1/samples?n=1&seed=3", headers={"accept": "image/png"})
    assert answer.headers["x-seed"] == "3"
    assert Image.open(io.BytesIO(answer.content)).size == (28, 28)


def test_samples_decode_from_their_own_latents_and_seed(client: TestClient) -> None:
    first = client.get("/v1/samples?n=3&as=array&temperature=0.7").json()
    again = client.get(f"/v1/samples?n=3&as=array&temperature=0.7&seed={first['seed']}").json()
    assert again == first
    decoded = client.post("/v1/decode?as=array", json={"latents": first["latents"]}).json()
    assert decoded["images"] == first["images"]
    other = client.get("/v1/samples?n=3&as=array&temperature=0.7").json()
    assert other["seed"] != first["seed"]
    warm = client.get(f"/v1/samples?n=3&seed={first['seed']}&temperature=1.4").json()
    assert_allclose(np.array(warm["latents"]), 2 * np.array(first["latents"]), rtol=gamma(6))


def test_answers_match_their_published_schemas(client: TestClient, digits: Any) -> None:
    sent = requests_in_every_form(digits)["multipart"]
    answers: dict[type[BaseModel], Any] = {
        schemas.Latents: client.post("/v1/encode", **sent),
        schemas.LogLikelihoods: client.post("/v1/log-likelihood?num_samples=20", **sent),
        schemas.Anomalies: client.post("/v1/anomaly-scores", **sent),
        schemas.Images: client.post("/v1/decode", json={"latents": [[0, 1, 2]]}),
        schemas.Samples: client.get("/v1/samples?n=2&as=array"),
        schemas.Models: client.get("/v1/models"),
        schemas.ModelSummary: client.get("/v1/models/digits"),
    }
    for schema, answer in answers.items():
        assert answer.status_code == 200
        assert schema.model_validate(answer.json()).model_dump(mode="json").keys() == answer.json().keys()


def test_repeating_a_request_gives_identical_bytes(client: TestClient, digits: Any) -> None:
    sent = requests_in_every_form(digits)["npy uint8 [B,H,W]"]
    for route in ROUTES:
        assert client.post(f"/v1/{route}", **sent).content == client.post(f"/v1/{route}", **sent).content


def test_a_value_that_is_not_finite_is_null(client: TestClient, digits: Any) -> None:
    sent = requests_in_every_form(digits[:1])["npy uint8 [B,H,W]"]
    result = client.post("/v1/log-likelihood?proposal=encoder&num_samples=1", **sent).json()["results"][0]
    assert result["std_error"] is None
    assert result["pareto_k"] is None
    assert result["reliable"] is False


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("*/*", "application/json"),
        ("image/*", "image/png"),
        ("application/json;q=0.5, image/png", "image/png"),
        ("image/png;q=0, */*", "application/json"),
        ("text/html, application/x-npy;q=0.1", "application/x-npy"),
    ],
)
def test_accept_is_negotiated(client: TestClient, accept: str, expected: str) -> None:
    answer = client.get("/v1/samples?n=1", headers={"accept": accept})
    assert answer.headers["content-type"] == expected


def test_versions_differ_and_the_latest_is_the_default(client: TestClient, digits: Any) -> None:
    body, headers = json_body([(digits[0] / 255).tolist()]), {"content-type": "application/json"}
    default, first, second = (
        client.post("/v1/encode", params=query, content=body, headers=headers).json()
        for query in ("", "version=1", "model=digits&version=2")
    )
    assert first["version"] == 1
    assert default == second
    assert default["mean"] != first["mean"]
