"""What comes of a request to the inference thread (serving/scheduler.py): its result, or an error.

    QueueFullError      no room now; `retry_after` seconds may change that
    DeadlineError       not computed in time
    StoppedError        the inference thread has ended

The table in problems.py says how each looks over HTTP.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

R = TypeVar("R")


class QueueFullError(Exception):
    """No room in the queue."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(Exception):
    """Not computed in time."""


class StoppedError(Exception):
    """The inference thread has ended, by `stop` or by a fault."""


@dataclass(frozen=True)
class Done(Generic[R]):
    """A request's result, and the seconds that it waited and that its batch computed.

    `rows_run`: what it really took, where there is a meter.
    """

    result: R
    queue_seconds: float
    compute_seconds: float
    rows_run: int = 0
