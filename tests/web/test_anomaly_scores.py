"""`POST /v1/anomaly-scores`: methods, decisions over many images, and maps."""

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service.engine.anomaly.conformal import benjamini_hochberg
from service.engine.anomaly.detector import AnomalyScores, Judgement
from service.engine.anomaly.scores import METHODS
from service.engine.chunks import complete
from service.engine.model import Model
from service.web import schemas
from service.web.app import create_app
from service.web.operations.settings import Settings
from service.web.responses import anomaly_rows, json_reply
from tests import reference
from tests.rounding import gamma
from tests.toys import LinearGaussian, bernoulli_toy
from tests.web.conftest import COLOUR_SHAPE, DIGIT_SHAPE, GAUSSIAN_SHAPE, put, wait_until_ready
from tests.web.forms import npy

ROUTE, NPY = "/v1/anomaly-scores", {"content-type": "application/x-npy"}


@pytest.fixture(scope="module")
def toys(linear_gaussian: LinearGaussian) -> dict[str, Any]:
    colour = bernoulli_toy(COLOUR_SHAPE, name="colour")
    pixels = np.rint(np.random.default_rng(1).random((30, *COLOUR_SHAPE.chw))).astype(np.float32)
    return {
        "linear-gaussian": reference.calibrated(
            linear_gaussian.toy(GAUSSIAN_SHAPE, widen=1.1), linear_gaussian.draw(300, GAUSSIAN_SHAPE, seed=51)
        ),
        "colour": reference.calibrated(colour, pixels, num_samples=20, proposal="auto"),
        "digits": bernoulli_toy(DIGIT_SHAPE, name="digits"),  # with a calibration as it was before
    }


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, toys: dict[str, Any]) -> Iterator[TestClient]:
    store: Path = tmp_path_factory.mktemp("calibrated")
    for toy in toys.values():
        put(store, toy)
    # Runs of the same sizes on the same device as `model`'s: what it answers is then the same to the last bit.
    settings = Settings(model_store=store, model="linear-gaussian", execution_provider="cpu", chunk_rows=512)
    with TestClient(create_app(settings)) as running:
        wait_until_ready(running)
        yield running


@pytest.fixture(scope="module")
def images(linear_gaussian: LinearGaussian) -> Any:
    drawn = linear_gaussian.draw(40, GAUSSIAN_SHAPE, seed=52)
    drawn[:12, 0] = np.random.default_rng(2).integers(0, 2, (12, 5, 4))
    return drawn


@pytest.fixture(scope="module")
def model(toys: dict[str, Any]) -> Model:
    return reference.load(toys["linear-gaussian"])


def ask(client: TestClient, images: Any, query: str = "") -> dict[str, Any]:
    answer = client.post(f"{ROUTE}?{query}", content=npy(images), headers=NPY)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert schemas.Anomalies.model_validate(found).model_dump(exclude_unset=True).keys() == found.keys()
    return found


def refused(client: TestClient, query: str, *, slug: str = "invalid-parameter") -> dict[str, Any]:
    answer = client.post(f"{ROUTE}?{query}", content=npy(np.zeros((1, 5, 4), np.float32)), headers=NPY)
    assert answer.status_code == 422
    problem: dict[str, Any] = answer.json()
    assert problem["type"] == f"urn:logpx:problem:{slug}"
    return problem


def test_the_default_is_combined(client: TestClient, images: Any, model: Model) -> None:
    answer = ask(client, images)
    assert (answer["method"], answer["alpha"], answer["fdr"], answer["calibration_size"]) == (
        "combined",
        0.05,
        None,
        200,
    )
    expected = complete(model.anomaly_scores(images))
    judgement = expected.by_method["combined"]
    arrays: dict[str, Any] = {
        "score": judgement.score,
        "p_value": judgement.p_value,
        "is_anomaly": judgement.is_anomaly,
        "log_likelihood": expected.log_likelihood,
        "std_error": expected.std_error,
        "posterior_gap": expected.posterior_gap,
        "num_samples": expected.num_samples,
        "reliable": expected.reliable,
    }
    for name, array in arrays.items():
        np.testing.assert_array_equal([result[name] for result in answer["results"]], array, err_msg=name)
    assert set(answer["results"][0]) == set(arrays)


@pytest.mark.parametrize(
    ("name", "protocol"), [("linear-gaussian", "encoder&num_samples=200"), ("colour", "auto&num_samples=20")]
)
def test_the_estimate_is_what_a_log_likelihood_by_the_calibrations_protocol_answers(
    client: TestClient, toys: dict[str, Any], images: Any, name: str, protocol: str
) -> None:
    """The toy of colour images was never trained, so that some of them are annealed."""
    shape = toys[name].description.image.chw
    sent = images[:6] if name == "linear-gaussian" else np.random.default_rng(4).random((6, *shape), np.float32)
    scored = ask(client, sent, f"model={name}")["results"]
    route = f"/v1/log-likelihood?model={name}&proposal={protocol}"
    estimated = client.post(route, content=npy(sent), headers=NPY).json()["results"]
    for score, estimate in zip(scored, estimated, strict=True):
        for field in ("log_likelihood", "std_error", "posterior_gap", "num_samples", "reliable"):
            assert score[field] == estimate[field], field
    if name == "colour":
        assert "annealed" in {estimate["proposal"] for estimate in estimated}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_by_itself(client: TestClient, images: Any, model: Model, method: str) -> None:
    answer = ask(client, images, f"method={method}&alpha=0.2")
    assert answer["method"] == method
    judgement = complete(model.anomaly_scores(images, methods=[method], alpha=0.2)).by_method[method]
    np.testing.assert_array_equal([r["score"] for r in answer["results"]], judgement.score)
    assert [r["is_anomaly"] for r in answer["results"]] == [r["p_value"] <= 0.2 for r in answer["results"]]


def test_several_methods_in_one_request(client: TestClient, images: Any) -> None:
    answer = ask(client, images, "method=kl,combined,log_likelihood")
    assert answer["method"] == "kl"
    for method in ("kl", "combined", "log_likelihood"):
        alone = ask(client, images, f"method={method}")["results"]
        for result, one in zip(answer["results"], alone, strict=True):
            assert result["scores"][method] == {key: one[key] for key in ("score", "p_value", "is_anomaly")}
    for result in answer["results"]:
        assert list(result["scores"]) == ["kl", "combined", "log_likelihood"]
        assert {key: result[key] for key in ("score", "p_value", "is_anomaly")} == result["scores"]["kl"]


def test_p_values_are_counted_for_each_method(client: TestClient, images: Any) -> None:
    def counts() -> dict[str, float]:
        lines = client.get("/metrics").text
        found = re.findall(r'logpx_p_values_count\{method="(\w+)",model="linear-gaussian",version="1"\} (\S+)', lines)
        return {method: float(count) for method, count in found}

    before = counts()
    ask(client, images, "method=kl,typicality")
    after = counts()
    assert {m: c - before.get(m, 0) for m, c in after.items() if c != before.get(m, 0)} == {"kl": 40, "typicality": 40}


def test_a_false_discovery_rate_decides_over_the_request(client: TestClient, images: Any) -> None:
    answer = ask(client, images, "fdr=0.1&method=combined,kl")
    assert (answer["alpha"], answer["fdr"]) == (None, 0.1)
    for method in ("combined", "kl"):
        judged = [result["scores"][method] for result in answer["results"]]
        expected = benjamini_hochberg(np.array([one["p_value"] for one in judged]), 0.1)
        assert [one["is_anomaly"] for one in judged] == expected.tolist()
    assert all(result["is_anomaly"] for result in answer["results"][:12])
    alone = ask(client, images[:1], "fdr=0.001")["results"][0]
    assert not alone["is_anomaly"]  # no p-value is below 1/201
    assert alone["p_value"] == 1 / 201


def test_alpha_and_fdr_exclude_each_other(client: TestClient) -> None:
    problem = refused(client, "alpha=0.05&fdr=0.1")
    assert [error["parameter"] for error in problem["errors"]] == ["alpha", "fdr"]
    assert "give one of them" in problem["detail"]
    for query in ("fdr=0", "fdr=1", "fdr=nan", "alpha=0", "fdr=x"):
        assert refused(client, query)["errors"][0]["parameter"] == query.split("=")[0]


@pytest.mark.parametrize("query", ["proposal=encoder", "num_samples=10", "seed=3"])
def test_what_the_calibration_fixes_cannot_be_asked_for(client: TestClient, query: str) -> None:
    problem = refused(client, query)
    assert problem["errors"][0]["parameter"] == query.split("=")[0]
    assert "fixed by the model's calibration" in problem["detail"]
    assert "python -m service calibrate" in problem["detail"]


@pytest.mark.parametrize("methods", ["magic", "kl,magic", "", ",", "kl,", "KL", "kl, combined"])
def test_an_unknown_method_is_answered_with_those_there_are(client: TestClient, methods: str) -> None:
    problem = refused(client, f"method={methods}")
    assert problem["errors"][0]["parameter"] == "method"
    assert ", ".join(METHODS) in problem["detail"]


def test_an_older_calibration_is_told_what_it_lacks(client: TestClient, digits: Any) -> None:
    old = "model=digits"
    answer = ask(client, digits, old)
    assert (answer["method"], answer["calibration_size"]) == ("log_likelihood", 50)
    assert ask(client, digits, f"{old}&method=posterior_gap")["method"] == "posterior_gap"
    reply = client.post(f"{ROUTE}?{old}&method=posterior_gap,combined", content=npy(digits), headers=NPY)
    assert reply.status_code == 422
    assert reply.json()["type"] == "urn:logpx:problem:uncalibrated-model"
    assert reply.json()["detail"].startswith("combined needs calibration images' complexity, latent_0, which")


def test_a_map_as_numbers(client: TestClient, images: Any, model: Model) -> None:
    answer = ask(client, images[:3], "explain=true&as=array")
    expected = complete(model.anomaly_scores(images[:3], explain=True)).explanation
    assert expected is not None
    found = np.array([result["explanation"] for result in answer["results"]])
    assert found.shape == (3, 1, 5, 4)
    np.testing.assert_array_equal(found.astype(expected.dtype), expected)


@pytest.mark.parametrize("name", ["linear-gaussian", "colour"])
def test_a_map_as_a_picture(client: TestClient, toys: dict[str, Any], name: str) -> None:
    shape = toys[name].description.image
    pixels = np.random.default_rng(3).integers(0, 2, (3, *shape.chw)).astype(np.float32)
    numbers = ask(client, pixels, f"model={name}&explain=true&as=array")
    pictures = ask(client, pixels, f"model={name}&explain=true")
    for number, picture in zip(numbers["results"], pictures["results"], strict=True):
        nats = np.maximum(np.sum(number["explanation"], axis=0), 0)  # [H, W], over channels
        with Image.open(io.BytesIO(base64.b64decode(picture["explanation"]))) as opened:
            assert (opened.format, opened.mode) == ("PNG", "L")
            shown = np.asarray(opened)
        assert shown.max() == 255
        # The nearest level, of a quotient in float32.
        np.testing.assert_allclose(shown, 255 * nats / nats.max(), rtol=0, atol=0.5 + 255 * gamma(nats.ndim + 4))


def test_a_map_costs_rows(client: TestClient, images: Any) -> None:
    def rows() -> float:
        (found,) = re.findall(
            r'logpx_rows_total\{model="linear-gaussian",version="1"\} (\S+)', client.get("/metrics").text
        )
        return float(found)

    ask(client, images[:2])
    before = rows()
    ask(client, images[:2], "explain=true")
    assert rows() - before == 2 * (200 + 8)


def scores_of(judgement: Judgement, nats: Any, maps: Any) -> AnomalyScores:
    """One image by one method, all of whose nats are the same."""
    return AnomalyScores(
        by_method={"kl": judgement},
        log_likelihood=nats,
        std_error=nats,
        posterior_gap=nats,
        num_samples=np.array([400]),
        reliable=np.array([False]),
        calibration_size=99,
        explanation=maps,
    )


def test_nothing_is_surprising_in_a_map_of_what_is_not_a_number() -> None:
    one = Judgement(np.array([np.nan]), np.array([0.01]), np.array([True]))
    maps = np.full((1, 1, 2, 2), np.nan)
    scores = scores_of(one, np.array([np.nan]), maps)
    assert anomaly_rows(scores, "png")[:1][0]["explanation"] is None
    (written,) = orjson.loads(json_reply({"results": anomaly_rows(scores, "png")}).body)["results"]
    assert {name for name, value in written.items() if value is None} == {
        "score", "log_likelihood", "std_error", "posterior_gap", "explanation",
    }  # fmt: skip
    assert anomaly_rows(scores, "array")[:1][0]["explanation"] is None
    flat = scores_of(one, np.array([1.0]), np.full((1, 1, 2, 2), -1.0))
    with Image.open(io.BytesIO(base64.b64decode(anomaly_rows(flat, "png")[:1][0]["explanation"]))) as opened:
        assert np.asarray(opened).max() == 0
