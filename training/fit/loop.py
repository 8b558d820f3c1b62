"""One epoch of training: the steps of the optimiser, and whether they were sound."""

import functools
import math
import sys
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from service.printing import unescaped
from training.configuration import Configuration
from training.data.augmentation import augment
from training.data.splits import TrainingImages, binarise, derive_seed, to_levels, unit_pixels
from training.errors import DivergenceError
from training.fit.devices import Acceleration
from training.fit.distributed import ProcessGroup
from training.fit.encoder_phase import encoder_configuration
from training.fit.gradients import accumulate_gradients, log_weight_in_parts
from training.fit.memory import footprint
from training.fit.objective import negative_elbo, negative_iwae_bound
from training.fit.recovery import check_bound, rate_factor
from training.fit.schedule import averaging_weight, kl_weight, learning_rate, num_samples
from training.fit.state import TrainingState
from training.networks.vae import Vae

_STEPS_BETWEEN_LOOKS = 20
_MOST_SKIPPED = 0.01  # of an epoch's steps
_TRAINING = 1  # a stream of random numbers


class TrainedEpoch(NamedTuple):
    """What `Loop.train_epoch` tells, in nats an image."""

    bound: float
    """Mean of the objective's bound."""
    reached: float
    """The best median of an epoch's steps so far, this epoch's included; or the first step's, if that is better."""
    skipped_steps: int


class Loop:
    """What an epoch of training needs, besides its number; `images` are loaded or streamed.

    The model's weights change with every step, and their average after it; both are the state's. A run from the weights
    of another, `start`, draws other random numbers than that one did from the same seed. Where the state is in its
    `encoder_phase`, the encoder's weights alone change, and the schedules are that phase's.
    """

    def __init__(
        self,
        configuration: Configuration,
        state: TrainingState,
        images: TrainingImages,
        processes: ProcessGroup,
        acceleration: Acceleration,
        progress: bool,
        *,
        start: str | None = None,
    ) -> None:
        phase = state.encoder_phase
        self.configuration = configuration if phase is None else encoder_configuration(configuration)
        self.before = 0 if phase is None else phase.before  # epochs, whose schedules were others
        self.state = state
        self.images = images
        self.processes = processes
        self.acceleration = acceleration
        self.progress = progress and processes.leads
        self.num_pixels = math.prod(state.model.image_shape)
        self.learning_rate = 0.0  # of the last step
        self.sizes = footprint(state.averaged)  # never compiled
        self.steps_per_epoch = math.ceil(len(images) / configuration.batch_size)
        self._streams = (_TRAINING,) if start is None else (_TRAINING, int(start[:16], 16))
        if phase is not None:
            for model in (state.model, state.averaged):
                model.decoder.requires_grad_(False).eval()
        self._parameters = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
        self._first: tuple[Tensor, Tensor]  # the epoch's first batch and its noise

    def train_epoch(self, epoch: int) -> TrainedEpoch:
        """One pass over the training images; `epoch` is counted over all phases of the run.

        Raises:
            DivergenceError: more than one in a hundred steps had no finite loss or gradient, or the bound collapsed.
        """
        device = self.images.device
        generator = torch.Generator(device)
        generator.manual_seed(derive_seed(self.configuration.seed, *self._streams, epoch))
        own = epoch - self.before
        first_step = (own - 1) * self.steps_per_epoch
        losses = torch.empty(self.steps_per_epoch, device=device)
        sound = torch.empty(self.steps_per_epoch, dtype=torch.bool, device=device)
        with tqdm(
            total=len(self.images),
            desc=f"{'encoder, ' if self.before else ''}epoch {own}/{self.configuration.epochs}",
            unit="image",
            disable=not self.progress,
            file=unescaped(sys.stderr),
        ) as bar:
            for index, batch in enumerate(self.images.epoch(self.configuration.batch_size, generator=generator)):
                losses[index], sound[index] = self._step(first_step + index, batch, generator)
                if (index + 1) % _STEPS_BETWEEN_LOOKS == 0 or index + 1 == self.steps_per_epoch:
                    # Looking at a loss makes the processor wait for the device, so it is done once in many steps.
                    self._check_sound(losses[: index + 1], sound[: index + 1], epoch)
                    bar.update(min((index + 1) * self.configuration.batch_size, len(self.images)) - bar.n)
                    bar.set_postfix_str(f"{-losses[index].item():.2f} nats")
        losses = losses[sound].double()
        median = -losses.median().item()
        best = -losses[0].item() if self.state.reached is None else self.state.reached
        check_bound(median, best, self.num_pixels, f"the bound in epoch {epoch}")
        self._check_weights(best, f"after epoch {epoch}, step {epoch * self.steps_per_epoch},")
        return TrainedEpoch(-losses.mean().item(), max(best, median), self.steps_per_epoch - len(losses))

    def _check_sound(self, losses: Tensor, sound: Tensor, epoch: int) -> None:
        broken = (~sound).nonzero().flatten().tolist()
        if len(broken) > _MOST_SKIPPED * self.steps_per_epoch:
            loss, step = losses[broken[0]].item(), (epoch - 1) * self.steps_per_epoch + broken[0] + 1
            what = "the gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
            raise DivergenceError(f"{what} at step {step} (epoch {epoch})")

    def _check_weights(self, best: float, when: str) -> None:
        """Refuse weights, or an average of them, that no longer know the images which the epoch began with.

        The last steps of an epoch can have ruined them without a loss that shows it. Validation images would not do:
        a single one that is unlike all training images costs without limit what these were learned well. For the same
        reason, of the images' bounds the median counts.

        Raises:
            DivergenceError: they do not.
        """
        medians = torch.zeros(2, dtype=torch.float64, device=self.images.device)
        if self.processes.leads:
            # Without gradients the networks would be compiled once more, and for this alone.
            with torch.compiler.set_stance("force_eager"):
                for index, vae in enumerate((self.state.model, self.state.averaged)):
                    log_weights = log_weight_in_parts(vae, *self._first, self.sizes).double()  # [B, K]
                    medians[index] = torch.logsumexp(log_weights, dim=1).median() - math.log(log_weights.shape[1])
        self.processes.add([medians])
        for bound, what in zip(medians.tolist(), ("weights", "average weights"), strict=True):
            check_bound(bound, best, self.num_pixels, f"the training images' bound by the {what} {when}")

    def _step(self, step: int, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One step of the optimiser on a batch [B, C, H, W]; the mean loss before it, and whether all was finite."""
        state, configuration = self.state, self.configuration
        images = augment(images, flip=configuration.flip, shift=configuration.shift, generator=generator)
        x = prepare(images, configuration, state.model, generator=generator)
        samples = num_samples(1 + step // self.steps_per_epoch, configuration)
        noise = normal((len(images), samples, state.model.latent_dim), generator)
        self.learning_rate = learning_rate(step, self.steps_per_epoch, configuration) * rate_factor(state.setbacks)
        for group in state.optimiser.param_groups:
            group["lr"] = self.learning_rate * group["rate_scale"]
        if step % self.steps_per_epoch == 0:
            self._first = x, noise
        state.optimiser.zero_grad()
        loss = accumulate_gradients(
            functools.partial(self._negative_bound, step),
            state.model,
            self.processes.share(x),
            self.processes.share(noise),
            self.sizes,
            batch_size=len(images),
            autocast=torch.autocast(
                images.device.type, torch.bfloat16, enabled=self.acceleration.precision == "bfloat16"
            ),
        )
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        self.processes.add([loss, *gradients])
        if configuration.max_gradient_norm:
            norm = torch.nn.utils.clip_grad_norm_(self._parameters, configuration.max_gradient_norm)
        else:
            norm = torch.nn.utils.get_total_norm(gradients)
        sound = torch.isfinite(norm + loss)
        state.step(sound, averaging_weight(step, configuration.ema_decay))
        return loss, sound

    def _negative_bound(self, step: int, x: Tensor, noise: Tensor, whole: Tensor | None) -> Tensor:
        """The objective of this step, [B]; of a part of the samples its share, with the log weights of all, `whole`."""
        if self.configuration.objective == "iwae":
            return negative_iwae_bound(self.state.model, x, noise, all_log_weights=whole)
        losses = negative_elbo(
            self.state.model,
            x,
            noise,
            kl_weight=kl_weight(step, self.steps_per_epoch, self.configuration),
            free_bits=self.configuration.free_bits,
        )
        return losses if whole is None else losses * (noise.shape[1] / whole.shape[1])


def prepare(images: Tensor, configuration: Configuration, model: Vae, *, generator: torch.Generator) -> Tensor:
    """What the model takes, float32 [B, C, H, W], of images uint8 in 0..255 or float32 in [0, 1]."""
    x = binarise(unit_pixels(images), configuration.binarisation, generator=generator)
    levels = model.likelihood.levels
    return x if levels is None else to_levels(x, levels)


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal numbers, on the generator's device."""
    return torch.randn(shape, generator=generator, device=generator.device)
