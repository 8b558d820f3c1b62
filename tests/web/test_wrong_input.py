"""Every row of the contract's table of wrong inputs: status, `type`, a `detail` that names the fault; then service."""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.web.conftest import Serve
from tests.web.forms import base64_png, image_file, json_body, npy

AS_JSON, AS_NPY, AS_PNG = ({"content-type": name} for name in ("application/json", "application/x-npy", "image/png"))
GREY = np.full((28, 28), 100, np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
ENCODE, SCORE, DECODE = "/v1/encode", "/v1/log-likelihood", "/v1/decode"


@pytest.fixture(autouse=True)
def still_serves(client: TestClient) -> Iterator[None]:
    """After the wrong input, a right one gets the answer it got before."""

    def ask() -> Any:
        return client.post(f"{SCORE}?num_samples=10", content=image_file(GREY), headers=AS_PNG).json()

    before = ask()
    yield
    assert ask() == before


def npy_header(text: str) -> bytes:
    """A version 1.0 npy file whose header is this text, without data."""
    padded = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode()


def png_claiming(width: int, height: int) -> bytes:
    """A tiny PNG whose header claims a huge image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def nested(value: float) -> bytes:
    image = np.zeros((28, 28))
    image[3, 4] = value
    return json_body([np.zeros((28, 28)).tolist(), image.tolist()])


UNPROCESSABLE: dict[str, tuple[str, bytes, dict[str, str], str, int | None, str]] = {
    # name: (path, body, headers, end of type, index, words of the detail)
    "empty body": (ENCODE, b"", AS_PNG, "invalid-image", 0, "empty"),
    "not an image": (ENCODE, b"hello, this is text", AS_PNG, "invalid-image", 0, "none of PNG, JPEG, WebP"),
    "truncated png": (ENCODE, image_file(NOISE)[:400], AS_PNG, "invalid-image", 0, "cannot be decoded"),
    "gif": (ENCODE, image_file(GREY, "GIF"), AS_PNG, "invalid-image", 0, "none of PNG, JPEG, WebP"),
    "wrong height": (ENCODE, image_file(GREY[:20]), AS_PNG, "invalid-image", 0, "20×28 (height × width)"),
    "no json": (ENCODE, b"{'images': []}", AS_JSON, "invalid-body", None, "not JSON"),
    "json NaN": (ENCODE, b'{"images": [[[NaN]]]}', AS_JSON, "invalid-body", None, "not JSON"),
    "json without images": (ENCODE, b'{"image": []}', AS_JSON, "invalid-body", None, '{"images": […]}'),
    "json list": (ENCODE, b"[1]", AS_JSON, "invalid-body", None, '{"images": […]}'),
    "no images": (ENCODE, b'{"images": []}', AS_JSON, "invalid-body", None, "no image"),
    "second item not base64": (
        ENCODE, json_body([base64_png(GREY), "%%%"]), AS_JSON, "invalid-image", 1, "not base64",
    ),
    "second item null": (ENCODE, json_body([base64_png(GREY), None]), AS_JSON, "invalid-image", 1, "NoneType"),
    "an item of words": (ENCODE, json_body([[["a"]]]), AS_JSON, "invalid-image", 0, "nested numbers"),
    "booleans": (ENCODE, json_body([[[True]]]), AS_JSON, "invalid-image", 0, "nested numbers"),
    "ragged": (ENCODE, json_body([[[0, 1], [0]]]), AS_JSON, "invalid-image", 0, "ragged"),
    "deep": (ENCODE, json_body([[[[[0.5]]]]]), AS_JSON, "invalid-image", 0, "nested more than 3 deep"),
    "above one": (ENCODE, nested(255.0), AS_JSON, "invalid-image", 1, "range from 0 to 255"),
    "below zero": (ENCODE, nested(-0.5), AS_JSON, "invalid-image", 1, "range from -0.5 to 0"),
    "two channels": (ENCODE, json_body([np.zeros((2, 28, 28))]), AS_JSON, "invalid-image", 0, "2 channels"),
    "no npy": (ENCODE, b"PK\x03\x04 not npy", AS_NPY, "invalid-body", None, "not an npy file"),
    "npy float64": (ENCODE, npy(np.zeros((1, 28, 28))), AS_NPY, "invalid-body", None, "holds float64"),
    "npy objects": (
        ENCODE,
        npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1, 28, 28)}") + b"cos\nsystem\n",
        AS_NPY, "invalid-body", None, "holds object",
    ),
    "npy truncated": (
        ENCODE, npy(np.zeros((2, 28, 28), np.uint8))[:-1], AS_NPY, "invalid-body", None, "header says 1568",
    ),
    "npy with more": (
        ENCODE, npy(np.zeros((1, 28, 28), np.uint8)) + b"x", AS_NPY, "invalid-body", None, "body has 785",
    ),
    "npy lying": (
        ENCODE,
        npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999999, 9999999999999)}"),
        AS_NPY, "invalid-body", None, "(9999999999999, 9999999999999)",
    ),
    "npy negative": (
        ENCODE, npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 28, 28)}"),
        AS_NPY, "invalid-body", None, "(-1, 28, 28)",
    ),
    "npy code": (ENCODE, npy_header("__import__('os').abort()"), AS_NPY, "invalid-body", None, "not an npy file"),
    "npy lying a little": (
        ENCODE, npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 28, 28)}") + bytes(1000),
        AS_NPY, "invalid-body", None, "the body has 1000",
    ),
    "npy of five dimensions": (
        ENCODE, npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, 1, 28, 28)}") + bytes(784),
        AS_NPY, "invalid-body", None, "one to four",
    ),
    **{
        f"npy header {text[:12]!r}": (ENCODE, npy_header(text), AS_NPY, "invalid-body", None, "npy")
        for text in (
            "(", "{'descr': (", "'''", "  {}", "-" * 9000 + "1", "[" * 5000, "1" + "+1j" * 3000,
            "{'descr': (), 'fortran_order': False, 'shape': (1,)}",
            "{'descr': ('<f4',), 'fortran_order': False, 'shape': (1,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808, 0, 1)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 28, 28)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (60000, 0, 28)}",
        )
    },
    "npy NaN": (
        ENCODE, npy(np.stack([np.zeros((28, 28)), np.full((28, 28), np.nan)]).astype(np.float32)),
        AS_NPY, "invalid-image", 1, "NaN",
    ),
    "npy out of range": (ENCODE, npy(np.full((1, 28, 28), 2, np.float32)), AS_NPY, "invalid-image", 0, "from 2 to 2"),
    "npy wrong width": (ENCODE, npy(np.zeros((1, 28, 27), np.uint8)), AS_NPY, "invalid-image", 0, "28×27"),
    "npy of no image": (ENCODE, npy(np.zeros((0, 28, 28), np.uint8)), AS_NPY, "invalid-body", None, "(0, 28, 28)"),
    "npy flat": (ENCODE, npy(np.zeros((4, 784), np.uint8)), AS_NPY, "invalid-body", None, "[4, 784]"),
    "not multipart": (
        ENCODE, b"hello", {"content-type": "multipart/form-data; boundary=x"}, "invalid-body", None, "not multipart",
    ),
    "multipart without boundary": (
        ENCODE, b"hello", {"content-type": "multipart/form-data"}, "invalid-body", None, "boundary",
    ),
    "latents of the wrong size": (DECODE, b'{"latents": [[1, 2]]}', AS_JSON, "invalid-body", None, "[1, 2]"),
    "latents ragged": (DECODE, b'{"latents": [[1, 2], [1]]}', AS_JSON, "invalid-body", None, "ragged"),
    "latents of digit words": (DECODE, b'{"latents": [["1", "2", "3"]]}', AS_JSON, "invalid-body", None, "not numbers"),
    "latents of truths": (DECODE, b'{"latents": [[true, false, true]]}', AS_JSON, "invalid-body", None, "not numbers"),
    "many samples in digits": (
        f"{SCORE}?num_samples={'9' * 4300}", image_file(GREY), AS_PNG, "invalid-parameter", None, "num_samples",
    ),
    "latents of words": (DECODE, b'{"latents": [["a", "b", "c"]]}', AS_JSON, "invalid-body", None, "not numbers"),
    "no latents": (DECODE, b'{"latents": []}', AS_JSON, "invalid-body", None, "[0]"),
    "latent not finite": (
        DECODE, npy(np.array([[0, 0, 0], [0, np.inf, 0]], np.float32)), AS_NPY, "invalid-latent", 1, "finite",
    ),
    "latent NaN": (
        DECODE, npy(np.array([[0, 0, 0], [0, 0, 0], [np.nan, 0, 0]])), AS_NPY, "invalid-latent", 2, "finite",
    ),
    "latent beyond float32": (DECODE, b'{"latents": [[1e300, 0, 0]]}', AS_JSON, "invalid-latent", 0, "finite"),
    "unknown proposal": (
        f"{SCORE}?proposal=posterior", image_file(GREY), AS_PNG, "invalid-parameter", None, "'annealed' or 'auto'",
    ),
    "unknown method": ("/v1/anomaly-scores?method=x", image_file(GREY), AS_PNG, "invalid-parameter", None, "method"),
    "no samples": (f"{SCORE}?num_samples=0", image_file(GREY), AS_PNG, "invalid-parameter", None, "num_samples"),
    "too few samples": (f"{SCORE}?num_samples=3", image_file(GREY), AS_PNG, "invalid-parameter", None, "at least 4"),
    "too few to anneal": (
        f"{SCORE}?proposal=annealed&num_samples=3", image_file(GREY), AS_PNG, "invalid-parameter", None,
        "the proposal annealed takes at least 4",
    ),
    "no proposal": (f"{SCORE}?proposal=", image_file(GREY), AS_PNG, "invalid-parameter", None, "proposal"),
    "an error bar of nothing": (
        f"{SCORE}?proposal=auto&max_std_error=0", image_file(GREY), AS_PNG, "invalid-parameter", None, "max_std_error",
    ),
    "samples in words": (
        f"{SCORE}?num_samples=many", image_file(GREY), AS_PNG, "invalid-parameter", None, "num_samples",
    ),
    "negative seed": (f"{SCORE}?seed=-1", image_file(GREY), AS_PNG, "invalid-parameter", None, "seed"),
    "error of zero": (f"{SCORE}?max_std_error=0", image_file(GREY), AS_PNG, "invalid-parameter", None, "max_std_error"),
    "alpha of one": ("/v1/anomaly-scores?alpha=1", image_file(GREY), AS_PNG, "invalid-parameter", None, "alpha"),
    "slip of the pen": (f"{SCORE}?num_sample=9", image_file(GREY), AS_PNG, "invalid-parameter", None, "num_sample"),
    "unknown form": (f"{DECODE}?as=jpeg", b'{"latents": [[0, 0, 0]]}', AS_JSON, "invalid-parameter", None, "as"),
}  # fmt: skip


def check(answer: Any, status: int, slug: str, words: str, index: int | None = None) -> None:
    problem = answer.json()
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["type"] == f"urn:logpx:problem:{slug}"
    assert problem["status"] == status
    assert problem["title"]
    assert words in problem["detail"]
    assert problem.get("index") == index
    assert problem["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("name", UNPROCESSABLE)
def test_what_does_not_parse_or_fit_is_422(client: TestClient, name: str) -> None:
    path, body, headers, slug, index, words = UNPROCESSABLE[name]
    check(client.post(path, content=body, headers=headers), 422, slug, words, index)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("n=0", "n"),
        (f"n={'9' * 4299}", "n"),
        ("temperature=-1", "temperature"),
        ("temperature=nan", "temperature"),
        ("temperature=1e308", "temperature"),
    ],
)
def test_wrong_parameters_of_samples_are_422(client: TestClient, query: str, words: str) -> None:
    check(client.get(f"/v1/samples?{query}"), 422, "invalid-parameter", words)


def test_a_wrong_file_of_a_form_is_named_by_its_index(client: TestClient) -> None:
    files = [("images", ("a.png", image_file(GREY))), ("images", ("b.png", b"broken"))]
    check(client.post(ENCODE, files=files), 422, "invalid-image", "none of PNG", 1)


def test_another_field_of_a_form_is_422(client: TestClient) -> None:
    answer = client.post(ENCODE, files=[("image", ("a.png", image_file(GREY)))])
    check(answer, 422, "invalid-body", "unknown fields: 'image'")


def test_a_form_cut_short_is_422_and_not_an_answer_for_fewer_images(client: TestClient) -> None:
    part = b'--x\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n\r\n' + image_file(GREY) + b"\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert client.post(ENCODE, content=part * 2 + b"--x--\r\n", headers=headers).status_code == 200
    check(client.post(ENCODE, content=part + part[:90], headers=headers), 422, "invalid-body", "closing boundary")


@pytest.mark.parametrize("charset", ["punycode", "undefined", "utf-7", "unicode_escape"])
def test_a_form_in_a_strange_charset_is_422(client: TestClient, charset: str) -> None:
    body = b'--x\r\ncontent-disposition: form-data; name="+2AA-\\ud800"; filename="a"\r\n\r\nhello\r\n--x--\r\n'
    headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    answer = client.post(ENCODE, content=body, headers=headers)
    check(answer, 422, "invalid-body", "form")


def test_broken_exif_is_no_bug_of_ours(client: TestClient) -> None:
    entry = struct.pack(">HHI4s", 0x10E, 11, 1, bytes(4)) + struct.pack(">HHI4s", 0x112, 3, 1, b"\0\6\0\0")
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\2" + entry + bytes(4)
    jpeg = image_file(GREY, "JPEG")
    body = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    assert client.post(ENCODE, content=body, headers={"content-type": "image/jpeg"}).status_code in (200, 422)


def test_a_form_field_that_is_no_file_is_422(client: TestClient) -> None:
    answer = client.post(ENCODE, data={"images": "text"}, files=[("images", ("a.png", image_file(GREY)))])
    check(answer, 422, "invalid-body", "not a file")


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream", "image/gif", None])
def test_a_content_type_not_listed_is_415(client: TestClient, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    words = content_type or "missing"
    check(client.post(ENCODE, content=b"x", headers=headers), 415, "unsupported-media-type", words)
    check(client.post(DECODE, content=b"x", headers=headers), 415, "unsupported-media-type", "application/x-npy")


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("a/b," * 99 + "application/json", 200),
        ("a/b," * 100 + "application/json", 406),
        ("application/json" + ";a=b" * 14 + ";q=0", 406),
        ("application/json" + ";a=b" * 15 + ";q=0", 200),
        ("application/json," + "application/json;q=0," * 1400, 200),
    ],
    ids=["100 types", "101 types", "15 parameters", "16 parameters", "1400 types"],
)
def test_an_accept_counts_as_far_as_it_can_be_read_in_no_time(client: TestClient, accept: str, status: int) -> None:
    """To read 32 KiB of it would take longer than ten encodes, on the event loop."""
    headers = {"accept": accept, "content-type": "image/png"}
    assert client.post(ENCODE, content=image_file(GREY), headers=headers).status_code == status


def test_an_accept_that_cannot_be_met_is_406(client: TestClient) -> None:
    headers = {**AS_PNG, "accept": "text/html"}
    check(client.post(ENCODE, content=image_file(GREY), headers=headers), 406, "not-acceptable", "text/html")


@pytest.mark.parametrize("query", ["model=nobody", "model=../digits", "version=9", "model=colour&version=2"])
def test_an_unknown_model_or_version_is_404(client: TestClient, query: str) -> None:
    word = "version" if "version" in query else "no model"
    check(client.post(f"{ENCODE}?{query}", content=image_file(GREY), headers=AS_PNG), 404, "unknown-model", word)


def test_an_unknown_path_is_404_and_a_wrong_method_405(client: TestClient) -> None:
    check(client.get("/v3/encode"), 404, "not-found", "/v3/encode")
    check(client.get("/v1/models/nobody"), 404, "unknown-model", "nobody")
    check(client.get(ENCODE), 405, "method-not-allowed", "/docs")


def test_several_models_and_none_named_is_404(serve: Serve) -> None:
    answer = serve(model=None).post(ENCODE, content=image_file(GREY), headers=AS_PNG)
    check(answer, 404, "unknown-model", "colour, digits, linear-gaussian")


def test_a_body_over_the_limit_is_413_by_length_and_by_count(serve: Serve) -> None:
    client = serve(max_body_bytes=1000)
    check(client.post(ENCODE, content=bytes(1001), headers=AS_PNG), 413, "limit-exceeded", "1001 bytes")
    check(client.get("/v1/samples", headers={"content-length": "9" * 5000}), 413, "limit-exceeded", "at most 1000")
    chunks = (bytes(400) for _ in range(1000))
    check(client.post(ENCODE, content=chunks, headers=AS_PNG), 413, "limit-exceeded", "at most 1000")
    assert client.post(ENCODE, content=image_file(GREY), headers=AS_PNG).status_code == 200


def test_pixels_over_the_limit_are_413_before_decoding(serve: Serve) -> None:
    client = serve(max_pixels=2000)
    assert client.post(ENCODE, content=image_file(GREY), headers=AS_PNG).status_code == 200
    check(client.post(ENCODE, content=png_claiming(60_000, 60_000), headers=AS_PNG), 413, "limit-exceeded", "pixels")
    check(client.post(ENCODE, content=png_claiming(50, 41), headers=AS_PNG), 413, "limit-exceeded", "2050 pixels")
    three = [base64_png(GREY)] * 3
    check(client.post(ENCODE, content=json_body(three), headers=AS_JSON), 413, "limit-exceeded", "2352 pixels")
    check(
        client.post(ENCODE, content=npy(np.zeros((3, 28, 28), np.uint8)), headers=AS_NPY), 413, "limit-exceeded", "2352"
    )
    check(client.get("/v1/samples?n=3"), 413, "limit-exceeded", "3 images")
    check(client.post(DECODE, json={"latents": [[0, 0, 0]] * 3}), 413, "limit-exceeded", "3 images")


def test_small_arrays_to_be_enlarged_count_as_what_they_become(serve: Serve) -> None:
    client = serve(max_pixels=2000)
    tiny = npy(np.zeros((3, 1, 1), np.uint8))
    check(client.post(f"{ENCODE}?resize=true", content=tiny, headers=AS_NPY), 413, "limit-exceeded", "2352")


def test_files_over_the_limit_are_413(serve: Serve) -> None:
    files = [("images", ("a.png", image_file(GREY)))] * 4
    check(serve(max_pixels=2000).post(ENCODE, files=files), 413, "limit-exceeded", "more than 2 files")
    many = [("images", ("a.png", image_file(GREY)))] * 1100
    assert serve().post(ENCODE, files=many).status_code == 200


def test_json_over_its_own_limit_is_413(serve: Serve) -> None:
    client = serve(max_json_bytes=1000)
    check(client.post(ENCODE, content=json_body([GREY / 255]), headers=AS_JSON), 413, "limit-exceeded", "send npy")
    check(client.post(DECODE, json={"latents": [[0.5, 0, 0]] * 100}), 413, "limit-exceeded", "send npy")
    assert client.post(ENCODE, content=json_body([base64_png(GREY)]), headers=AS_JSON).status_code == 200


def test_samples_an_image_over_the_limit_are_413_and_early_stopping_counts_its_worst_case(serve: Serve) -> None:
    client = serve(max_num_samples=500, max_rows=10_000, max_queued_rows=10_000)
    body = image_file(GREY)
    check(client.post(f"{SCORE}?num_samples=501", content=body, headers=AS_PNG), 413, "limit-exceeded", "at most 500")
    client.post(f"{SCORE}?num_samples=10&max_std_error=1e-9&proposal=encoder", content=body, headers=AS_PNG)
    assert 'logpx_rows_total{model="digits",version="2"} 500.0' in client.get("/metrics").text


def test_rows_over_the_limit_are_413(serve: Serve) -> None:
    client = serve(max_rows=1000)
    body = npy(np.zeros((2, 28, 28), np.uint8))
    assert client.post(f"{SCORE}?num_samples=500", content=body, headers=AS_NPY).status_code == 200
    check(client.post(f"{SCORE}?num_samples=501", content=body, headers=AS_NPY), 413, "limit-exceeded", "is 1002")
    check(
        client.post(SCORE, content=npy(np.zeros((6, 28, 28), np.uint8)), headers=AS_NPY), 413, "limit-exceeded", "2400"
    )


def test_a_passed_deadline_is_504(serve: Serve) -> None:
    client = serve(timeout_seconds=0.01, max_num_samples=2_000_000)
    answer = client.post(f"{SCORE}?proposal=encoder&num_samples=2000000", content=image_file(GREY), headers=AS_PNG)
    check(answer, 504, "deadline-exceeded", "0.01 s")
    assert client.post(f"{SCORE}?num_samples=4", content=image_file(GREY), headers=AS_PNG).status_code in (200, 504)


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip", "x" * 1000])
def test_a_body_with_a_content_coding_is_415_and_never_inflated(client: TestClient, coding: str) -> None:
    body = zlib.compress(bytes(10_000_000), wbits=31)
    answer = client.post(ENCODE, content=body, headers={**AS_NPY, "content-encoding": coding})
    check(answer, 415, "unsupported-media-type", coding[:100])
    assert answer.headers["accept-encoding"] == "identity"
    named = {**AS_PNG, "content-encoding": "identity"}
    assert client.post(ENCODE, content=image_file(GREY), headers=named).status_code == 200


@pytest.mark.parametrize("query", ["seed=1&seed=2", "seed=1&seed=1", "seed=1&num_samples=4&se%65d=2", "seed=&seed="])
def test_a_parameter_given_twice_is_422_and_none_wins(client: TestClient, query: str) -> None:
    answer = client.post(f"{SCORE}?{query}", content=image_file(GREY), headers=AS_PNG)
    check(answer, 422, "invalid-parameter", "seed: given more than once")
    assert answer.json()["errors"] == [{"parameter": "seed", "problem": "given more than once"}]


def test_many_or_large_headers_are_431(client: TestClient, serve: Serve) -> None:
    many = {f"x-{number}": "" for number in range(101)}
    check(
        client.post(ENCODE, content=image_file(GREY), headers={**AS_PNG, **many}),
        431,
        "header-too-large",
        "100 headers",
    )
    check(client.get("/livez", headers={"x-large": "x" * 32768}), 431, "header-too-large", "32768 bytes")
    check(client.get(f"/v1/samples?model={'x' * 40_000}"), 431, "header-too-large", "with path and query")
    assert serve(max_header_bytes=100_000).get("/livez", headers={"x-large": "x" * 32768}).status_code == 200


def test_what_is_refused_by_its_head_counts_for_its_route(serve: Serve) -> None:
    client = serve(max_body_bytes=1000)
    client.post(ENCODE, content=bytes(1001), headers=AS_PNG)
    client.post("/nowhere", content=bytes(1001), headers=AS_PNG)
    text = client.get("/metrics").text
    for route in (ENCODE, "unknown"):
        assert f'{{method="POST",model="",route="{route}",status="413",version=""}} 1.0' in text
