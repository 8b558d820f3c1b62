"""What changes from step to step, as functions of the step alone, so that a resumed run needs no memory of it."""

import bisect
import itertools
import math

from training.configuration import Configuration


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


def num_samples(epoch: int, configuration: Configuration) -> int:
    """Latent samples an image in one epoch, counted from 1: a loose bound is enough until the weights are nearly final.

    They double from `first_samples` to `num_samples`, and each number of them gets as many decoder rows as any other:
    many cheap epochs, then few expensive ones.

    >>> recipe = Configuration(first_samples=4, num_samples=30, epochs=15)
    >>> [num_samples(epoch, recipe) for epoch in range(1, 16)]
    [4, 4, 4, 4, 4, 4, 4, 8, 8, 8, 8, 16, 16, 30, 30]
    """
    most = configuration.num_samples
    stages = [configuration.first_samples or most]
    while stages[-1] < most:
        stages.append(min(2 * stages[-1], most))
    ends = list(itertools.accumulate(1 / samples for samples in stages))  # of each stage, as if all took 1 row
    return stages[bisect.bisect_left(ends, epoch / configuration.epochs * ends[-1])]


def kl_weight(step: int, steps_per_epoch: int, configuration: Configuration) -> float:
    """The Kullback-Leibler term's weight at one step, counted from 0: linear up to 1 (Bowman et al. 2015).

    >>> recipe = Configuration(objective="elbo", kl_warm_up_epochs=2.0)
    >>> [kl_weight(step, 100, recipe) for step in (0, 99, 199, 500)]
    [0.005, 0.5, 1.0, 1.0]
    """
    warm_up = configuration.kl_warm_up_epochs * steps_per_epoch
    return min((step + 1) / warm_up, 1.0) if warm_up else 1.0


def averaging_weight(step: int, decay: float) -> float:
    """The weight of the new weights in one step's average; higher in the first steps, when the average is still poor.

    >>> averaging_weight(0, 0.999), round(averaging_weight(100_000, 0.999), 4), averaging_weight(7, 0.0)
    (0.9, 0.001, 1.0)
    """
    return 1 - min(decay, (1 + step) / (10 + step)) if decay else 1.0
