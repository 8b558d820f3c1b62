"""Computations in chunks: generators that yield between two runs on the device and return their result.

Whoever drives one can let others take their turn, or give up; `complete` drives one to its end.
"""

from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Chunks = Generator[None, None, T]


def complete(chunks: Generator[object, None, T], on_chunk: Callable[[], object] = lambda: None) -> T:
    """Run a chunked computation to its end; `on_chunk` is called after each chunk.

    >>> def three() -> Chunks[int]:
    ...     yield
    ...     return 3
    >>> complete(three())
    3
    """
    while True:
        try:
            next(chunks)
            on_chunk()
        except StopIteration as stop:
            result: T = stop.value
            return result
