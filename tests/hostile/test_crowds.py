"""Many connections at once, or much on one: each answer is a documented one, nobody is kept out, nothing stays."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.attacks.attack import ENCODE, IMAGE, NPY, SAMPLES, SCORE, Attack, whole
from tests.hostile.attacks.crowds import ADMIN_KEY, close, crowds, noise, sockets
from tests.hostile.harness import ChildService, watched

MOST_MEMORY = 400 * 2**20


@pytest.fixture(scope="module")
def service(store: Path) -> Iterator[ChildService]:
    with ChildService(store, model="digits", admin_keys=ADMIN_KEY) as started:
        yield started


@pytest.mark.parametrize("attack", list(crowds()), ids=str)
def test_a_crowd_is_answered_as_documented_and_leaves_nothing(service: ChildService, attack: Attack) -> None:
    with watched(service, memory=service.resident() + MOST_MEMORY, seconds=30):
        answers = attack.run(service)
    assert {answer.status for answer in answers} <= set(attack.statuses)
    assert attack.num_answers in (None, len(answers))
    end = time.monotonic() + 60
    while service.metric("logpx_queued_requests") or len(service.open_files()) > 100:
        assert time.monotonic() < end, service.open_files()
        time.sleep(0.02)
    assert service.metric("logpx_queued_rows") == 0
    assert service.metric("logpx_requests_total", status="500") == 0


def test_sigterm_ends_it_in_the_middle_of_all_of_them(store: Path) -> None:
    with ChildService(store, model="digits", drain_seconds=1) as service:
        strange = whole("POST", SCORE, noise(200), NPY)
        held = [
            *sockets(service, 50),
            *sockets(service, 50, b"POST /v1/encode HTTP/1.1\r\nHost: a\r\nX-A: "),
            *sockets(service, 50, whole("POST", ENCODE, IMAGE, NPY)[:-100]),
            *sockets(service, 20, strange),
            *sockets(service, 5, whole("GET", f"{SAMPLES}?n=20000", headers={"Accept": "application/x-npy"})),
        ]
        while not service.metric("logpx_queued_requests"):
            pass
        started = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - started < 30  # the drain, and what a busy machine takes to end a process
        close(held)
