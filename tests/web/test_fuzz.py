"""Ten thousand malformed bodies: each is refused as a problem, none is our bug, and the service answers as before.

Right bodies in every form are cut, spliced, repeated and sprinkled with what parsers dislike, by a seeded generator;
numbers become texts, objects or numbers without end, arrays get types and shapes that they have not, and requests
carry headers that must change nothing. Some survive that as right bodies; they are answered, and do not count.
"""

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import orjson
import structlog
from fastapi.testclient import TestClient
from PIL import ExifTags, Image

from tests.web.forms import base64_png, image_file, json_body, npy
from tests.web.test_wrong_input import NOISE, npy_header

NUM_REFUSED = 10_000
AT_ONCE = 8
ENCODE, DECODE = "/v1/encode", "/v1/decode"
JSON, NPY, FORM = "application/json", "application/x-npy", "multipart/form-data; boundary=x"
PART = b'--x\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n\r\n'
UNIT = np.round(NOISE / 255, 1).astype(np.float32)
DISLIKED = [
    *(b"", b"\0", b"\xff" * 4, b"\x80", b"\r\n", b"\r\n--x", b"--x--", b'"', b"\\", b"\\ud800", b"[", b"]", b"{", b"}"),
    *(b"[" * 2000, b"(" * 300, b"-", b"-1", b"1e999", b"NaN", b"null", b"true", b"99999999999999999999", b"'", b"None"),
    *(
        b"|O",
        b"<f8",
        b">f4",
        b"<U9",
        b"True",
        b"0,",
        b"IDAT",
        b"IEND",
        b"\x7f\xff\xff\xff",
        b"Content-Length: 1\r\n\r\n",
    ),
]


OTHER_TYPES = [
    *(b'"' + b"1" * length + b'"' for length in (0, 1, 17, 3000)),
    *(b'"\\u0000"', b'"\\ud83d\\ude00"', b'"NaN"', b"null", b"true", b"false", b"{}", b"[]", b"[[[0]]]", b'{"0":0}'),
    *(b"18446744073709551616", b"-9223372036854775809", b"9" * 400, b"1e400", b"-1e-400", b"0." + b"9" * 400),
    *(b"1E5", b"-0", b"1_0", b"0x1", b"1.", b".1", b"+1", b"00", b"Infinity", b"-NaN", b"\xd9\xa1"),
]
"""What a number in JSON is replaced by."""
KINDS = [
    *(
        "|u1",
        "<f4",
        ">f4",
        "|O",
        "<f2",
        "<c8",
        "|V9",
        "<U2",
        "<M8[s]",
        "|b1",
        "?",
        "x",
        "",
        "<f16",
        "<i8",
        ">u8",
        "|S1",
    ),
    *(
        "<U65535",
        "|S2147483647",
        "<U1000000000000",
        "|V0",
        "<m8[25s]",
        "f4, i4",
        "(2,)<f4",
        "object",
        "<f4\\x00",
        "\u0661",
    ),
]
"""Of an npy array's numbers; most there are, and few are taken."""
DIMENSIONS = [0, -1, 1, 3, 27, 28, 2**31, 2**32, 2**62, 2**63, 2**64, 10**30]
NOT_DIMENSIONS = ["True", "1.0", "1e3", "'3'", "None", "(3,)", "[3]", "-0", "0x3", "3L", "3 if 1 else 2", "1j", "..."]
HEADERS = [
    (b"upgrade", b"h2c"),
    (b"upgrade", b"websocket"),
    (b"connection", b"Upgrade, HTTP2-Settings"),
    (b"http2-settings", b"AAMAAABkAAQAoAAAAAIAAAAA"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"expect", b"200-maybe"),
    (b"range", b"bytes=0-0,5-9"),
    (b"if-none-match", b"*"),
    (b"x-http-method-override", b"DELETE"),
    (b"forwarded", b"for=\xff;host=elsewhere"),
    (b"x-forwarded-prefix", b"//elsewhere"),
    (b"traceparent", b"00-zz"),
    (b"x-request-id", b"\x1b[2J\x00"),
    (b"cookie", b"a" * 3000),
    (b"content-language", b"\xc2\x9b"),
]
"""None of them may change an answer."""


def right_bodies() -> list[tuple[str, str, bytes]]:
    """Route, content type and a body that is right."""
    png, image = image_file(NOISE), image_file(NOISE, "PNG", bits=4)
    colour = image_file(np.stack([NOISE, NOISE.T, 255 - NOISE], axis=-1))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.ImageDescription] = 6, "a digit, turned"
    deep = image_file(NOISE.astype(np.uint16) * 257)
    return [
        *((ENCODE, "image/png", body) for body in (png, image, colour, deep)),
        (ENCODE, "image/jpeg", image_file(NOISE, "JPEG", exif=exif)),
        (ENCODE, "image/webp", image_file(NOISE, "WEBP")),
        (ENCODE, "image/webp", image_file(NOISE, "WEBP", lossless=True)),
        (ENCODE, FORM, PART + png + b"\r\n" + PART + colour + b"\r\n--x--\r\n"),
        (ENCODE, JSON, json_body([UNIT.tolist(), base64_png(NOISE)])),
        (ENCODE, JSON, json_body([[UNIT.tolist()]])),
        (ENCODE, NPY, npy(NOISE[None])),
        (ENCODE, NPY, npy(np.stack([UNIT, UNIT])[:, None])),
        (DECODE, JSON, orjson.dumps({"latents": [[0.5, -1, 2e-3], [0, 0, 1]]})),
        (DECODE, NPY, npy(np.ones((4, 3), np.float32))),
        (DECODE, NPY, npy(np.ones((4, 3)))),
    ]


def cut(body: bytes, chance: random.Random, _: bytes) -> bytes:
    return body[: chance.randrange(len(body))]


def sprinkle(body: bytes, chance: random.Random, other: bytes) -> bytes:
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(len(body), 200)) if chance.random() < 0.7 else chance.randrange(len(body) + 1)
        body = body[:at] + chance.choice(DISLIKED) + body[at + chance.choice((0, 1, 4)) :]
    return body


def flip(body: bytes, chance: random.Random, other: bytes) -> bytes:
    flipped = bytearray(body)
    for _ in range(chance.randint(1, 8)):
        flipped[chance.randrange(min(len(body), 120)) if chance.random() < 0.7 else chance.randrange(len(body))] ^= (
            1 << chance.randrange(8)
        )
    return bytes(flipped)


def repeat(body: bytes, chance: random.Random, _: bytes) -> bytes:
    start = chance.randrange(len(body))
    piece = body[start : start + chance.randint(1, 64)]
    return body[:start] + piece * chance.randint(2, 50) + body[start:]


def splice(body: bytes, chance: random.Random, other: bytes) -> bytes:
    return body[: chance.randrange(len(body))] + other[chance.randrange(len(other)) :]


def swap(_: bytes, chance: random.Random, other: bytes) -> bytes:
    return other


def noise(body: bytes, chance: random.Random, _: bytes) -> bytes:
    return body[: chance.choice((0, 4, 8, 12))] + chance.randbytes(chance.randrange(200))


def retype(body: bytes, chance: random.Random, _: bytes) -> bytes:
    """Some of a JSON body's numbers become something else; of a body without any, some bytes do."""
    numbers = list(re.finditer(rb"(?<=[\[,])-?[0-9.e-]+(?=[,\]])", body)) or list(re.finditer(rb"[0-9]", body))
    for found in sorted(chance.sample(numbers, min(len(numbers), chance.choice((1, 1, 2, 20)))), key=_start)[::-1]:
        body = body[: found.start()] + chance.choice(OTHER_TYPES) + body[found.end() :]
    return body


def _start(found: re.Match[bytes]) -> int:
    return found.start()


def lie(_: bytes, chance: random.Random, __: bytes) -> bytes:
    """An npy header about other data than follow."""
    kind = repr(chance.choice(KINDS)) if chance.random() < 0.9 else "[('a', '<f4'), ('b', '|O', (2,))]"
    sizes = [
        str(chance.choice(DIMENSIONS)) if chance.random() < 0.9 else chance.choice(NOT_DIMENSIONS)
        for _ in range(chance.choice((0, 1, 2, 3, 4, 5, 40)))
    ]
    order = chance.choice(["True", "False", "None", "2"])
    text = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': ({', '.join(sizes)})}}"
    return npy_header(text) + bytes(chance.choice([0, 1, 783, 785, 3136]))


MUTATIONS: list[Callable[[bytes, random.Random, bytes], bytes]] = [
    *(cut, sprinkle, flip, repeat, splice, swap, noise, lie, retype),
]


def malformed(seed: int) -> Iterator[tuple[str, str, bytes]]:
    chance = random.Random(seed)  # noqa: S311 (no secret)
    right = right_bodies()
    while True:
        route, content_type, body = chance.choice(right)
        wrong = chance.choice(MUTATIONS)(body, chance, chance.choice(right)[2])
        if wrong != body:
            yield route, content_type, wrong


async def post(
    app: Any, path: str, content_type: str, body: bytes, more: Sequence[tuple[bytes, bytes]] = ()
) -> tuple[int, dict[bytes, bytes], bytes]:
    """One request, straight to the app: a client library would take most of the time."""
    messages: list[dict[str, Any]] = []
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        for part in parts:
            return part
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        messages.append(message)

    head = {"type": "http", "http_version": "1.1", "method": "POST", "path": path, "raw_path": path.encode()}
    headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body)), *more]
    scope = {**head, "query_string": b"", "headers": headers, "scheme": "http", "server": ("here", 80), "client": None}
    await app({**scope, "root_path": "", "asgi": {"version": "3.0"}}, receive, send)
    start, *answer = messages
    return start["status"], dict(start["headers"]), b"".join(message["body"] for message in answer)


def test_ten_thousand_malformed_bodies_are_refused_and_harm_nothing(client: TestClient) -> None:
    app, bodies = client.app, malformed(seed=1)
    chance = random.Random(2)  # noqa: S311 (no secret)
    statuses: Counter[int] = Counter()
    wrong: list[Any] = []

    async def work() -> None:
        while sum(count for status, count in statuses.items() if status != 200) < NUM_REFUSED:
            route, content_type, body = next(bodies)
            more = chance.sample(HEADERS, chance.choice((0, 0, 1, 3)))
            status, headers, answer = await post(app, route, content_type, body, more)
            statuses[status] += 1
            if status == 200:
                continue
            problem = orjson.loads(answer)
            told = headers[b"content-type"] == b"application/problem+json" and problem["status"] == status
            if status not in (413, 422) or not told or not problem["detail"]:
                wrong.append((route, content_type, body, status, answer))

    async def flood() -> None:
        for task in [asyncio.create_task(work()) for _ in range(AT_ONCE)]:
            await task

    async def ask(more: Sequence[tuple[bytes, bytes]] = ()) -> list[Any]:
        return [(await post(app, *right, more))[::2] for right in right_bodies()]

    assert client.portal is not None
    before = client.portal.call(ask)
    assert {status for status, _ in before} == {200}
    with structlog.testing.capture_logs():  # thousands of lines, which nobody reads, take their time to write
        client.portal.call(flood)
    assert wrong == []
    assert statuses[200] < NUM_REFUSED / 4, "the generator hardly harms what it touches"
    assert client.portal.call(ask) == before
    assert client.portal.call(ask, HEADERS) == before
    assert "logpx_queued_requests 0.0" in client.get("/metrics").text
