"""`logpx score` and the service give the same numbers for the same images, model and options, to the last bit."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient

from service.scoring.scorer import Scorer


def records(client: TestClient, path: str, digits: Any) -> Any:
    body = io.BytesIO()
    np.save(body, digits)
    headers = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
    answer = client.post(path, content=body.getvalue(), headers=headers)
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content), allow_pickle=False)


def test_bulk_scores_are_those_of_the_service(client: TestClient, store: Path, digits: Any) -> None:
    estimates = records(client, "/v1/log-likelihood?proposal=laplace&num_samples=100&seed=2", digits)
    scores = records(client, "/v1/anomaly-scores", digits)
    found = Scorer("digits", store, proposal="laplace", num_samples=100, seed=2)({"image": digits})
    assert found["error"].tolist() == [None] * len(digits)
    for name, array in found.items():
        if name != "error":
            expected = scores if name in ("score", "p_value", "is_anomaly") else estimates
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
