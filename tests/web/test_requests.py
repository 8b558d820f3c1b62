"""Bodies as programs really write them, forms of many parts, and answers that would be too large."""

import base64
import threading
from typing import Any

import numpy as np
import orjson
import pytest
from fastapi.testclient import TestClient

from model_store import ImageShape
from service.web import bodies, multipart, requests
from service.web.answer_size import Form, anomalies_bytes, images_bytes, latents_bytes, log_likelihoods_bytes
from tests.web.conftest import COLOUR_SHAPE, DIGIT_SHAPE, Serve
from tests.web.forms import image_file, json_body, npy
from tests.web.test_wrong_input import AS_JSON, AS_NPY, AS_PNG, DECODE, ENCODE, GREY, NOISE, SCORE, check

FORM = {"content-type": "multipart/form-data; boundary=x"}
PART = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'


def encoded(client: TestClient, content: bytes, content_type: str) -> Any:
    answer = client.post(ENCODE, content=content, headers={"content-type": content_type})
    assert answer.status_code == 200, answer.text
    return answer.json()["mean"]


@pytest.mark.parametrize(
    ("content_type", "file_format"),
    [
        ("image/jpg", "JPEG"),
        ("image/pjpeg", "JPEG"),
        ("Image/JPEG; charset=binary", "JPEG"),
        ("image/x-png", "PNG"),
        ("IMAGE/PNG;q=1", "PNG"),
    ],
)
def test_other_names_of_a_content_type_are_taken(client: TestClient, content_type: str, file_format: str) -> None:
    content = image_file(NOISE, file_format)
    assert encoded(client, content, content_type) == encoded(client, content, f"image/{file_format.lower()}")


def wrapped(text: str) -> str:
    return "".join(text[start : start + 76] + "\r\n" for start in range(0, len(text), 76))


def test_base64_is_taken_as_programs_write_it(client: TestClient) -> None:
    content = image_file(NOISE)
    standard, safe = base64.b64encode(content).decode(), base64.urlsafe_b64encode(content).decode()
    assert set("-_") & set(safe)
    assert "=" in standard
    texts = [standard, wrapped(standard), standard + "\n", safe, wrapped(safe), standard.rstrip("="), safe.rstrip("=")]
    texts += [f"data:image/png;base64,{standard}", f"DATA:;BASE64,{wrapped(safe)}"]
    means = encoded(client, json_body(texts), "application/json")
    assert means == encoded(client, content, "image/png") * len(texts)


@pytest.mark.parametrize("text", ["data:image/png,%89PNG", "iVBOR", "iVB=ORw0", "iVBORw0KGgo=====", "iVBÖ", "iV*B"])
def test_what_is_no_base64_is_named(client: TestClient, text: str) -> None:
    check(client.post(ENCODE, content=json_body([text]), headers=AS_JSON), 422, "invalid-image", "base64", 0)


def test_a_byte_order_mark_before_json_is_ignored(client: TestClient) -> None:
    body = json_body([base64.b64encode(image_file(NOISE)).decode()])
    assert encoded(client, b"\xef\xbb\xbf" + body, "application/json") == encoded(client, body, "application/json")
    latents = b'\xef\xbb\xbf{"latents": [[0, 0, 0]]}'
    assert client.post(DECODE, content=latents, headers=AS_JSON).status_code == 200
    check(client.post(ENCODE, content=body.decode().encode("utf-16"), headers=AS_JSON), 422, "invalid-body", "not JSON")


def test_json_of_very_many_lists_is_refused_before_it_is_parsed(client: TestClient) -> None:
    """700 000 empty lists in 2 MB took seconds, in which nobody else was answered."""
    most = bodies.MAX_JSON_LISTS - 2
    for key, path, few in (("images", ENCODE, "images"), ("latents", DECODE, "latents")):
        body = b'{"%s": [%s]}' % (key.encode(), b",".join([b"[]"] * (most + 1)))
        check(client.post(path, content=body, headers=AS_JSON), 413, "limit-exceeded", "65537 lists")
        body = b'{"%s": [%s]}' % (key.encode(), b",".join([b"[]"] * most))
        assert client.post(path, content=body, headers=AS_JSON).json()["detail"].count(few[:-1]) > 0


def test_a_form_is_read_as_rfc_7578_lets_it_be_written(client: TestClient) -> None:
    png = image_file(NOISE)
    expected = encoded(client, png, "image/png")
    heads = [
        b'Content-Disposition: form-data; name="images"; filename="a"',
        b'Content-Type: image/png\r\ncontent-disposition: form-data; filename=""; name=images\r\nX-More: yes',
        b'Content-Disposition: form-data; name="images"; filename="a \\"quoted\\"; name=b.png"',
        b"Content-Disposition: form-data; name=images; filename*=UTF-8''%c3%a4.png",
    ]
    parts = b"".join(b"\r\n--x \t\r\n" + head + b"\r\n\r\n" + png for head in heads)
    body = b"a preamble, which is ignored" + parts + b"\r\n--x--\r\nan epilogue: --x\r\n"
    assert encoded(client, body, FORM["content-type"]) == expected * len(heads)
    longer = PART + png + b"\r\n--xyz, which is no boundary" + b"\r\n--x--"  # bytes after an image are passed over
    assert encoded(client, longer, FORM["content-type"]) == expected


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "closing boundary"),
        (b"--x--\r\n", "no image"),
        (PART[:40], "closing boundary"),
        (PART + b"\r\n", "closing boundary"),
        (b"--x\r\n\r\nno head\r\n--x--", "which field"),
        (b"--x\r\nContent-Disposition: attachment\r\n\r\n\r\n--x--", "which field"),
        (b"--x\r\nno end of the head\r\n--x--", "headers do not end"),
        (PART.replace(b"\r\n\r\n", b"\r\nx: " + b"y" * 5000 + b"\r\n\r\n") + b"\r\n--x--", "4096 bytes"),
        (PART.replace(b"images", b"a") + b"\r\n" + PART.replace(b"images", b"b") + b"\r\n--x--", "fields: 'a', 'b'"),
    ],
)
def test_a_wrong_form_is_named(client: TestClient, body: bytes, words: str) -> None:
    check(client.post(ENCODE, content=body, headers=FORM), 422, "invalid-body", words)


def test_a_form_without_a_boundary_is_named(client: TestClient) -> None:
    headers = {"content-type": "multipart/form-data"}
    check(client.post(ENCODE, content=b"--x--", headers=headers), 422, "invalid-body", "names no boundary")


def test_a_form_of_very_many_parts_is_refused(client: TestClient, serve: Serve) -> None:
    empty = PART + b"\r\n"
    check(client.post(ENCODE, content=empty * 21_399 + b"--x--", headers=FORM), 422, "invalid-image", "empty", 0)
    check(client.post(ENCODE, content=empty * 21_400 + b"--x--", headers=FORM), 413, "limit-exceeded", "21399 files")
    text = empty.replace(b'; filename="a"', b"").replace(b"images", b"other")
    few = serve(max_pixels=28 * 28 * 3)
    check(few.post(ENCODE, content=text * 4 + b"--x--", headers=FORM), 413, "limit-exceeded", "more than 3 files")


def test_others_are_answered_while_a_form_is_read(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, answered = threading.Event(), threading.Event()
    read_files = multipart.read_files

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert answered.wait(60)
        return read_files(*arguments)

    monkeypatch.setattr(requests, "read_files", slow)
    answers: list[Any] = []
    body = PART + image_file(NOISE) + b"\r\n--x--"
    thread = threading.Thread(target=lambda: answers.append(client.post(ENCODE, content=body, headers=FORM)))
    thread.start()
    assert begun.wait(60)
    assert client.get("/livez").status_code == 200
    answered.set()
    thread.join()
    assert answers[0].status_code == 200


def test_an_answer_too_large_is_refused_before_it_is_computed(serve: Serve) -> None:
    client = serve(max_answer_bytes=20_000)
    before = client.get("/metrics").text
    latents = orjson.dumps({"latents": [[0, 0, 0]] * 30})
    images = npy(np.stack([GREY] * 200))
    refused = [
        client.get("/v1/samples?n=30&as=array"),
        client.get("/v1/samples?n=300"),
        client.get("/v1/samples?n=30", headers={"accept": "application/x-npy"}),
        client.get("/v1/samples?n=100", headers={"accept": "image/png"}),
        client.post(f"{DECODE}?as=array", content=latents, headers=AS_JSON),
        client.post(ENCODE, content=images, headers=AS_NPY),
        client.post(f"{SCORE}?num_samples=4", content=images, headers=AS_NPY),
        client.post("/v1/anomaly-scores?method=kl&explain=true&as=array", content=image_file(GREY), headers=AS_PNG),
    ]
    for answer in refused:
        check(answer, 413, "limit-exceeded", "at most 20000 are given: ask for ")
    after = client.get("/metrics").text
    assert [line for line in after.splitlines() if line.startswith("logpx_rows_total")] == [
        line for line in before.splitlines() if line.startswith("logpx_rows_total")
    ]
    (fewer,) = (int(word) for word in refused[0].json()["detail"].split() if word.isdigit() and int(word) < 30)
    assert client.get(f"/v1/samples?n={fewer}&as=array").status_code == 200
    assert client.get(f"/v1/samples?n={fewer + 1}&as=array").status_code == 413


@pytest.mark.parametrize("model", ["digits", "colour"])
@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_no_answer_is_larger_than_was_told(client: TestClient, model: str, count: int) -> None:
    shape = {"digits": DIGIT_SHAPE, "colour": COLOUR_SHAPE}[model]
    query = f"model={model}&n={count}&temperature=3"
    for media in ("application/json", "application/x-npy", "image/png"):
        for form in ("png", "array"):
            answer = client.get(f"/v1/samples?{query}&as={form}", headers={"accept": media})
            told = images_bytes(count, shape, media, form, latent_dim=3)
            assert told / 40 < len(answer.content) <= told
    noise = np.random.default_rng(count).integers(0, 256, (count, *shape.chw), np.uint8)
    for media in ("application/json", "application/x-npy"):
        answer = client.post(f"{ENCODE}?model={model}", content=npy(noise), headers={**AS_NPY, "accept": media})
        assert len(answer.content) <= latents_bytes(count, 3, media)
    answer = client.post(f"{SCORE}?model={model}&num_samples=4", content=npy(noise), headers=AS_NPY)
    assert len(answer.content) <= log_likelihoods_bytes(count)
    forms: tuple[Form, ...] = ("png", "array")
    for form in forms:
        path = f"/v1/anomaly-scores?model={model}&explain=true&as={form}"
        answer = client.post(path, content=npy(noise), headers=AS_NPY)
        assert answer.status_code == 200, answer.text
        assert len(answer.content) <= anomalies_bytes(count, shape, 1, form, explain=True)


def test_the_bounds_hold_for_the_longest_numbers_and_for_noise() -> None:
    shape = ImageShape(channels=3, height=20, width=30)
    longest = np.full((2, *shape.chw), -1.17549435e-38, np.float32)
    assert len(orjson.dumps(longest, option=orjson.OPT_SERIALIZE_NUMPY)) <= images_bytes(
        2, shape, "application/json", "array"
    )
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert 4 * len(image_file(noise)) / 3 <= images_bytes(1, shape, "application/json", "png") - 1024
    doubles = np.full((1, *shape.chw), -2.2250738585072014e-308)
    assert len(orjson.dumps(doubles, option=orjson.OPT_SERIALIZE_NUMPY)) <= anomalies_bytes(
        1, shape, 1, "array", explain=True
    )
