"""What many connections do at once, or one that says much: each returns the answers that it got, however many."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from tests.hostile import wire
from tests.hostile.attacks.attack import (
    ANOMALY,
    AS_JSON,
    DECODE,
    ENCODE,
    IMAGE,
    MODELS,
    NPY,
    SAMPLES,
    SCORE,
    Attack,
    whole,
)
from tests.hostile.harness import ChildService
from tests.hostile.wire import Answer, request
from tests.web.forms import npy

CLIENTS = 300
"""More than the default queue lets in (`LOGPX_MAX_QUEUED_REQUESTS`)."""
ADMIN_KEY = "admin-admin-admin-admin"
BUSY = (200, 429, 504)
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection


def noise(num_images: int, seed: int = 0) -> bytes:
    """Digits unlike any that a model was trained on, whose modes take longest to find."""
    return npy(np.random.default_rng(seed).integers(0, 256, (num_images, 28, 28)).astype(np.uint8))


def each(service: ChildService, requests: Sequence[bytes], *, read_seconds: float = 60) -> list[Answer]:
    """Send each on a connection of its own, all at once; the answers that came."""
    found: list[Answer] = []

    def one(data: bytes) -> None:
        started = time.monotonic()
        received = service.raw(data, read_seconds=read_seconds)
        seconds = time.monotonic() - started
        found.extend(replace(answer, seconds=seconds) for answer in wire.answers(received))

    threads = [threading.Thread(target=one, args=(data,)) for data in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def all_ask(data: bytes, clients: int = CLIENTS) -> Callable[[ChildService], list[Answer]]:
    """So many clients ask the same at once."""
    return lambda service: each(service, [data] * clients)


def sockets(service: ChildService, count: int, data: bytes = b"") -> list[socket.socket]:
    """So many connections, each of which has said this much; those that the service takes no more are left out."""
    found = []
    for _ in range(count):
        try:
            connection = service.connect()
            if data:
                connection.sendall(data)
        except OSError:
            continue
        found.append(connection)
    return found


def close(connections: Sequence[socket.socket], *, reset: bool = False) -> None:
    """Close them all, with a reset or not."""
    for connection in connections:
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connection.close()


def held(data: bytes, clients: int = CLIENTS, *, reset: bool = False) -> Callable[[ChildService], list[Answer]]:
    """So many clients begin and say no more, while an honest one asks; then they leave."""

    def run(service: ChildService) -> list[Answer]:
        connections = sockets(service, clients, data)
        try:
            return [service.ask("POST", ENCODE, IMAGE, NPY)]
        finally:
            close(connections, reset=reset)

    return run


def storm(data: bytes, times: int = 500) -> Callable[[ChildService], list[Answer]]:
    """Connect, say this, reset; again and again."""

    def run(service: ChildService) -> list[Answer]:
        for _ in range(times):
            close(sockets(service, 1, data), reset=True)
        return []

    return run


def left_while_computed(path: str, body: bytes, times: int = 40) -> Callable[[ChildService], list[Answer]]:
    """Ask for long work and leave when it has begun; nothing of it may stay."""

    def run(service: ChildService) -> list[Answer]:
        for number in range(times):
            connections = sockets(service, 1, request("POST", path, body, NPY))
            time.sleep(0.01 * (number % 4))
            close(connections, reset=number % 2 == 0)
        end = time.monotonic() + 60
        while service.metric("logpx_queued_requests"):
            assert time.monotonic() < end, "work of clients that left is still there after a minute"
            time.sleep(0.02)
        return []

    return run


def pipelined(data: bytes, times: int) -> Callable[[ChildService], list[Answer]]:
    """So many requests on one connection before any answer is read."""

    def run(service: ChildService) -> list[Answer]:
        return wire.answers(service.raw(data * times + request("GET", "/livez"), read_seconds=60))

    return run


def crowds() -> Iterator[Attack]:
    """Each many requests, or many connections."""

    def crowd(
        name: str,
        run: Callable[[ChildService], list[Answer]],
        statuses: tuple[int, ...] = BUSY,
        *,
        num_answers: int | None = None,
        seconds: float = 120,
    ) -> Attack:
        return Attack(name, run, statuses, seconds, num_answers)

    yield crowd("500 connections that say nothing", held(b"", 500), num_answers=1)
    yield crowd("300 heads without end", held(b"POST /v1/encode HTTP/1.1\r\nHost: a\r\nX-A: "), num_answers=1)
    begun = whole("POST", ENCODE, IMAGE, NPY)
    yield crowd("300 bodies without end", held(begun[:-100]), num_answers=1)
    yield crowd("300 bodies without end that are reset", held(begun[:-100], reset=True), num_answers=1)
    large = {**NPY, "Content-Length": str(60 * 2**20)}
    yield crowd("300 bodies of 60 MiB announced", held(whole("POST", ENCODE, b"\x93NUMPY", large)), num_answers=1)
    chunked = {**NPY, "Transfer-Encoding": "chunked"}
    yield crowd("300 chunks without end", held(whole("POST", ENCODE, b"ffff\r\n\x93NUMPY", chunked)), num_answers=1)
    expecting = {**NPY, "Expect": "100-continue", "Content-Length": "1000"}
    yield crowd("300 that wait to be told to go on", held(whole("POST", ENCODE, b"", expecting)), num_answers=1)
    yield crowd("500 connections reset at once", storm(b""), num_answers=0)
    yield crowd("500 heads cut off", storm(b"POST /v1/encode HTTP/1.1\r\nHost: a\r\n"), num_answers=0)
    yield crowd("500 bodies cut off", storm(begun[:-1]), num_answers=0)
    yield crowd("500 requests whose answer nobody reads", storm(begun), num_answers=0)
    strange = noise(20)
    yield crowd("work left in the middle of a search", left_while_computed(SCORE, strange), num_answers=0)
    yield crowd("anomaly scores left in the middle", left_while_computed(ANOMALY, strange), num_answers=0)
    sampled = left_while_computed(f"{SCORE}?proposal=encoder&num_samples=50000", strange)
    yield crowd("samples left in the middle", sampled, num_answers=0)
    yield crowd("1000 pipelined requests", pipelined(whole("GET", MODELS), 1000), (200,), num_answers=1001)
    yield crowd("300 pipelined encodes", pipelined(begun, 300), num_answers=301)
    yield crowd("1000 pipelined paths that are none", pipelined(whole("GET", "/a"), 1000), (200, 404), num_answers=1001)
    wrong = whole("POST", ENCODE, b"?" * 100, NPY)
    yield crowd("500 pipelined wrong bodies", pipelined(wrong, 500), (200, 422, 429), num_answers=501)
    hurried = {**NPY, "X-Request-Timeout-Ms": "500"}
    endless = request("POST", f"{SCORE}?max_std_error=5e-324", IMAGE, hurried)
    yield crowd("300 error bars that no sampling reaches", all_ask(endless), num_answers=CLIENTS, seconds=0.5)
    long = request("POST", f"{SCORE}?proposal=encoder&num_samples=100000", IMAGE, hurried)
    yield crowd("300 requests for all samples", all_ask(long), num_answers=CLIENTS, seconds=0.5)
    searched = request("POST", SCORE, strange, hurried)
    yield crowd("300 requests of strange images", all_ask(searched), num_answers=CLIENTS, seconds=0.5)
    at_once = request("POST", SCORE, strange, {**NPY, "X-Request-Timeout-Ms": "1"})
    yield crowd("100 deadlines of a millisecond", all_ask(at_once, 100), num_answers=100, seconds=0.001)
    explained = request("POST", f"{ANOMALY}?explain=true&as=array", strange, hurried)
    yield crowd("100 explanations", all_ask(explained, 100), num_answers=100, seconds=0.5)
    drawn = request("GET", f"{SAMPLES}?n=2000&as=array", headers={"X-Request-Timeout-Ms": "2000"})
    yield crowd("30 long answers", all_ask(drawn, 30), num_answers=30, seconds=2)
    rows = b'{"latents":[' + b",".join([b"[0,0,0]"] * 20_000) + b"]}"
    decoded = request("POST", DECODE, rows, {**AS_JSON, "X-Request-Timeout-Ms": "1500"})
    yield crowd("3 decodes of 20 000 latents", all_ask(decoded, 3), num_answers=3, seconds=1.5)
    others = [request("POST", f"{ENCODE}?version={1 + number % 2}", IMAGE, NPY) for number in range(100)]
    yield crowd("100 requests for two versions in turn", lambda service: each(service, others), num_answers=100)
    absent = [request("POST", f"{ENCODE}?version={1000 + number}", IMAGE, NPY) for number in range(200)]
    yield crowd("200 versions there are not", lambda service: each(service, absent), (404, 429), num_answers=200)
    reload = request("POST", "/v1/admin/reload", headers={"X-API-Key": ADMIN_KEY})
    yield crowd("100 reloads by an admin", all_ask(reload, 100), (200,), num_answers=100)
    knock = request("POST", "/v1/admin/reload", headers={"X-API-Key": "a" * 30_000})
    yield crowd("200 wrong keys of 30 000 letters", all_ask(knock, 200), (401,), num_answers=200)
    yield crowd("200 lists of all models", all_ask(request("GET", MODELS), 200), (200, 429), num_answers=200)
    yield crowd("100 looks at the metrics", all_ask(request("GET", "/metrics"), 100), (200,), num_answers=100)
    yield crowd("50 descriptions of all routes", all_ask(request("GET", "/openapi.json"), 50), (200,), num_answers=50)
    page = request("GET", "/static-offline-docs/swagger-ui-bundle.js")
    yield crowd("50 pages' largest file", all_ask(page, 50), (200,), num_answers=50)
