"""Streams of requests over raw sockets, right and mutated: none brings a request past the rules of framing.

A stream is some requests in a row, of which some bodies look like requests; it is cut, spliced and sprinkled with what
parsers dislike, its lengths are wrong, other protocols are offered, and it arrives in pieces. `read_strictly` reads it
by RFC 9112 as the service must: what the service serves beyond that was smuggled.
"""

import random
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.hostile import wire
from tests.hostile.harness import ChildService, watched

NUM_STREAMS = 1500
STATUSES = {200, 400, 404, 405, 413, 415, 422, 431, 501, 505}
REFUSED_HEADS = {400, 408, 431, 501, 505}
LINES = rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n)*)\r\n"
METHODS = b"GET|HEAD|POST|PUT|DELETE|OPTIONS|TRACE|PATCH"
HEAD = re.compile(rb"[\r\n]*(%b) ([!-~]+) HTTP/1\.([01])\r\n%b" % (METHODS, LINES))
CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t -~\x80-\xff]*)?\r\n")
ODD_EXTENSION = re.compile(rb"\n[0-9A-Fa-f]+;(?!a=b\r\n)")  # which may be right or wrong
TRAILERS = re.compile(LINES)
HOST = rb"(\[[0-9A-Fa-f:.]+\]|([\w.~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(:\d*)?"


@dataclass
class Reading:
    """The paths that are asked for in a stream, and whether it is right to its end."""

    paths: list[str]
    right: bool = False


def read_strictly(stream: bytes) -> Reading:
    """By RFC 9112, up to the first thing that is wrong or unfinished, or closes the connection."""
    reading, whole = Reading([]), stream
    asks = False  # whether to send a body: whoever is refused before sends none, and the connection is closed
    while stream.strip(b"\r\n"):
        if not (head := HEAD.match(stream)):
            return reading
        _, target, minor, lines = head.groups()
        if b"#" in target or not re.match(rb"/|(?i:https?)://[^/?:@]+(:\d*)?(?=[/?]|$)", target):
            return reading
        pairs = [line.split(b":", 1) for line in lines.split(b"\r\n") if line]
        headers = [(name.lower(), value.strip(b" \t")) for name, value in pairs]
        length = _end_of_body(stream[head.end() :], dict(headers), [name for name, _ in headers], minor)
        if length is None:
            return reading
        asks = asks or b"expect" in dict(headers)
        path = re.sub(rb"^https?://[^/?]+", b"", target, flags=re.IGNORECASE).split(b"?")[0]
        reading.paths.append(unquote(path.decode()))
        if length < 0:
            return reading
        stream = stream[head.end() + length :]
        if minor == b"0" or re.search(rb"(?i)\nconnection:[^\r]*close", b"\n" + lines):
            return reading
    reading.right = not asks and not ODD_EXTENSION.search(whole)
    return reading


def _end_of_body(rest: bytes, headers: dict[bytes, bytes], names: list[bytes], minor: bytes) -> int | None:
    """Where a body ends; −1 where that is not there, though the head is right; None where the head is wrong."""
    hosts, lengths, codings = (names.count(name) for name in (b"host", b"content-length", b"transfer-encoding"))
    if hosts > 1 or (not hosts and minor == b"1") or not re.fullmatch(HOST, headers.get(b"host", b"")):
        return None
    if codings:
        if lengths or codings > 1 or minor == b"0" or headers[b"transfer-encoding"].lower() != b"chunked":
            return None
        return _end_of_chunks(rest)
    if not lengths:
        return 0
    if lengths > 1 or not re.fullmatch(rb"[0-9]{1,19}", headers[b"content-length"]):
        return None
    length = int(headers[b"content-length"])
    return length if length <= len(rest) else -1


def _end_of_chunks(rest: bytes) -> int:
    at = 0
    while chunk := CHUNK.match(rest, at):
        size = int(chunk[1], 16)
        at = chunk.end()
        if not size:
            trailers = TRAILERS.match(rest, at)
            framing = trailers and re.search(rb"(?im)^(content-length|transfer-encoding|connection):", trailers[1])
            return trailers.end() if trailers and not framing else -1
        at += size
        if rest[at : at + 2] != b"\r\n":
            return -1
        at += 2
    return -1


# ── The streams


def request(chance: random.Random, name: str) -> bytes:
    """One right request for a path of that name; its body, if any, looks like another request."""
    hidden = b"POST /hidden-%b HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n" % name.encode()
    body = chance.choice([b"", b"x", hidden, hidden * 2, b"0\r\n\r\n" + hidden, chance.randbytes(40), b"\r\n" + hidden])
    head = [f"{chance.choice(['POST', 'POST', 'GET', 'PUT'])} /asked-{name} HTTP/1.1".encode()]
    lines = [b"Host: here", b"X-Note: \xe9", b"Accept: */*"][: chance.randint(1, 3)]
    if chance.random() < 0.4:
        lines += [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + chance.choice([b"h2c", b"websocket", b"x/1"])]
    if chance.random() < 0.1:
        lines += [b"Expect: 100-continue"]
    if body and chance.random() < 0.5:
        lines += [b"Transfer-Encoding: chunked"]
        cut = chance.randint(1, len(body))
        pieces = [piece for piece in (body[:cut], body[cut:]) if piece]
        extension = chance.choice([b"", b";a=b"])
        body = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
        body += b"0\r\n" + chance.choice([b"", b"X-Trailer: y\r\n"]) + b"\r\n"
    elif body or chance.random() < 0.5:
        lines += [b"Content-Length: %d" % len(body)]
    chance.shuffle(lines)
    return b"\r\n".join([*head, *lines, b"", b""]) + body


DISLIKED = [
    *(
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\n\n",
        b" ",
        b"\t",
        b"\0",
        b"\xff",
        b":",
        b",",
        b";",
        b"0",
        b"1",
        b"f",
        b"-",
        b"+",
    ),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding:\tchunked\r\n"),
    *(b"Transfer-Encoding: identity\r\n", b"Transfer-Encoding : chunked\r\n", b"Transfer-Encoding: \x0bchunked\r\n"),
    *(b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Content-Length: +5\r\n", b"Content-Length: 5, 5\r\n"),
    *(b"Content-Length: 99999999999999999999\r\n", b"Host: there\r\n", b"Host: a/b\r\n", b" folded: yes\r\n"),
    *(b"Connection: close\r\n", b"Connection: upgrade\r\n", b"Upgrade: h2c\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    *(b"0\r\n\r\n", b"5\r\nhello\r\n", b"ffffffffffffffff\r\n", b"GET /hidden-x HTTP/1.1\r\nHost: here\r\n\r\n"),
    *(
        b"GET /hidden-y HTTP/1.1\n\n",
        b"CONNECT here:80 HTTP/1.1\r\nHost: here\r\n\r\n",
        b" HTTP/1.0\r\n",
        b"\x16\x03\x01\x02",
    ),
]


def sprinkle(stream: bytes, chance: random.Random) -> bytes:
    """Put something disliked somewhere, most often at the beginning of a line."""
    starts = [found.end() for found in re.finditer(rb"\r\n", stream)] or [0]
    at = chance.choice(starts) if chance.random() < 0.7 else chance.randrange(len(stream) + 1)
    return stream[:at] + chance.choice(DISLIKED) + stream[at + chance.choice((0, 0, 0, 1, 2)) :]


def renumber(stream: bytes, chance: random.Random) -> bytes:
    """Change a number, such as a length."""
    found = list(re.finditer(rb"(?<=: )\d+|(?<=\r\n)[0-9a-f]+(?=[;\r])", stream))
    if not found:
        return cut(stream, chance)
    number = chance.choice(found)
    new = chance.choice(
        [b"0", b"1", b"5", b"00", b"7fffffff", b"%d" % chance.randrange(200), number[0] + b"0", b"0x1", b""]
    )
    return stream[: number.start()] + new + stream[number.end() :]


def cut(stream: bytes, chance: random.Random) -> bytes:
    """Take out a piece."""
    at = chance.randrange(len(stream))
    return stream[:at] + stream[at + chance.randint(1, 30) :]


def repeat(stream: bytes, chance: random.Random) -> bytes:
    """A line twice."""
    lines = stream.split(b"\r\n")
    at = chance.randrange(len(lines))
    return b"\r\n".join([*lines[: at + 1], *lines[at:]])


def swap(stream: bytes, chance: random.Random) -> bytes:
    """Another end of a line."""
    ends = [found.start() for found in re.finditer(rb"\r\n", stream)] or [0]
    at = chance.choice(ends)
    return stream[:at] + chance.choice([b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n "]) + stream[at + 2 :]


def flip(stream: bytes, chance: random.Random) -> bytes:
    """A bit."""
    at = chance.randrange(len(stream))
    return stream[:at] + bytes([stream[at] ^ 1 << chance.randrange(8)]) + stream[at + 1 :]


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [sprinkle, sprinkle, renumber, cut, repeat, swap, flip]


def streams(seed: int) -> Iterator[list[bytes]]:
    """Streams, each in the pieces in which it is sent."""
    chance = random.Random(seed)  # noqa: S311 (no secret)
    for number in range(NUM_STREAMS):
        stream = b"".join(request(chance, f"{number}-{one}") for one in range(chance.randint(1, 4)))
        for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
            stream = chance.choice(MUTATIONS)(stream, chance) or b"x"
        cuts = sorted({0, *(chance.randrange(len(stream)) for _ in range(chance.choice((0, 0, 1, 2, 5))))})
        yield [stream[start:end] for start, end in zip(cuts, [*cuts[1:], len(stream)], strict=True)]


def ask(service: ChildService, pieces: list[bytes]) -> list[wire.Answer]:
    """Send it, close the sending side, and take the answers apart."""
    received = b""
    with service.connect() as connection, suppress(ConnectionError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, piece in enumerate(pieces):
            if number:
                time.sleep(0.0005)
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        while more := connection.recv(65536):
            received += more
    return wire.answers(received)


@pytest.mark.parametrize("seed", [1])
def test_no_stream_brings_a_request_that_it_does_not_hold(store: Path, seed: int) -> None:
    asked: dict[str, Counter[str]] = {}
    statuses: Counter[int] = Counter()
    num_right = 0
    with ChildService(store, model="digits", max_connections=4096) as service, watched(service):
        for number, pieces in enumerate(streams(seed)):
            reading = read_strictly(b"".join(pieces))
            asked[str(number)] = Counter(reading.paths)
            found = [answer.status for answer in ask(service, pieces)]
            statuses.update(found)
            assert set(found) <= STATUSES, (found, pieces)
            assert len(found) <= len(reading.paths) + 1, (found, reading, pieces)
            assert not REFUSED_HEADS & set(found[:-1]), (found, pieces)
            if reading.right:
                assert len(found) == len(reading.paths), (found, reading, pieces)
                num_right += len(pieces) > 0
        served = _served(service)
    expected = sum(asked.values(), Counter())
    assert served - expected == Counter()
    assert served.total() > NUM_STREAMS  # the streams are not so harmed that hardly any is served
    assert min(num_right, sum(statuses[status] for status in REFUSED_HEADS)) > NUM_STREAMS / 5


def _served(service: ChildService) -> Counter[str]:
    """The paths that the log has as asked for, once it is whole."""
    service.raw(b"GET /the-last HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
    lines = service.log_lines()
    while not any(line.get("path") == "/the-last" for line in lines):
        time.sleep(0.01)
        lines = service.log_lines()
    assert [line for line in lines if line["level"] not in ("debug", "info")] == []
    ours = ("/asked", "/hidden")
    return Counter(
        line["path"]
        for line in lines
        if line["event"] == "request" and line["status"] not in REFUSED_HEADS and line["path"].startswith(ours)
    )
