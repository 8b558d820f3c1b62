"""Bodies that are made to take memory or to break a parser: refused as documented, for little memory."""

import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.images.npy import MAX_HEADER_BYTES
from tests.web.conftest import client, linear_gaussian, serve, store
from tests.web.forms import image_file, npy
from tests.web.test_wrong_input import AS_JSON, AS_NPY, AS_PNG, DECODE, ENCODE, GREY, check

__all__ = ["client", "linear_gaussian", "serve", "store"]  # fixtures
MEBIBYTE = 2**20
TEXT = "a" * 20_000
ONES = b",1" * 2000

IMAGES: dict[str, tuple[bytes, int, str, str]] = {
    # name: (what the list of images holds, status, end of type, words of the detail)
    "a text among numbers": (b'[["%b"%b]]' % (TEXT.encode(), ONES), 422, "invalid-image", "holds str"),
    "a text after numbers": (b'[[1%b,"%b"]]' % (ONES, TEXT.encode()), 422, "invalid-image", "holds str"),
    "a text in one of many rows": (
        b"[%b[1],[%b]]" % (b"[1]," * 2000, f'"{TEXT}"'.encode()), 422, "invalid-image", "holds str",
    ),
    "a text among rows": (b'["%b"%b]' % (TEXT.encode(), b",[1]" * 2000), 422, "invalid-image", "holds list, str"),
    "a text of wide characters": (
        b'[["%b"%b]]' % ("\U0001f600".encode() * 5000, ONES), 422, "invalid-image", "holds str",
    ),
    "a text among channels": (b'[[["%b"]%b]]' % (TEXT.encode(), b",[1]" * 2000), 422, "invalid-image", "holds str"),
    "a number that float64 does not hold": (b"[[1" + b"0" * 400 + ONES + b"]]", 422, "invalid-body", "not JSON"),
    "a number beyond 64 bits": (b"[[18446744073709551616" + ONES + b"]]", 422, "invalid-image", "range from 1 to"),
    "an exponent of many digits": (b"[[1e" + b"9" * 1000 + ONES + b"]]", 422, "invalid-body", "not JSON"),
    "truths among numbers": (b"[[true" + ONES + b"]]", 422, "invalid-image", "holds bool"),
    "nothing among numbers": (b"[[null" + ONES + b"]]", 422, "invalid-image", "holds NoneType"),
    "objects among numbers": (b"[[{}" + ONES + b"]]", 422, "invalid-image", "holds dict"),
    "lists among numbers": (b"[[[1]" + ONES + b"]]", 422, "invalid-image", "ragged"),
    "a list within a number's row": (b"[[1" + ONES + b",[1]]]", 422, "invalid-image", "ragged"),
    "rows of other lengths": (b"[[1" + ONES + b"],[1]]", 422, "invalid-image", "ragged"),
    "channels of other heights": (b"[[[1],[1]],[[1]]]", 422, "invalid-image", "ragged"),
    "rows of nothing": (b"[" + b"[]," * 60_000 + b"[]]", 422, "invalid-image", "[60001, 0]"),
    "an object for an image": (b'{"a":[[1]]}', 422, "invalid-image", "dict"),
    "a truth for an image": (b"true", 422, "invalid-image", "bool"),
    "nested 500 deep": (b"[" * 500 + b"1" + b"]" * 500, 422, "invalid-image", "nested more than 3 deep"),
    "nested 1000 deep": (b"[" * 1000 + b"1" + b"]" * 1000, 422, "invalid-image", "nested more than 3 deep"),
    "nested 5000 deep": (b"[" * 5000 + b"1" + b"]" * 5000, 422, "invalid-body", "not JSON"),
    "objects nested 5000 deep": (b'{"a":' * 5000 + b"1" + b"}" * 5000, 422, "invalid-body", "not JSON"),
    "nested and wide": (b"[[[[" + b"[1]," * 30_000 + b"[1]]]]]", 422, "invalid-image", "nested more than 3 deep"),
    "lists without number": (b"[" * 1 + b"[]," * 70_000 + b"[]]", 413, "limit-exceeded", "lists"),
    "a lone surrogate": (rb'"\ud800"', 422, "invalid-body", "not JSON"),
    "what is no JSON": (b"[[NaN,Infinity]]", 422, "invalid-body", "not JSON"),
    "a text that is no base64": (b'"' + b"\xc3\xa9" * 500_000 + b'"', 422, "invalid-image", "beyond ASCII"),
    "a text of wide characters for an image": (
        b'"' + b"a" * 1_000_000 + "\U0001f600".encode() + b'"', 422, "invalid-image", "beyond ASCII",
    ),
    "a data URL of commas": (b'"data:' + b"," * 1_000_000 + b'"', 422, "invalid-image", "another coding"),
    "escapes": (b'"' + rb"\u0041" * 100_000 + b'"', 422, "invalid-image", "file cannot be read"),
}  # fmt: skip

LATENTS: dict[str, tuple[bytes, str]] = {
    # name: (what the list of latents holds, words of the detail)
    "a text among numbers": (b'["%b"%b]' % (TEXT.encode(), ONES), "holds str"),
    "a text for a latent": (b'"%b"%b' % (TEXT.encode(), b",[1,2,3]" * 2000), "holds list, str"),
    "texts for latents": (b'"%b"%b' % (TEXT.encode(), b',"1"' * 2000), "holds str"),
    "a text in one of many": (b"[1,2,3]," * 2000 + b'[1,2,"%b"]' % TEXT.encode(), "holds str"),
    "truths among numbers": (b"[true,1,0.5]", "holds bool"),
    "nothing among numbers": (b"[null,1,0.5]", "holds NoneType"),
    "objects": (b'[{"a":1},1,2]', "holds dict"),
    "latents of other lengths": (b"[1,2,3],[1,2]", "ragged"),
    "numbers among latents": (b"[1,2,3],1", "ragged"),
    "lists in a latent": (b"[[1],[2],[3]]", "nested more than 2 deep"),
    "nested 500 deep": (b"[" * 500 + b"1" + b"]" * 500, "nested more than 2 deep"),
    "a number that float64 does not hold": (b"[1,2,1" + b"0" * 400 + b"]", "not JSON"),
    "one latent of many numbers": (b"[1" + b",1" * 100_000 + b"]", "[1, 100001]"),
    "many latents of one number": (b"[1]," * 60_000 + b"[1]", "[60001, 1]"),
}


def taken(client: TestClient, path: str, body: bytes, headers: dict[str, str]) -> tuple[Any, int]:
    """The answer, and the most bytes that were in use beside what was before."""
    client.post(ENCODE, content=image_file(GREY), headers=AS_PNG)
    tracemalloc.start()
    try:
        answer = client.post(path, content=body, headers=headers)
        return answer, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", IMAGES)
def test_nested_numbers_are_checked_before_numpy_sees_them(client: TestClient, name: str) -> None:
    items, status, slug, words = IMAGES[name]
    answer, peak = taken(client, ENCODE, b'{"images":[' + items + b"]}", AS_JSON)
    check(answer, status, slug, words, 0 if slug == "invalid-image" else None)
    assert peak < 16 * MEBIBYTE


@pytest.mark.parametrize("name", LATENTS)
def test_latents_are_checked_before_numpy_sees_them(client: TestClient, name: str) -> None:
    items, words = LATENTS[name]
    answer, peak = taken(client, DECODE, b'{"latents":[' + items + b"]}", AS_JSON)
    check(answer, 422, "invalid-body", words)
    assert peak < 16 * MEBIBYTE


def test_of_keys_given_twice_the_last_counts_and_both_are_bounded_by_the_body(client: TestClient) -> None:
    one = b"[[%b]]" % b",".join([b"[%b]" % b",".join([b"0.5"] * 28)] * 28)
    text = b'{"images":["%b"],"images":%b}' % (TEXT.encode(), one)
    answer, peak = taken(client, ENCODE, text, AS_JSON)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["mean"]) == 1
    assert peak < 16 * MEBIBYTE


def header(shape: str, descr: str = "'|u1'", order: str = "False") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()


def npy_file(
    text: bytes, *, version: bytes = b"\x01\x00", length: int | None = None, data: bytes = bytes(784)
) -> bytes:
    """An npy file with this header."""
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text) + 1 if length is None else length)
    return b"\x93NUMPY" + version + size + text + b"\n" + data


ARRAYS: dict[str, bytes] = {
    "a dimension of 3600 digits": npy_file(header(f"({'9' * 3600}, 28, 28)")),
    "a dimension of 3600 hexadecimal digits": npy_file(header(f"(0x{'f' * 3600}, 28, 28)")),
    "a dimension of 900 hexadecimal digits": npy_file(header(f"(0x{'f' * 900}, 28, 28)")),
    "a dimension of 5000 digits": npy_file(header(f"({'9' * 5000}, 28, 28)")),
    "four dimensions of 200 digits": npy_file(header(f"({', '.join(['9' * 200] * 4)})")),
    "a negative dimension": npy_file(header("(1, -28, -28)")),
    "a dimension of minus nothing": npy_file(header("(1, 28, -0)")),
    "a dimension with a point": npy_file(header("(1, 28.0, 28)")),
    "a dimension that is infinite": npy_file(header("(1, 28, 1e999)")),
    "a dimension that is complex": npy_file(header("(1, 28, 28j)")),
    "a dimension that is a truth": npy_file(header("(True, 28, 28)")),
    "a dimension that is a text": npy_file(header("('1', 28, 28)")),
    "a dimension that is nothing": npy_file(header("(None, 28, 28)")),
    "a product that overflows": npy_file(header("(4294967296, 4294967296, 1)"), data=b""),
    "a product that overflows to the right length": npy_file(header("(784, 9223372036854775809, 2)", "'|u1'")),
    "dimensions just below the bound": npy_file(header("(2147483647, 2147483647, 2147483647, 2147483647)")),
    "no image, of huge size": npy_file(header("(0, 4294967296, 4294967296)"), data=b""),
    "no dimension": npy_file(header("()"), data=b"\0"),
    "a number for the shape": npy_file(header("784")),
    "a list for the shape": npy_file(header("[1, 28, 28]")),
    "a nested shape": npy_file(header("((1, 28), 28)")),
    "seventy dimensions": npy_file(header("(" + "1," * 69 + "784)")),
    "objects": npy_file(header("(1, 28, 28)", "'|O'")),
    "records": npy_file(header("(1, 28, 28)", "[('a', '|u1')]")),
    "records of an array": npy_file(header("(1,)", "[('a', '|u1', (28, 28))]")),
    "an array as a type": npy_file(header("(1,)", "('|u1', (28, 28))")),
    "a list of types as text": npy_file(header("(1, 28, 28)", "'u1,u1,(9999,9999)f8'")),
    "a text as type": npy_file(header("(1, 28, 28)", "'|S1'")),
    "a text of huge length as type": npy_file(header("(1, 28, 28)", "'|S2147483647'")),
    "times": npy_file(header("(1, 7, 14)", "'<M8[s]'")),
    "big-endian numbers": npy_file(header("(1, 14, 14)", "'>f4'")),
    "long doubles": npy_file(header("(1, 7, 7)", "'<f16'")),
    "complex numbers": npy_file(header("(1, 7, 14)", "'<c8'")),
    "truths": npy_file(header("(1, 28, 28)", "'|b1'")),
    "an order that is a number": npy_file(header("(1, 28, 28)", order="1")),
    "an order of words": npy_file(header("(1, 28, 28)", order="'no'")),
    "a key too many": npy_file(b"{'descr': '|u1', 'fortran_order': False, 'shape': (1, 28, 28), 'x': 1}"),
    "a key too few": npy_file(b"{'descr': '|u1', 'shape': (1, 28, 28)}"),
    "a key given twice": npy_file(b"{'descr': '|O', 'descr': '|O', 'fortran_order': False, 'shape': (1, 28, 28)}"),
    "keys that are no text": npy_file(b"{1: 2, (): 3, None: 4}"),
    "a header of nothing": npy_file(b""),
    "a header that is a call": npy_file(b"exec('1')"),
    "a header that is a product": npy_file(b"'a' * 10 ** 10"),
    "a header that is a power": npy_file(header("(9 ** 9 ** 9, 28, 28)")),
    "a header of brackets": npy_file(b"(" * 900),
    "a header of signs": npy_file(b"-" * 900 + b"1"),
    "a header of braces": npy_file(b"{1:" * 250 + b"1" + b"}" * 250),
    "a header of texts": npy_file(b"'a' " * 220),
    "a header with NUL": npy_file(b"{'descr': '|u1\0', 'fortran_order': False, 'shape': (1, 28, 28)}"),
    "a header beyond ASCII": npy_file(b"{'descr': '\xff', 'fortran_order': False, 'shape': (1, 28, 28)}"),
    "a header of Python 2": npy_file(header("(1L, 28L, 28L)", "'|O'")),
    "a header longer than the body": npy_file(header("(1, 28, 28)"), length=1000),
    "a header of 64 KiB": npy_file(header("(1, 28, 28)").ljust(65_000)),
    "a header of 4 GiB": npy_file(header("(1, 28, 28)"), version=b"\x02\x00", length=2**32 - 1),
    "a header of no length": npy_file(header("(1, 28, 28)"), length=0),
    "version 3": npy_file(header("(1, 28, 28)"), version=b"\x03\x00"),
    "version 0": npy_file(header("(1, 28, 28)"), version=b"\x00\x00"),
    "version 1.255": npy_file(header("(1, 28, 28)"), version=b"\x01\xff"),
    "nothing but the magic": b"\x93NUMPY",
    "cut off in the length": b"\x93NUMPY\x01\x00\x76",
}


@pytest.mark.parametrize("path", [ENCODE, DECODE])
@pytest.mark.parametrize("name", ARRAYS)
def test_an_npy_header_is_not_believed(client: TestClient, name: str, path: str) -> None:
    answer, peak = taken(client, path, ARRAYS[name], AS_NPY)
    assert answer.status_code == 422, answer.text
    assert answer.json()["type"] in ("urn:logpx:problem:invalid-body", "urn:logpx:problem:invalid-image")
    assert len(answer.json()["detail"]) < 500
    assert peak < 4 * MEBIBYTE


def test_headers_as_other_programs_write_them_are_read(client: TestClient) -> None:
    images = np.random.default_rng(1).integers(0, 256, (1, 28, 28), np.uint8)
    expected = client.post(ENCODE, content=npy(images), headers=AS_NPY).json()
    for text in (
        header("(1, 28, 28)"),
        header("(1,28,28)").replace(b", }", b"}").replace(b" ", b""),
        header("(1, 28, 28)").replace(b"'", b'"'),
        b"{'shape':(1,28,28),'fortran_order':False,'descr':'|u1'}",
        header("(1, 28, 28)", "'u1'"),
        header("(1, 28, 28)").ljust(MAX_HEADER_BYTES - 11),
    ):
        for version in (b"\x01\x00", b"\x02\x00")[: 1 if len(text) > 1000 else 2]:
            answer = client.post(ENCODE, content=npy_file(text, version=version, data=images.tobytes()), headers=AS_NPY)
            assert answer.json() == expected
    fortran = npy_file(header("(1, 28, 28)", order="True"), data=np.asfortranarray(images).tobytes("F"))
    assert client.post(ENCODE, content=fortran, headers=AS_NPY).json() == expected
    refused = npy_file(header("(1, 28, 28)").ljust(MAX_HEADER_BYTES - 10), data=images.tobytes())
    check(client.post(ENCODE, content=refused, headers=AS_NPY), 422, "invalid-body", "header has 1025 bytes")
