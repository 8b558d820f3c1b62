"""A trained model as ONNX graphs, and the proof that they compute what PyTorch does."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx.utils
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_store import DECODER, ENCODER, LIKELIHOOD
from service.engine.runtime import Runtime
from training.errors import ParityError
from training.likelihoods import Likelihood
from training.networks.precision import full_float32
from training.networks.vae import Vae
from training.publish.exporter import OPSET, exporter_quietened, model_of, serialised
from training.publish.likelihood_export import export_likelihood

PARITY_BATCHES = (1, 2, 7, 64)
PARITY_TOLERANCE = 1e-4
_LOG_PROB, _EXPECTED = "log p(x|z)", "E[x|z]"


@dataclass(frozen=True)
class ExportedGraphs:
    """The graphs as the store's format wants them (model_store/README.md)."""

    encoder: bytes
    decoder: bytes
    likelihood: bytes


def export(vae: Vae) -> ExportedGraphs:
    """All graphs, each one file with its weights, with a dynamic batch: B images, N latent codes.

    The weights may be on any device; the graphs belong to none.
    """
    vae = copy.deepcopy(vae).cpu().eval()
    x = torch.zeros(2, *vae.image_shape)
    z = torch.zeros(2, vae.latent_dim)
    return ExportedGraphs(
        encoder=export_graph(vae.encoder, x, "x", ["mean", "log_var"], batch="B"),
        decoder=export_graph(vae.decoder, z, "z", list(vae.likelihood.outputs), batch="N"),
        likelihood=export_likelihood(vae.likelihood),
    )


@full_float32()
@torch.no_grad()
def check_parity(vae: Vae, graphs: ExportedGraphs, x: Tensor, *, runtime: Runtime) -> float:
    """The largest difference between the graphs and PyTorch, over real inputs x [B, C, H, W] at batch 1, 2, 7 and 64.

    The encoder sees the images, the decoder the latent codes that PyTorch's encoder gives them, the likelihood the
    images and what PyTorch's decoder makes of the codes. Its log p(x|z) counts in nats a pixel, and where that is more
    than one nat, by its share: PyTorch's sums are float32.

    Raises:
        ParityError: a number differs by more than 1e-4; names the output, the batch size and the difference.
    """
    encoder = runtime.open(graphs.encoder, Path(ENCODER))
    decoder = runtime.open(graphs.decoder, Path(DECODER))
    likelihood = runtime.open(scoring_part(graphs.likelihood, vae.likelihood), Path(LIKELIHOOD))
    largest = 0.0
    for batch in PARITY_BATCHES:
        images = x[torch.arange(batch) % len(x)].contiguous()
        mean, log_var = vae.encode(images)
        parameters = dict(zip(vae.likelihood.outputs, vae.decoder(mean), strict=True))
        flat = {"x": images} | parameters
        flat = {name: value.flatten(1).unsqueeze(1).contiguous() for name, value in flat.items()}  # [B, 1, Q]
        pixels, *rows = flat.values()
        expected = {"mean": mean, "log_var": log_var, **parameters}
        found = encoder.run({"x": images.numpy()}) | decoder.run({"z": mean.numpy()})
        of_likelihood = likelihood.run({name: value.numpy() for name, value in flat.items()})
        log_prob = vae.likelihood.log_prob(pixels, *rows).double()  # [B, 1]
        unit = log_prob.abs().clamp(min=vae.likelihood.num_pixels)
        expected |= {_LOG_PROB: log_prob / unit, _EXPECTED: vae.likelihood.mean(*rows)}
        found |= {_LOG_PROB: of_likelihood["log_prob"] / unit.numpy(), _EXPECTED: of_likelihood["mean"]}
        for output, value in expected.items():
            largest = max(largest, _difference(output, batch, found[output], value))
    return largest


def _difference(output: str, batch: int, found: NDArray[Any], expected: Tensor) -> float:
    if found.shape != expected.shape:
        shapes = f"{list(found.shape)}, PyTorch's is {list(expected.shape)}"
        raise ParityError(f"output {output!r} at batch {batch} has the shape {shapes}")
    difference = float(np.abs(found - expected.numpy()).max())
    if not difference <= PARITY_TOLERANCE:
        excess = f"by {difference:.3g}, more than {PARITY_TOLERANCE:g}"
        raise ParityError(f"output {output!r} at batch {batch} differs from PyTorch's {excess}")
    return difference


def scoring_part(content: bytes, likelihood: Likelihood) -> bytes:
    """The nodes of a likelihood's graph that give log p(x|z) and E[x|z]."""
    part = onnx.utils.Extractor(onnx.load_from_string(content)).extract_model(
        ["x", *likelihood.outputs], ["log_prob", "mean"]
    )
    found: bytes = part.SerializeToString()
    return found


def export_graph(module: nn.Module, example: Tensor, input_name: str, outputs: list[str], *, batch: str) -> bytes:
    """One network as an ONNX graph with a dynamic batch of this name; `example` is an input, at least two rows."""
    with exporter_quietened():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            input_names=[input_name],
            output_names=outputs,
            dynamic_shapes=({0: torch.export.Dim(batch)},),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    return serialised(model_of(program))
