"""Triton through pytriton's own interface: a Python function bound as a model, batches made by Triton.

python pytriton_server.py PORT encoder.onnx
"""

import sys

import numpy as np
from encoder import Encoder, Float32Array, pixels
from numpy.typing import NDArray
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

BATCH = 32


def main() -> None:
    """Serve until a signal comes."""
    encoder = Encoder(sys.argv[2], num_threads=1)

    @batch  # type: ignore[untyped-decorator]  # the peer is not installed where types are checked
    def encode(image: NDArray[np.object_]) -> dict[str, Float32Array]:
        mean, log_var = encoder(np.stack([pixels(png) for png in image[:, 0]]))
        return {"mean": mean, "log_var": log_var}

    configuration = TritonConfig(
        http_address="127.0.0.1", http_port=int(sys.argv[1]), allow_grpc=False, allow_metrics=False
    )
    with Triton(config=configuration) as triton:
        triton.bind(
            model_name="encode_png",
            infer_func=encode,
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name=name, dtype=np.float32, shape=(-1,)) for name in ("mean", "log_var")],
            config=ModelConfig(max_batch_size=BATCH),
        )
        triton.serve()


if __name__ == "__main__":
    main()
