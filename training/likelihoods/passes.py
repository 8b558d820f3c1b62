"""What known pixels let expect of others: one pass of an image that is made coarse to fine, and several at once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.likelihoods.reductions import is_exporting

MIDDLE = 0.5
"""Of pixels; those that are added so that levels have even sides all are."""
FILTERS = 16
"""Of a pass."""
MOST_CHANGE = 3.0
"""Of the logarithm of a scale."""
_LEAST_SIZE = 0.01
_USUAL_LOG_SIZE = -2.0
_RIDGE = 1e-3
_SOLVED_AT_ONCE = 2**23
"""Numbers that a least squares' solution looks at: 64 MiB of float64."""


class Plane(NamedTuple):
    """Every second row and column of a level, from these on, of one channel."""

    row: int
    column: int
    channel: int


_Layer = tuple[Tensor, Tensor]
"""Weight and bias of a convolution."""


class Pass(nn.Module):
    """What known planes let expect of others: from [N, known, h, w], two tensors [N, made, h, w].

    With c the 3×3 places of all known planes about a place, those beyond an edge as the nearest, less one half,

        f = w · c + b,    h = 3·tanh((Σ_k v_k (log(|u_k · c + d_k| + 0.01) + 2) + e) / 3),

    where h starts as 0.
    """

    def __init__(self, known: Sequence[Plane], made: Sequence[Plane], generator: torch.Generator) -> None:
        super().__init__()
        self.known, self.made = known, made
        self.linear = nn.Conv2d(len(known), len(made), 3)
        self.filters = nn.Conv2d(len(known), FILTERS, 3)
        self.scales = nn.Conv2d(FILTERS, len(made), 1)
        with torch.no_grad():
            for weights in self.parameters():
                weights.zero_()
            for weight in self.filters.weight:
                _draw_difference(weight, known, generator)

    def forward(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """f and h, in the planes' precision."""
        return _expected(planes, *(_layer(one) for one in (self.linear, self.filters, self.scales)))

    @torch.no_grad()
    def solve(self, planes: Tensor, made: Tensor) -> None:
        """Make f the least squares' prediction of these planes [N, made, h, w]."""
        around = _around(planes)
        numbers = planes.shape[1] * 9
        products = _RIDGE * torch.eye(numbers + 1, numbers + 1 + made.shape[1], dtype=torch.float64)
        products[:, numbers + 1 :] = 0
        at_once = max(1, _SOLVED_AT_ONCE // (numbers * len(planes) * planes.shape[3]))  # rows
        for first in range(0, planes.shape[2], at_once):
            places = F.unfold(around[:, :, first : first + at_once + 2], 3).double()  # [N, known · 9, places]
            wanted = made[:, :, first : first + at_once].flatten(2).double()
            every = torch.cat([places, torch.ones_like(places[:, :1]), wanted], dim=1)
            products += torch.einsum("nip,njp->ij", every[:, : numbers + 1], every)
        solution = torch.linalg.solve(products[:, : numbers + 1], products[:, numbers + 1 :]).to(planes.dtype)
        weight, bias = self.linear.parameters()
        weight.copy_(solution[:-1].T.reshape(weight.shape))
        bias.copy_(solution[-1])


def expect_at_once(passes: Sequence[Pass], planes: Tensor) -> tuple[Tensor, Tensor]:
    """f and h of several passes, one after another: [N, made of all, h, w] each.

    Each is a pass's own, computed by the convolutions of one: weights of planes that a pass does not know are 0.

    Args:
        passes: each knows all that the one before does, in that order, and more.
        planes: what the last one knows, [N, known, h, w].
    """
    known, sizes = len(passes[-1].known), FILTERS * len(passes)
    linear, filters, scales = [], [], []
    for index, one in enumerate(passes):
        unknown, before = known - len(one.known), FILTERS * index
        linear.append(_widened(one.linear, 0, unknown))
        filters.append(_widened(one.filters, 0, unknown))
        scales.append(_widened(one.scales, before, sizes - before - FILTERS))
    return _expected(planes, *(_side_by_side(layers) for layers in (linear, filters, scales)))


def _widened(layer: nn.Conv2d, before: int, after: int) -> _Layer:
    """A layer that also takes so many planes before its own and after them, by weights of 0."""
    weight, bias = _layer(layer)
    made, _, *places = weight.shape
    zeros = (torch.zeros(made, more, *places, dtype=weight.dtype, device=weight.device) for more in (before, after))
    return torch.cat([next(zeros), weight, next(zeros)], dim=1), bias


def _side_by_side(layers: Sequence[_Layer]) -> _Layer:
    """One layer that makes what all of them do."""
    weights, biases = zip(*layers, strict=True)
    return torch.cat(weights), torch.cat(biases)


def _expected(planes: Tensor, linear: _Layer, filters: _Layer, scales: _Layer) -> tuple[Tensor, Tensor]:
    """f and h of planes [N, known, h, w]."""
    around = _around(planes)
    size = torch.abs(_applied(filters, around)) + _LEAST_SIZE
    # The logarithm of float64: see reductions.py.
    log_size = torch.log(size.double()).to(size.dtype) if is_exporting() else torch.log(size)
    change = _applied(scales, log_size - _USUAL_LOG_SIZE)
    return _applied(linear, around), MOST_CHANGE * torch.tanh(change / MOST_CHANGE)


def _around(planes: Tensor) -> Tensor:
    return F.pad(planes - MIDDLE, (1, 1, 1, 1), mode="replicate")


def _layer(layer: nn.Conv2d) -> _Layer:
    assert layer.bias is not None  # noqa: S101
    return layer.weight, layer.bias


def _applied(layer: _Layer, planes: Tensor) -> Tensor:
    """Its convolution in the planes' precision."""
    weight, bias = layer
    if weight.dtype != planes.dtype:
        weight, bias = weight.to(planes.dtype), bias.to(planes.dtype)
    return F.conv2d(planes, weight, bias)


def _draw_difference(weight: Tensor, known: Sequence[Plane], generator: torch.Generator) -> None:
    """Make a filter [known, 3, 3] the difference of two places side by side.

    For half of later channels, that of what they have beside the channel before. How bright a place is says little of
    a scale.
    """
    plane, row, column, way, beside = (
        int(torch.randint(most, (1,), generator=generator)) for most in (len(known), 3, 3, 4, 2)
    )
    down, right = ((0, 1), (1, 0), (0, -1), (-1, 0))[way]
    other = ((row + down) % 3, (column + right) % 3)
    weight[plane, row, column], weight[(plane, *other)] = 1.0, -1.0
    one = known[plane]
    if one.channel and beside:
        before = list(known).index(one._replace(channel=one.channel - 1))
        weight[before, row, column], weight[(before, *other)] = -1.0, 1.0
