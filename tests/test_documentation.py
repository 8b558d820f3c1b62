"""What a reader is told exists, and what exists is told."""

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from model_store import BUNDLED
from service.web.app import create_app
from service.web.errors import HEADER_TOO_LARGE, INTERNAL, INVALID_PARAMETER, KINDS
from service.web.settings import MIN_KEY_LENGTH, Settings

ROOT = Path(__file__).parents[1]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented_with_its_default(name: str) -> None:
    default = Settings.model_fields[name].default
    shown = {None: "–", (): "–", BUNDLED: "the bundled models"}.get(default, f"`{default}`")
    assert f"| `LOGPX_{name.upper()}` | {shown} |" in OPERATIONS


def test_no_setting_is_documented_that_does_not_exist() -> None:
    told = set(re.findall(r"LOGPX_([A-Z_]+[A-Z])", OPERATIONS + README)) - {"MAX"}
    told -= {"API_KEY", "TOKEN"}  # named as what looks like a setting and is none
    assert told <= {name.upper() for name in Settings.model_fields}


def test_the_length_that_keys_must_have_is_documented() -> None:
    assert f"A key has at least {MIN_KEY_LENGTH} characters" in OPERATIONS
    assert f"keys of at least {MIN_KEY_LENGTH} characters" in OPERATIONS


@pytest.mark.parametrize(
    "slug", sorted({kind.slug for kind in [*KINDS.values(), INVALID_PARAMETER, HEADER_TOO_LARGE, INTERNAL]})
)
def test_every_problem_type_is_documented(slug: str) -> None:
    assert f"`{slug}`" in OPERATIONS


def test_every_route_is_in_the_readme_and_every_metric_in_the_operations_page() -> None:
    with TestClient(create_app(Settings())) as client:
        paths = client.get("/openapi.json").json()["paths"]
        metrics = re.findall(r"^# TYPE (logpx_\w+)", client.get("/metrics").text, re.MULTILINE)
    for path in paths:
        assert path.replace("{name}", "") in README
    for metric in metrics:
        assert f"`{metric}`" in OPERATIONS or metric.endswith("_created")
    for told in re.findall(r"`(logpx_\w+)`", OPERATIONS):
        assert told in metrics
