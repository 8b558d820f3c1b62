"""Honest requests to the bundled models, of which each has one answer, to the last bit."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from load import digits, npy, png
from numpy.typing import NDArray
from PIL import Image

from tests.hostile.harness import ChildService
from tests.hostile.wire import request

NPY, PNG, JPEG, JSON = "application/x-npy", "image/png", "image/jpeg", "application/json"
FORM = "multipart/form-data; boundary=x"
TIMEOUT = 120.0


@dataclass(frozen=True)
class Honest:
    """One request; what it is called, and its parts."""

    name: str
    method: str
    path: str
    body: bytes = b""
    content_type: str = NPY
    accept: str = "*/*"

    def ask(self, service: ChildService) -> tuple[int, bytes]:
        """Status and body."""
        headers = {"Content-Type": self.content_type, "Accept": self.accept}
        answer = service.ask(self.method, self.path, self.body, headers, timeout=TIMEOUT)
        return answer.status, answer.body

    def wire(self) -> bytes:
        """As it goes over a connection that is kept."""
        headers = {"Content-Type": self.content_type, "Accept": self.accept}
        return request(self.method, self.path, self.body, headers, close=False)


def photograph(seed: int = 0, size: int = 300) -> NDArray[np.uint8]:
    """Smooth shapes and some noise, [H, W, 3]: about what a camera makes, for a coder."""
    chance = np.random.default_rng(seed)
    coarse = Image.fromarray(chance.integers(0, 256, (12, 12, 3)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float32)
    return np.clip(smooth + chance.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def image_file(image: NDArray[np.uint8], form: str) -> bytes:
    """As PNG or JPEG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, form)
    return stream.getvalue()


def form_of(files: Sequence[bytes]) -> bytes:
    """A multipart body."""
    head = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\nContent-Type: image/png\r\n\r\n'
    return b"".join(head + file + b"\r\n" for file in files) + b"--x--\r\n"


def json_of(images: NDArray[np.uint8]) -> bytes:
    """Nested numbers in [0, 1]."""
    return orjson.dumps({"images": (images / 255).round(3).tolist()})


def honest_requests() -> list[Honest]:
    """One of each sort."""
    images = digits()
    latents = orjson.dumps({"latents": np.linspace(-1, 1, 200).reshape(4, 50).tolist()})
    photo = photograph()
    return [
        Honest("encode a PNG", "POST", "/v1/encode", png(images[0]), PNG),
        Honest("encode npy", "POST", "/v1/encode", npy(images[:20]), NPY, NPY),
        Honest("encode JSON", "POST", "/v1/encode", json_of(images[:2]), JSON),
        Honest("encode a form of 20 files", "POST", "/v1/encode", form_of([png(one) for one in images[:20]]), FORM),
        Honest("encode a photograph", "POST", "/v1/encode?resize=true", image_file(photo, "JPEG"), JPEG),
        Honest("decode", "POST", "/v1/decode", latents, JSON),
        Honest("samples", "GET", "/v1/samples?n=9&seed=4", accept=PNG),
        Honest("log-likelihood", "POST", "/v1/log-likelihood", png(images[1]), PNG),
        Honest("log-likelihood of four", "POST", "/v1/log-likelihood?num_samples=100", npy(images[:4])),
        Honest("anomaly scores", "POST", "/v1/anomaly-scores", npy(images[4:6])),
        Honest("another model", "POST", "/v1/encode?model=fashion-mnist", npy(images[:3])),
        Honest("models", "GET", "/v1/models/mnist"),
    ]


def largest_requests() -> list[Honest]:
    """Of each bundled model, requests by which its graphs run as many rows at once as they may."""
    images = digits()
    asked = []
    for model in ("mnist", "fashion-mnist"):
        named = f"model={model}"
        asked += [
            Honest(f"encode, {model}", "POST", f"/v1/encode?{named}", npy(np.tile(images, (10, 1, 1)))),
            Honest(f"samples, {model}", "GET", f"/v1/samples?n=1000&{named}", accept=NPY),
            Honest(f"samples of 20, {model}", "POST", f"/v1/log-likelihood?num_samples=1000&{named}", npy(images[:20])),
            Honest(f"maps of 20, {model}", "POST", f"/v1/anomaly-scores?explain=true&{named}", npy(images[:20])),
        ]
    return asked
