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

from model_store import BUNDLED, ENCODER

PEERS = Path(__file__).parent / "peers"
GRAPH = BUNDLED / "mnist" / "1" / ENCODER
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


def v2_binary(tensor: str, datatype: str, payload: Callable[[Digits], bytes]) -> tuple[Callable[[Digits], bytes], int]:
    """A request of the V2 protocol's binary extension, and how long its JSON is: always the same."""

    def header(size: int) -> bytes:
        shape = [1, 1] if datatype == "BYTES" else [1, 1, 28, 28]
        image = {"name": tensor, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
        document = {"inputs": [image], "parameters": {"binary_data_output": True}}
        return json.dumps(document).encode().ljust(200)  # JSON may end in spaces

    def body(digits: Digits) -> bytes:
        data = payload(digits)
        return header(len(data)) + data

    return body, len(header(0))


def v2_binary_means(body: bytes) -> Means:
    """The tensors lie behind the JSON, `mean` first."""
    document, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    output = document["outputs"][0]
    size = output["parameters"]["binary_data_size"]
    assert output["name"] == "mean"
    return np.frombuffer(body[end : end + size], np.float32).reshape(output["shape"])


def contenders(python: Mapping[str, str | None]) -> list[Contender]:
    """Ours, the floor, and the peers that have a Python."""
    image, json_type = {"Content-Type": "image/png"}, {"Content-Type": "application/json"}

    def command(peer: str) -> list[str]:
        return [python.get(peer) or sys.executable, str(PEERS / f"{peer}_server.py"), "{port}", str(GRAPH)]

    found = [
        Contender("logpx, PNG", OURS, "/v1/encode", png, json_means, image),
        Contender("bare FastAPI route", command("fastapi"), "/v1/encode", png, None, image, bar=0.5),
    ]
    if python["litserve"]:

        def litserve(digits: Digits) -> bytes:
            return json.dumps({"image": base64_png(digits)}).encode()

        name = "LitServe, base64 PNG"
        found.append(Contender(name, command("litserve"), "/predict", litserve, json_means, json_type, bar=5))
    if python["bentoml"]:

        def bentoml(digits: Digits) -> bytes:
            return json.dumps({"images": [base64_png(digits)]}).encode()

        name = "BentoML, base64 PNG"
        found.append(Contender(name, command("bentoml"), "/encode", bentoml, json_means, json_type))
    if python["mlserver"]:

        def mlserver(digits: Digits) -> bytes:
            image = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": [base64_png(digits)]}
            return json.dumps({"inputs": [{**image, "parameters": {"content_type": "base64"}}]}).encode()

        name, path = "MLServer, base64 PNG", "/v2/models/encoder/infer"
        found.append(Contender(name, command("mlserver"), path, mlserver, v2_json_means, json_type, bar=3))
    if python["triton"]:
        forms: dict[str, tuple[str, Callable[[Digits], bytes]]] = {
            "png": ("BYTES", lambda digits: len(png(digits)).to_bytes(4, "little") + png(digits)),
            "pixels": ("UINT8", lambda digits: digits.tobytes()),
        }
        for form, (datatype, payload) in forms.items():
            body, json_size = v2_binary("image", datatype, payload)
            headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(json_size)}
            name, path = f"Triton, Python backend, {form}", f"/v2/models/encode_{form}/infer"
            found.append(Contender(name, command("triton"), path, body, v2_binary_means, headers, bar=1.8))
    return found


def batch_contenders() -> list[Contender]:
    """Batches of 64, npy in and out, in both element types that the service takes."""
    headers = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
    bodies: dict[str, Callable[[Digits], bytes]] = {
        "uint8": npy,
        "float32": lambda digits: npy(digits.astype(np.float32) / np.float32(255)),
    }

    def means(body: bytes) -> Means:
        latents: Means = np.load(io.BytesIO(body), allow_pickle=False)[:, 0]  # [B, 2, D]
        return latents

    return [
        Contender(f"logpx, npy {name}", OURS, "/v1/encode", body, means, headers, connections=BATCH_CONNECTIONS)
        for name, body in bodies.items()
    ]
