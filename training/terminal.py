"""What the commands say to whoever runs them."""

import itertools
import math
import sys
from collections.abc import Mapping

import torch

from service.engine.calibration import guarantees
from service.images.folder import describe_skipped, skips_images
from service.progress import duration
from training.configuration import Configuration
from training.data.sources import Source, StreamedSource
from training.data.splits import DataSplits
from training.data.streams import ImageStream
from training.fit.encoder_phase import encoder_configuration
from training.fit.loaded_model import FinishedEncoder
from training.fit.plan import Plan
from training.fit.run import RunDescription
from training.fit.schedule import num_samples
from training.fit.trainer import EpochFigures
from training.likelihoods.base import ImageShape
from training.publish.evaluation import Evaluation
from training.report.page import Measured
from training.report.verdict import CALIBRATION_THAT_FIRES, Verdict

_NAMED = 20  # images that a warning names
_FEW = 500


def is_terminal() -> bool:
    """Whether somebody watches, so that a bar that moves makes sense."""
    return sys.stderr.isatty()


def print_skipped(source: Source | StreamedSource) -> None:
    """What was not taken for an image, and a warning of images that are left out, naming the first of them."""
    if source.ignored:
        print(f"skipped: {describe_skipped(source.ignored)}", flush=True)
    if skips_images(source.ignored):
        print("PNG, JPEG and WebP files are read: convert the others if they are to count", flush=True)
    print_left_out(source.skipped)


def print_left_out(skipped: Mapping[str, str]) -> None:
    """A warning of images that cannot be read, by name what is wrong; it names the first of them."""
    if not skipped:
        return
    print(f"warning: {len(skipped)} images cannot be read and are left out:", file=sys.stderr)
    for name, problem in itertools.islice(skipped.items(), _NAMED):
        print(f"  {name}: {problem}", file=sys.stderr)
    if len(skipped) > _NAMED:
        print(f"  and {len(skipped) - _NAMED} more", file=sys.stderr)


def print_chosen(source: Source | StreamedSource) -> None:
    """What `--size auto` chose, and why."""
    for line in source.chosen:
        print(line, flush=True)


def print_start(splits: DataSplits, description: RunDescription, device: torch.device, *, begun_on: str | None) -> None:
    """What will be trained, on what and where; and whether the run was begun on another kind of device."""
    parts = _counted(description.num_images)
    configuration = description.configuration
    choices = f"{configuration.preset}, {configuration.likelihood}, binarisation {configuration.binarisation}"
    streamed = "; training images stream" if isinstance(splits.train, ImageStream) else ""
    fitted = f", fit {configuration.fit}" if configuration.size else ""
    inverted = ", inverted" if configuration.invert else ""
    what = f"{parts} images of {list(splits.image_shape)}{fitted}{inverted}; {choices}"
    precision = f", {description.acceleration.precision}" if description.acceleration else ""
    print(f"{splits.name}: {what}; on {device}{precision}{streamed}")
    if begun_on not in (None, device.type):
        print(
            f"note: begun on {begun_on}; on {device.type} it continues within rounding, not bit for bit",
            file=sys.stderr,
        )
    if splits.division is not None:
        print(f"divided by things ({splits.division.by}): {_counted(splits.division.num_things)}")
    _print_if_few(description, splits)


def _print_if_few(description: RunDescription, splits: DataSplits) -> None:
    """Of few images, what makes more of them, and what so few calibration images can promise."""
    if (count := sum(description.num_images.values())) >= _FEW:
        return
    configuration = description.configuration
    if not configuration.flip and not configuration.shift:
        print(f"{count} images are few: --flip and --shift make more of them, where that makes sense")
    for line in guarantees(len(splits.calibration)) if splits.division is None else splits.division.promises():
        print(line)
    if description.num_images["calibration"] < CALIBRATION_THAT_FIRES <= count // 5:
        print(f"--num-calibration {CALIBRATION_THAT_FIRES} keeps enough of them for alpha = 0.05")


def _counted(by_part: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {part}" for part, count in by_part.items())


def print_plan(plan: Plan | None) -> None:
    """How long training takes, where that was planned, and what more time would buy."""
    for line in plan.lines() if plan else ():
        print(line, flush=True)


def print_verdict(verdict: Verdict) -> None:
    """Whether the model is good for its purpose, why, and what to try next."""
    for line in verdict.lines():
        print(line)


def print_epoch(figures: EpochFigures, configuration: Configuration, image_shape: ImageShape) -> None:
    """One line an epoch, with the time left; of the encoder alone they are counted by themselves, and say its gain."""
    epoch, gain = f"epoch {figures.epoch}/{configuration.epochs}", ""
    if figures.encoder_epoch:
        epoch = f"encoder, epoch {figures.encoder_epoch}/{encoder_configuration(configuration).epochs}"
        gain = f" ({figures.encoder_gain:+.2f})"
    bits = -figures.validation_bound / (math.prod(image_shape) * math.log(2))
    print(
        f"{epoch}: train {figures.train_bound:.2f}, validation {figures.validation_bound:.2f} ({bits:.3f} bits/dim), "
        f"ELBO {figures.validation_elbo:.2f}{gain} nats; {figures.images_per_second:.0f} images/s, at most "
        f"{duration(seconds_left(figures, configuration))} left",
        flush=True,
    )


def seconds_left(figures: EpochFigures, configuration: Configuration) -> float:
    """Of a run after this epoch, if others take as long for as many samples; a run may end early.

    >>> run = Configuration(epochs=10, num_samples=2, finish_epochs=5)
    >>> epoch = EpochFigures(4, 40, -1.0, -1.0, -1.0, 0.1, 0, 0, 99.0, seconds=3.0)
    >>> seconds_left(epoch, run)
    33.0
    """
    of_encoder = encoder_configuration(configuration)
    later = [of_encoder.num_samples] * (of_encoder.epochs if configuration.finish_encoder else 0)
    if figures.encoder_epoch:
        return figures.seconds * (len(later) - figures.encoder_epoch)
    samples = [num_samples(epoch, configuration) for epoch in range(figures.epoch, configuration.epochs + 1)]
    return figures.seconds * sum(samples[1:] + later) / samples[0]


def print_finished_encoder(finished: FinishedEncoder) -> None:
    """What training the encoder alone has gained."""
    before = f"{finished.elbo_before:.2f}"
    if finished.kept_epoch:
        epoch = f"epoch {finished.kept_epoch} of {finished.epochs}"
        print(f"encoder: validation ELBO {before} → {finished.elbo_after:.2f} nats, by {epoch}, decoder frozen")
    else:
        print(f"encoder: as before; none of {finished.epochs} epochs had a validation ELBO above {before} nats")


def print_setback(line: str) -> None:
    """Training has diverged, and continues."""
    print(f"warning: {line}", file=sys.stderr, flush=True)


def print_measured(measured: Measured) -> None:
    """Every estimate of log P(x) with its protocol, and the units of the latent code."""
    for evaluation in measured.evaluations:
        _print_evaluation(f"{measured.title} on {measured.data}", evaluation)
    active = measured.units.as_metric()
    print(f"  {active.name:<16}{active.value:>10.0f} of {len(measured.units.kl)} {active.unit}")
    for line in measured.detection.lines() if measured.detection else ():
        print(line)
    if measured.verdict:
        print_verdict(measured.verdict)


def _print_evaluation(title: str, evaluation: Evaluation) -> None:
    print(f"{title}: {evaluation.num_images} images; {evaluation.protocol}")
    rows = (
        ("log_likelihood", evaluation.log_likelihood, evaluation.std_error, "nats/image"),
        ("elbo", evaluation.elbo, evaluation.elbo_std_error, "nats/image"),
        ("bits_per_dim", evaluation.bits_per_dim, evaluation.bits_per_dim_std_error, "bits/dim"),
    )
    for name, value, std_error, unit in rows:
        print(f"  {name:<16}{value:>10.4f} ± {std_error:.4f} {unit}")
    reasons = ", ".join(f"{reason} {100 * share:.1f} %" for reason, share in evaluation.unreliable.items())
    print(f"  {'reliable':<16}{100 * evaluation.reliable:>10.1f} % of images{'; not: ' * bool(reasons)}{reasons}")
    if evaluation.annealed:
        print(f"  {'annealed':<16}{100 * evaluation.annealed:>10.1f} % of images")
