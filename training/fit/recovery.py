"""What happens when training diverges: back to the last good epoch with a smaller step, twice, and then an end."""

import math

from training.configuration import Configuration
from training.errors import DivergenceError
from training.fit.distributed import ProcessGroup
from training.fit.run import Run
from training.fit.state import TrainingState

RATE_AFTER_SETBACK = 0.25
"""Times the rate before: after two setbacks a sixteenth."""
_COLLAPSE = 10


def rate_factor(setbacks: int) -> float:
    """What the learning rate is multiplied by after so many setbacks.

    >>> [rate_factor(setbacks) for setbacks in range(3)]
    [1.0, 0.25, 0.0625]
    """
    return RATE_AFTER_SETBACK**setbacks


def check_bound(bound: float, best: float, num_pixels: int, what: str) -> None:
    """Refuse a bound [nats an image] that is not finite, or absurd beside the best that training has reached.

    Absurd is a bound that is lower by more than ten times |best| + 1 nat a pixel: far below what the untrained model
    has, which knows the mean image. It is to be of training images: one validation image that is unlike them all can
    bring a bound down as far.

    Raises:
        DivergenceError: the bound is such.
    """
    if not math.isfinite(bound):
        raise DivergenceError(f"{what} is {bound}")
    if bound < best - _COLLAPSE * (abs(best) + num_pixels):
        raise DivergenceError(f"{what} has fallen to {bound:.4g}, from {best:.4g} nats")


def check_not_given_up(state: TrainingState, epoch: int, configuration: Configuration, *, reason: str = "") -> None:
    """Refuse to go on with a run that has diverged once more after its last setback, the last time for this reason.

    Where it was training the encoder alone, there is a model: its phase has ended, and nothing is refused.

    Raises:
        DivergenceError: it has; the message says what to change.
    """
    if state.has_given_up and state.encoder_phase is None:
        tried = ", ".join(f"{configuration.learning_rate * rate_factor(count):.2g}" for count in range(state.setbacks))
        advised = configuration.learning_rate * rate_factor(state.setbacks)
        kept = f"the weights of epoch {epoch} are kept, for --start-from. " if epoch else ""
        raise DivergenceError(
            f"training has diverged at each of the learning rates {tried}, the last time in epoch {epoch + 1}"
            f"{f' ({reason})' if reason else ''}, and ends here. {kept}Begin another run, in another folder, with "
            f"--learning-rate {advised:.2g}, and see whether some images are unlike all others: blank, inverted, or of "
            "another range of values"
        )


def step_back(
    run: Run, state: TrainingState, untrained: TrainingState, error: DivergenceError, processes: ProcessGroup
) -> str:
    """Put `state` back to where the last finished epoch left it, with one setback more; returns a line that says so.

    The checkpoint is replaced by one that knows of the setback, so that a resumed run goes on with the smaller step.
    All processes of a group come here together and do the same.

    Args:
        run: whose checkpoint has the last finished epoch.
        state: to be put back, in place.
        untrained: what training began with, for a run without a finished epoch.
        error: why.
        processes: the processes that train this model.
    """
    setbacks = state.setbacks + 1
    device = next(state.model.parameters()).device
    epoch = state.restore(run.load_checkpoint(device) or untrained.as_checkpoint(0))
    state.setbacks = setbacks
    processes.wait()  # until all have read the checkpoint
    if processes.leads:
        run.save_checkpoint(state.as_checkpoint(epoch))
    processes.wait()
    if state.has_given_up and state.best and state.encoder_phase:
        return f"{error}, for the third time: the encoder of epoch {state.best.epoch} is kept"
    return (
        f"{error}: back to the weights of epoch {epoch}, continuing with {RATE_AFTER_SETBACK:g} times the learning rate"
    )
