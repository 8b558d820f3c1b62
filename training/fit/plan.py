"""How many epochs a run has where the user does not say: as many as its images are worth, and as the time allows."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from training.configuration import Configuration
from training.data.splits import DataSplits, LoadedImages, evenly_spaced
from training.errors import ConfigurationError
from training.fit.devices import Acceleration
from training.fit.distributed import ProcessGroup
from training.fit.encoder_phase import default_epochs
from training.fit.limits import check_limits
from training.fit.loop import Loop
from training.fit.recipes import complete_configuration
from training.fit.schedule import num_samples
from training.fit.state import build_state
from training.fit.trainer import validate

DEFAULT_MINUTES = 12.0
"""`publish` is to end within a quarter of an hour, too."""
STEPS = 12_000
"""That a run has, if it has the time: a model of 64×64 pixels still gains after 10 000."""
FEWEST_EPOCHS, MOST_EPOCHS = 120, 1000
PATIENCE, LEAST_PATIENCE = 0.1, 10
"""Of the planned epochs, and epochs: without a better validation bound, the run ends."""
_TIMED_STEPS, _TIMED_IMAGES = 6, 32
_NO_RATE = 1e-12
"""A learning rate: weights that are timed learn nothing, and do not diverge."""


@dataclass(frozen=True)
class Pace:
    """What training costs on this machine, as busy as it is now.

    Attributes:
        step: seconds of an optimiser step with as many samples an image as the first epoch has.
        validation: seconds of the validation that ends an epoch.
    """

    step: float
    validation: float

    def seconds(self, configuration: Configuration, steps_per_epoch: int) -> float:
        """Of a whole run, the encoder's own phase with all its epochs included.

        >>> run = Configuration(epochs=40, num_samples=1, finish_encoder=False)
        >>> Pace(0.5, 3.0).seconds(run, 10), Pace(0.5, 3.0).seconds(replace(run, finish_encoder=True), 10)
        (320.0, 400.0)
        """
        epochs = configuration.epochs
        samples = [num_samples(epoch, configuration) for epoch in range(1, epochs + 1)]
        step = self.step * steps_per_epoch / samples[0]  # of one sample
        seconds = step * sum(samples) + self.validation * epochs
        if configuration.finish_encoder:
            finish_epochs = configuration.finish_epochs or default_epochs(epochs)
            # The decoder's weights have no gradient there; that is not counted on.
            seconds += finish_epochs * (step * min(4, configuration.num_samples) + self.validation)
        return seconds


@dataclass(frozen=True)
class Plan:
    """What a run without `--epochs` does.

    Attributes:
        configuration: with the number of epochs.
        seconds: that it takes.
        wanted: epochs that it would have with more time.
        wanted_seconds: that these would take.
        minutes: that it was planned for.
    """

    configuration: Configuration
    seconds: float
    wanted: int
    wanted_seconds: float
    minutes: float

    def lines(self) -> list[str]:
        """What is planned, and what more time would buy, in words."""
        epochs, patience = self.configuration.epochs, self.configuration.patience
        early = f", or until {patience} epochs bring nothing" if 0 < patience < epochs else ""
        at_most = f"at most about {_in_words(self.seconds)} at this machine's present pace"
        said = [f"plan: {_counted(epochs, 'epoch')}{early}; {at_most}"]
        if self.seconds > 60 * self.minutes:
            said.append(f"that is longer than --minutes {self.minutes:g}: smaller images (--size) would be faster")
        if epochs < self.wanted:
            more = math.ceil(self.wanted_seconds / 60)
            said.append(f"more time may give a better model: {self.wanted} epochs take about --minutes {more}")
        return said


def enough_epochs(steps_per_epoch: int) -> int:
    """Epochs of a run that has all the time it needs.

    >>> [enough_epochs(steps) for steps in (1, 40, 1000)]
    [1000, 300, 120]
    """
    return min(max(math.ceil(STEPS / steps_per_epoch), FEWEST_EPOCHS), MOST_EPOCHS)


def plan(given: Mapping[str, Any], splits: DataSplits, minutes: float, pace: Pace) -> Plan:
    """The configuration of the options that were given, and the epochs that end within `minutes`; at least one.

    With more than enough time they are those that have 12 000 steps, at least 120 and at most 1000. A run that is
    planned also ends early, unless the options say otherwise or its number of samples grows.
    """

    def with_epochs(epochs: int) -> Configuration:
        early = {} if given.get("first_samples") else {"patience": max(LEAST_PATIENCE, math.ceil(PATIENCE * epochs))}
        return complete_configuration({**early, "epochs": epochs, **given}, splits.train)

    steps_per_epoch = math.ceil(len(splits.train) / with_epochs(1).batch_size)
    wanted = with_epochs(enough_epochs(steps_per_epoch))

    def seconds(epochs: int) -> float:
        return pace.seconds(replace(wanted, epochs=epochs), steps_per_epoch)

    fewest, most = 1, wanted.epochs
    while fewest < most:
        middle = (fewest + most + 1) // 2
        fewest, most = (middle, most) if seconds(middle) <= 60 * minutes else (fewest, middle - 1)
    return Plan(with_epochs(fewest), seconds(fewest), wanted.epochs, seconds(wanted.epochs), minutes)


def plan_on_machine(
    given: Mapping[str, Any],
    splits: DataSplits,
    minutes: float | None,
    *,
    device: torch.device,
    processes: ProcessGroup,
    acceleration: Acceleration,
) -> Plan | None:
    """What `plan` makes of this machine's pace; None where the options say how many epochs the run has.

    Raises:
        ConfigurationError: they do, and there are `minutes` as well; or see `check_limits`.
    """
    if "epochs" not in given:
        configuration = complete_configuration(given, splits.train)
        check_limits(configuration, splits)  # before a network is built that no machine holds
        pace = measure_pace(configuration, splits, device, processes, acceleration)
        return plan(given, splits, DEFAULT_MINUTES if minutes is None else minutes, pace)
    if minutes is not None:
        raise ConfigurationError("minutes plan the number of epochs, which this run has already: leave out one of them")
    return None


def measure_pace(
    configuration: Configuration,
    splits: DataSplits,
    device: torch.device,
    processes: ProcessGroup,
    acceleration: Acceleration,
) -> Pace:
    """Time some steps of training and a part of the validation, by weights that are thrown away.

    All processes of a group come here together, and get the leading one's figures. Networks are not compiled here.
    """
    configuration = replace(configuration, learning_rate=_NO_RATE, max_gradient_norm=0.0)
    state = build_state(configuration, splits.pixel_mean(), device, pixel_spread=splits.pixel_spread())
    images = LoadedImages(evenly_spaced(splits.train, _TIMED_STEPS * configuration.batch_size), device)
    loop = Loop(configuration, state, images, processes, acceleration, progress=False)
    loop.train_epoch(1)  # the first steps allocate memory
    started = time.perf_counter()
    loop.train_epoch(2)
    step = (time.perf_counter() - started) / loop.steps_per_epoch
    some = torch.from_numpy(evenly_spaced(splits.validation, _TIMED_IMAGES)).to(device)
    started = time.perf_counter()
    validate(state.averaged, some, configuration, processes=processes, sizes=loop.sizes)
    validation = (time.perf_counter() - started) * len(splits.validation) / len(some)
    figures = torch.tensor([step, validation], dtype=torch.float64, device=device) * processes.leads
    processes.add([figures])
    return Pace(*figures.tolist())


def _in_words(seconds: float) -> str:
    return _counted(round(seconds / 60), "minute") if seconds >= 90 else _counted(math.ceil(seconds), "second")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
