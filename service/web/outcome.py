"""The outcome of a request to the inference thread (serving/scheduler.py): a result or an error.

    QueueFullError      the queue is full; try again after `retry_after` seconds
    DeadlineError       the result was not computed in time
    StoppedError        the inference thread has ended

The table in problems.py has the HTTP status of each.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

R = TypeVar("R")


class QueueFullError(Exception):
    """The queue is full; try again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(Exception):
    """The result was not computed in time."""


class StoppedError(Exception):
    """The inference thread has ended, by `stop` or because of an error."""


@dataclass(frozen=True)
class Done(Generic[R]):
    """A request's result, the seconds that it waited, and the seconds that its batch was computed.

    `rows_run`: the rows that were really run for it, if they are counted.
    """

    result: R
    queue_seconds: float
    compute_seconds: float
    rows_run: int = 0
