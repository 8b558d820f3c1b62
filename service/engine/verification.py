"""Does a GPU compute a model's own numbers as the CPU does? See `Runtime.verify`; on the CPU nothing here runs."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.engine.proposal import DEFAULT_SEED, standard_normal
from service.engine.runtime import Runtime, Session

TOLERANCE = 1e-4
"""By how much outputs may differ, of the largest: float32's order of adding makes some 10⁻⁶, TF32 3·10⁻⁴ to 10⁻³."""
CURVATURE_TOLERANCE = 0.02
"""The same of curvature, whose differences over 0.005 show a decoder's rounding two hundred times as large: float32
makes some 10⁻³, TF32 0.1."""


def verify_encoder(runtime: Runtime, graph: bytes, session: Session, x: NDArray[np.float32], file: Path) -> None:
    """Compare q(z|x) of prepared images [B, C, H, W].

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
