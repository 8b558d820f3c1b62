"""`/openapi.json` is kept to: Schemathesis sends what it allows and what it does not, and checks every answer."""

from typing import Any

import hypothesis
import pytest
import schemathesis
from fastapi.testclient import TestClient
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.web.conftest import Serve, wait_until_ready

KEY = "a-key-for-schemathesis"
# The same examples each time, however slow the machine.
EXAMPLES = hypothesis.settings(
    max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
)


FEW_EXAMPLES = hypothesis.settings(EXAMPLES, max_examples=5)
"""For each operation of `/v2`: there are twice as many routes, and each two are alike."""
TAKING_NOTHING = ("/livez", "/readyz", "/v2", "/v2/health/live", "/v2/health/ready")
"""So nothing wrong."""


@pytest.fixture(scope="module")
def closed(serve: Serve) -> TestClient:
    """An app that asks for a key and computes little."""
    return serve(api_keys=KEY, num_samples=10, max_num_samples=200, max_rows=1000, max_pixels=100_000)


@pytest.mark.parametrize("mode", GenerationMode)
def test_every_route_keeps_its_schema(closed: TestClient, mode: GenerationMode) -> None:
    config = SchemathesisConfig.from_dict({"seed": 1, "generation": {"deterministic": True, "database": "none"}})
    schema = schemathesis.openapi.from_asgi("/openapi.json", closed.app, config=config)
    wait_until_ready(closed)  # Schemathesis has started the app once more
    asked: set[str] = set()
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()
        if mode is GenerationMode.NEGATIVE and operation.path in TAKING_NOTHING:
            continue

        @hypothesis.settings(FEW_EXAMPLES if operation.path.startswith("/v2") else EXAMPLES)
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            if mode is GenerationMode.POSITIVE:
                for name in ("model", "version"):
                    case.query.pop(name, None)  # else hardly any request would name one that exists
                if case.operation.path.startswith("/v2"):
                    last = case.operation.path.split("/")[3:4]
                    case.path_parameters["name"] = "digits" if last != ["{name}"] else "digits.encode"
                    case.path_parameters["version"] = "1"
            key = {"Authorization": f"Bearer {KEY}"}
            # A schema cannot say that a base64 text is an image, nor how large it is.
            case.call_and_validate(headers=key, excluded_checks=[positive_data_acceptance])
            asked.add(case.operation.path)

        ask()
    assert sum(path.startswith("/v2/models/{name}.") for path in asked) == 10
    assert {"/v1/encode", "/v1/decode", "/v1/samples", "/v1/log-likelihood", "/v1/anomaly-scores"} <= asked
