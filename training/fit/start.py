"""A run that does not begin from scratch: from the weights of another or of a published version."""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from training.configuration import Configuration
from training.errors import RunError
from training.fit.loaded_model import load_model
from training.fit.run import METRICS, SESSIONS, Run, RunDescription
from training.fit.state import build_state
from training.likelihoods import LIKELIHOODS

_OF_THE_LIKELIHOODS = (name for likelihood in LIKELIHOODS.values() for name in likelihood.configured)
_OF_THE_NETWORKS = ("preset", "width", "depth", "latent_dim", "likelihood", *_OF_THE_LIKELIHOODS)
_OF_THE_PREPARATION = ("size", "fit", "colour", "invert")
_OF_THE_SPLIT = ("seed", "num_validation", "num_calibration", "num_test", "group")


@dataclass(frozen=True)
class Start:
    """Weights that a run can begin with: those that another run would publish, or those of a published version.

    Attributes:
        path: of the run, or of the version in its store.
        configuration: what they were trained by.
        image_shape: C, H and W.
        sha256: of the pixels of the data set that they were trained on.
        weights: of the averaged model, of its best epoch where it has patience.
        trained: whether its training was at the end, but perhaps for the encoder's own phase.
        run: None of a published version.
        things: see `RunDescription`.
    """

    path: Path
    configuration: Configuration
    image_shape: tuple[int, int, int]
    sha256: str
    weights: Mapping[str, torch.Tensor]
    trained: bool
    run: Run | None = None
    things: Mapping[str, Any] | None = None


def start_of(run: Run) -> Start:
    """The weights that `run` would publish as it stands.

    Raises:
        RunError: no epoch has finished, or the checkpoint cannot be read.
    """
    description, loaded = run.description, load_model(run)
    return Start(
        path=run.folder,
        configuration=description.configuration,
        image_shape=description.image_shape,
        sha256=description.sha256,
        weights=loaded.vae.state_dict(),
        trained=loaded.trained,
        run=run,
        things=description.things,
    )


def inherited_options(start: Start, *, encoder_alone: bool = False) -> dict[str, Any]:
    """What a run from the weights of `start` takes from it where the user does not say: networks, pixels, split.

    With `encoder_alone` everything, since what trained the decoder stays true, but the encoder's phase is asked for.
    """
    if encoder_alone:
        return asdict(start.configuration) | {"finish_encoder": True, "finish_epochs": None}
    names = (*_OF_THE_PREPARATION, *_OF_THE_NETWORKS, "binarisation", *_OF_THE_SPLIT)
    return {name: getattr(start.configuration, name) for name in names}


def check_start(start: Start, description: RunDescription, *, encoder_alone: bool = False) -> None:
    """Refuse to begin the run of `description` from the weights of `start` where that cannot work, or would cheat.

    Raises:
        RunError: the networks or images are of another shape, or the images are the same and otherwise split: some
            that the new run holds out have been trained on. With `encoder_alone`, also where the images are others, or
            the decoder was not trained to its end.
    """
    same_images = start.sha256 == description.sha256
    if encoder_alone and not same_images:
        raise RunError(f"{start.path} was not trained on these images of {description.data_set}: their SHA-256 differs")
    if encoder_alone and not start.trained:
        raise RunError(f"{start.path}: its decoder is not trained to the end; finish it with fit --resume")
    names = (*_OF_THE_NETWORKS, *_OF_THE_SPLIT) if same_images else _OF_THE_NETWORKS
    here = description.configuration
    pairs = {name: (getattr(start.configuration, name), getattr(here, name)) for name in names}
    if same_images:
        pairs["things"] = (start.things, description.things)
    pairs["image_shape"] = (start.image_shape, description.image_shape)
    if differences := [f"{name} is {old!r} there, {new!r} now" for name, (old, new) in pairs.items() if old != new]:
        raise RunError(f"{start.path} cannot be the start: {'; '.join(differences)}")


def begin(run: Run, start: Start, *, encoder_alone: bool = False) -> None:
    """Write the first checkpoint of a run that begins with the weights of `start`; its optimiser knows nothing yet.

    It has 0 epochs, or with `encoder_alone` all but the encoder's own; what is known of those comes from the other run.
    """
    configuration = run.description.configuration
    state = build_state(configuration, torch.zeros(run.description.image_shape), torch.device("cpu"))
    for model in (state.model, state.averaged):
        model.load_state_dict(start.weights)
    if encoder_alone and start.run:
        for name in (METRICS, SESSIONS):
            if (file := start.run.folder / name).exists():
                shutil.copyfile(file, run.folder / name)
    run.save_checkpoint(state.as_checkpoint(configuration.epochs if encoder_alone else 0))


def check_begun(run: Run) -> None:
    """Refuse to go on with a run whose first checkpoint was never written: it would begin with other weights.

    Raises:
        RunError: it was not.
    """
    if run.description.start and not run.has_checkpoint:
        raise RunError(
            f"{run.folder}: ended before the weights that it begins with were there; say again which (--start-from)"
        )


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of weights: of their names in alphabetical order, each followed by its values' bytes, row by row."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
