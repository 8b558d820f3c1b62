"""Hundreds of hostile requests, one at a time, to one service: each is answered as documented, and leaves no trace.

The whole module runs under one watch; so a request that passes and harms the next, or takes memory that it does not
give back, or puts its own words into the log or the metrics, fails at the module's end.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.attacks.attack import Attack
from tests.hostile.attacks.heads import head_attacks
from tests.hostile.attacks.open_inference import open_inference_attacks
from tests.hostile.attacks.pixels import pixel_attacks
from tests.hostile.attacks.queries import query_attacks
from tests.hostile.harness import ChildService, watched

ATTACKS = [*query_attacks(), *head_attacks(), *pixel_attacks(), *open_inference_attacks()]
KEY = "admin-admin-admin-admin"
MOST_MEMORY = 200 * 2**20
"""Beside what it has at rest; none of these asks for much."""
LONGEST_REFUSAL = 4096
LONGEST_LINE = 4096
OWN_WORDS = ("passwd", "evil", "aaaaaaaa", "xxxxxxxx", "jndi", "constructor", "DIGITS")
"""Of the requests, none of which may become a label or a header."""


@pytest.fixture(scope="module")
def service(store: Path) -> Iterator[ChildService]:
    with ChildService(store, model="digits", admin_keys=KEY, cors_origins="https://ours.example") as started:
        yield started


@pytest.fixture(scope="module", autouse=True)
def watch(service: ChildService) -> Iterator[None]:
    with watched(service, memory=service.resident() + MOST_MEMORY):
        yield


def test_names_are_unique() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) > 300


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_it_is_answered_as_documented(service: ChildService, attack: Attack) -> None:
    (answer,) = attack.run(service)
    assert answer.status in attack.statuses, answer.body[:500]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-request-id"].isascii()
    assert len(answer.headers["x-request-id"]) <= 128
    assert not any(word in f"{answer.headers}" for word in OWN_WORDS), answer.headers
    assert "set-cookie" not in answer.headers
    if answer.status >= 400:
        assert answer.problem
        assert len(answer.body) <= LONGEST_REFUSAL


def test_afterwards_log_and_metrics_are_the_services_own(service: ChildService) -> None:
    """Runs last in the module."""
    lines = service.log_lines()  # each of them JSON
    asked = [line for line in lines if line["event"] == "request"]
    assert len(asked) > 0.9 * len(ATTACKS)
    assert {line["client"] for line in asked} == {"127.0.0.1"}
    assert not [line for line in lines if line["level"] in ("error", "critical")]
    assert max(map(len, service.log().splitlines())) <= LONGEST_LINE
    metrics = service.ask("GET", "/metrics").body.decode()
    assert 'status="500"' not in metrics
    assert not [word for word in OWN_WORDS if word in metrics]
    assert metrics.count("\n") < 2000
    assert service.metric("logpx_queued_requests") == 0
    assert len([name for name in service.open_files() if name.startswith("socket:")]) < 10
