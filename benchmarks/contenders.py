"""Who is compared by serving_peers.py: each server's command, and what its clients send and read."""

import base64
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_store import BUNDLED, ENCODER, open_version

PEERS = Path(__file__).parent / "peers"
GRAPH = open_version(BUNDLED, "mnist").path / ENCODER
CONNECTIONS = 32
BATCH = 64
BATCH_CONNECTIONS = 4
OURS = [sys.executable, "-m", "service"]  # LOGPX_PORT tells it the port
Headers = dict[str, str]
Digits = NDArray[np.uint8]
Means = NDArray[np.float32]


@dataclass(frozen=True)
class Contender:
    """A server, and how its clients ask; `means` reads an answer's body: [B, D]."""

    name: str
    command: Sequence[str]
    path: str
    body: Callable[[Digits], bytes]
    means: Callable[[bytes], Means] | None
    headers: Headers
    bar: float | None = None
    connections: int = CONNECTIONS


def png(digits: Digits) -> bytes:
    """One digit [1, 28, 28] as a file."""
    stream = io.BytesIO()
    Image.fromarray(digits[0]).save(stream, "PNG")
    return stream.getvalue()


def base64_png(digits: Digits) -> str:
    """The same as text."""
    return base64.b64encode(png(digits)).decode()


def npy(array: NDArray[np.generic]) -> bytes:
    """An npy file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def json_means(body: bytes) -> Means:
    """`{"mean": [[D]] or [D]}`, or a list with one of these."""
    document = json.loads(body)
    if isinstance(document, list):
        (document,) = document
    return np.atleast_2d(np.array(document["mean"], np.float32))


def v2_json_means(body: bytes) -> Means:
    """The V2 protocol's output `mean`."""
    output = next(output for output in json.loads(body)["outputs"] if output["name"] == "mean")
    return np.array(output["data"], np.float32).reshape(output["shape"])


def v2_binary(
    datatype: str, payload: Callable[[Digits], bytes], name: str, shape: Sequence[int]
) -> tuple[Callable[[Digits], bytes], Headers]:
    """A request of the V2 protocol's binary extension, and its headers: its JSON is always as long."""

    def header(size: int) -> bytes:
        image = {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
        document = {"inputs": [image], "parameters": {"binary_data_output": True}}
        return json.dumps(document).encode().ljust(200)  # JSON may end in spaces

    def body(digits: Digits) -> bytes:
        data = payload(digits)
        return header(len(data)) + data

    length = str(len(header(0)))
    return body, {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": length}


def v2_binary_means(body: bytes) -> Means:
    """The tensors lie behind the JSON, `mean` first."""
    document, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    output = document["outputs"][0]
    size = output["parameters"]["binary_data_size"]
    assert output["name"] == "mean"
    return np.frombuffer(body[end : end + size], np.float32).reshape(output["shape"])


def litserve_body(digits: Digits) -> bytes:
    """The shape that LitServe's examples give an image."""
    return json.dumps({"image": base64_png(digits)}).encode()


def bentoml_body(digits: Digits) -> bytes:
    """What a route that makes batches takes: a list."""
    return json.dumps({"images": [base64_png(digits)]}).encode()


def mlserver_body(digits: Digits) -> bytes:
    """The V2 protocol's JSON, the file in base64."""
    image = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": [base64_png(digits)]}
    return json.dumps({"inputs": [{**image, "parameters": {"content_type": "base64"}}]}).encode()


def bytes_element(digits: Digits) -> bytes:
    """A PNG as the one element of a BYTES tensor: its length, then itself."""
    content = png(digits)
    return len(content).to_bytes(4, "little") + content


def ours_of(processes: int) -> tuple[list[str], str]:
    """The command that serves with so many processes on one port, and what its name ends with."""
    if processes == 1:
        return OURS, ""
    return [*OURS, "serve", "--processes", str(processes)], f", {processes} processes"


def contenders(python: Mapping[str, str | None], *, v2: bool = False, processes: int = 1) -> list[Contender]:
    """Ours, the floor, and the peers that have a Python; with `v2` ours is the Open Inference Protocol."""
    image, json_type = {"Content-Type": "image/png"}, {"Content-Type": "application/json"}

    def command(script: str, interpreter: str) -> list[str]:
        return [interpreter, str(PEERS / f"{script}.py"), "{port}", str(GRAPH)]

    floor = command("fastapi_server", sys.executable)
    body, binary = v2_binary("BYTES", bytes_element, "images", [1])
    serving, end = ours_of(processes)
    ours = Contender(f"logpx, PNG{end}", serving, "/v1/encode", png, json_means, image)
    if v2:
        ours = Contender(
            f"logpx /v2, PNG{end}", serving, "/v2/models/mnist.encode/infer", body, v2_binary_means, binary
        )
    found = [
        ours,
        Contender("bare FastAPI route", floor, "/v1/encode", png, None, image, bar=0.6),
    ]
    if interpreter := python["litserve"]:
        start, path = command("litserve_server", interpreter), "/predict"
        found.append(Contender("LitServe, base64 PNG", start, path, litserve_body, json_means, json_type, bar=5))
    if interpreter := python["bentoml"]:
        start, path = command("bentoml_server", interpreter), "/encode"
        found.append(Contender("BentoML, base64 PNG", start, path, bentoml_body, json_means, json_type))
    if interpreter := python["mlserver"]:
        start, path = command("mlserver_server", interpreter), "/v2/models/encoder/infer"
        found.append(Contender("MLServer, base64 PNG", start, path, mlserver_body, v2_json_means, json_type, bar=3))
    if interpreter := python["triton"]:
        kinds: list[tuple[str, str, str, str, Callable[[Digits], bytes]]] = [
            ("Triton's Python backend, PNG", "triton_server", "encode_png", "BYTES", bytes_element),
            ("Triton's Python backend, pixels", "triton_server", "encode_pixels", "UINT8", np.ndarray.tobytes),
            ("Triton through pytriton, PNG", "pytriton_server", "encode_png", "BYTES", bytes_element),
        ]
        for name, script, model, datatype, payload in kinds:
            body, binary = v2_binary(datatype, payload, "image", [1, 1] if datatype == "BYTES" else [1, 1, 28, 28])
            start, path = command(script, interpreter), f"/v2/models/{model}/infer"
            found.append(Contender(name, start, path, body, v2_binary_means, binary, bar=1))
    return found


def batch_contenders(processes: int = 1) -> list[Contender]:
    """Batches of 64, npy in and out, in both element types that the service takes."""
    headers = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
    bodies: dict[str, Callable[[Digits], bytes]] = {
        "uint8": npy,
        "float32": lambda digits: npy(digits.astype(np.float32) / np.float32(255)),
    }

    def means(body: bytes) -> Means:
        latents: Means = np.load(io.BytesIO(body), allow_pickle=False)[:, 0]  # [B, 2, D]
        return latents

    serving, end = ours_of(processes)
    return [
        Contender(f"logpx, npy {name}{end}", serving, "/v1/encode", body, means, headers, connections=BATCH_CONNECTIONS)
        for name, body in bodies.items()
    ]
