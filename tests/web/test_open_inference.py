"""`/v2`: the same answers as `/v1`, to the last bit, in the tensors of the Open Inference Protocol."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import structlog
from fastapi.testclient import TestClient

from model_store import ImageShape, PixelPreparation
from service.images.resampler import installed_resampler
from service.web.v2 import requests as v2_requests
from service.web.v2.inference import parse_inference
from tests.toys import AnyArray, bernoulli_toy
from tests.web.conftest import Serve, put
from tests.web.forms import image_file, npy, read_npy
from tests.web.open_inference import document_of, in_bytes, in_json, outputs_of
from tests.web.test_batching import backend_of, batches, hold_up, together

__all__ = ["batches"]  # a fixture
ENCODE, SCORE, ANOMALY = (f"/v2/models/digits.{name}/infer" for name in ("encode", "log-likelihood", "anomaly-scores"))
NPY = {"content-type": "application/x-npy"}
BINARY = {"parameters": {"binary_data_output": True}}
ROWS = ("log_likelihood", "bits_per_dim", "std_error", "elbo", "posterior_gap", "effective_sample_size", "pareto_k")


def v1(client: TestClient, path: str, images: Any, **headers: str) -> Any:
    return client.post(f"/v1/{path}", content=npy(images), headers={**NPY, **headers})


def floats(images: AnyArray) -> AnyArray:
    return images[:, None].astype(np.float32) / np.float32(255)


SENT: dict[str, Callable[[AnyArray], dict[str, Any]]] = {
    "UINT8 bytes": lambda images: in_bytes("images", images[:, None]),
    "UINT8 JSON": lambda images: in_json("images", images[:, None]),
    "FP32 bytes": lambda images: in_bytes("images", floats(images)),
    "FP32 JSON": lambda images: in_json("images", floats(images)),
    "BYTES bytes": lambda images: in_bytes("images", [image_file(image) for image in images]),
    "BYTES JSON": lambda images: in_json("images", [image_file(image) for image in images]),
}


@pytest.mark.parametrize("sent", SENT)
def test_codes_are_those_of_v1_to_the_bit_in_every_form(client: TestClient, digits: Any, sent: str) -> None:
    for images in (digits[:1], digits):
        expected = read_npy(v1(client, "encode", images, accept="application/x-npy").content)
        asked = SENT[sent](images)
        told = outputs_of(client.post(ENCODE, **asked))
        np.testing.assert_array_equal(np.stack([told["mean"], told["log_var"]], axis=1), expected, strict=True)


def test_outputs_as_bytes_are_the_same_bits(client: TestClient, digits: Any) -> None:
    in_text = outputs_of(client.post(ENCODE, **in_bytes("images", digits[:, None])))
    answer = client.post(ENCODE, **in_bytes("images", digits[:, None], **BINARY))
    for name, array in outputs_of(answer).items():
        np.testing.assert_array_equal(array, in_text[name], strict=True)
    assert [*in_text] == ["mean", "log_var"]


@pytest.mark.parametrize("members", [{}, BINARY], ids=["JSON", "bytes"])
def test_estimates_are_those_of_v1_to_the_bit(client: TestClient, digits: Any, members: dict[str, Any]) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (2, 28, 28), np.uint8)
    images = np.concatenate([digits[:3], noise])
    expected = read_npy(v1(client, "log-likelihood?num_samples=20&seed=3", images, accept="application/x-npy").content)
    parameters = {**members.get("parameters", {}), "num_samples": 20, "seed": "3"}
    answer = client.post(SCORE, **in_bytes("images", images[:, None], parameters=parameters))
    told = outputs_of(answer)
    assert [*told] == [*ROWS, "num_samples", "reliable"]
    assert told["num_samples"].dtype == np.int32
    for name, array in told.items():
        np.testing.assert_array_equal(array, expected[name])
    assert np.isnan(told["pareto_k"]).any() == np.isnan(expected["pareto_k"]).any()
    document = document_of(answer)
    assert (document["model_name"], document["model_version"]) == ("digits.log-likelihood", "2")
    assert document["parameters"] == {"proposal": "auto", "seed": 3}


def test_scores_are_those_of_v1_to_the_bit(client: TestClient, digits: Any) -> None:
    queries: dict[str, dict[str, Any]] = {
        "?method=": {},
        "?alpha=0.4&method=": {"alpha": 0.4, "method": "posterior_gap"},
        "?fdr=0.6&method=": {"fdr": 0.6},
    }
    for query, parameters in queries.items():
        path = f"anomaly-scores{query}{parameters.get('method', 'log_likelihood')}"
        expected = read_npy(v1(client, path, digits, accept="application/x-npy").content)
        answer = client.post(ANOMALY, **in_bytes("images", digits[:, None], parameters=parameters))
        told = outputs_of(answer)
        assert [*told] == ["score", "p_value", "log_likelihood", "posterior_gap", "is_anomaly"]
        for name, array in told.items():
            np.testing.assert_array_equal(array, expected[name], strict=name != "is_anomaly")
        said = {key: value for key, value in v1(client, path, digits).json().items() if value is not None}
        assert document_of(answer)["parameters"] == {
            key: said[key] for key in ("method", "alpha", "fdr", "calibration_size") if key in said
        }


def test_images_and_samples_are_those_of_v1_to_the_bit(client: TestClient) -> None:
    latents = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    path = "/v2/models/digits.decode/infer"
    expected = read_npy(v1(client, "decode", latents, accept="application/x-npy").content)
    for asked in (in_json("latents", latents), in_bytes("latents", latents, **BINARY)):
        np.testing.assert_array_equal(outputs_of(client.post(path, **asked))["images"], expected, strict=True)

    path, count = "/v2/models/digits.samples/infer", np.array([3], np.int32)
    drawn = client.get("/v1/samples?n=3&seed=7&temperature=0.5&as=array").json()
    answer = client.post(path, **in_bytes("n", count, parameters={"seed": 7, "temperature": 0.5}))
    told = outputs_of(answer)
    for name in ("images", "latents"):
        np.testing.assert_array_equal(told[name], np.array(drawn[name], np.float32), strict=True)
    again = document_of(client.post(path, **in_json("n", count)))["parameters"]
    assert 0 <= again["seed"] <= 2**53
    assert client.post(path, **in_json("n", np.array([3], np.int32), parameters=again)).status_code == 200


def test_large_answers_in_pieces_are_the_same(client: TestClient) -> None:
    """More numbers than one piece of JSON has, and more bytes than one piece."""
    latents = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
    path = "/v2/models/digits.decode/infer"
    in_text = outputs_of(client.post(path, **in_bytes("latents", latents)))["images"]
    answer = client.post(path, **in_bytes("latents", latents, **BINARY))
    assert int(answer.headers["content-length"]) == len(answer.content) > 2**20
    np.testing.assert_array_equal(outputs_of(answer)["images"], in_text, strict=True)


CAPTURED = (
    b'{"id":"7","inputs":[{"name":"images","shape":[1,1,28,28],"datatype":"UINT8",'
    b'"parameters":{"binary_data_size":784}}],"outputs":[{"name":"log_var","parameters":{"binary_data":true}},'
    b'{"name":"mean","parameters":{"binary_data":false}}],"parameters":{"sequence_id":0,"priority":1,'
    b'"timeout":60000000,"triton_enable_empty_final_response":false,"headers":{"a":"b"}}}'
)
"""What tritonclient's `infer` sends, with all that it can add."""


def test_wanted_outputs_come_in_their_order_and_each_in_its_form(client: TestClient, digits: Any) -> None:
    headers: Any = {"Inference-Header-Content-Length": str(len(CAPTURED)), "X-Anything": "å".encode()}
    answer = client.post(ENCODE, content=CAPTURED + digits[0].tobytes(), headers=headers)
    document = document_of(answer)
    assert document["id"] == "7"
    assert [(output["name"], "data" in output) for output in document["outputs"]] == [
        ("log_var", False),
        ("mean", True),
    ]
    whole = outputs_of(client.post(ENCODE, **in_bytes("images", digits[:1, None])))
    for name, array in outputs_of(answer).items():
        np.testing.assert_array_equal(array, whole[name], strict=True)


def test_what_kserve_and_mlserver_add_is_ignored(client: TestClient, digits: Any) -> None:
    """kserve's SDK puts the model's name into the body; MLServer parameters into inputs and outputs."""
    asked = orjson.loads(in_json("images", digits[:1, None])["content"])
    asked |= {"model_name": "other", "id": None, "outputs": [], "parameters": None}
    asked["inputs"][0]["parameters"] = {"content_type": "np", "headers": {}}
    expected = outputs_of(client.post(ENCODE, **in_json("images", digits[:1, None])))
    told = outputs_of(client.post(ENCODE, json=asked, headers={"content-type": "text/strange"}))
    np.testing.assert_array_equal(told["mean"], expected["mean"], strict=True)
    asked["inputs"][0]["data"] = digits[:1, None].tolist()  # nested as its shape says
    np.testing.assert_array_equal(outputs_of(client.post(ENCODE, json=asked))["mean"], expected["mean"], strict=True)


def test_versions_are_chosen_by_the_path(client: TestClient, digits: Any) -> None:
    asked = in_bytes("images", digits[:2, None], **BINARY)
    means = []
    for version in (1, 2):
        answer = client.post(f"/v2/models/digits.encode/versions/{version}/infer", **asked)
        assert document_of(answer)["model_version"] == answer.headers["x-model-version"] == str(version)
        means.append(outputs_of(answer)["mean"])
        expected = read_npy(v1(client, f"encode?version={version}", digits[:2], accept="application/x-npy").content)
        np.testing.assert_array_equal(means[-1], expected[:, 0], strict=True)
    assert not np.allclose(means[0], means[1])
    for wrong in ("0", "3", "-1", "1.0", "one", "9" * 5000):
        answer = client.post(f"/v2/models/digits.encode/versions/{wrong}/infer", **asked)
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:logpx:problem:unknown-model"), wrong


def test_health_and_metadata(client: TestClient) -> None:
    assert client.get("/v2/health/live?any=1&thing=2").json() == {"live": True}
    assert client.get("/v2/health/ready?any=1").json() == {"ready": True}
    for path in ("/v2", "/v2/", "/v2?x=y"):
        server = client.get(path).json()
        assert server["name"] == "logpx"
        assert "binary_tensor_data" in server["extensions"]
    told = client.get("/v2/models/colour.samples").json()
    assert told == {
        "name": "colour.samples",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "n", "datatype": "INT32", "shape": [1]}],
        "outputs": [
            {"name": "images", "datatype": "FP32", "shape": [-1, 3, 8, 6]},
            {"name": "latents", "datatype": "FP32", "shape": [-1, 3]},
        ],
    }
    told = client.get("/v2/models/digits.log-likelihood/versions/1").json()
    assert told["versions"] == ["1", "2"]
    assert told["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 28, 28]}]
    assert [(output["name"], output["datatype"]) for output in told["outputs"]] == [
        *((name, "FP64") for name in ROWS), ("num_samples", "INT32"), ("reliable", "BOOL"),
    ]  # fmt: skip
    assert client.get("/v2/models/digits.decode").json()["inputs"][0]["shape"] == [-1, 3]
    for path in ("digits.encode", "digits.encode/versions/1", "linear-gaussian.decode"):
        ready = client.get(f"/v2/models/{path}/ready")
        assert (ready.status_code, ready.json()["ready"]) == (200, True)
    for wrong in ("digits", "digits.", ".encode", "nobody.encode", "digits.encode/versions/9", "digits.encode.x"):
        for path in (f"/v2/models/{wrong}", f"/v2/models/{wrong}/ready"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
            assert answer.json()["error"] == answer.json()["detail"]


def test_the_repository_is_listed(serve: Serve, store: Path, digits: Any) -> None:
    client = serve(max_other_versions=1)
    rows = client.post("/v2/repository/index").json()
    assert len(rows) == 5 * 4
    states = {(row["name"], row["version"]): (row["state"], bool(row["reason"])) for row in rows}
    assert states["digits.encode", "2"] == ("READY", False)
    assert states["digits.encode", "1"] == ("UNAVAILABLE", True)
    assert client.get("/v2/models/digits.encode/versions/1/ready").status_code == 200  # loads it
    ready = client.post("/v2/repository/index", json={"ready": True}).json()
    assert {row["state"] for row in ready} == {"READY"}
    assert len(ready) == len(rows)
    for body, status in ((b"[]", 422), (b"{", 422), (b'{"ready":1}', 422), (b" " * 70_000, 413)):
        answer = client.post("/v2/repository/index", content=body)
        assert (answer.status_code, "error" in answer.json()) == (status, True)


def test_keys_close_all_but_health_and_load_takes_an_admin_key(serve: Serve, digits: Any) -> None:
    key, admin = "key-of-a-client-of-v2", "key-of-the-admin-of-v2"
    closed = serve(api_keys=key, admin_keys=admin)
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert closed.get(path).status_code == 200
    asked = in_bytes("images", digits[:1, None])
    answers = [closed.get(path) for path in ("/v2", "/v2/models/digits.encode", "/v2/models/digits.encode/ready")]
    answers += [closed.post(ENCODE, **asked), closed.post("/v2/repository/index")]
    answers += [closed.post(f"/v2/repository/models/digits/{what}") for what in ("load", "unload")]
    for answer in answers:
        assert (answer.status_code, answer.headers["content-type"]) == (401, "application/json")
        assert "X-API-Key" in answer.json()["error"]
        assert answer.headers["www-authenticate"]
    keyed = {"X-API-Key": key}
    assert closed.post(ENCODE, content=asked["content"], headers={**asked["headers"], **keyed}).status_code == 200
    load = "/v2/repository/models/digits.encode/load"
    assert closed.post(load, headers=keyed).status_code == 403
    with_admin = {"Authorization": f"Bearer {admin}"}
    for name, body in (("digits", b""), ("digits.encode", b"{}"), ("digits", b'{"parameters":{}}')):
        answer = closed.post(f"/v2/repository/models/{name}/load", content=body, headers=with_admin)
        assert (answer.status_code, answer.json()) == (200, {"name": name, "load": True})
    assert closed.post("/v2/repository/models/nobody.encode/load", headers=with_admin).status_code == 404
    answer = closed.post(load, json={"parameters": {"config": "{}"}}, headers=with_admin)
    assert (answer.status_code, "the store" in answer.json()["error"]) == (422, True)
    answer = closed.post("/v2/repository/models/digits/unload", headers=with_admin)
    assert (answer.status_code, "remove or pin" in answer.json()["error"]) == (501, True)
    text = closed.get("/metrics", headers=keyed).text
    assert 'logpx_reloads_total{outcome="unchanged"} 4.0' in text


def test_without_an_admin_key_load_is_off(client: TestClient) -> None:
    answer = client.post("/v2/repository/models/digits/load")
    assert (answer.status_code, answer.json()["type"]) == (403, "urn:logpx:problem:forbidden")


def test_requests_share_batches_with_v1(serve: Serve, digits: Any, batches: list[tuple[str, int]]) -> None:
    client = serve()
    images = {"first": digits[:1], "second": digits[1:4], "third": digits[4:5]}

    def encode(part: Any) -> Any:
        return outputs_of(client.post(ENCODE, **in_bytes("images", part[:, None], **BINARY)))["mean"]

    def score(part: Any) -> Any:
        parameters = {"proposal": "laplace", "num_samples": 20}
        return outputs_of(client.post(SCORE, **in_bytes("images", part[:, None], parameters=parameters)))

    def score_v1() -> Any:
        return v1(client, "log-likelihood?proposal=laplace&num_samples=20", images["second"]).json()["results"]

    alone = [score(images["first"]), score_v1()]
    batches.clear()
    shared = together(
        client,
        [
            lambda: score(images["first"]),
            score_v1,
            lambda: encode(images["third"]),
            lambda: v1(client, "encode", images["second"]).status_code,
        ],
    )
    assert sorted(batches) == [("encode", 4), ("infer", 4)]
    for name, array in shared[0].items():
        np.testing.assert_array_equal(array, alone[0][name], strict=True)
    assert shared[1] == alone[1]


def test_deadlines_and_a_full_queue_are_as_on_v1(serve: Serve, digits: Any) -> None:
    client = serve(max_queued_requests=1)
    gate = hold_up(client)
    refused = client.post(ENCODE, **in_bytes("images", digits[:1, None]))
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"] == refused.json()["detail"]
    gate.set()
    client = serve()
    gate = hold_up(client)
    by_parameter = in_bytes("images", digits[:1, None], parameters={"timeout": 20_000})
    by_header = in_bytes("images", digits[:1, None])
    by_header["headers"]["X-Request-Timeout-Ms"] = "20"
    for asked in (by_parameter, by_header):
        answer = client.post(ENCODE, **asked)
        assert (answer.status_code, answer.headers["content-type"]) == (504, "application/json")
        assert "0.02 s" in answer.json()["error"]
    by_header["headers"]["X-Request-Timeout-Ms"] = "soon"
    assert client.post(ENCODE, **by_header).status_code == 422
    gate.set()


def test_the_work_of_a_client_that_has_gone_is_dropped(client: TestClient, digits: Any) -> None:
    gate = hold_up(client)
    asked = in_bytes("images", digits[:1, None])
    headers = [(name.lower().encode(), value.encode()) for name, value in asked["headers"].items()]
    received = iter([{"type": "http.request", "body": asked["content"]}, {"type": "http.disconnect"}])
    queued: list[int] = []

    async def receive() -> Any:
        message = next(received)
        queued.append(backend_of(client)._scheduler.queued_jobs)
        return message

    async def send(_: Any) -> None:
        """Nobody reads it."""

    async def ask() -> None:
        scope = {"type": "http", "method": "POST", "path": ENCODE, "query_string": b"", "headers": headers}
        await client.app({**scope, "client": None, "root_path": ""}, receive, send)

    assert client.portal is not None
    with structlog.testing.capture_logs() as lines:
        client.portal.call(ask)
    assert [(line["status"], line["problem"]) for line in lines if line["event"] == "request"] == [(499, "client-gone")]
    assert queued == [1, 2]
    gate.set()
    assert client.post(ENCODE, **asked).status_code == 200


def test_what_was_asked_is_logged_and_counted_by_its_route(serve: Serve, digits: Any) -> None:
    client = serve(max_body_bytes=5000, max_json_bytes=4000)
    with structlog.testing.capture_logs() as lines:
        client.post(ENCODE, **in_bytes("images", digits[:2, None]))
        client.post("/v2/models/digits.encode/versions/1/infer", **in_bytes("images", digits[:2, None]))
        client.post(ANOMALY, content=bytes(6000))  # by its head alone
        client.post(ANOMALY, **in_bytes("images", digits[:1, None]))
        client.post("/v2/models/digits.nothing/infer", content=b"{}")
        client.get("/v2/models/digits.encode/and/more")
    told = [line for line in lines if line["event"] == "request"]
    assert [(line["status"], line.get("model"), line.get("rows")) for line in told] == [
        (200, "digits", 2), (200, "digits", 2), (413, None, None), (200, "digits", told[3]["rows"]),
        (404, None, None), (404, None, None),
    ]  # fmt: skip
    text = client.get("/metrics").text
    for labels in (
        'model="digits",route="/v2/models/{name}.encode/infer",status="200",version="2"',
        'model="digits",route="/v2/models/{name}.encode/versions/{version}/infer",status="200",version="1"',
        'model="",route="/v2/models/{name}.anomaly-scores/infer",status="413",version=""',
        'model="",route="/v2/models/{name}/infer",status="404",version=""',
        'model="",route="unknown",status="404",version=""',
    ):
        assert f"{labels}}} 1.0" in text, labels
    assert 'logpx_p_values_count{method="log_likelihood",model="digits",version="2"} 1.0' in text


def test_a_service_behind_a_prefix_answers_the_same(serve: Serve, digits: Any) -> None:
    behind = serve(root_path="/lab/logpx")
    for prefix in ("", "/lab/logpx"):
        asked = in_bytes("images", digits[:1, None])
        assert behind.post(f"{prefix}{ENCODE}", **asked).status_code == 200
        answer = behind.post(f"{prefix}/v2/nowhere")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
        coded = behind.post(f"{prefix}{ENCODE}", content=b"x", headers={"Content-Encoding": "br"})
        assert coded.headers["accept-encoding"] == "identity, gzip, deflate"
    text = behind.get("/metrics").text
    assert 'model="digits",route="/v2/models/{name}.encode/infer",status="200",version="2"} 2.0' in text


def test_large_json_is_parsed_beside_the_event_loop(
    client: TestClient, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def parse(*given: Any, **named: Any) -> Any:
        threads.append(threading.current_thread().name)
        return parse_inference(*given, **named)

    monkeypatch.setattr(v2_requests, "parse_inference", parse)
    small, large = in_bytes("images", digits[:1, None]), in_json("images", floats(digits))
    assert len(large["content"]) > 2**15
    for asked in (small, large):
        outputs_of(client.post(ENCODE, **asked))
    event_loop, other = threads
    assert event_loop != other
    assert "worker" in other.lower()


@pytest.fixture(scope="module")
def any_size(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """A model that takes images of any size."""
    root = tmp_path_factory.mktemp("any-size")
    fields = {"size": (12, 16), "fit": "crop", "colour": "grey", "resampler": installed_resampler()}
    shape = ImageShape(channels=1, height=12, width=16)
    put(root, bernoulli_toy(shape, name="photos", preparation=PixelPreparation.model_validate(fields)))
    return serve(model_store=root, model="photos")


def test_photographs_of_any_size_are_prepared_as_on_v1(any_size: TestClient) -> None:
    """By the same decoders; levels and floats as npy, files as a form."""
    photo = np.random.default_rng(1).integers(0, 256, (90, 70), np.uint8)
    files = [image_file(photo), image_file(photo[:50], "JPEG"), image_file(np.stack([photo] * 3, axis=-1), "WEBP")]
    form = [("images", ("x", file, "image/png")) for file in files]
    path = "/v2/models/photos.encode/infer"
    expected = any_size.post("/v1/encode", files=form, headers={"accept": "application/x-npy"})
    for asked in (in_bytes("images", files, **BINARY), in_json("images", files)):
        np.testing.assert_array_equal(
            outputs_of(any_size.post(path, **asked))["mean"], read_npy(expected.content)[:, 0]
        )
    for images in (photo[None, None], floats(photo[None])):
        expected = v1(any_size, "encode", images, accept="application/x-npy")
        told = outputs_of(any_size.post(path, **in_bytes("images", images, **BINARY)))
        np.testing.assert_array_equal(told["mean"], read_npy(expected.content)[:, 0])


def test_every_operation_is_described(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for name in ("encode", "decode", "samples", "log-likelihood", "anomaly-scores"):
        for path in (f"/v2/models/{{name}}.{name}/infer", f"/v2/models/{{name}}.{name}/versions/{{version}}/infer"):
            posted = paths[path]["post"]
            assert posted["requestBody"]["content"].keys() == {"application/json", "application/octet-stream"}
            assert posted["responses"]["200"]["content"].keys() == {"application/json", "application/octet-stream"}
            assert posted["responses"]["4XX"]["content"].keys() == {"application/json"}
            where = {(one["in"], one["name"]) for one in posted["parameters"]}
            assert ("header", "X-Request-Timeout-Ms") in where
            assert ("path", "name") in where
            assert not any(place == "query" for place, _ in where)
