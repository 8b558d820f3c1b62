"""The real process: start, readiness, concurrency, SIGTERM, and starts that must fail."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from model_store import list_versions, open_version
from tests.toys import bernoulli_toy
from tests.web import plain_http
from tests.web.conftest import DIGIT_SHAPE, put
from tests.web.forms import npy

ROOT = Path(__file__).parents[2]
NPY = {"content-type": "application/x-npy"}
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def start_in_module(digits_store: Path) -> Iterator[Start]:
    """As `start`, for a service that the tests of a module share."""
    yield from processes(digits_store)


@pytest.fixture
def start(digits_store: Path) -> Iterator[Start]:
    """Start `python -m service`, or Python with other arguments, with these settings."""
    yield from processes(digits_store)


def processes(store: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **settings: Any) -> "subprocess.Popen[str]":
        settings = {"model_store": store, "model": "digits", "port": 0, **settings}
        environment = {**os.environ, **{f"LOGPX_{key.upper()}": str(value) for key, value in settings.items()}}
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, *(arguments or ("-m", "service"))],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def address(process: "subprocess.Popen[str]", tries: int = 1000) -> str:
    """Read the log until the port is known, then wait until the service is ready."""
    assert process.stdout is not None
    for line in process.stdout:
        if "running on http" in line:
            url = line[line.index("http://") :].split(" ")[0].split('"')[0]
            break
    else:
        raise AssertionError("the process ended without an address")
    threading.Thread(target=process.stdout.read, daemon=True).start()  # keep the pipe empty
    for _ in range(tries):
        if plain_http.get(f"{url}/readyz").status_code == 200:
            return url
        time.sleep(0.01)
    raise AssertionError("never ready")


def score(url: str, num_images: int, num_samples: int) -> httpx2.Response:
    body = npy(np.zeros((num_images, 28, 28), np.uint8))
    route = f"{url}/v1/log-likelihood?proposal=encoder&num_samples={num_samples}"
    return plain_http.post(route, content=body, headers=NPY, timeout=120)


def start_long_job(url: str) -> tuple[threading.Thread, list[httpx2.Response]]:
    """Ask for a million rows in a thread, and return once the service has accepted them."""
    answers: list[httpx2.Response] = []
    job = threading.Thread(target=lambda: answers.append(score(url, 200, 5000)))
    job.start()
    while "queued_rows 1e+06" not in plain_http.get(f"{url}/metrics").text:
        assert job.is_alive()
    return job, answers


@contextmanager
def endless_job(url: str) -> Iterator[socket.socket]:
    """A client that asks for five million rows, minutes of work, and goes away at the end; its connection."""
    host, port = url.removeprefix("http://").split(":")
    body = npy(np.zeros((200, 28, 28), np.uint8))
    head = f"POST /v1/log-likelihood?proposal=encoder&num_samples=25000 HTTP/1.1\r\nHost: {host}\r\n"
    head += f"Content-Type: application/x-npy\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head.encode() + body)
        while "queued_rows 5e+06" not in plain_http.get(f"{url}/metrics").text:
            pass
        yield connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # gone, not half closed


def test_liveness_and_short_requests_are_answered_while_a_long_one_runs(start: Start) -> None:
    url = address(start())
    long, answers = start_long_job(url)
    for _ in range(5):
        assert plain_http.get(f"{url}/livez").status_code == 200
        assert score(url, 1, 10).status_code == 200
    assert long.is_alive()  # all of the above was answered before the long one was
    long.join()
    assert answers[0].status_code == 200
    assert len(answers[0].json()["results"]) == 200


def test_sigterm_finishes_accepted_work_refuses_new_and_exits_0(start: Start) -> None:
    process = start(drain_seconds=300)
    url = address(process)
    accepted, answers = start_long_job(url)
    process.send_signal(signal.SIGTERM)
    while (ready := plain_http.get(f"{url}/readyz")).status_code == 200:
        pass
    assert ready.status_code == 503
    assert "shutting down" in ready.json()["detail"]
    assert plain_http.get(f"{url}/livez").status_code == 200
    refused = score(url, 1, 10)
    assert refused.status_code == 503
    assert refused.json()["type"] == "urn:logpx:problem:not-ready"
    accepted.join()
    assert answers[0].status_code == 200
    assert process.wait(30) == 0


def test_sigterm_under_load_fails_no_accepted_request(start: Start) -> None:
    process = start(drain_seconds=300)
    url = address(process)
    answers: list[list[httpx2.Response]] = [[] for _ in range(6)]

    def ask(answered: list[httpx2.Response]) -> None:
        """On one kept connection, until refused."""
        routes = ("encode", "log-likelihood?num_samples=40", "anomaly-scores")
        body = npy(np.zeros((3, 28, 28), np.uint8))
        with httpx2.Client(base_url=f"{url}/v1/", headers=NPY, timeout=120) as client:
            while not answered or answered[-1].status_code == 200:
                answered.append(client.post(routes[len(answered) % 3], content=body))

    long, long_answers = start_long_job(url)  # keeps the door open until every client has been refused
    clients = [threading.Thread(target=ask, args=(answered,)) for answered in answers]
    for client in clients:
        client.start()
    while min(map(len, answers)) < 3:
        assert all(client.is_alive() for client in clients)
    assert long.is_alive()
    process.send_signal(signal.SIGTERM)
    for client in [*clients, long]:
        client.join()
    assert long_answers[0].status_code == 200
    for answered in answers:
        *served, refused = answered
        assert {answer.status_code for answer in served} == {200}
        assert refused.status_code == 503
        assert refused.json()["type"] == "urn:logpx:problem:not-ready"
        assert refused.headers["connection"] == "close"
    assert process.wait(30) == 0


def test_a_request_accepted_before_sigterm_is_answered_though_its_body_ends_after(start: Start) -> None:
    process = start()
    url = address(process)
    host, port = url.removeprefix("http://").split(":")
    body = npy(np.zeros((2, 28, 28), np.uint8))
    head = f"POST /v1/encode HTTP/1.1\r\nHost: {host}\r\nExpect: 100-continue\r\n"
    head += f"Content-Type: application/x-npy\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")  # what reads the body has let the request in
        process.send_signal(signal.SIGTERM)
        while is_ready(url):
            pass
        connection.sendall(body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
    assert process.wait(30) == 0


def is_ready(url: str) -> bool:
    try:
        return plain_http.get(f"{url}/readyz").status_code == 200
    except httpx2.TransportError:
        return False


PUBLISHES_FOR_EVER = """
import sys
from pathlib import Path
from model_store import open_version, publish

root = Path(sys.argv[1])
model = open_version(root, "digits", 1)
while True:
    graphs = {"encoder": model.encoder, "decoder": model.decoder, "likelihood": model.likelihood}
    publish(root, model.manifest, **graphs, calibration=model.calibration)
    print("published", flush=True)
"""


def test_kill_9_of_publisher_and_service_harms_nothing_in_the_store(start: Start, tmp_path: Path) -> None:
    put(tmp_path, bernoulli_toy(DIGIT_SHAPE, name="digits"))
    command = [sys.executable, "-c", PUBLISHES_FOR_EVER, str(tmp_path)]
    for kills, count in enumerate((1, 5), 1):
        service = start(model_store=tmp_path, reload_seconds=0.001)
        url = address(service)
        first = list_versions(tmp_path)["digits"][-1]
        assert served(url) == (first, [])
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as publisher:  # noqa: S603
            assert publisher.stdout is not None
            lines = [publisher.stdout.readline() for _ in range(count)]
            publisher.kill()  # somewhere in the next one
            service.kill()  # somewhere in loading
        service.wait()
        assert lines == ["published\n"] * count
        versions = list_versions(tmp_path)["digits"]
        assert len(versions) >= versions[-1] - kills  # a publisher that is killed may take a number with it
        assert versions[-1] >= first + count
        for version in versions:
            open_version(tmp_path, "digits", version)
    assert served(address(start(model_store=tmp_path))) == (versions[-1], [])


def served(url: str) -> tuple[int, list[Any]]:
    """The default version of `digits`, and what is refused."""
    told = plain_http.get(f"{url}/v1/models/digits").json()
    return told["default_version"], told["refused"]


def test_work_of_a_client_that_went_away_is_dropped(start: Start) -> None:
    url = address(start())
    host, port = url.removeprefix("http://").split(":")
    body = npy(np.zeros((200, 28, 28), np.uint8))
    head = f"POST /v1/log-likelihood?proposal=encoder&num_samples=5000 HTTP/1.1\r\nHost: {host}\r\n"
    head += f"Content-Type: application/x-npy\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        while "queued_rows 1e+06" not in plain_http.get(f"{url}/metrics").text:
            pass
    while "queued_rows 0.0" not in (metrics := plain_http.get(f"{url}/metrics").text):
        pass
    assert "logpx_rows_total{" not in metrics  # nothing was computed to its end
    assert score(url, 1, 10).status_code == 200


def test_a_dead_inference_thread_ends_the_process_with_status_1(start: Start) -> None:
    script = """
import sys
from service.__main__ import main
from service.engine.model import Model

def fatal(self, pixels):
    raise SystemExit("the device is gone")

Model.encode = fatal
sys.exit(main())
"""
    process = start("-c", script)
    answer = plain_http.post(f"{address(process)}/v1/encode", content=npy(np.zeros((1, 28, 28), np.uint8)), headers=NPY)
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:logpx:problem:not-ready"
    assert process.wait(30) == 1


def test_work_past_the_drain_is_answered_with_503(start: Start) -> None:
    process = start(drain_seconds=0.2)
    url = address(process)
    accepted, answers = start_long_job(url)
    process.send_signal(signal.SIGTERM)
    accepted.join()
    assert answers[0].status_code == 503
    assert answers[0].json()["type"] == "urn:logpx:problem:not-ready"
    assert answers[0].headers["connection"] == "close"
    assert process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(start: Start, number: int) -> None:
    process = start(drain_seconds=300)
    url = address(process)
    with endless_job(url) as connection:
        process.send_signal(signal.SIGTERM)
        while is_ready(url):
            pass
        process.send_signal(number)
        assert connection.recv(100) == b""
    assert process.wait(30) == -number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_service_stops_with_status_0(start: Start, number: int) -> None:
    process = start()
    address(process)
    process.send_signal(number)
    assert process.wait(30) == 0


def outcome(process: "subprocess.Popen[str]") -> tuple[int, str]:
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def test_cuda_refuses_to_start_where_it_cannot_be_used(start: Start) -> None:
    status, output = outcome(start(execution_provider="cuda"))
    assert status == 1
    assert "CUDA cannot be used" in output


def test_a_missing_model_an_empty_store_and_no_store_refuse_to_start(start: Start, tmp_path: Path) -> None:
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"model": "nobody"}, "no model 'nobody'"),
        ({"model_store": tmp_path}, "holds no model"),
        ({"model_store": tmp_path / "absent"}, "not a folder"),
    ]
    for settings, words in refusals:
        status, output = outcome(start(**settings))
        assert status == 1
        assert words in output


def test_a_broken_version_refuses_to_start_and_is_named(start: Start, store: Path, tmp_path: Path) -> None:
    for file in (store / "colour" / "1").iterdir():
        copy = tmp_path / "colour" / "1" / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    decoder = tmp_path / "colour" / "1" / "decoder.onnx"
    content = bytearray(decoder.read_bytes())
    content[200] ^= 1
    decoder.write_bytes(content)
    status, output = outcome(start(model_store=tmp_path, model="colour"))
    assert status == 1
    assert "colour/1/decoder.onnx: SHA-256" in output


def test_a_setting_that_does_not_fit_is_named(start: Start) -> None:
    status, output = outcome(start(max_rows="many"))
    assert status == 2
    assert "LOGPX_MAX_ROWS" in output
    assert "Traceback" not in output


def test_a_key_that_does_not_fit_is_named_but_not_told(start: Start) -> None:
    status, output = outcome(start(api_keys="pssst,secret-word"))
    assert status == 2
    assert "LOGPX_API_KEYS: Value error, a key has at least 16 characters" in output
    assert "secret-word" not in output


def test_a_port_in_use_is_reported(start: Start) -> None:
    port = address(start()).rsplit(":", 1)[1]
    status, output = outcome(start(port=port))
    assert status != 0
    assert "address already in use" in output


def test_a_process_of_several_that_is_killed_is_replaced_and_serves_when_it_is_ready(start: Start) -> None:
    """One of one here, which is cheaper: tests/test_processes.py has several, on a port that they share."""
    supervisor = start("-m", "service", "serve", "--processes", "1", decoders=0)
    told: dict[str, Any] = {}

    def next_one() -> str:
        """The address of its own that the next process tells."""
        assert supervisor.stdout is not None
        for line in supervisor.stdout:
            told.update(json.loads(line))
            if told["event"] == "one of several":
                return f"http://127.0.0.1:{told['own_port']}"
        raise AssertionError("ended without an address")

    def statuses_until_ready(address: str) -> set[int]:
        found: set[int] = set()
        for _ in range(3000):
            with suppress(httpx2.ConnectError):
                found.add(plain_http.get(f"{address}/readyz").status_code)
            if 200 in found:
                break
            time.sleep(0.01)
        return found

    first = next_one()
    url = told["address"]
    assert url == f"http://127.0.0.1:{told['shared_port']}"
    assert 200 in statuses_until_ready(first)
    assert plain_http.get(f"{url}/readyz").status_code == 200
    assert score(url, 1, 10).status_code == 200
    (child,) = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    second = next_one()
    assert statuses_until_ready(second) == {200}, "it listened before its models were loaded"
    assert score(url, 1, 10).status_code == 200
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", told["shared_port"]))
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(30) == 0


def test_a_variable_that_looks_like_keys_and_is_no_setting_stops_the_start(start: Start) -> None:
    status, output = outcome(start(api_key="0123456789abcdef-0123"))
    assert status == 2
    assert output == ("LOGPX_API_KEY: is no setting, so it would not close the service; did you mean LOGPX_API_KEYS?\n")


def test_empty_variables_and_those_of_kubernetes_do_not_stop_the_start(start: Start) -> None:
    """The port is then the default one; where another process has it, the log says so."""
    kubernetes = {"port": "tcp://10.43.161.118:8000", "service_host": "10.43.161.118", "service_port": "8000"}
    process = start(host="", max_rows="", log_level="INFO", prot="9000", **kubernetes)
    assert process.stdout is not None
    lines = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert [(line["level"], line["event"], line["variable"]) for line in lines] == [
        ("info", "environment variable ignored", "LOGPX_PORT"),
        ("warning", "environment variable unknown", "LOGPX_PROT"),
    ]
    for line in process.stdout:
        if "127.0.0.1:8000" in line or "'127.0.0.1', 8000" in line:
            return
    raise AssertionError("the process ended without an address")
