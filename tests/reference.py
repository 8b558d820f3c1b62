"""The engine's sums once more: NumPy in float64 over plain ONNX Runtime sessions, nothing fused or chunked."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from scipy.stats import norm

from service.engine.calibration import calibrate
from service.engine.model import Model
from service.engine.preparation import Preparation
from service.engine.proposal import standard_normal
from service.engine.runtime import Runtime
from tests.likelihoods import reference_of
from tests.toys import AnyArray, Toy


def load(toy: Toy, *, chunk_rows: int = 512, num_threads: int = 0) -> Model:
    """The toy as the engine sees it."""
    return Model(
        toy.description,
        toy.encoder,
        toy.decoder,
        toy.likelihood,
        runtime=Runtime("cpu", num_threads),
        features=toy.features,
        calibration=toy.calibration,
        chunk_rows=chunk_rows,
    )


def calibrated(toy: Toy, pixels: AnyArray, **protocol: Any) -> Toy:
    """The toy with a calibration by the engine on images [B, C, H, W], by its own protocol but for what is given."""
    changed = toy.description.calibration.model_copy(update={"num_images": len(pixels), **protocol})
    new = replace(toy, description=toy.description.model_copy(update={"calibration": changed}))
    arrays = calibrate(
        load(toy), [pixels], proposal=changed.proposal, num_samples=changed.num_samples, seed=changed.seed
    )
    return replace(new, calibration=arrays)


def run(graph: bytes, **inputs: AnyArray) -> dict[str, AnyArray]:
    """Run a stored graph."""
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    values = session.run(None, {name: value.astype(np.float32) for name, value in inputs.items()})
    return {output.name: value for output, value in zip(session.get_outputs(), values, strict=True)}


def log_weights(toy: Toy, pixels: AnyArray, *, proposal: str, num_samples: int, seed: int) -> NDArray[np.float64]:
    """log p(x|z) + log p(z) − log r(z|x): [B, C, H, W] → [B, K]."""
    x = Preparation(toy.description.preparation, toy.description.image).prepare(pixels)
    posterior = {name: value.astype(np.float64)[:, None] for name, value in run(toy.encoder, x=x).items()}
    mean, log_var = (posterior[name] if proposal == "encoder" else 0.0 for name in ("mean", "log_var"))
    scale = np.exp(np.asarray(log_var) / 2)
    noise = standard_normal(num_samples, toy.description.latent_dim, seed=seed).astype(np.float64)
    z = mean + scale * noise + np.zeros((len(x), 1, 1))  # [B, K, D]
    log_ratio = (norm.logpdf(z) - norm.logpdf(z, mean, scale)).sum(axis=-1)  # [B, K]
    parameters = run(toy.decoder, z=z.reshape(-1, z.shape[2]))
    shaped = {name: value.reshape(*z.shape[:2], *x.shape[1:]) for name, value in parameters.items()}
    likelihood = reference_of(toy.description.likelihood)
    return np.asarray(likelihood.log_prob(x[:, None].astype(np.float64), shaped) + log_ratio)
