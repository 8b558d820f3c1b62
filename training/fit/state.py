"""Where a run stands: its weights, their average, the optimiser, and the best epoch so far."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from training.configuration import Configuration
from training.fit.encoder_phase import EncoderPhase
from training.networks.vae import Vae, build_vae

MOST_SETBACKS = 2


@dataclass(frozen=True)
class Best:
    """The epoch with the highest validation bound, and the averaged weights of then.

    While the encoder alone is trained, `bound` is the ELBO, and the first `epoch` is the last before.
    """

    epoch: int
    bound: float
    weights: dict[str, Tensor]


@dataclass
class TrainingState:
    """What a checkpoint holds. All random numbers come from (seed, epoch), so no generator's state is in it.

    `best` is kept where the configuration has patience, and while the encoder alone is trained, in the `encoder_phase`;
    otherwise it stays None. `setbacks` counts how often training has diverged, `reached` is the best bound that an
    epoch's training steps had; see training/fit/recovery.py.
    """

    model: Vae
    averaged: Vae
    optimiser: torch.optim.Adam
    best: Best | None = None
    setbacks: int = 0
    reached: float | None = None
    encoder_phase: EncoderPhase | None = None

    def step(self, sound: Tensor, weight: float) -> None:
        """One step of the optimiser, of which the average takes this `weight`; where it is not `sound`, no bit changes.

        Neither do Adam's moments and its count of steps then, and the processor does not wait for the device to know:
        fused Adam leaves out a step for a gradient scaler, by this attribute.

        Args:
            sound: whether the gradients are finite, a boolean scalar on their device.
            weight: of the new weights in the average, 0 to 1.
        """
        self.optimiser.found_inf = (~sound).float()  # type: ignore[attr-defined]
        self.optimiser.step()
        taken = weight * sound.to(torch.get_default_dtype())
        with torch.no_grad():
            for average, new in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
                average.lerp_(new, taken)

    def as_checkpoint(self, epoch: int) -> dict[str, Any]:
        """Plain tensors and numbers, which `torch.load(weights_only=True)` reads."""
        return {
            "epoch": epoch,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "best": None if self.best is None else dict(vars(self.best)),
            "setbacks": self.setbacks,
            "reached": self.reached,
            "encoder_phase": None if self.encoder_phase is None else asdict(self.encoder_phase),
        }

    def restore(self, checkpoint: dict[str, Any]) -> int:
        """Load a checkpoint; returns the number of finished epochs."""
        self.model.load_state_dict(checkpoint["model"])
        self.averaged.load_state_dict(checkpoint["averaged"])
        # Of the optimiser, what it has learned: its groups follow from the networks.
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": checkpoint["optimiser"]["state"], "param_groups": groups})
        self.best = None if checkpoint["best"] is None else Best(**checkpoint["best"])
        self.setbacks, self.reached = checkpoint.get("setbacks", 0), checkpoint.get("reached")
        phase = checkpoint.get("encoder_phase")
        self.encoder_phase = None if phase is None else EncoderPhase(**phase)
        return int(checkpoint["epoch"])

    def note_bound(self, epoch: int, bound: float) -> None:
        """Keep the averaged weights if their validation bound is the highest so far."""
        if self.encoder_phase is not None:
            self.encoder_phase = self.encoder_phase.after(epoch, bound)
        if self.best is None or bound > self.best.bound:
            weights = {name: value.clone() for name, value in self.averaged.state_dict().items()}
            self.best = Best(epoch, bound, weights)

    @property
    def has_given_up(self) -> bool:
        """Whether training has diverged once more after the last setback that it may have."""
        return self.setbacks > MOST_SETBACKS

    def is_trained(self, epoch: int, configuration: Configuration) -> bool:
        """Whether the decoder is final after this epoch: it is the last, or there was no better one for too long."""
        impatient = self.best is not None and epoch - self.best.epoch >= configuration.patience
        return self.encoder_phase is not None or impatient or epoch >= configuration.epochs

    def is_finished(self, epoch: int, configuration: Configuration) -> bool:
        """Whether training ends after this epoch, that of the encoder included where the configuration has it."""
        if self.encoder_phase is None:
            return self.is_trained(epoch, configuration) and not configuration.finish_encoder
        return self.has_given_up or self.encoder_phase.is_over(epoch, configuration)

    def begin_encoder_phase(self, epoch: int, elbo: float) -> None:
        """From here on train the encoder alone, from the weights that `result` has after this epoch.

        Args:
            epoch: the last that has finished.
            elbo: validation ELBO of those weights, nats an image.
        """
        self.model.load_state_dict(self.result().state_dict())
        self.optimiser.state.clear()
        self.reached = None  # was of another bound
        self.best = None
        self.note_bound(epoch, elbo)
        self.encoder_phase = EncoderPhase(epoch, elbo)

    def result(self) -> Vae:
        """The averaged model; where the best epoch was kept, of that epoch."""
        if self.best is not None:
            self.averaged.load_state_dict(self.best.weights)
        return self.averaged


def build_state(
    configuration: Configuration,
    pixel_mean: Tensor,
    device: torch.device,
    *,
    pixel_spread: Tensor | None = None,
    examples: Callable[[], Tensor] | None = None,
) -> TrainingState:
    """A model with fresh weights for images of `pixel_mean`'s shape, its average and its optimiser.

    Convolutions' weights lie channels last: in bfloat16 oneDNN and cuDNN are faster so, in float32 no slower.
    """
    model = build_vae(configuration, pixel_mean, pixel_spread, examples)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    averaged = copy.deepcopy(model).requires_grad_(False)
    return TrainingState(model, averaged, torch.optim.Adam(_parameter_groups(model), fused=True))


def _parameter_groups(model: Vae) -> list[dict[str, Any]]:
    """The parameters in their order, with `rate_scale`, what the learning rate is multiplied by for them."""
    scales = model.rate_scales()
    runs = itertools.groupby(model.named_parameters(), key=lambda named: scales.get(named[0], 1.0))
    return [{"params": [parameter for _, parameter in named], "rate_scale": scale} for scale, named in runs]
