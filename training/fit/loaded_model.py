"""The model of a run, as its last checkpoint has it."""

from typing import NamedTuple

import torch

from training.errors import RunError
from training.fit.run import Run
from training.fit.state import build_state
from training.networks.vae import Vae


class FinishedEncoder(NamedTuple):
    """What training the encoder alone, by the ELBO, has gained; ELBOs are of the validation images, nats an image."""

    epochs: int
    """So far."""
    kept_epoch: int
    """Of these, counted from 1; 0 where none was better than the encoder of before."""
    elbo_before: float
    elbo_after: float


class LoadedModel(NamedTuple):
    """A run's model as its checkpoint has it: on the CPU, averaged, of the best epoch where the run has patience."""

    vae: Vae
    epoch: int
    """The last that has finished."""
    finished: bool
    """Whether training is at its end."""
    trained: bool
    """Whether no more than the encoder is left to train."""
    finished_encoder: FinishedEncoder | None
    """None where the encoder alone has not been trained."""


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
    phase, best = state.encoder_phase, state.best
    finished_encoder = None
    if phase and best:
        finished_encoder = FinishedEncoder(epoch - phase.before, best.epoch - phase.before, phase.elbo, best.bound)
    configuration = description.configuration
    finished, trained = state.is_finished(epoch, configuration), state.is_trained(epoch, configuration)
    return LoadedModel(state.result(), epoch, finished, trained, finished_encoder)
