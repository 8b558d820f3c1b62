"""Two services behind a plain HTTP balancer: the same answers from both, and none lost while each is restarted in turn.

benchmarks/replicas.py does the same with processes and nginx.
"""

import asyncio
import http.client
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from service.serve import make_server
from service.web.operations.settings import Settings
from tests.web import plain_http
from tests.web.forms import npy

NPY = {"content-type": "application/x-npy"}
ROUTES = ("/v1/encode", "/v1/log-likelihood?proposal=laplace&num_samples=20", "/v1/anomaly-scores")
SECONDS = 60.0  # after which a test that waits has failed


def wait_for(what: Callable[[], bool]) -> None:
    """Until it is so."""
    deadline = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def wait_for_more(events: list[int], port: int, more: int) -> None:
    """Until a port has been added so many further times."""
    seen = events.count(port)
    wait_for(lambda: events.count(port) >= seen + more)


class Replica:
    """A service on a port of its own, which it has again when it is started again."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(port=0, drain_seconds=10, decoders=0, **settings)
        self.port = 0
        self.start()

    def start(self) -> None:
        """Serve, and return when it is ready."""
        self._server = make_server(self.settings.model_copy(update={"port": self.port}))
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),))
        self._thread.start()
        wait_for(lambda: self._server.started)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        wait_for(lambda: plain_http.get(f"http://127.0.0.1:{self.port}/readyz").status_code == 200)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._server.serve()

    def terminate(self) -> None:
        """What SIGTERM does: finish what is accepted, refuse the rest, end."""
        self._loop.call_soon_threadsafe(self._server.handle_exit, signal.SIGTERM, None)
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()


class Balancer(ThreadingHTTPServer):
    """Takes turns; asks the next one if there is no connection, no answer, or 503. It knows nothing else of logpx."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, ports: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), Forwarding)
        self.ports = ports
        self.turns = count()
        self.refused: list[int] = []  # by which port, each time
        self.answered: list[int] = []

    def forward(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        """The answer of the first replica that has one."""
        turn = next(self.turns)  # of this request alone, however many are forwarded at once
        for tried in range(2 * len(self.ports)):
            port = self.ports[(turn + tried) % len(self.ports)]
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
            try:
                connection.request(method, path, body, {"Content-Type": NPY["content-type"]})
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException):
                self.refused.append(port)
                continue
            finally:
                connection.close()
            if answer.status != 503:
                self.answered.append(port)
                return answer.status, answer.headers["content-type"], content
            self.refused.append(port)
        return 502, "text/plain", b"no replica answers"


class Forwarding(BaseHTTPRequestHandler):
    """One connection to the balancer."""

    server: Balancer

    def do_POST(self) -> None:
        """Forward a request that has a Content-Length."""
        body = self.rfile.read(int(self.headers["content-length"]))
        status, media_type, content = self.server.forward("POST", self.path, body)
        self.send_response(status)
        self.send_header("content-type", media_type)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


@pytest.fixture(scope="module")
def replicas(digits_store: Path) -> Iterator[list[Replica]]:
    """Two, of which one computes in smaller runs."""
    with ExitStack() as running:
        started = []
        for chunk_rows in (256, 64):
            started.append(Replica(model_store=digits_store, model="digits", chunk_rows=chunk_rows))
            running.callback(started[-1].terminate)
        yield started


@contextmanager
def balanced(replicas: list[Replica]) -> Iterator[tuple[Balancer, str]]:
    """A balancer before these, and its address."""
    with Balancer([replica.port for replica in replicas]) as balancer:
        thread = threading.Thread(target=balancer.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield balancer, f"http://127.0.0.1:{balancer.server_port}"
        finally:
            balancer.shutdown()
            thread.join()


def test_restarting_one_after_the_other_under_load_loses_nothing(replicas: list[Replica], digits: Any) -> None:
    bodies = [npy(digits[index : index + 1]) for index in range(4)]
    requests = [(route, body) for route in ROUTES for body in bodies]
    with balanced(replicas) as (balancer, url):

        def ask(number: int) -> tuple[int, int, bytes]:
            route, body = requests[number % len(requests)]
            answer = plain_http.post(f"{url}{route}", content=body, headers=NPY, timeout=SECONDS)
            return number % len(requests), answer.status_code, answer.content

        def ask_until(done: threading.Event, first: int) -> list[tuple[int, int, bytes]]:
            found: list[tuple[int, int, bytes]] = []
            while not done.is_set():
                found.append(ask(first + len(found)))
            return found

        alone = [
            {
                plain_http.post(f"http://127.0.0.1:{one.port}{route}", content=body, headers=NPY).content
                for one in replicas
            }
            for route, body in requests
        ]
        assert [len(answers) for answers in alone] == [1] * len(requests)  # both say the same, to the last digit
        done = threading.Event()
        with ThreadPoolExecutor(4) as clients:
            loads = [clients.submit(ask_until, done, 3 * client) for client in range(4)]
            try:
                for replica in replicas:
                    replica.terminate()
                    wait_for_more(balancer.refused, replica.port, 4)
                    replica.start()
                    wait_for_more(balancer.answered, replica.port, 8)
            finally:
                done.set()
            answers = [answer for load in loads for answer in load.result()]
    assert len(answers) >= 2 * (4 + 8)
    assert {status for _, status, _ in answers} == {200}
    assert all({content} == alone[number] for number, _, content in answers)
