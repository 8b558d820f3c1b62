"""`GET /v1/limits` and `GET /v1/models/{name}/calibration`."""

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.web.operations.settings import Settings
from tests.web.conftest import Serve
from tests.web.forms import npy

AS_NPY = {"content-type": "application/x-npy"}


def test_limits_are_those_of_the_settings(serve: Serve) -> None:
    client = serve(max_pixels=123_456, timeout_seconds=7.5, execution_provider="auto")
    limits = client.get("/v1/limits").json()
    assert limits["execution_provider"] in ("CPUExecutionProvider", "CUDAExecutionProvider")
    assert limits["max_pixels"] == 123_456
    assert limits["timeout_seconds"] == 7.5
    assert limits["max_target_bytes"] == 8192
    assert "image/png" in limits["media_types"]
    for name in ("max_body_bytes", "max_rows", "max_num_samples", "max_answer_bytes", "max_queued_requests"):
        assert limits[name] == getattr(Settings(), name)
    assert client.get("/v1/limits?all=1").status_code == 422


def test_a_score_at_a_quantile_has_that_p_value(client: TestClient, digits: Any) -> None:
    calibration = client.get("/v1/models/digits/calibration").json()
    assert (calibration["model"], calibration["version"]) == ("digits", 2)
    size, probabilities = calibration["calibration_size"], np.array(calibration["probabilities"])
    assert (len(probabilities), probabilities[0], probabilities[-1]) == (101, 0, 1)
    methods = ",".join(calibration["quantiles"])
    answer = client.post(f"/v1/anomaly-scores?method={methods}", content=npy(digits), headers=AS_NPY).json()
    assert answer["calibration_size"] == size
    for method, quantiles in calibration["quantiles"].items():
        assert len(quantiles) == 101
        assert quantiles == sorted(quantiles)
        for result in answer["results"]:
            judged = result if result["scores"] is None else result["scores"][method]
            # p = (1 + number of calibration scores ≥ this one) / (n + 1)
            below = np.searchsorted(quantiles, judged["score"], side="left")  # quantiles that are smaller
            least = probabilities[below - 1] if below else 0.0
            most = probabilities[below] if below < 101 else 1.0
            smaller = 1 - (judged["p_value"] * (size + 1) - 1) / size
            assert least - 1e-9 <= smaller <= most + 1 / size + 1e-9


def test_a_calibration_older_than_latent_codes(client: TestClient) -> None:
    calibration = client.get("/v1/models/digits/calibration?version=1").json()
    assert (calibration["version"], calibration["latents"]) == (1, None)
    assert set(calibration["quantiles"]) >= {"log_likelihood", "posterior_gap"}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/models/nothing/calibration", 404),
        ("/v1/models/digits/calibration?version=9", 404),
        ("/v1/models/digits/calibration?version=0", 422),
        ("/v1/models/digits/calibration?model=digits", 422),
    ],
)
def test_what_is_not_there(client: TestClient, path: str, status: int) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.json()["detail"]


def test_keys_are_needed_where_there_are_any(serve: Serve) -> None:
    client = serve(api_keys="a-secret-of-sixteen")
    for path in ("/v1/limits", "/v1/models/digits/calibration"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"authorization": "Bearer a-secret-of-sixteen"}).status_code == 200
