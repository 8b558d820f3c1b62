"""MLServer with a custom runtime and adaptive batches; the image is a base64 element of the V2 protocol.

python mlserver_server.py PORT encoder.onnx
"""

import asyncio
import socket
import sys

import numpy as np
from encoder import Encoder, pixels
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import install_uvloop_event_loop

PARALLEL_WORKERS = 0
BATCH = 32
BATCH_TIME = 0.001


class EncoderRuntime(MLModel):  # type: ignore[misc]  # the peer is not installed where types are checked
    """Images in, latent codes out."""

    async def load(self) -> bool:
        """Once a worker."""
        self.encoder = Encoder(self.settings.parameters.uri, num_threads=2)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One batch, merged by MLServer."""
        images = Base64Codec.decode_input(payload.inputs[0])
        mean, log_var = self.encoder(np.stack([pixels(image) for image in images]))
        outputs = [NumpyCodec.encode_output("mean", mean), NumpyCodec.encode_output("log_var", log_var)]
        return InferenceResponse(model_name=self.name, outputs=outputs)


def free_port() -> int:
    """For what MLServer wants to open beside HTTP."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def main() -> None:
    """Serve until a signal comes."""
    settings = Settings(
        host="127.0.0.1",
        http_port=int(sys.argv[1]),
        grpc_port=free_port(),
        metrics_endpoint=None,
        parallel_workers=PARALLEL_WORKERS,
        debug=False,
        gzip_enabled=False,
    )
    model = ModelSettings(
        name="encoder",
        implementation="mlserver_server.EncoderRuntime",
        max_batch_size=BATCH,
        max_batch_time=BATCH_TIME,
        parameters=ModelParameters(uri=sys.argv[2]),
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    install_uvloop_event_loop()  # as MLServer's own command line does
    asyncio.run(main())
