"""Single layers with freshly drawn weights, from a generator and not from global state."""

import torch
from torch import Tensor, nn


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A layer with Glorot-uniform weights and no bias yet."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer  # type: ignore[no-any-return]


def constant(inputs: int, outputs: Tensor) -> nn.Linear:
    """A layer that gives these outputs, [outputs], of every input, until it is trained."""
    layer = nn.utils.skip_init(nn.Linear, inputs, len(outputs))  # type: ignore[no-untyped-call]
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(outputs)
    return layer  # type: ignore[no-any-return]


def convolution(
    inputs: int,
    outputs: int,
    *,
    kernel: int,
    generator: torch.Generator,
    stride: int = 1,
    padding: int | None = None,
    after_silu: bool = False,
) -> nn.Conv2d:
    """A layer whose normal weights keep the variance of its input (He et al. 2015, arXiv 1502.01852), no bias yet.

    Without `padding`, an odd kernel leaves height and width as they are, and stride 2 halves them, rounded up.
    """
    padding = kernel // 2 if padding is None else padding
    layer = nn.utils.skip_init(nn.Conv2d, inputs, outputs, kernel, stride=stride, padding=padding)  # type: ignore[no-untyped-call]
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if after_silu else "linear", generator=generator)
    nn.init.zeros_(layer.bias)
    return layer  # type: ignore[no-any-return]
