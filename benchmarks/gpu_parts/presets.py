"""A model of every preset and likelihood of `fit`, untrained, as `publish` would export it."""

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from model_store import Description, ImageShape
from service.engine.model import Model
from service.engine.runtime import Runtime
from tests.toys import describe
from training.configuration import Preset
from training.fit.recipes import complete_configuration
from training.likelihoods import LIKELIHOODS as KINDS
from training.likelihoods import spec_of
from training.networks.vae import Vae, build_vae
from training.publish.export import ExportedGraphs, export

PRESETS: tuple[Preset, ...] = get_args(Preset)
LIKELIHOODS: dict[str, dict[str, Any]] = {kind: {"likelihood": kind} for kind in KINDS}
LIKELIHOODS["gaussian, one scale"] = {"likelihood": "gaussian", "gaussian_scale": 0.2}
EVERY = [(preset, likelihood) for preset in PRESETS for likelihood in LIKELIHOODS]
SMALL = {"width": 4, "depth": 1, "latent_dim": 3}


@dataclass(frozen=True)
class Exported:
    """An untrained network and its graphs."""

    vae: Vae
    description: Description
    graphs: ExportedGraphs

    def open(self, runtime: Runtime, **keywords: Any) -> Model:
        """The engine's model of it."""
        made = self.graphs
        return Model(self.description, made.encoder, made.decoder, made.likelihood, runtime=runtime, **keywords)


def exported(preset: Preset, likelihood: str, images: NDArray[np.uint8], **sizes: Any) -> Exported:
    """The preset with a likelihood of `LIKELIHOODS`, for 8-bit images [N, C, H, W] of which it knows the mean."""
    configuration = complete_configuration({"preset": preset, **LIKELIHOODS[likelihood], **sizes}, images)
    vae = build_vae(configuration, torch.from_numpy(np.asarray(images.mean(axis=0) / 255, np.float32)))
    channels, height, width = images.shape[1:]
    shape = ImageShape(channels=channels, height=height, width=width)
    description = describe(preset, shape, configuration.latent_dim, spec_of(vae.likelihood), num_images=1)
    return Exported(vae, description, export(vae))
