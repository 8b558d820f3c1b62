"""The training loop: seeded, resumable bit for bit, and fast on images that fit into memory."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from training.configuration import Configuration
from training.data import DataSplits, binarise, derive_seed, unit_pixels
from training.errors import ConfigurationError, DivergenceError
from training.networks import Vae, build_vae
from training.objective import log_weight, negative_elbo, negative_iwae_bound
from training.run import Run

VALIDATION_SAMPLES = 16
_VALIDATION_BATCH = 250
_STEPS_BETWEEN_LOOKS = 20
_TRAINING, _VALIDATION = 1, 2  # streams of random numbers

OBJECTIVE_FUNCTIONS = {"iwae": negative_iwae_bound, "elbo": negative_elbo}


@dataclass(frozen=True)
class EpochFigures:
    """One line of metrics.jsonl; bounds are of log P(x), in nats an image.

    Attributes:
        epoch: counted from 1.
        step: optimiser steps so far.
        train_bound: mean over the epoch of the objective's bound, with the weights as they were at each step.
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


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint holds. All random numbers come from (seed, epoch), so no generator's state is in it."""

    model: Vae
    averaged: Vae
    optimiser: torch.optim.Adam

    def as_checkpoint(self, epoch: int) -> dict[str, Any]:
        """Plain tensors and numbers, which `torch.load(weights_only=True)` reads."""
        return {
            "epoch": epoch,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, checkpoint: dict[str, Any]) -> int:
        """Load a checkpoint; returns the number of finished epochs."""
        self.model.load_state_dict(checkpoint["model"])
        self.averaged.load_state_dict(checkpoint["averaged"])
        self.optimiser.load_state_dict(checkpoint["optimiser"])
        return int(checkpoint["epoch"])


def choose_device(name: str) -> torch.device:
    """The device to train on; `auto` is CUDA where it works, else the CPU.

    Raises:
        ConfigurationError: CUDA is asked for and cannot be used.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device cuda: PyTorch finds no usable CUDA device here")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def build_state(configuration: Configuration, pixel_mean: Tensor, device: torch.device) -> TrainingState:
    """A model with fresh weights for images of `pixel_mean`'s shape, its average and its optimiser."""
    channels, height, width = pixel_mean.shape
    model = build_vae(configuration, (channels, height, width), pixel_mean).to(device)
    averaged = copy.deepcopy(model).requires_grad_(False)
    return TrainingState(model, averaged, torch.optim.Adam(model.parameters(), fused=True))


def learning_rate(step: int, steps_per_epoch: int, configuration: Configuration) -> float:
    """The rate of one step, counted from 0: a linear warm-up, then half a cosine down to 0 at the end of training.

    >>> recipe = Configuration(epochs=10, warm_up_epochs=1.0, learning_rate=0.5)
    >>> [round(learning_rate(step, 100, recipe), 4) for step in (0, 49, 99, 550, 999)]
    [0.005, 0.25, 0.5, 0.25, 0.0]
    """
    total = configuration.epochs * steps_per_epoch
    warm_up = min(configuration.warm_up_epochs * steps_per_epoch, total)
    if step < warm_up:
        return configuration.learning_rate * min((step + 1) / warm_up, 1.0)
    return configuration.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (total - warm_up)))


def fit(
    run: Run,
    splits: DataSplits,
    *,
    device: torch.device,
    on_epoch: Callable[[EpochFigures, Vae], None],
    progress: bool = False,
) -> Vae:
    """Train the run's model to its last epoch, from its checkpoint if it has one; returns the averaged model.

    After each epoch the figures go to metrics.jsonl, then the state to the checkpoint, then both to `on_epoch`.
    On the CPU the weights depend on nothing but configuration, data, library versions and number of threads.

    Args:
        run: new or resumed.
        splits: the run's data.
        device: where to train.
        on_epoch: told the figures and the averaged model at each epoch's end.
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
        train = torch.from_numpy(splits.train).to(device)
        validation = torch.from_numpy(splits.validation).to(device)
        state = build_state(configuration, _pixel_mean(splits), device)
        checkpoint = run.load_checkpoint(device)
        first_epoch = 1 + (state.restore(checkpoint) if checkpoint else 0)
        run.truncate_metrics(first_epoch - 1)
        for epoch in range(first_epoch, configuration.epochs + 1):
            started = time.perf_counter()
            train_bound = _train_epoch(state, train, epoch, configuration, progress=progress)
            trained = time.perf_counter()
            elbo, bound = validate(state.averaged, validation, configuration)
            steps_per_epoch = math.ceil(len(train) / configuration.batch_size)
            figures = EpochFigures(
                epoch=epoch,
                step=epoch * steps_per_epoch,
                train_bound=train_bound,
                validation_bound=bound,
                validation_elbo=elbo,
                learning_rate=state.optimiser.param_groups[0]["lr"],
                images_per_second=len(train) / (trained - started),
                seconds=time.perf_counter() - started,
            )
            if not math.isfinite(bound):
                raise DivergenceError(f"the validation bound is {bound} after epoch {epoch}, step {figures.step}")
            run.append_metrics(asdict(figures))
            run.save_checkpoint(state.as_checkpoint(epoch))
            on_epoch(figures, state.averaged)
        return state.averaged
    finally:
        torch.set_float32_matmul_precision(previous_precision)


@torch.no_grad()
def validate(model: Vae, images: Tensor, configuration: Configuration) -> tuple[float, float]:
    """Mean ELBO and importance weighted bound of `images` [N, C, H, W] under 16 samples, in nats an image."""
    generator = torch.Generator(images.device).manual_seed(derive_seed(configuration.seed, _VALIDATION))
    elbo = bound = 0.0
    for batch in torch.split(images, _VALIDATION_BATCH):
        x = binarise(unit_pixels(batch), configuration.binarisation, generator=generator)
        noise = _normal((len(batch), VALIDATION_SAMPLES, model.latent_dim), generator)
        log_weights = log_weight(model, x, noise)  # [B, K]
        elbo += log_weights.mean(1).sum().item()
        bound += (torch.logsumexp(log_weights, 1) - math.log(VALIDATION_SAMPLES)).sum().item()
    return elbo / len(images), bound / len(images)


def _train_epoch(
    state: TrainingState, images: Tensor, epoch: int, configuration: Configuration, *, progress: bool
) -> float:
    """One pass over the training images [N, C, H, W], uint8 or float32, on their device; the mean bound in nats."""
    generator = torch.Generator(images.device)
    generator.manual_seed(derive_seed(configuration.seed, _TRAINING, epoch))
    negative_bound_of = OBJECTIVE_FUNCTIONS[configuration.objective]
    order = torch.randperm(len(images), generator=generator, device=images.device)
    batches = torch.split(order, configuration.batch_size)
    step = first_step = (epoch - 1) * len(batches)
    losses = torch.empty(len(batches), device=images.device)
    with tqdm(
        total=len(images), desc=f"epoch {epoch}/{configuration.epochs}", unit="image", disable=not progress
    ) as bar:
        for index, batch in enumerate(batches):
            x = binarise(unit_pixels(images[batch]), configuration.binarisation, generator=generator)
            noise = _normal((len(batch), configuration.num_samples, state.model.latent_dim), generator)
            for group in state.optimiser.param_groups:
                group["lr"] = learning_rate(step, len(batches), configuration)
            loss = negative_bound_of(state.model, x, noise).mean()
            state.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            state.optimiser.step()
            _update_average(state, step, configuration.ema_decay)
            losses[index] = loss.detach()
            step += 1
            if step % _STEPS_BETWEEN_LOOKS == 0 or step == first_step + len(batches):
                # Looking at a loss makes the processor wait for the device, so it is done once in many steps.
                _check_finite(losses[: index + 1], epoch, first_step)
                bar.update(int(sum(map(len, batches[: index + 1]))) - bar.n)
                bar.set_postfix_str(f"{-loss.item():.2f} nats")
    return -losses.double().mean().item()


@torch.no_grad()
def _update_average(state: TrainingState, step: int, decay: float) -> None:
    """averaged = d · averaged + (1 - d) · model, with a smaller d in the first steps, when the average knows little."""
    weight = 1 - min(decay, (1 + step) / (10 + step)) if decay else 1.0
    for averaged, current in zip(state.averaged.parameters(), state.model.parameters(), strict=True):
        averaged.lerp_(current, weight)


def _check_finite(losses: Tensor, epoch: int, first_step: int) -> None:
    broken = (~torch.isfinite(losses)).nonzero().flatten().tolist()
    if broken:
        loss, step = losses[broken[0]].item(), first_step + broken[0] + 1
        raise DivergenceError(f"the loss is {loss} at step {step} (epoch {epoch}); the last checkpoint is kept")


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _pixel_mean(splits: DataSplits) -> Tensor:
    """Mean of the training pixels, [C, H, W], in [0, 1]."""
    mean = splits.train.mean(axis=0, dtype="float64") / (255 if splits.train.dtype == "uint8" else 1)
    return torch.from_numpy(mean).float()
