"""A run that does not begin from scratch: from the weights of another, on the same images or on others."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from training.errors import RunError
from training.fit.loaded_model import load_model
from training.fit.run import Run, RunDescription
from training.fit.state import build_state
from training.likelihoods import LIKELIHOODS

_OF_THE_LIKELIHOODS = (name for likelihood in LIKELIHOODS.values() for name in likelihood.configured)
_OF_THE_NETWORKS = ("preset", "width", "depth", "latent_dim", "likelihood", *_OF_THE_LIKELIHOODS)
_OF_THE_SPLIT = ("seed", "num_validation", "num_calibration", "num_test")


def inherited_options(start: Run) -> dict[str, Any]:
    """What a run from the weights of `start` takes from it where the user does not say: networks, pixels, split."""
    configuration = start.description.configuration
    return {name: getattr(configuration, name) for name in (*_OF_THE_NETWORKS, "binarisation", *_OF_THE_SPLIT)}


def check_start(start: Run, description: RunDescription) -> None:
    """Refuse to begin the run of `description` from the weights of `start` where that cannot work, or would cheat.

    Raises:
        RunError: the networks or images are of another shape, or the images are the same and otherwise split: some
            that the new run holds out have been trained on.
    """
    there, here = start.description, description
    names = _OF_THE_NETWORKS if there.sha256 != here.sha256 else (*_OF_THE_NETWORKS, *_OF_THE_SPLIT)
    pairs = {name: (getattr(there.configuration, name), getattr(here.configuration, name)) for name in names}
    pairs["image_shape"] = (there.image_shape, here.image_shape)
    if differences := [f"{name} is {old!r} there, {new!r} now" for name, (old, new) in pairs.items() if old != new]:
        raise RunError(f"{start.folder} cannot be the start: {'; '.join(differences)}")


def begin(run: Run, weights: Mapping[str, torch.Tensor]) -> None:
    """Write the checkpoint of 0 epochs of a run that begins with these weights; its optimiser knows nothing yet."""
    description = run.description
    state = build_state(description.configuration, torch.zeros(description.image_shape), torch.device("cpu"))
    for model in (state.model, state.averaged):
        model.load_state_dict(weights)
    run.save_checkpoint(state.as_checkpoint(0))


def start_weights(start: Run) -> dict[str, torch.Tensor]:
    """The weights that `start` would publish as it stands: averaged, and of its best epoch where it has patience."""
    return load_model(start).vae.state_dict()


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of weights: of their names in alphabetical order, each followed by its values' bytes, row by row."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
