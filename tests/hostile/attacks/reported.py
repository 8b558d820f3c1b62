"""What a security review of the service reported, and all single requests and crowds beside it, for the benchmark."""

import base64
import io
import struct
import time
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from tests.hostile import wire
from tests.hostile.attacks.attack import AS_JSON, DECODE, ENCODE, IMAGE, MODELS, NPY, SAMPLES, Attack, asks, whole
from tests.hostile.attacks.crowds import BUSY, close, crowds, each, held, sockets
from tests.hostile.attacks.heads import head_attacks
from tests.hostile.attacks.open_inference import open_inference_attacks
from tests.hostile.attacks.pixels import pixel_attacks
from tests.hostile.attacks.queries import query_attacks
from tests.hostile.harness import ChildService
from tests.hostile.wire import Answer, request
from tests.web.forms import npy

JPEG = {"Content-Type": "image/jpeg"}
SMALL, SECONDS = (422,), 1.0
LARGEST = (200, 413, 422, 429, 504)


def npy_head(text: str, data: bytes = b"") -> bytes:
    """An npy file with this text for a header."""
    header = text.encode() + b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def scans(count: int, size: int = 5700) -> bytes:
    """A progressive JPEG of one grey, its last scan repeated until there are so many."""
    stream = io.BytesIO()
    Image.new("L", (size, size), 128).save(stream, "JPEG", progressive=True)
    whole_file = stream.getvalue()
    last = whole_file.rindex(b"\xff\xda")
    return whole_file[:-2] + whole_file[last:-2] * (count - whole_file.count(b"\xff\xda")) + whole_file[-2:]


def raw(name: str, statuses: tuple[int, ...], *pieces: bytes, num_answers: int | None = 1) -> Attack:
    """Bytes that are no request that a library would send; a moment lies between the pieces."""

    def run(service: ChildService) -> list[Answer]:
        return wire.answers(service.raw(*pieces, pause=0.1, read_seconds=15))

    return Attack(name, run, statuses, 10, num_answers)


def unread(count: int) -> Callable[[ChildService], list[Answer]]:
    """So many of the longest answers, of which nobody reads anything."""

    def run(service: ChildService) -> list[Answer]:
        longest = request("GET", f"{SAMPLES}?n=20000", headers={"Accept": "application/x-npy"})
        connections = sockets(service, count, longest)
        time.sleep(2)
        try:
            return [service.ask("POST", ENCODE, IMAGE, NPY)]
        finally:
            close(connections, reset=True)

    return run


def reported() -> Iterator[Attack]:
    """Each with ten siblings in the tests of its own subject."""
    upgrade = {**NPY, "Upgrade": "h2c", "Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "AAMAAABkAAQAoAAA"}
    upgraded = whole("POST", ENCODE, IMAGE, upgrade)
    after = request("GET", MODELS)
    yield raw("an upgrade with a body", (200,), upgraded + after, num_answers=2)
    head, body = upgraded[: -len(IMAGE)], b"POST /v1/admin/reload HTTP/1.1\r\nHost: a\r\n\r\n".ljust(len(IMAGE), b"x")
    yield raw("a request in the body of an upgrade", (400, 422), head, body, num_answers=1)
    yield raw("HTTP/0.9", (400,), b"GET /v1/models\r\n\r\n")
    yield raw("no Host", (400,), b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n")
    yield raw("two Hosts", (400,), b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n")
    coded = {**NPY, "Transfer-Encoding": "gzip, chunked", "Connection": "close"}
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(IMAGE), IMAGE)
    yield raw("a coding before chunked", (400, 501), whole("POST", ENCODE, chunks, coded))
    texts = b'{"images":[["' + b"a" * 150_000 + b'"' + b",1" * 2000 + b"]]}"
    yield asks("a long text among numbers", 422, "POST", ENCODE, texts, AS_JSON)
    yield asks("a long text among latents", 422, "POST", DECODE, texts.replace(b"images", b"latents"), AS_JSON)
    digits = "9" * 3600
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({digits}, 28, 28), }}"
    yield asks("a dimension of 3600 digits", (413, 422), "POST", ENCODE, npy_head(header), NPY)
    hurried = {"X-Request-Timeout-Ms": "1000"}
    many_scans = scans(1500)
    for count in (1, 45):
        data = request("POST", f"{ENCODE}?resize=true", many_scans, {**JPEG, **hurried})
        yield Attack(f"{count} JPEGs of 1500 scans", together(data, count), LARGEST, SECONDS, count)
    dots = request("POST", f"{ENCODE}?resize=true", npy(np.zeros((42_000, 1, 1), np.uint8)), {**NPY, **hurried})
    yield Attack("42 000 images of one pixel", together(dots, 1), LARGEST, SECONDS)
    inflated = base64.b64encode(many_scans)
    quoted = request("POST", f"{ENCODE}?resize=true", b'{"images":["' + inflated + b'"]}', {**AS_JSON, **hurried})
    yield Attack("a JPEG of 1500 scans in JSON", together(quoted, 1), LARGEST, SECONDS)
    largest = request("POST", ENCODE, npy(np.zeros((42_000, 28, 28), np.uint8)), NPY)
    for count in (1, 8):
        yield Attack(f"{count} times 33 million pixels", together(largest, count), LARGEST, 120, count)
    yield Attack("30 longest answers that nobody reads", unread(30), BUSY, 120)
    yield Attack("3000 connections that say nothing", held(b"", 3000), (*BUSY, 503), 5, is_crowd=True)


def together(data: bytes, count: int) -> Callable[[ChildService], list[Answer]]:
    """The same of so many clients."""
    return lambda service: each(service, [data] * count, read_seconds=130)


def catalogue() -> list[Attack]:
    """Every attack there is, those that take longest last."""
    return [*query_attacks(), *head_attacks(), *pixel_attacks(), *open_inference_attacks(), *crowds(), *reported()]
