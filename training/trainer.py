"""The training loop: seeded, resumable bit for bit, and fast on images that fit into memory."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from training.augmentation import augment
from training.configuration import Configuration
from training.data import DataSplits, TrainingImages, binarise, derive_seed, on_device, to_levels, unit_pixels
from training.errors import DivergenceError
from training.networks import Vae
from training.objective import log_weight, negative_elbo, negative_iwae_bound
from training.run import Run
from training.schedule import averaging_weight, kl_weight, learning_rate, num_samples
from training.state import TrainingState, build_state
from training.workers import ALONE, PLAIN, Acceleration, Team, compile_networks

VALIDATION_SAMPLES = 16
_VALIDATION_BATCH = 250
_STEPS_BETWEEN_LOOKS = 20
_TRAINING, _VALIDATION = 1, 2  # streams of random numbers


@dataclass(frozen=True)
class EpochFigures:
    """One line of metrics.jsonl; bounds are of log P(x), in nats an image.

    Attributes:
        epoch: counted from 1.
        step: optimiser steps so far.
        train_bound: mean over the epoch of the objective's bound, with the weights as they were at each step; without
            KL warm-up and free bits.
        validation_bound: importance weighted bound with 16 samples, averaged weights, always the same binarisation.
        validation_elbo: evidence lower bound of the same samples.
        learning_rate: at the last step.
        images_per_second: training alone.
        seconds: the epoch, validation included.
    """

    epoch: int
    step: int
    train_bound: float
    validation_bound: float
    validation_elbo: float
    learning_rate: float
    images_per_second: float
    seconds: float


def fit(
    run: Run,
    splits: DataSplits,
    *,
    device: torch.device,
    on_epoch: Callable[[EpochFigures, Vae], None],
    team: Team = ALONE,
    acceleration: Acceleration = PLAIN,
    progress: bool = False,
) -> Vae:
    """Train the run's model to its end, from its checkpoint if it has one; returns the averaged model.

    The end is the last epoch, or, where the configuration has patience, that many epochs without a better validation
    bound; the weights are then the best epoch's. After each epoch the figures go to metrics.jsonl, then the state to
    the checkpoint, then both to `on_epoch`, all by the leading process alone. On the CPU the weights depend on nothing
    but configuration, data, library versions and number of threads; with more processes, within rounding.

    Args:
        run: new or resumed.
        splits: the run's data.
        device: where to train.
        on_epoch: told the figures and the averaged model at each epoch's end.
        team: the processes that train this model, of which this is one.
        acceleration: how the networks run.
        progress: draw a live bar on stderr.

    Raises:
        DivergenceError: a loss is not finite; the checkpoint is the last finished epoch's.
    """
    configuration = run.description.configuration
    # On the CPU this lets PyTorch use oneDNN's kernels: on AMD 2.3 times as fast as MKL's and no less exact, where the
    # processor has bfloat16 matrix units in that precision. On CUDA it allows TensorFloat-32.
    previous_precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if device.type == "cpu" else "high")
    try:
        train = on_device(splits.train, device)
        validation = torch.from_numpy(splits.validation).to(device)
        state = build_state(configuration, splits.pixel_mean(), device)
        checkpoint = run.load_checkpoint(device)
        team.wait()  # until all have read it: the first epoch's end replaces it
        epoch = state.restore(checkpoint) if checkpoint else 0
        if acceleration.compiled:
            compile_networks(state.model.encoder, state.model.decoder)
        if team.leads:
            run.truncate_metrics(epoch)
        loop = Loop(configuration, state, train, team, acceleration, progress, start=run.description.start)
        while not state.is_finished(epoch, configuration):
            epoch += 1
            started = time.perf_counter()
            train_bound = loop.train_epoch(epoch)
            trained = time.perf_counter()
            elbo, bound = validate(state.averaged, validation, configuration, team=team)
            figures = EpochFigures(
                epoch=epoch,
                step=epoch * loop.steps_per_epoch,
                train_bound=train_bound,
                validation_bound=bound,
                validation_elbo=elbo,
                learning_rate=state.optimiser.param_groups[0]["lr"],
                images_per_second=len(train) / (trained - started),
                seconds=time.perf_counter() - started,
            )
            if not math.isfinite(bound):
                raise DivergenceError(f"the validation bound is {bound} after epoch {epoch}, step {figures.step}")
            if configuration.patience:
                state.note_bound(epoch, bound)
            if team.leads:
                run.append_metrics(asdict(figures))
                run.save_checkpoint(state.as_checkpoint(epoch))
                on_epoch(figures, state.averaged)
        team.wait()  # until the last checkpoint is written
        return state.result()
    finally:
        torch.set_float32_matmul_precision(previous_precision)


@torch.no_grad()
def validate(
    model: Vae,
    images: Tensor,
    configuration: Configuration,
    *,
    team: Team = ALONE,
) -> tuple[float, float]:
    """Mean ELBO and importance weighted bound of `images` [N, C, H, W] under 16 samples, in nats an image."""
    generator = torch.Generator(images.device).manual_seed(derive_seed(configuration.seed, _VALIDATION))
    sums = torch.zeros(2, dtype=torch.float64, device=images.device)
    for index, batch in enumerate(torch.split(images, _VALIDATION_BATCH)):
        x = prepare(batch, configuration, model, generator=generator)
        noise = _normal((len(batch), VALIDATION_SAMPLES, model.latent_dim), generator)
        if index % team.size != team.rank:
            continue  # another process's batch: only the random numbers are drawn
        log_weights = log_weight(model, x, noise).double()  # [B, K]
        sums[0] += log_weights.mean(1).sum()
        sums[1] += (torch.logsumexp(log_weights, 1) - math.log(VALIDATION_SAMPLES)).sum()
    team.add([sums])
    elbo, bound = (sums / len(images)).tolist()
    return elbo, bound


def prepare(images: Tensor, configuration: Configuration, model: Vae, *, generator: torch.Generator) -> Tensor:
    """What the model takes, float32 [B, C, H, W], of images uint8 in 0..255 or float32 in [0, 1]."""
    x = binarise(unit_pixels(images), configuration.binarisation, generator=generator)
    levels = model.likelihood.levels
    return x if levels is None else to_levels(x, levels)


class Loop:
    """What an epoch of training needs, besides its number; `images` are loaded or streamed.

    The model's weights change with every step, and their average after it; both are the state's. A run from the weights
    of another, `start`, draws other random numbers than that one did from the same seed.
    """

    def __init__(
        self,
        configuration: Configuration,
        state: TrainingState,
        images: TrainingImages,
        team: Team,
        acceleration: Acceleration,
        progress: bool,
        *,
        start: str | None = None,
    ) -> None:
        self.configuration = configuration
        self.state = state
        self.images = images
        self.team = team
        self.acceleration = acceleration
        self.progress = progress and team.leads
        self.steps_per_epoch = math.ceil(len(images) / configuration.batch_size)
        self._streams = (_TRAINING,) if start is None else (_TRAINING, int(start[:16], 16))
        self._parameters = list(state.model.parameters())
        self._averages = list(state.averaged.parameters())

    def train_epoch(self, epoch: int) -> float:
        """One pass over the training images; the mean bound in nats."""
        device = self.images.device
        generator = torch.Generator(device)
        generator.manual_seed(derive_seed(self.configuration.seed, *self._streams, epoch))
        first_step = (epoch - 1) * self.steps_per_epoch
        losses = torch.empty(self.steps_per_epoch, device=device)
        with tqdm(
            total=len(self.images),
            desc=f"epoch {epoch}/{self.configuration.epochs}",
            unit="image",
            disable=not self.progress,
        ) as bar:
            for index, batch in enumerate(self.images.epoch(self.configuration.batch_size, generator=generator)):
                losses[index] = self._step(first_step + index, batch, generator)
                if (index + 1) % _STEPS_BETWEEN_LOOKS == 0 or index + 1 == self.steps_per_epoch:
                    # Looking at a loss makes the processor wait for the device, so it is done once in many steps.
                    _check_finite(losses[: index + 1], epoch, first_step)
                    bar.update(min((index + 1) * self.configuration.batch_size, len(self.images)) - bar.n)
                    bar.set_postfix_str(f"{-losses[index].item():.2f} nats")
        return -losses.double().mean().item()

    def _step(self, step: int, images: Tensor, generator: torch.Generator) -> Tensor:
        """One step of the optimiser on a batch [B, C, H, W]; the mean loss before it."""
        state, configuration = self.state, self.configuration
        images = augment(images, flip=configuration.flip, shift=configuration.shift, generator=generator)
        x = prepare(images, configuration, state.model, generator=generator)
        samples = num_samples(1 + step // self.steps_per_epoch, configuration)
        noise = _normal((len(images), samples, state.model.latent_dim), generator)
        rate = learning_rate(step, self.steps_per_epoch, configuration)
        for group in state.optimiser.param_groups:
            group["lr"] = rate * group["rate_scale"]
        low_precision = self.acceleration.precision == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=low_precision):
            losses = self._negative_bound(self.team.share(x), self.team.share(noise), step)
        loss = losses.sum() / len(images)
        state.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        loss = loss.detach()
        self.team.add([loss, *(parameter.grad for parameter in self._parameters if parameter.grad is not None)])
        if configuration.max_gradient_norm:
            torch.nn.utils.clip_grad_norm_(self._parameters, configuration.max_gradient_norm)
        state.optimiser.step()
        weight = averaging_weight(step, configuration.ema_decay)
        get_ema_multi_avg_fn(1 - weight)(self._averages, self._parameters, step)  # type: ignore[no-untyped-call]
        return loss

    def _negative_bound(self, x: Tensor, noise: Tensor, step: int) -> Tensor:
        """The objective of this step, [B]."""
        if self.configuration.objective == "iwae":
            return negative_iwae_bound(self.state.model, x, noise)
        return negative_elbo(
            self.state.model,
            x,
            noise,
            kl_weight=kl_weight(step, self.steps_per_epoch, self.configuration),
            free_bits=self.configuration.free_bits,
        )


def _check_finite(losses: Tensor, epoch: int, first_step: int) -> None:
    broken = (~torch.isfinite(losses)).nonzero().flatten().tolist()
    if broken:
        loss, step = losses[broken[0]].item(), first_step + broken[0] + 1
        raise DivergenceError(f"the loss is {loss} at step {step} (epoch {epoch}); the last checkpoint is kept")


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)
