"""The model of a run, as its last checkpoint has it."""

from typing import NamedTuple

import torch

from training.errors import RunError
from training.fit.run import Run
from training.fit.state import build_state
from training.networks.vae import Vae


class LoadedModel(NamedTuple):
    """A run's model as its checkpoint has it: on the CPU, averaged, of the best epoch where the run has patience."""

    vae: Vae
    epoch: int
    """The last that has finished."""
    finished: bool
    """Whether training is at its end."""


def load_model(run: Run) -> LoadedModel:
    """The model that the run's checkpoint holds.

    Raises:
        RunError: no epoch has finished, or the checkpoint cannot be read.
    """
    device = torch.device("cpu")
    checkpoint = run.load_checkpoint(device)
    if checkpoint is None:
        raise RunError(f"{run.folder}: no epoch has finished yet")
    description = run.description
    state = build_state(description.configuration, torch.zeros(description.image_shape), device)
    epoch = state.restore(checkpoint)
    return LoadedModel(state.result(), epoch, state.is_finished(epoch, description.configuration))
