"""Requests of the Open Inference Protocol: compressed bombs, tensors that are not as they say, JSON that grows."""

import gzip
import zlib
from collections.abc import Callable, Iterator

import orjson

from tests.hostile.attacks.attack import Attack, asks
from tests.web.open_inference import elements

ENCODE = "/v2/models/digits.encode/infer"
LENGTH = "Inference-Header-Content-Length"
MEGABYTE = 2**20


def document(datatype: str, shape: list[int], size: int, **members: object) -> bytes:
    """The JSON of a request with a binary tensor."""
    one = {"name": "images", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}
    return orjson.dumps({"inputs": [one], **members})


def tensor(name: str, statuses: int | tuple[int, ...], datatype: str, shape: list[int], data: bytes) -> Attack:
    """A binary tensor."""
    head = document(datatype, shape, len(data))
    return asks(name, statuses, "POST", ENCODE, head + data, {LENGTH: str(len(head))})


def coded(name: str, coding: str, body: Callable[[], bytes], status: int) -> Attack:
    """A compressed body, which is made when it is sent."""
    return asks(name, status, "POST", ENCODE, body, {"Content-Encoding": coding})


def open_inference_attacks() -> Iterator[Attack]:
    """Each of one request."""
    yield coded("a gzip bomb of 100 MB", "gzip", lambda: gzip.compress(bytes(100 * MEGABYTE)), 413)
    yield coded("a deflate bomb of 63 MB", "deflate", lambda: zlib.compress(bytes(63 * MEGABYTE)), 413)
    yield coded("gzip in gzip", "gzip", lambda: gzip.compress(gzip.compress(bytes(MEGABYTE))), 422)
    yield coded("100 000 empty members of gzip", "gzip", lambda: gzip.compress(b"") * 100_000, 422)
    yield coded("two million lists, compressed", "gzip", lambda: gzip.compress(b"[" * (2 * MEGABYTE - 1)), 413)
    yield tensor("a million empty files", 413, "BYTES", [MEGABYTE], bytes(4 * MEGABYTE))
    yield tensor("a million empty files that are said to be two", 422, "BYTES", [2], bytes(4 * MEGABYTE))
    yield tensor("two thousand empty files", 422, "BYTES", [2000], bytes(8000))
    yield tensor("a file of 4 GB that is not there", 422, "BYTES", [1], b"\xff\xff\xff\xff")
    yield tensor("two to the 124th images", 422, "FP32", [2**31 - 1] * 4, b"")
    yield tensor("nothing but not-a-numbers", 422, "FP32", [500, 1, 28, 28], b"\xff" * (500 * 784 * 4))
    yield tensor("eight million images of one pixel", (413, 422), "UINT8", [8 * MEGABYTE, 1, 1, 1], bytes(8 * MEGABYTE))
    yield tensor("files that are said to be levels", 422, "UINT8", [1, 1, 28, 28], elements([b"x" * 780])[:-1])
    for name, members in (
        ("an id of a megabyte", {"id": "x" * MEGABYTE}),
        ("100 000 outputs", {"outputs": [{"name": "mean"}] * 50_000}),
        ("100 000 parameters", {"parameters": {f"p{number}": 1 for number in range(100_000)}}),
        ("a parameter of a megabyte", {"parameters": {"resize": "x" * MEGABYTE}}),
        ("a parameter named a megabyte", {"parameters": {"x" * MEGABYTE: 1}}),
        ("a parameter that is deep", {"parameters": {"resize": [[[[]]]]}}),
    ):
        head = document("UINT8", [1, 1, 28, 28], 784, **members)
        yield asks(name, 422, "POST", ENCODE, head + bytes(784), {LENGTH: str(len(head))})
    yield asks("JSON a thousand deep", (413, 422), "POST", ENCODE, b'{"inputs":' * 1000)
    yield asks("a megabyte of JSON numbers", 422, "POST", ENCODE, orjson.dumps({"inputs": [{"data": [0] * 500_000}]}))
    for length in ("9" * 8000, "-0", "0x10", "1e3", "12, 12"):
        yield asks(f"a JSON length of {length[:20]}", 422, "POST", ENCODE, b"{}", {LENGTH: length})
    for name in ("../../etc/passwd.encode", "digits/1.encode", "%00.encode", "DIGITS.encode", "a" * 5000 + ".encode"):
        yield asks(f"the model {name[:30]}", 404, "POST", f"/v2/models/{name}/infer", b"{}")
    for version in ("9" * 5000, "%EF%BC%91", "1%00", "..", "0"):
        path = f"/v2/models/digits.encode/versions/{version}/infer"
        yield asks(f"the version {version[:20]}", 404, "POST", path, b"{}")
    yield asks("a load without a key", 401, "POST", "/v2/repository/models/digits/load")
    yield asks("a large index", 413, "POST", "/v2/repository/index", b" " * MEGABYTE)
    yield asks("an index of lists", 422, "POST", "/v2/repository/index", b"[" * 60_000)
