"""LitServe as its documentation has it for images: JSON with the file in base64, batches, its fast queue.

python litserve_server.py PORT encoder.onnx
"""

import base64
import sys
from typing import Any

import litserve as ls
import numpy as np
from encoder import Encoder, Float32Array, pixels

WORKERS = 1
API_SERVERS = 1
BATCH = 32
BATCH_TIMEOUT = 0.001


class EncodeAPI(ls.LitAPI):  # type: ignore[misc]  # the peer is not installed where types are checked
    """One digit in, its latent code out."""

    def setup(self, device: str) -> None:
        """Once a worker."""
        self.encoder = Encoder(sys.argv[2], num_threads=1)

    def decode_request(self, request: dict[str, str]) -> Float32Array:
        """Base64 to pixels."""
        return pixels(base64.b64decode(request["image"]))

    def batch(self, inputs: list[Float32Array]) -> Float32Array:
        """[B, 1, H, W]."""
        return np.stack(inputs)

    def predict(self, x: Float32Array) -> tuple[Float32Array, Float32Array]:
        """The batch's codes."""
        return self.encoder(x)

    def unbatch(self, output: tuple[Float32Array, Float32Array]) -> list[tuple[Float32Array, Float32Array]]:
        """One pair an image."""
        return list(zip(*output, strict=True))

    def encode_response(self, output: tuple[Float32Array, Float32Array]) -> dict[str, Any]:
        """What becomes JSON."""
        mean, log_var = output
        return {"mean": mean.tolist(), "log_var": log_var.tolist()}


if __name__ == "__main__":
    api = EncodeAPI(max_batch_size=BATCH, batch_timeout=BATCH_TIMEOUT)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=API_SERVERS,
        log_level="warning",
        generate_client_file=False,
    )
