"""Images that cost far more than they weigh, and processes that read images and are ended: nobody else notices."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.hostile.harness import GIBIBYTE, ChildService, watched
from tests.hostile.image_bombs import BOMBS, FORM, GREY, JPEG, NPY, PNG, form, headers, progressive_jpeg
from tests.hostile.processes import open_files
from tests.hostile.wire import Answer, request
from tests.web.forms import image_file, npy

ENCODE = "/v1/encode?resize=true"
DEADLINE_MS = 3000
PATIENCE_SECONDS = 60
"""Beside busy processes; what hangs takes longer."""
MEMORY = 2 * GIBIBYTE
MAX_PIXELS = 2**25  # twice the default: as much work as a file may ask for, and more
KEY = "0123456789abcdef-hostile"


@pytest.fixture(scope="module")
def service(store: Path) -> Iterator[ChildService]:
    with ChildService(store, model="digits", max_pixels=MAX_PIXELS) as started:
        yield started


@pytest.fixture(scope="module")
def monster() -> bytes:
    """Seconds of work in 70 kB."""
    return progressive_jpeg(5700, 60)


@pytest.fixture(scope="module")
def monsters() -> bytes:
    """Far more than the half second that a worker is given."""
    return form([progressive_jpeg(4000, 100)] * 2)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def post(service: ChildService, body: bytes, content_type: str, timeout_ms: int | None = None) -> Answer:
    return service.ask("POST", ENCODE, body, headers(content_type, timeout_ms))


def ticks(service: ChildService) -> dict[int, int]:
    """Each worker's processor time, in hundredths of a second."""
    found = {}
    for pid in service.children():
        with suppress(FileNotFoundError):  # it has just ended
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[pid] = int(fields[11]) + int(fields[12])
    return found


def wait_for_idle_workers(service: ChildService) -> set[int]:
    """Two workers and a spare one, all of which have started long since."""

    def idle() -> bool:
        before = ticks(service)
        time.sleep(0.3)
        return len(before) == 3 and ticks(service) == before

    wait_until(idle)
    return set(service.children())


def busy_worker(service: ChildService, among: set[int]) -> int:
    """Which of these computes."""
    before = ticks(service)
    found: list[int] = []

    def busy() -> bool:
        now = ticks(service)
        found[:] = [pid for pid in among if now.get(pid, 0) > before.get(pid, 0) + 2]
        return bool(found)

    wait_until(busy)
    return found[0]


def photograph() -> bytes:
    return image_file(np.random.default_rng(1).integers(0, 256, (300, 300, 3), np.uint8), "JPEG")


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_does_not_go_off(service: ChildService, name: str) -> None:
    content_type, write, statuses = BOMBS[name]
    body = write()
    with watched(service, memory=MEMORY):
        answer = post(service, body, content_type, DEADLINE_MS)
    assert answer.status in statuses, answer.body[:500]
    assert answer.seconds < DEADLINE_MS / 1000 + 10
    if answer.status != 200:
        assert answer.problem in ("invalid-image", "invalid-body", "limit-exceeded", "queue-full", "deadline-exceeded")


def test_what_is_not_read_by_its_deadline_is_a_504_and_is_read_no_further(
    service: ChildService, monsters: bytes
) -> None:
    wait_for_idle_workers(service)
    dropped = service.metric("logpx_decoder_restarts_total", reason="dropped")
    with watched(service, memory=MEMORY):
        answer = post(service, monsters, FORM, 250)
        assert (answer.status, answer.problem) == (504, "deadline-exceeded")
        assert "not read within 0.25 s" in answer.json()["detail"]
        assert service.metric("logpx_queued_decodings") == 0
        wait_until(lambda: service.metric("logpx_decoder_restarts_total", reason="dropped") > dropped)


def test_what_a_client_that_left_wanted_is_read_no_further(service: ChildService, monsters: bytes) -> None:
    workers = wait_for_idle_workers(service)
    dropped = service.metric("logpx_decoder_restarts_total", reason="dropped")
    with watched(service, memory=MEMORY):
        with service.connect() as connection:
            connection.sendall(request("POST", ENCODE, monsters, headers(FORM)))
            worker = busy_worker(service, workers)
        wait_until(lambda: worker not in service.children())
        assert service.metric("logpx_queued_decodings") == 0
        wait_until(lambda: service.metric("logpx_decoder_restarts_total", reason="dropped") > dropped)


def test_small_images_do_not_wait_for_a_crowd_of_large_ones(service: ChildService, monster: bytes) -> None:
    small = [(image_file(GREY), PNG), (image_file(GREY, "JPEG"), JPEG), (photograph(), JPEG)]
    small += [(form([image_file(GREY)] * 20), FORM), (npy(np.zeros((100, 9, 9), np.uint8)), NPY)]
    with ThreadPoolExecutor(45) as clients, watched(service, memory=MEMORY):
        crowd = [clients.submit(post, service, monster, JPEG, DEADLINE_MS) for _ in range(45)]
        wait_until(lambda: service.metric("logpx_queued_decodings") > 0)
        answers = [post(service, body, content_type, 20_000) for body, content_type in small]
        refused = [answer.result() for answer in crowd]
    assert [answer.status for answer in answers] == [200] * len(small)
    assert {answer.status for answer in refused} <= {200, 429, 504}
    for answer in refused:
        assert answer.seconds < DEADLINE_MS / 1000 + 10
        if answer.status == 429:
            assert 1 <= int(answer.headers["retry-after"]) <= 30


def test_server_timing_and_the_log_tell_what_reading_took(service: ChildService) -> None:
    answer = service.ask("POST", ENCODE, photograph(), {"Content-Type": JPEG, "X-Request-ID": "timed"})
    names = [part.partition(";dur=")[0] for part in answer.headers["server-timing"].split(", ")]
    assert names == ["decode", "queue", "compute"]
    wait_until(lambda: any(line.get("request_id") == "timed" for line in service.log_lines()))
    (line,) = [line for line in service.log_lines() if line.get("request_id") == "timed"]
    assert line["decode_seconds"] > 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_idle_workers_that_are_ended_are_replaced(service: ChildService, number: int) -> None:
    with watched(service, memory=MEMORY):
        before = wait_for_idle_workers(service)
        for pid in before:
            os.kill(pid, number)
        wait_until(lambda: not before & set(service.children()))
        answers = [post(service, photograph(), JPEG) for _ in range(3)]
    assert {answer.status for answer in answers} == {200}
    wait_until(lambda: len(service.children()) == len(before))


def test_an_image_that_crashes_the_decoder_is_refused(service: ChildService, monster: bytes) -> None:
    workers = wait_for_idle_workers(service)
    with watched(service, memory=MEMORY), ThreadPoolExecutor(1) as client:
        answer = client.submit(post, service, monster, JPEG)
        os.kill(busy_worker(service, workers), signal.SIGSEGV)
        refused = answer.result()
    assert (refused.status, refused.problem) == (422, "invalid-image")
    assert "crashes" in refused.json()["detail"]
    assert post(service, photograph(), JPEG).status == 200


def test_a_request_whose_worker_was_ended_from_outside_is_read_by_another(
    service: ChildService, monster: bytes
) -> None:
    """As by the kernel when memory runs out."""
    workers = wait_for_idle_workers(service)
    with watched(service, memory=MEMORY), ThreadPoolExecutor(1) as client:
        answer = client.submit(post, service, monster, JPEG)
        os.kill(busy_worker(service, workers), signal.SIGKILL)
        assert answer.result().status == 200


def test_workers_end_with_a_service_that_is_killed(store: Path, monster: bytes) -> None:
    with ChildService(store, model="digits", max_pixels=MAX_PIXELS) as service:
        workers = wait_for_idle_workers(service)
        sent = threading.Thread(target=lambda: service.raw(request("POST", ENCODE, monster, headers(JPEG))))
        sent.start()
        busy_worker(service, workers)
        os.kill(service.pid, signal.SIGKILL)
        wait_until(lambda: not any(is_running(pid) for pid in workers))
        sent.join()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_know_no_key_have_no_connection_and_finish_what_was_accepted(store: Path, monster: bytes) -> None:
    """Though SIGTERM reaches them, too, as systemd sends it."""
    keyed = {**headers(JPEG), "X-API-Key": KEY}
    with (
        ChildService(store, model="digits", max_pixels=MAX_PIXELS, api_keys=KEY, drain_seconds=100) as service,
        service.connect() as connection,
        ThreadPoolExecutor(1) as client,
    ):
        connection.sendall(request("GET", "/livez"))
        connection.recv(1)
        workers = wait_for_idle_workers(service)
        for pid in workers:
            assert KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
            files = [file for file in open_files(pid) if file != "/dev/null"]
            assert len(files) == 1, files
            assert files[0].startswith("socket:")
        answer = client.submit(service.ask, "POST", ENCODE, monster, keyed)
        busy_worker(service, workers)
        for pid in (*workers, service.pid):
            os.kill(pid, signal.SIGTERM)
        assert answer.result().status == 200
        assert service.process.wait(PATIENCE_SECONDS) == 0
        assert service.children() == []
