"""The last phase of a run: the encoder alone is trained, by the ELBO, while the decoder stays as it is."""

import math
from dataclasses import dataclass, replace

from training.configuration import Configuration

_SHARE, _AT_LEAST = 0.25, 10
"""Of the run's epochs, and epochs, or as many as the run has: the phase's length where the configuration has none."""
_MOST_SAMPLES = 4
"""An image. The decoder computes no gradient of its weights, so a sample costs two thirds of what it did before."""
_RATE = 0.5
"""Times the run's learning rate."""
_PATIENCE, _LEAST_PATIENCE = 1 / 3, 3
"""Of the phase's epochs, and epochs: without a better validation ELBO, the phase ends."""
_WARM_UP = 0.1
"""Of the phase's epochs, at most: Adam begins without its moments."""


@dataclass(frozen=True)
class EncoderPhase:
    """A phase that has begun.

    Its first epochs can be worse than the encoder of before, since Adam begins anew with large steps, and better once
    the steps are small. So what it is compared with, to tell whether it goes on, are its own epochs.

    Attributes:
        before: epochs that had finished by then.
        elbo: validation ELBO of the weights that it began with, nats an image.
        highest: the highest validation ELBO of its own epochs; None before the first has finished.
        highest_epoch: which one has it.
    """

    before: int
    elbo: float
    highest: float | None = None
    highest_epoch: int = 0

    def after(self, epoch: int, elbo: float) -> "EncoderPhase":
        """The phase once this epoch has finished, with this validation ELBO."""
        if self.highest is not None and elbo <= self.highest:
            return self
        return replace(self, highest=elbo, highest_epoch=epoch)

    def is_over(self, epoch: int, configuration: Configuration) -> bool:
        """Whether no epoch follows this one: it is the last, or no later one was better than the highest for too long.

        >>> run = Configuration(epochs=120)
        >>> phase = EncoderPhase(120, -90.0).after(121, -91.0)
        >>> [phase.is_over(epoch, run) for epoch in (121, 130, 131, 150)]
        [False, False, True, True]
        """
        phase = encoder_configuration(configuration)
        impatient = self.highest is not None and epoch - self.highest_epoch >= phase.patience
        return impatient or epoch - self.before >= phase.epochs


def default_epochs(epochs: int) -> int:
    """How many epochs the phase has at most, after so many epochs of the run.

    >>> [default_epochs(epochs) for epochs in (120, 25, 3)]
    [30, 10, 3]
    """
    return max(min(_AT_LEAST, epochs), math.ceil(_SHARE * epochs))


def encoder_configuration(configuration: Configuration) -> Configuration:
    """What the phase of a run of `configuration` is trained by, as if it were a run of its own.

    The objective is the plain ELBO, of as many samples an image as the run had, but at most four: on `mnist` the
    validation ELBO is -91.40 after five epochs of four samples, and -91.51 after ten of one. Images, batches, clipping
    and averaging are the run's. Adam begins without its moments, and so at half of the run's learning rate.

    >>> phase = encoder_configuration(Configuration(epochs=200, learning_rate=0.002, num_samples=64))
    >>> phase.objective, phase.num_samples, phase.epochs, phase.patience, phase.learning_rate
    ('elbo', 4, 50, 17, 0.001)
    """
    epochs = configuration.finish_epochs or default_epochs(configuration.epochs)
    return replace(
        configuration,
        objective="elbo",
        num_samples=min(configuration.num_samples, _MOST_SAMPLES),
        first_samples=None,
        kl_warm_up_epochs=0.0,
        free_bits=0.0,
        epochs=epochs,
        learning_rate=_RATE * configuration.learning_rate,
        warm_up_epochs=min(configuration.warm_up_epochs, _WARM_UP * epochs),
        patience=max(_LEAST_PATIENCE, math.ceil(_PATIENCE * epochs)),
    )
