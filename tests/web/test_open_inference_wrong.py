"""Wrong requests of `/v2`: each gets a problem document that names the fault, and the next right request its answer."""

import gzip
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest
from fastapi.testclient import TestClient

from service.web.problems import InvalidBodyError, LimitError
from service.web.v2.compression import unpack
from tests.web.conftest import Serve
from tests.web.forms import base64_png, image_file
from tests.web.open_inference import document_of, elements, in_bytes, in_json, outputs_of

ENCODE, DECODE, SAMPLES, SCORE, ANOMALY = (
    f"/v2/models/digits.{name}/infer" for name in ("encode", "decode", "samples", "log-likelihood", "anomaly-scores")
)
GREY = np.full((1, 1, 28, 28), 100, np.uint8)
FLOATS = np.zeros((2, 1, 28, 28), np.float32)
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(autouse=True)
def still_serves(client: TestClient) -> Iterator[None]:
    before = document_of(client.post(ENCODE, **in_bytes("images", GREY)))
    yield
    assert document_of(client.post(ENCODE, **in_bytes("images", GREY))) == before


def check(answer: Any, status: int, slug: str, words: str, index: int | None = None) -> None:
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (status, f"urn:logpx:problem:{slug}"), answer.text
    assert answer.headers["content-type"] == "application/json"
    assert words in problem["detail"]
    assert problem["error"] == problem["detail"]
    assert problem.get("index") == index
    assert problem["request_id"] == answer.headers["x-request-id"]


def one(**changes: Any) -> dict[str, Any]:
    """An input in JSON; a member that is ... is left out."""
    whole = {"name": "images", "datatype": "UINT8", "shape": [1, 1, 28, 28], "data": [0] * 784, **changes}
    return {key: value for key, value in whole.items() if value is not ...}


def spoilt(array: Any, place: tuple[int, ...], value: float) -> Any:
    array = array.copy()
    array[place] = value
    return array


DOCUMENTS: dict[str, tuple[str, Any, str]] = {
    # name: (path, JSON, words of the detail)
    "a list": (ENCODE, [], "JSON object"),
    "no inputs": (ENCODE, {}, "inputs must be a list"),
    "inputs of numbers": (ENCODE, {"inputs": [1]}, "inputs must be a list of objects"),
    "no input": (ENCODE, {"inputs": []}, "one input, images; found: none"),
    "two inputs": (ENCODE, {"inputs": [one(), one()]}, "one input, images; found: 'images', 'images'"),
    "another name": (ENCODE, {"inputs": [one(name="pixels")]}, "one input, images; found: 'pixels'"),
    "a name that is none": (ENCODE, {"inputs": [one(name=None)]}, "found: None"),
    "no datatype": (ENCODE, {"inputs": [one(datatype=...)]}, "accepted: FP32, UINT8, BYTES"),
    "another datatype": (ENCODE, {"inputs": [one(datatype="FP64")]}, "'FP64'; accepted: FP32, UINT8, BYTES"),
    "a datatype that is none": (ENCODE, {"inputs": [one(datatype={})]}, "accepted: FP32"),
    "no shape": (ENCODE, {"inputs": [one(shape=...)]}, "one to four whole numbers"),
    "a negative size": (ENCODE, {"inputs": [one(shape=[-1, 1, 28, 28])]}, "one to four whole numbers"),
    "a size that is true": (ENCODE, {"inputs": [one(shape=[True, 784])]}, "one to four whole numbers"),
    "five sizes": (ENCODE, {"inputs": [one(shape=[1, 1, 1, 28, 28])]}, "one to four whole numbers"),
    "a huge size": (ENCODE, {"inputs": [one(shape=[2**31, 1, 28, 28])]}, "one to four whole numbers"),
    "zero images": (ENCODE, {"inputs": [one(shape=[0, 1, 28, 28], data=[])]}, "is empty"),
    "two dimensions": (ENCODE, {"inputs": [one(shape=[1, 784])]}, "accepted: [B, H, W] or [B, C, H, W]"),
    "no data": (ENCODE, {"inputs": [one(data=...)]}, "neither data nor a binary_data_size"),
    "too few numbers": (ENCODE, {"inputs": [one(data=[0] * 783)]}, "has 784 numbers, but its data have shape [783]"),
    "other nesting": (ENCODE, {"inputs": [one(data=[[0] * 784])]}, "shape [1, 784]"),
    "ragged": (ENCODE, {"inputs": [one(data=[[0], [0, 0]])]}, "ragged"),
    "texts": (ENCODE, {"inputs": [one(data=["0"] * 784)]}, "no numbers: it holds str"),
    "booleans": (ENCODE, {"inputs": [one(data=[True] * 784)]}, "holds bool"),
    "a level of 256": (ENCODE, {"inputs": [one(data=[256] + [0] * 783)]}, "whole numbers from 0 to 255"),
    "half a level": (ENCODE, {"inputs": [one(data=[0.5] + [0] * 783)]}, "whole numbers from 0 to 255"),
    "files of two axes": (ENCODE, {"inputs": [one(datatype="BYTES", shape=[1, 1])]}, "accepted: [N]"),
    "files that are numbers": (ENCODE, {"inputs": [one(datatype="BYTES", shape=[1], data=[7])]}, "base64 texts"),
    "another count of files": (
        ENCODE, {"inputs": [one(datatype="BYTES", shape=[2], data=["aaaa"])]}, "has 2 elements, but its data have 1",
    ),
    "binary and data": (ENCODE, {"inputs": [one(parameters={"binary_data_size": 784})]}, "both data and"),
    "binary without its header": (
        ENCODE, {"inputs": [one(data=..., parameters={"binary_data_size": 784})]}, "but 0 bytes follow the JSON",
    ),
    "a binary size that is none": (
        ENCODE, {"inputs": [one(data=..., parameters={"binary_data_size": "784"})]}, "whole number of bytes",
    ),
    "a negative binary size": (
        ENCODE, {"inputs": [one(data=..., parameters={"binary_data_size": -1})]}, "whole number of bytes",
    ),
    "shared memory": (
        ENCODE, {"inputs": [one(data=..., parameters={"shared_memory_region": "r"})]}, "shared memory",
    ),
    "parameters that are a list": (ENCODE, {"inputs": [one()], "parameters": []}, "must be an object"),
    "many parameters": (
        ENCODE, {"inputs": [one()], "parameters": {str(number): 1 for number in range(101)}}, "at most 100 members",
    ),
    "an id that is a number": (ENCODE, {"inputs": [one()], "id": 7}, "the id must be a text"),
    "a long id": (ENCODE, {"inputs": [one()], "id": "x" * 257}, "at most 256 characters"),
    "outputs that are no list": (ENCODE, {"inputs": [one()], "outputs": {"name": "mean"}}, "outputs must be a list"),
    "an unknown output": (ENCODE, {"inputs": [one()], "outputs": [{"name": "z"}]}, "no output 'z'; there are: mean"),
    "an output twice": (ENCODE, {"inputs": [one()], "outputs": [{"name": "mean"}] * 2}, "more than once"),
    "a classification": (
        ENCODE, {"inputs": [one()], "outputs": [{"name": "mean", "parameters": {"classification": 3}}]}, "as a class",
    ),
    "binary_data that is a number": (
        ENCODE, {"inputs": [one()], "outputs": [{"name": "mean", "parameters": {"binary_data": 1}}]}, "true or false",
    ),
    "binary_data_output that is a text": (
        ENCODE, {"inputs": [one()], "parameters": {"binary_data_output": "yes"}}, "true or false",
    ),
    "two counts": (SAMPLES, {"inputs": [one(name="n", datatype="INT32", shape=[2], data=[1, 2])]}, "accepted: [1]"),
    "a count of another type": (SAMPLES, {"inputs": [one(name="n", shape=[1], data=[1])]}, "accepted: INT32"),
    "latents of another size": (
        DECODE, {"inputs": [one(name="latents", datatype="FP32", shape=[1, 4], data=[0] * 4)]}, "takes [N, 3]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_is_no_such_request_is_422(client: TestClient, name: str) -> None:
    path, document, words = DOCUMENTS[name]
    check(client.post(path, json=document), 422, "invalid-body", words)


@pytest.mark.parametrize("body", [b"", b"{", b"{'inputs': []}", b'{"inputs": NaN}', b"\xff\xfe"])
def test_what_is_no_json_is_422(client: TestClient, body: bytes) -> None:
    check(client.post(ENCODE, content=body), 422, "invalid-body", "not JSON")


def test_pixels_and_latents_that_are_no_such_thing_name_their_image(client: TestClient) -> None:
    for value, words in ((np.nan, "NaN"), (np.inf, "range from 0 to inf"), (1.5, "range from 0 to 1.5")):
        asked = in_bytes("images", spoilt(FLOATS, (1, 0, 3, 4), value))
        check(client.post(ENCODE, **asked), 422, "invalid-image", words, 1)
    large = in_json("images", spoilt(FLOATS, (1, 0, 3, 4), 2))
    check(client.post(ENCODE, **large), 422, "invalid-image", "range from 0 to 2", 1)
    latents = np.zeros((3, 3), np.float32)
    for value in (np.nan, -np.inf):
        check(client.post(DECODE, **in_bytes("latents", spoilt(latents, (2, 1), value))), 422, "invalid-latent", "", 2)
    huge = in_json("latents", latents)["content"].replace(b"0.0]", b"1e300]")
    check(client.post(DECODE, content=huge), 422, "invalid-latent", "finite float32", 2)
    files = [image_file(GREY[0, 0]), b"no image"]
    for asked in (in_bytes("images", files), in_json("images", files)):
        check(client.post(ENCODE, **asked), 422, "invalid-image", "none of PNG, JPEG, WebP", 1)
    broken = orjson.dumps({"inputs": [one(datatype="BYTES", shape=[2], data=[base64_png(GREY[0, 0]), "%%%"])]})
    check(client.post(ENCODE, content=broken), 422, "invalid-image", "not base64", 1)
    check(client.post(ENCODE, **in_bytes("images", GREY[:, :, :20])), 422, "invalid-image", "20×28 (height × width)", 0)
    check(
        client.post(ENCODE, **in_bytes("images", np.zeros((1, 2, 28, 28), np.uint8))), 422, "invalid-image", "2 ch", 0
    )


@pytest.mark.parametrize(
    ("length", "words"),
    [
        ("-1", "not a whole number"),
        ("1.5", "not a whole number"),
        ("", "not a whole number"),
        ("many", "not a whole number"),
        ("²", "not a whole number"),
        ("9" * 30, "says 99999999999999999999 bytes, but the body has"),
        ("0", "not JSON"),
        ("10", "not JSON"),
    ],
)
def test_a_wrong_length_of_the_json_is_422(client: TestClient, length: str, words: str) -> None:
    asked = in_bytes("images", GREY)
    headers: Any = {LENGTH: length.encode("latin-1")}
    check(client.post(ENCODE, content=asked["content"], headers=headers), 422, "invalid-body", words)


def test_binary_sizes_must_fit(client: TestClient) -> None:
    asked = in_bytes("images", GREY)
    check(client.post(ENCODE, **{**asked, "content": asked["content"][:-1]}), 422, "invalid-body", "783 bytes follow")
    check(client.post(ENCODE, **{**asked, "content": asked["content"] + b"x"}), 422, "invalid-body", "1 bytes are left")
    check(client.post(ENCODE, content=asked["content"]), 422, "invalid-body", "not JSON")
    for size, words in ((783, "has 784 bytes, but its binary_data_size is 783"), (0, "binary_data_size is 0")):
        head = orjson.dumps({"inputs": [one(data=..., parameters={"binary_data_size": size})]})
        answer = client.post(ENCODE, content=head + bytes(size), headers={LENGTH: str(len(head))})
        check(answer, 422, "invalid-body", words)


def test_files_that_are_cut_off_or_of_another_number_are_422(client: TestClient) -> None:
    png = image_file(GREY[0, 0])
    for data, count, words in (
        (elements([png])[:-1], 1, "element 0 of input images (BYTES [1]) is cut off"),
        (elements([png]) + b"\x01\x00", 2, "element 1"),
        (struct.pack("<I", 2**32 - 1) + png, 1, "element 0"),
        (elements([png]), 2, "has 2 elements, but its data have 1"),
        (elements([png] * 3), 2, "has 2 elements, but its data have 3"),
        (b"", 1, "has 1 elements, but its data have 0"),
    ):
        described = one(datatype="BYTES", shape=[count], data=..., parameters={"binary_data_size": len(data)})
        head = orjson.dumps({"inputs": [described]})
        answer = client.post(ENCODE, content=head + data, headers={LENGTH: str(len(head))})
        check(answer, 422, "invalid-body", words)
    check(client.post(ENCODE, **in_bytes("images", [b""])), 422, "invalid-image", "empty", 0)


@pytest.mark.parametrize(
    ("path", "parameters", "name", "words"),
    [
        (ENCODE, {"num_samples": 3}, "num_samples", "Extra inputs"),
        (ENCODE, {"resize": "perhaps"}, "resize", "boolean"),
        (ENCODE, {"resize": None}, "resize", "number, a text"),
        (ENCODE, {"resize": [True]}, "resize", "number, a text"),
        (ENCODE, {"model": "colour"}, "model", "in the path"),
        (ENCODE, {"version": 1}, "version", "in the path"),
        (ENCODE, {"timeout": -1}, "timeout", "microseconds"),
        (ENCODE, {"timeout": "soon"}, "timeout", "microseconds"),
        (ENCODE, {"timeout": True}, "timeout", "microseconds"),
        (SCORE, {"num_samples": 0}, "num_samples", "greater than or equal to 1"),
        (SCORE, {"num_samples": 1.5}, "num_samples", "integer"),
        (SCORE, {"max_std_error": "nan"}, "max_std_error", "greater than 0"),
        (ANOMALY, {"alpha": 0.1, "fdr": 0.1}, "alpha", "give one of them"),
        (ANOMALY, {"seed": 1}, "seed", "fixed by the model's calibration"),
        (ANOMALY, {"explain": True}, "explain", "no output here"),
        (ANOMALY, {"as": "array"}, "as", "not needed"),
        (ANOMALY, {"method": "log_likelihood,posterior_gap"}, "method", "one method"),
    ],
)
def test_a_wrong_parameter_is_named(
    client: TestClient, path: str, parameters: dict[str, Any], name: str, words: str
) -> None:
    answer = client.post(path, **in_bytes("images", GREY, parameters=parameters))
    check(answer, 422, "invalid-parameter", words)
    assert answer.json()["errors"][0]["parameter"] == name


def test_other_parameters_that_are_refused(client: TestClient) -> None:
    answer = client.post(SCORE, **in_bytes("images", GREY, parameters={"proposal": "magic"}))
    check(answer, 422, "invalid-parameter", "proposal")
    answer = client.post(ANOMALY, **in_bytes("images", GREY, parameters={"method": "magic"}))
    check(answer, 422, "invalid-parameter", "unknown method 'magic'")
    answer = client.post(SCORE, **in_bytes("images", GREY, parameters={"num_samples": 100_001}))
    check(answer, 413, "limit-exceeded", "at most 100000")
    for n in (0, -3):
        answer = client.post(SAMPLES, **in_bytes("n", np.array([n], np.int32)))
        check(answer, 422, "invalid-parameter", "n")


def test_the_limits_are_those_of_v1(serve: Serve, client: TestClient, digits: Any) -> None:
    small = serve(max_pixels=3000, max_json_bytes=4000, max_rows=900, max_answer_bytes=25_000, max_body_bytes=20_000)
    check(small.post(ENCODE, **in_bytes("images", digits[:4, None])), 413, "limit-exceeded", "3 images of this size")
    check(small.post(ENCODE, **in_json("images", digits[:3, None])), 413, "limit-exceeded", "send binary tensors")
    for files in ([image_file(digits[0])] * 4, [b""] * 70):
        check(small.post(ENCODE, **in_bytes("images", files)), 413, "limit-exceeded", "more than 3 files")
    check(small.post(ENCODE, content=bytes(20_001)), 413, "limit-exceeded", "20001 bytes")
    answer = small.post(SCORE, **in_bytes("images", digits[:3, None]))
    check(answer, 413, "limit-exceeded", "send at most 2 images at once")
    count = np.array([3], np.int32)
    check(
        small.post(SAMPLES, **in_json("n", count)), 413, "limit-exceeded", "at most 1 images at once or binary outputs"
    )
    binary = {"parameters": {"binary_data_output": True}}
    assert len(outputs_of(small.post(SAMPLES, **in_json("n", count, **binary)))["images"]) == 3
    lists = b'{"inputs":[{"data":[' + b"[]," * 2**16 + b"[]]}]}"
    check(client.post(ENCODE, content=lists), 413, "limit-exceeded", "lists; at most 65536")


def test_memory_is_counted_before_it_is_taken(serve: Serve, digits: Any) -> None:
    small = serve(max_memory_bytes=2**22, max_body_bytes=2**20)
    many = np.concatenate([digits] * 100)[:, None]
    check(small.post(ENCODE, **in_bytes("images", many)), 413, "limit-exceeded", "bytes of memory")
    packed = gzip.compress(bytes(2**20), 9)
    assert len(packed) < 2000
    headers = {"Content-Encoding": "gzip"}
    check(small.post(ENCODE, content=packed, headers=headers), 413, "limit-exceeded", "bytes of memory")
    budget = small.get("/metrics").text
    assert "logpx_held_memory_bytes 0.0" in budget
    assert small.post(ENCODE, **in_bytes("images", digits[:1, None])).status_code == 200


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_bodies_are_unpacked_within_the_limits(serve: Serve, digits: Any, coding: str) -> None:
    client = serve(max_body_bytes=100_000)
    asked = in_bytes("images", digits[:, None], parameters={"binary_data_output": True})
    pack = gzip.compress if coding == "gzip" else zlib.compress
    packed = pack(asked["content"])
    headers = {**asked["headers"], "Content-Encoding": coding}
    expected = outputs_of(client.post(ENCODE, **asked))
    for named in (coding, f" {coding.upper()} "):
        told = outputs_of(client.post(ENCODE, content=packed, headers={**headers, "Content-Encoding": named}))
        np.testing.assert_array_equal(told["mean"], expected["mean"], strict=True)
    for body, words in (
        (packed[:-1], "cut off"),
        (packed[:3], "cut off"),
        (b"", "cut off"),
        (packed + b"x", "more bytes follow"),
        (asked["content"], f"not {coding}"),
        (pack(packed), "not JSON"),
    ):
        check(client.post(ENCODE, content=body, headers=headers), 422, "invalid-body", words)
    bomb = pack(bytes(100_001))
    assert len(bomb) < 500
    check(
        client.post(ENCODE, content=bomb, headers=headers), 413, "limit-exceeded", "unpacks to more than 100000 bytes"
    )


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "x-gzip", "compress"])
def test_other_codings_are_415(client: TestClient, coding: str) -> None:
    answer = client.post(ENCODE, content=b"x", headers={"Content-Encoding": coding})
    check(answer, 415, "unsupported-media-type", "send the body as it is, or as gzip or deflate")
    answer = client.post("/v1/encode", content=b"x", headers={"Content-Encoding": coding})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")


def test_what_is_unpacked_is_told_before_it_is_there() -> None:
    told: list[int] = []
    body = zlib.compress(bytes(2**20))
    assert unpack(body, "deflate", 2**20, told.append) == bytes(2**20)
    assert told == sorted(told)
    assert told[-1] == 2**20
    assert len(told) >= 4

    def refuse(num_bytes: int) -> None:
        raise LimitError(str(num_bytes))

    with pytest.raises(LimitError, match="262144"):
        unpack(body, "deflate", 2**20, refuse)
    noise = np.random.default_rng(0).bytes(2**18)
    assert unpack(gzip.compress(noise), "gzip", 2**18, told.append) == noise
    with pytest.raises(InvalidBodyError, match="more bytes follow"):
        unpack(gzip.compress(noise) + bytes(2**17), "gzip", 2**18, told.append)


def test_a_method_that_is_none_and_a_path_that_is_none(client: TestClient) -> None:
    for method, path, status, slug in (
        ("GET", ENCODE, 405, "method-not-allowed"),
        ("POST", "/v2/health/live", 405, "method-not-allowed"),
        ("GET", "/v2/models", 404, "not-found"),
        ("GET", "/v2/models/digits.encode/config", 404, "not-found"),
        ("POST", "/v2/models/digits.encode/infer/more", 404, "not-found"),
    ):
        check(client.request(method, path), status, slug, "")
    assert client.get("/v2x").headers["content-type"] == "application/problem+json"
    check(client.post("/v2/models/nobody.encode/infer", **in_bytes("images", GREY)), 404, "unknown-model", "nobody")
    check(client.post("/v2/models/digits/infer", **in_bytes("images", GREY)), 404, "unknown-model", "MODEL.OPERATION")
