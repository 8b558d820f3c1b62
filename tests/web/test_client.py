"""The client of `logpx/` against the real app; test_client_faults.py has services that misbehave."""

import asyncio
import inspect
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from logpx import AsyncClient, Client, ImageError, ProblemError
from logpx.operations import Operations
from logpx.results import benjamini_hochberg
from logpx.settings import Options, Settings
from model_store import PixelPreparation
from service.web import app as web_app
from service.web.operations.settings import Settings as ServiceSettings
from tests.rounding import network_error
from tests.toys import LinearGaussian, bernoulli_toy
from tests.web.conftest import DIGIT_SHAPE, GAUSSIAN_SHAPE, Serve

KEY = "a-key-that-is-long-enough"


def png(digit: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(digit).save(stream, "PNG")
    return stream.getvalue()


def body(array: Any, accept: str = "application/json") -> dict[str, Any]:
    """Of a request, as a client without ours would send it."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return {"content": stream.getvalue(), "headers": {"Content-Type": "application/x-npy", "Accept": accept}}


@pytest.fixture(scope="module")
def small(client: TestClient) -> Client:
    """A client that needs several requests for ten digits."""
    return Client(http_client=client, chunk_images=4)


def same(one: Any, other: Any) -> None:
    """Codes of the same images in batches of other sizes, in which float32 may be added up in another order."""
    allowed = 2 * network_error(bernoulli_toy(DIGIT_SHAPE).encoder, x=np.ones((1, *DIGIT_SHAPE.chw)))["mean"].max()
    assert allowed < 0.1 * np.ptp(other)  # the code of another image would show
    np.testing.assert_allclose(one, other, rtol=0, atol=allowed)


def arrays(client: TestClient, path: str, digits: Any) -> Any:
    """What a route answers as npy when it is asked for four images at a time, as `small` asks."""
    parts = [client.post(path, **body(digits[i : i + 4], "application/x-npy")) for i in range(0, len(digits), 4)]
    return np.concatenate([np.load(io.BytesIO(part.content), allow_pickle=False) for part in parts])


def rows_of(client: TestClient, path: str, digits: Any) -> list[dict[str, Any]]:
    """The same of JSON."""
    parts = [client.post(path, **body(digits[i : i + 4])).json() for i in range(0, len(digits), 4)]
    return [row for part in parts for row in part["results"]]


def test_every_operation_gives_what_its_route_gives(client: TestClient, small: Client, digits: Any) -> None:
    """To the last bit."""
    latents = small.encode(digits)
    np.testing.assert_array_equal(
        np.stack([latents.mean, latents.log_var], axis=1), arrays(client, "/v1/encode", digits)
    )
    assert (latents.model, latents.version, len(latents)) == ("digits", 2, 10)

    pairs = small.reconstruct(digits)
    expected = arrays(client, "/v1/reconstruct", digits)
    np.testing.assert_array_equal(np.stack([pairs.prepared, pairs.reconstructions], axis=1), expected)
    np.testing.assert_array_equal(small.decode(latents.mean).images, arrays(client, "/v1/decode", latents.mean))

    samples = small.samples(3, seed=7, temperature=0.5)
    document = client.get("/v1/samples?n=3&seed=7&temperature=0.5&as=array").json()
    np.testing.assert_array_equal(samples.images, np.array(document["images"], np.float32))
    np.testing.assert_array_equal(samples.latents, np.array(document["latents"], np.float32))
    assert (samples.seed, samples.temperature) == (7, 0.5)
    decoded = arrays(client, "/v1/decode", samples.latents)
    np.testing.assert_array_equal(small.decode(samples.latents.tolist()).images, decoded)

    estimates = small.log_likelihood(digits, proposal="encoder", num_samples=8, seed=3)
    rows = rows_of(client, "/v1/log-likelihood?proposal=encoder&num_samples=8&seed=3", digits)
    for name in rows[0]:
        wanted = [np.nan if row[name] is None and name != "reason" else row[name] for row in rows]
        np.testing.assert_array_equal(getattr(estimates, name), wanted)
    assert estimates.seed == 3

    models = small.models()
    assert [(model.name, model.default, list(model.versions)) for model in models if model.default] == [
        ("digits", True, [1, 2])
    ]


def test_scores_of_several_methods_with_maps(client: TestClient, small: Client, digits: Any) -> None:
    query = "/v1/anomaly-scores?method=posterior_gap,log_likelihood&explain=true&as=array"
    rows = rows_of(client, query, digits)
    scores = small.anomaly_scores(digits, method=["posterior_gap", "log_likelihood"], explain=True)
    assert (scores.method, scores.alpha, scores.fdr) == ("posterior_gap", 0.05, None)
    assert scores.calibration_size == client.post(query, **body(digits[:1])).json()["calibration_size"]
    for name in ("score", "p_value", "is_anomaly", "log_likelihood", "std_error", "posterior_gap", "num_samples"):
        np.testing.assert_array_equal(getattr(scores, name), [row[name] for row in rows])
    for method in ("posterior_gap", "log_likelihood"):
        wanted = [row["scores"][method]["p_value"] for row in rows]
        np.testing.assert_array_equal(scores.scores[method].p_value, wanted)
    for found, row in zip(scores.explanation, rows, strict=True):
        np.testing.assert_array_equal(found, row["explanation"])


@pytest.mark.parametrize("fdr", [0.1, 0.4])
def test_a_share_of_false_alarms_holds_over_all_chunks(
    client: TestClient, linear_gaussian: LinearGaussian, fdr: float
) -> None:
    """The same decisions as the service's on one request, where each chunk alone would be decided otherwise."""
    images = linear_gaussian.draw(40, GAUSSIAN_SHAPE, seed=8)
    noise = np.random.default_rng(1).random((14, *GAUSSIAN_SHAPE.chw), np.float32)
    share = np.linspace(0, 1, 14, dtype=np.float32)[:, None, None, None]
    images[::3] = (1 - share) * images[::3] + share * np.rint(noise)
    query = f"/v1/anomaly-scores?model=linear-gaussian&method=log_likelihood,posterior_gap&fdr={fdr}"
    rows = client.post(query, **body(images)).json()["results"]
    chunked = Client(http_client=client, model="linear-gaussian", chunk_images=4)
    found = chunked.anomaly_scores(images, method="log_likelihood,posterior_gap", fdr=fdr)
    assert found.is_anomaly.tolist() == [row["is_anomaly"] for row in rows]
    assert found.scores["posterior_gap"].is_anomaly.tolist() == [
        row["scores"]["posterior_gap"]["is_anomaly"] for row in rows
    ]
    assert (found.alpha, found.fdr) == (None, fdr)
    alone = np.concatenate([benjamini_hochberg(found.p_value[i : i + 4], fdr) for i in range(0, 40, 4)])
    assert 0 < found.is_anomaly.sum() < 40
    assert alone.tolist() != found.is_anomaly.tolist()


def test_ten_thousand_images_of_a_generator_are_asked_for_as_they_are_sent(client: TestClient) -> None:
    pulled = 0
    told: list[tuple[int, Any, int]] = []

    def images() -> Iterator[Any]:
        nonlocal pulled
        for number in range(10_000):
            pulled += 1
            yield np.full((28, 28), number % 251, np.uint8)

    asked = Client(http_client=client, chunk_images=500, concurrency=2)
    latents = asked.encode(images(), progress=lambda done, total: told.append((done, total, pulled)))
    assert latents.mean.shape == (10_000, 3)
    same(latents.mean[251:502], latents.mean[:251])
    assert len(np.unique(latents.mean[:251], axis=0)) > 100
    assert [done for done, _, _ in told] == list(range(500, 10_001, 500))
    assert all(total is None and ahead <= done + 3 * 500 + 1 for done, total, ahead in told)


def test_files_and_arrays_mixed_keep_their_order(small: Client, digits: Any, tmp_path: Path) -> None:
    path = tmp_path / "two.png"
    path.write_bytes(png(digits[2]))
    mixed = [digits[0], png(digits[1]), path, str(path), Image.fromarray(digits[3]), digits[4:6, None], digits[6] / 255]
    order = [0, 1, 2, 2, 3, 4, 5, 6]
    same(small.encode(mixed).mean, small.encode(digits).mean[order])
    one = small.encode(Image.fromarray(digits[3]))
    np.testing.assert_array_equal(one.mean, small.encode(digits[3]).mean)


def test_a_bad_image_among_many_is_named_by_its_number_of_all(small: Client, digits: Any) -> None:
    files = [png(digit) for digit in digits] * 2
    files[13] = files[13][:-30]
    with pytest.raises(ProblemError, match=r"^422 An image is not valid: image 13: ") as raised:
        small.encode(files)
    error = raised.value
    assert (error.status, error.type, error.index) == (422, "urn:logpx:problem:invalid-image", 13)
    assert "cut off" in error.detail
    assert error.request_id
    pixels = np.repeat(digits[:1] / 255, 11, axis=0)
    pixels[10, 3, 3] = np.nan
    with pytest.raises(ProblemError) as raised:
        small.encode(pixels)
    assert raised.value.index == 10
    with pytest.raises(ImageError, match="image 9: "):
        small.encode([*digits[:9], "no/such/file.png"])
    with pytest.raises(ProblemError) as raised:
        small.decode([[0.0, 0.0, 0.0]] * 6 + [[0.0, np.nan, 0.0]])
    assert (raised.value.index, raised.value.type) == (6, "urn:logpx:problem:invalid-latent")


def test_what_the_service_refuses_is_told_in_its_words(client: TestClient, small: Client, digits: Any) -> None:
    with pytest.raises(ProblemError) as raised:
        small.log_likelihood(digits, proposal="guess", num_samples=0)
    assert raised.value.status == 422
    assert {error["parameter"] for error in raised.value.errors} == {"proposal", "num_samples"}
    with pytest.raises(ProblemError, match="404 No such model or version"):
        Client(http_client=client, model="none").encode(digits)
    with pytest.raises(ProblemError, match="404"):
        Client(http_client=client, version=9).encode(digits)
    first = Client(http_client=client, model="digits", version=1).encode(digits)
    assert first.version == 1
    colour = Client(http_client=client, model="colour").encode([np.zeros((8, 6, 3), np.uint8)])
    assert colour.model == "colour"


def test_what_is_too_much_for_one_request_is_halved_until_it_fits(serve: Serve, digits: Any) -> None:
    served = serve(max_pixels=10 * 28 * 28)
    images = np.concatenate([digits] * 10)
    latents = Client(http_client=served, chunk_images=64).encode(images)
    same(latents.mean, np.concatenate([Client(http_client=served).encode(digits).mean] * 10))
    with pytest.raises(ProblemError, match="413") as raised:
        Client(http_client=served).encode([png(np.zeros((100, 100), np.uint8))], resize=True)
    assert raised.value.status == 413


def test_keys(serve: Serve, digits: Any) -> None:
    served = serve(api_keys=KEY)
    with pytest.raises(ProblemError) as raised:
        Client(http_client=served).models()
    assert (raised.value.status, raised.value.type) == (401, "urn:logpx:problem:unauthorized")
    keyed = Client(http_client=served, key=KEY)
    assert keyed.models()
    assert len(keyed.encode(digits)) == 10


def test_all_chunks_are_answered_by_one_version(tmp_path: Path, serve: Serve, digits: Any) -> None:
    """Also if a new one is published, and becomes the default, between two of them."""
    dynamic = PixelPreparation(binarisation="dynamic")
    bernoulli_toy(DIGIT_SHAPE, name="digits", preparation=dynamic).publish(tmp_path)
    served = serve(model_store=tmp_path, admin_keys=KEY)

    def images() -> Iterator[Any]:
        yield from digits
        bernoulli_toy(DIGIT_SHAPE, name="digits", preparation=dynamic, seed=6).publish(tmp_path)
        assert served.post("/v1/admin/reload", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        yield from digits

    asked = Client(http_client=served, key=KEY, chunk_images=3)
    latents = asked.encode(images())
    assert latents.version == 1
    same(latents.mean[:10], latents.mean[10:])
    assert asked.encode(digits).version == 2


def test_coroutines_do_the_same_and_several_at_a_time(digits_store: Path, small: Client, digits: Any) -> None:
    """In process, by httpx2's own transport for ASGI."""
    app = web_app.create_app(ServiceSettings(model_store=digits_store))

    async def ask() -> Any:
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://in-process") as http_client,
        ):
            while (await http_client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.01)
            async with AsyncClient(http_client=http_client, chunk_images=4) as client:
                answers: Any = await asyncio.gather(
                    client.encode(png(digit) for digit in digits),
                    client.anomaly_scores(digits, fdr=0.5),
                    client.models(),
                    client.decode([[1.0, 2.0]]),
                    return_exceptions=True,
                )
            assert not http_client.is_closed  # whoever made it closes it
        return answers

    latents, scores, models, refused = asyncio.run(ask())
    np.testing.assert_array_equal(latents.mean, small.encode(digits).mean)
    assert scores.is_anomaly.tolist() == small.anomaly_scores(digits, fdr=0.5).is_anomaly.tolist()
    assert [model.name for model in models] == ["digits"]
    assert isinstance(refused, ProblemError)
    assert refused.status == 422


def test_both_clients_have_the_same_methods_and_options() -> None:
    for name, method in vars(Operations).items():
        if not name.startswith("_"):
            assert inspect.signature(getattr(Client, name)) == inspect.signature(method)
            assert getattr(Client, name).__doc__ == getattr(AsyncClient, name).__doc__ == method.__doc__
    assert Options.__optional_keys__ == set(Settings.__dataclass_fields__)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"url": None}, "either url or http_client"),
        ({"http_client": httpx2.Client()}, "either url or http_client"),
        ({"url": "127.0.0.1:8000"}, "begins with http://"),
        ({"timeout": 0}, "timeout is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"chunk_images": 0}, "at least 1"),
        ({"concurrency": 0}, "at least 1"),
        ({"key": "two\nlines"}, "no HTTP header"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Client(**{"url": "http://127.0.0.1:1", **options})


def test_calls_that_make_no_sense_are_refused(small: Client, digits: Any) -> None:
    with pytest.raises(ValueError, match="nothing to send"):
        small.encode([])
    with pytest.raises(ValueError, match="instead of alpha"):
        small.anomaly_scores(digits, fdr=0.1, alpha=0.1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        small.anomaly_scores(digits, fdr=1.5)
    with pytest.raises(ValueError, match=r"shape \[3\]"):
        small.decode([0.0, 0.0, 0.0])
