"""The training loop: seeded, resumable bit for bit, and fast on images that fit into memory."""

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from training.configuration import Configuration
from training.data.splits import DataSplits, derive_seed, on_device
from training.errors import DivergenceError
from training.fit.devices import PLAIN, Acceleration, compile_networks, device_name
from training.fit.distributed import ALONE, ProcessGroup
from training.fit.gradients import log_weight_in_parts
from training.fit.loop import Loop, normal, prepare
from training.fit.memory import Footprint, footprint, images_a_batch
from training.fit.recovery import check_not_given_up, step_back
from training.fit.run import Run
from training.fit.session import Session
from training.fit.state import build_state
from training.fit.versions import OF_TRAINING, library_versions
from training.networks.precision import full_float32
from training.networks.vae import Vae

VALIDATION_SAMPLES, FEWER_SAMPLES = 16, 4
"""An image, in the bounds of validation images; and where training takes one sample, as of large images. With 16 a
validation would take nearly as long there as the training between two of them."""
_VALIDATION_BATCH = 250
_VALIDATION = 2  # a stream of random numbers


@dataclass(frozen=True)
class EpochFigures:
    """One line of metrics.jsonl; bounds are of log P(x), in nats an image.

    Attributes:
        epoch: counted from 1.
        step: optimiser steps so far.
        train_bound: mean over the epoch of the objective's bound, with the weights as they were at each step; without
            KL warm-up and free bits. While the encoder alone is trained, that is the ELBO.
        validation_bound: importance weighted bound with 16 samples, or with 4 if training has one sample an image;
            averaged weights, always the same binarisation.
        validation_elbo: evidence lower bound of the same samples.
        learning_rate: at the last step.
        skipped_steps: whose loss or gradient was not finite, and which therefore changed nothing; they are not in
            `train_bound`.
        setbacks: how often training had diverged by then, each time going back to the last good epoch with a smaller
            learning rate.
        images_per_second: training alone.
        seconds: the epoch, validation included.
        encoder_epoch: which one it is of those that train the encoder alone, counted from 1; 0 before.
        encoder_gain: by how much `validation_elbo` is higher than that of the weights which that phase began with.
    """

    epoch: int
    step: int
    train_bound: float
    validation_bound: float
    validation_elbo: float
    learning_rate: float
    skipped_steps: int
    setbacks: int
    images_per_second: float
    seconds: float
    encoder_epoch: int = 0
    encoder_gain: float = 0.0


def fit(
    run: Run,
    splits: DataSplits,
    *,
    device: torch.device,
    on_epoch: Callable[[EpochFigures, Vae], None],
    processes: ProcessGroup = ALONE,
    acceleration: Acceleration = PLAIN,
    progress: bool = False,
    on_setback: Callable[[str], None] | None = None,
) -> Vae:
    """Train the run's model to its end, from its checkpoint if it has one; returns the averaged model.

    The end is the last epoch, or, where the configuration has patience, that many epochs without a better validation
    bound; the weights are then the best epoch's. With `finish_encoder` another phase follows, which trains the encoder
    of those weights alone (training/fit/encoder_phase.py): of its epochs the one with the highest validation ELBO is
    kept, or the encoder of before where none is better. After each epoch the figures go to metrics.jsonl, then the
    state to the checkpoint, then both to `on_epoch`, all by the leading process alone. On the CPU the weights depend on
    nothing but configuration, data, library versions and number of threads; with more processes, within rounding.

    Args:
        run: new or resumed.
        splits: the run's data.
        device: where to train.
        on_epoch: told the figures and the averaged model at each epoch's end.
        processes: the processes that train this model, of which this is one.
        acceleration: how the networks run.
        progress: draw a live bar on stderr.
        on_setback: told, in a line, why training has diverged and from where it goes on; by the leading process alone.

    Raises:
        DivergenceError: training has diverged, and diverged again after each of two setbacks
            (training/fit/recovery.py); the checkpoint has the last good epoch's weights, and goes on no further. While
            the encoder alone is trained, its phase ends instead.
    """
    configuration = run.description.configuration
    with full_float32():
        train = on_device(splits.train, device)
        validation = torch.from_numpy(splits.validation).to(device)
        untrained = functools.partial(
            build_state,
            configuration,
            splits.pixel_mean(),
            device,
            pixel_spread=splits.pixel_spread(),
            examples=splits.examples,
        )
        state = untrained()
        checkpoint = run.load_checkpoint(device)
        processes.wait()  # until all have read it: the first epoch's end replaces it
        epoch = state.restore(checkpoint) if checkpoint else 0
        check_not_given_up(state, epoch, configuration)
        if acceleration.compiled:
            compile_networks(state.model.encoder, state.model.decoder)
        if processes.leads:
            run.truncate_metrics(epoch)
            if not state.is_finished(epoch, configuration):
                run.append_session(session_of(epoch + 1, device, processes, acceleration))
        new_loop = functools.partial(
            Loop, configuration, state, train, processes, acceleration, progress, start=run.description.start
        )
        loop = new_loop()
        while not state.is_finished(epoch, configuration):
            if state.encoder_phase is None and state.is_trained(epoch, configuration):
                elbo, _ = validate(state.result(), validation, configuration, processes=processes, sizes=loop.sizes)
                state.begin_encoder_phase(epoch, elbo)
                if processes.leads:
                    run.save_checkpoint(state.as_checkpoint(epoch))
                processes.wait()  # until it is written: the first epoch may go back to it
                loop = new_loop()
            started = time.perf_counter()
            try:
                trained = loop.train_epoch(epoch + 1)
                train_seconds = time.perf_counter() - started
                elbo, bound = validate(state.averaged, validation, configuration, processes=processes, sizes=loop.sizes)
                watched = bound if state.encoder_phase is None else elbo
                if not math.isfinite(watched):
                    raise DivergenceError(f"the validation bound after epoch {epoch + 1} is {watched}")
            except DivergenceError as error:
                line = step_back(run, state, untrained(), error, processes)
                check_not_given_up(state, epoch, configuration, reason=str(error))
                if processes.leads and on_setback:
                    on_setback(line)
                continue
            epoch += 1
            state.reached = trained.reached
            phase = state.encoder_phase
            figures = EpochFigures(
                epoch=epoch,
                step=epoch * loop.steps_per_epoch,
                train_bound=trained.bound,
                validation_bound=bound,
                validation_elbo=elbo,
                learning_rate=loop.learning_rate,
                skipped_steps=trained.skipped_steps,
                setbacks=state.setbacks,
                images_per_second=len(train) / train_seconds,
                seconds=time.perf_counter() - started,
                encoder_epoch=epoch - phase.before if phase else 0,
                encoder_gain=elbo - phase.elbo if phase else 0.0,
            )
            if configuration.patience or state.encoder_phase:
                state.note_bound(epoch, watched)
            if processes.leads:
                run.append_metrics(asdict(figures))
                run.save_checkpoint(state.as_checkpoint(epoch))
                on_epoch(figures, state.averaged)
        processes.wait()  # until the last checkpoint is written
        return state.result()


def session_of(
    first_epoch: int, device: torch.device, processes: ProcessGroup = ALONE, acceleration: Acceleration = PLAIN
) -> Session:
    """What a session that begins here and now is recorded as."""
    return Session(
        first_epoch=first_epoch,
        device=device_name(device),
        precision=acceleration.precision,
        compiled=acceleration.compiled,
        num_threads=torch.get_num_threads(),
        num_processes=processes.size,
        library_versions=library_versions(OF_TRAINING),
    )


@full_float32()
@torch.no_grad()
def validate(
    model: Vae,
    images: Tensor,
    configuration: Configuration,
    *,
    processes: ProcessGroup = ALONE,
    sizes: Footprint | None = None,
) -> tuple[float, float]:
    """Mean ELBO and importance weighted bound of `images` [N, C, H, W], in nats an image.

    Each is of 16 samples, or of 4 where training has one.
    `sizes` are the model's `footprint`, where it is known already.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=images.device)
    num_samples = FEWER_SAMPLES if configuration.num_samples == 1 else VALIDATION_SAMPLES
    for bounds in _bounds(model, images, configuration, num_samples, processes, sizes):
        sums += torch.stack(bounds).sum(1)
    processes.add([sums])
    elbo, bound = (sums / len(images)).tolist()
    return elbo, bound


@full_float32()
@torch.no_grad()
def image_bounds(model: Vae, images: Tensor, configuration: Configuration) -> Tensor:
    """The importance weighted bound of each image [N, C, H, W] by 16 samples: [N], nats, float64."""
    bounds = _bounds(model, images, configuration, VALIDATION_SAMPLES, ALONE, None)
    return torch.cat([bound for _, bound in bounds])


def _bounds(
    model: Vae,
    images: Tensor,
    configuration: Configuration,
    num_samples: int,
    processes: ProcessGroup,
    sizes: Footprint | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """ELBO and importance weighted bound of the images of one batch after another, [B] each, of this process alone."""
    sizes = sizes or footprint(model)
    generator = torch.Generator(images.device).manual_seed(derive_seed(configuration.seed, _VALIDATION))
    for index, batch in enumerate(torch.split(images, images_a_batch(_VALIDATION_BATCH, model.image_shape))):
        x = prepare(batch, configuration, model, generator=generator)
        noise = normal((len(batch), num_samples, model.latent_dim), generator)
        if index % processes.size != processes.rank:
            continue  # another process's batch: only the random numbers are drawn
        log_weights = log_weight_in_parts(model, x, noise, sizes).double()  # [B, K]
        yield log_weights.mean(1), torch.logsumexp(log_weights, 1) - math.log(num_samples)
