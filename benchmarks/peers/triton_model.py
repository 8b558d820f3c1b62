"""Triton's Python backend: decodes the batch's PNGs (or takes pixels that the client decoded) and runs the encoder."""

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from encoder import Encoder, pixels


class TritonPythonModel:
    """The name that Triton looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Once an instance."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.encoder = Encoder(parameters["encoder"]["string_value"], num_threads=1)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One batch; a request may hold several rows."""
        parts = [request.inputs()[0].as_numpy() for request in requests]
        images = np.concatenate(parts)
        if images.dtype == np.object_:
            images = np.stack([pixels(png) for png in images[:, 0]])
        else:
            images = images.astype(np.float32) / np.float32(255)
        ends = np.cumsum([len(part) for part in parts])[:-1]
        mean, log_var = (np.split(output, ends) for output in self.encoder(images))
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("mean", m), pb_utils.Tensor("log_var", v)])
            for m, v in zip(mean, log_var, strict=True)
        ]
