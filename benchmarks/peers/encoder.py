"""What every peer's server does with an image: the same graph, the same reading of a PNG."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

Float32Array = NDArray[np.float32]


def pixels(png: bytes) -> Float32Array:
    """A grey PNG as [1, H, W] in [0, 1]."""
    return np.asarray(Image.open(io.BytesIO(png), formats=("PNG",)), np.float32)[None] / np.float32(255)


class Encoder:
    """`encoder.onnx` on the CPU."""

    def __init__(self, file: str | Path, *, num_threads: int) -> None:
        options: Any = ort.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leaves the cores to the server
        self._session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def __call__(self, x: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Mean and log variance [B, D] of images [B, 1, H, W]."""
        mean, log_var = self._session.run(["mean", "log_var"], {"x": x})
        return mean, log_var
