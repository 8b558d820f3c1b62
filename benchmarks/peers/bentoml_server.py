"""BentoML with its adaptive batches; the image is base64 in JSON.

python bentoml_server.py PORT encoder.onnx
"""

import base64
import os
import sys
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
from encoder import Encoder, pixels

WORKERS = 1
BATCH = 32


@bentoml.service(workers=WORKERS, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class EncodeService:
    """Digits in, latent codes out."""

    def __init__(self) -> None:
        """Once a worker."""
        self.encoder = Encoder(os.environ["ENCODER"], num_threads=1)

    @bentoml.api(batchable=True, max_batch_size=BATCH)  # type: ignore[untyped-decorator]
    def encode(self, images: list[str]) -> list[dict[str, Any]]:
        """One batch, merged by BentoML."""
        mean, log_var = self.encoder(np.stack([pixels(base64.b64decode(image)) for image in images]))
        return [{"mean": m.tolist(), "log_var": v.tolist()} for m, v in zip(mean, log_var, strict=True)]


if __name__ == "__main__":
    service = f"{Path(__file__).stem}:EncodeService"
    os.environ |= {"ENCODER": sys.argv[2], "BENTOML_DO_NOT_TRACK": "True"}
    os.chdir(Path(__file__).parent)
    arguments = ["-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", sys.argv[1]]
    os.execv(sys.executable, [sys.executable, *arguments])
