"""Computations in chunks: generators that yield between two runs on the device and return their result.

Whoever drives one can let others take their turn, or give up; `complete` drives one to its end.
"""

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Chunks = Generator[None, None, T]


def complete(chunks: Chunks[T]) -> T:
    """Run a chunked computation to its end.

    >>> def three() -> Chunks[int]:
    ...     yield
    ...     return 3
    >>> complete(three())
    3
    """
    while True:
        try:
            next(chunks)
        except StopIteration as stop:
            result: T = stop.value
            return result
