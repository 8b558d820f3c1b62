"""`python -m training`, computed in float64: `python -m tests.training.in_float64 fit …`, also under torchrun.

Two trainings that only add in another order drift apart: Adam divides a gradient by its own size, so where a gradient
is nearly 0, what is left of it in float32 is rounding, and the weight's step goes either way. In float64 that rounding
is far below Adam's ε = 1e-8, and a step is then a smooth function of it.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from tests.rounding import FLOAT64, gamma
from training.__main__ import main
from training.data.splits import binarise
from training.fit.loop import prepare


def drift(num_steps: int, learning_rate: float, num_images: int, num_pixels: int) -> float:
    """How far rounding alone moves a weight in so many of Adam's steps.

    A gradient is a mean over images of derivatives that are sums over pixels; each derivative is of the order of 1.
    Through Adam, an error e of a gradient moves a weight by at most learning_rate · e/ε in a step. A share of the
    images that went missing, or came twice, would move it by about learning_rate.

    >>> drift(12, 2e-3, 160, 784) < 1e-6 < 2e-3
    True
    """
    return num_steps * learning_rate * gamma(num_images + num_pixels, FLOAT64) / 1e-8


@contextmanager
def in_float64() -> Iterator[None]:
    """Weights, pixels, noise and everything made of them are float64 within."""

    def doubled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *arguments, **options: function(*arguments, **options).double()

    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch("training.fit.loop.prepare", doubled(prepare)),
            mock.patch("training.fit.trainer.prepare", doubled(prepare)),
            mock.patch("training.report.figures.binarise", doubled(binarise)),
            mock.patch("training.report.verdict.prepare", doubled(prepare)),
        ):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def run(arguments: Sequence[str] | None = None) -> None:
    """The command; one that fails ends the process."""
    with in_float64():
        if status := main(arguments):
            sys.exit(status)


if __name__ == "__main__":
    run()
