"""Are a model's graphs what the manifest says, do they run, and does a GPU compute their numbers as the CPU does?"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store import DECODER, ENCODER, LIKELIHOOD, Description
from service.engine.graph_check import check_rows, check_shape, read_graph
from service.engine.graphs import DecoderGraphs
from service.engine.likelihood_graph import LikelihoodGraph
from service.engine.preparation import Preparation
from service.engine.proposal import DEFAULT_SEED, standard_normal
from service.engine.runtime import Runtime, Session, blaming

TOLERANCE = 1e-4
"""By how much outputs may differ, of the largest: float32's order of adding makes some 10⁻⁶, TF32 3·10⁻⁴ to 10⁻³."""
CURVATURE_TOLERANCE = 0.02
"""The same of curvature, whose differences over 0.005 show a decoder's rounding two hundred times as large: float32
makes some 10⁻³, TF32 0.1."""


def read_graphs(
    description: Description, encoder: bytes, decoder: bytes, likelihood: bytes, folder: Path
) -> DecoderGraphs:
    """Check a version's graphs against its description and one another; what is to be built around its decoder.

    Raises:
        InvalidArtifactError: one of them is not what the store's format says; the message names the file.
    """
    chw, latent = description.x_shape.chw, (description.latent_dim,)
    read_graph(encoder, folder / ENCODER, inputs={"x": chw}, outputs={"mean": latent, "log_var": latent})
    density = LikelihoodGraph(likelihood, folder / LIKELIHOOD, num_pixels=description.x_shape.size)
    checked = read_graph(decoder, folder / DECODER, inputs={"z": latent}, outputs=density.outputs)
    return DecoderGraphs(checked, density, description)


def try_out(
    runtime: Runtime,
    encoder: bytes,
    encoder_session: Session,
    decoder: bytes,
    preparation: Preparation,
    description: Description,
    outputs: Mapping[str, int],
    folder: Path,
) -> None:
    """Run both graphs once on two images: a shape that only shows at run time is refused here, and not later.

    On a GPU, also compare them with the CPU.

    Raises:
        InvalidArtifactError: a graph does not run, or one of its outputs (the decoder's have these names, and so many
            numbers a row) is of another shape than was said; or a GPU computes other numbers.
    """
    decoder_session = runtime.open(decoder, folder / DECODER)
    pixels = np.zeros((2, *description.x_shape.chw), np.float32)
    latent_shape = (2, description.latent_dim)
    with blaming(folder / ENCODER):
        found = encoder_session.run({"x": preparation.prepare(pixels)})
    for name in ("mean", "log_var"):
        check_shape(folder / ENCODER, name, found[name].shape, latent_shape)
    with blaming(folder / DECODER):
        found = decoder_session.run({"z": np.zeros(latent_shape, np.float32)})
    for name, size in outputs.items():
        check_rows(folder / DECODER, name, found[name].shape, len(pixels), size)
    with blaming(folder):
        noise = np.random.default_rng(DEFAULT_SEED).random(pixels.shape, np.float32)
        verify_encoder(runtime, encoder, encoder_session, preparation.prepare(noise), folder / ENCODER)
        verify_decoder(runtime, decoder, decoder_session, description.latent_dim, folder / DECODER)


def verify_encoder(runtime: Runtime, graph: bytes, session: Session, x: NDArray[np.float32], file: Path) -> None:
    """Compare q(z|x) of prepared images [B, C, H, W]; see `Runtime.verify`: on the CPU there is nothing to compare.

    Raises:
        InvalidArtifactError: it differs by more than the tolerance.
    """
    runtime.verify(graph, session, {"x": x}, file, tolerance=TOLERANCE)


def verify_decoder(runtime: Runtime, graph: bytes, session: Session, latent_dim: int, file: Path) -> None:
    """Compare the likelihood's parameters at four draws from the prior.

    Raises:
        InvalidArtifactError: they differ by more than the tolerance.
    """
    latents = standard_normal(4, latent_dim, seed=DEFAULT_SEED)
    runtime.verify(graph, session, {"z": latents}, file, tolerance=TOLERANCE)
