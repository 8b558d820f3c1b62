"""An image in passes, coarse to fine: what the pixels of earlier passes say of a pass's own."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.likelihoods.base import ImageShape
from training.likelihoods.reductions import is_exporting

SMALLEST = 4
"""Pixels: the coarsest grid has no shorter side, unless the image has."""
FILTERS = 16
"""Of a pass."""
MOST_CHANGE = 3.0
"""Of the logarithm of a scale."""
_MIDDLE = 0.5
"""Of pixels; those that are added so that levels have even sides all are."""
_LEAST_SIZE = 0.01
_USUAL_LOG_SIZE = -2.0
_RIDGE = 1e-3
_WIDE, _LEAST_UNIT = 0.25, 0.005
"""What is left of a pixel of which nothing is known, about; and the unit of one that is nearly known."""
_SOLVED_AT_ONCE = 2**23
"""Numbers that a least squares' solution looks at: 64 MiB of float64."""
_SEED = 0
EVEN, DIAGONAL, RIGHT, BELOW = (0, 0), (1, 1), (0, 1), (1, 0)
"""Rows and columns of a level, every second one from here on."""
_PLACES = (EVEN, RIGHT, BELOW, DIAGONAL)
"""In the order in which `pixel_shuffle` has them."""


class Plane(NamedTuple):
    """Every second row and column of a level, from these on, of one channel."""

    row: int
    column: int
    channel: int


Make = Callable[..., Tensor]
"""Pixels of planes [N, made, h, w], of what is expected of them, f and h, and of the parts of given tensors there."""
Made = tuple[Tensor, Tensor, Tensor]
"""Pixels, f and h."""


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
        around = _around(planes)
        size = torch.abs(_applied(self.filters, around)) + _LEAST_SIZE
        # The logarithm of float64: see reductions.py.
        log_size = torch.log(size.double()).to(size.dtype) if is_exporting() else torch.log(size)
        change = _applied(self.scales, log_size - _USUAL_LOG_SIZE)
        return _applied(self.linear, around), MOST_CHANGE * torch.tanh(change / MOST_CHANGE)

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


def _around(planes: Tensor) -> Tensor:
    return F.pad(planes - _MIDDLE, (1, 1, 1, 1), mode="replicate")


def _applied(layer: nn.Conv2d, planes: Tensor) -> Tensor:
    """Its convolution in the planes' precision."""
    if layer.weight.dtype == planes.dtype:
        return F.conv2d(planes, layer.weight, layer.bias)
    assert layer.bias is not None  # noqa: S101
    return F.conv2d(planes, layer.weight.to(planes.dtype), layer.bias.to(planes.dtype))


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


class Interlacing(nn.Module):
    """The passes of images of C, H, W, in their order.

    A level is the image, or every second row and column of the next finer level; the coarsest, whose shorter side is 4
    to 7 where the image's is not smaller, is taken channel by channel. Each finer level then follows in two times C
    passes: channel by channel, the pixels between four known ones; channel by channel, all others, to the right of
    known ones and below them. A pass knows all pixels of all earlier ones, within its level.

    The first channel of the coarsest level is the only plane of which nothing is known.

    Attributes:
        inside: 1 within the image, and 0 in what is added so that levels have even sides, [1, 1, h, w].
        unit: of each pixel's location, [C, H, W]: nearly all is known of some, and little of others, and one learning
            rate is to serve both.
    """

    inside: Tensor
    unit: Tensor

    def __init__(self, image_shape: ImageShape) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.num_levels = 0
        while min(height, width) >> (self.num_levels + 1) >= SMALLEST:
            self.num_levels += 1
        step = 2**self.num_levels
        self._image_shape = image_shape
        self._padding = (0, -width % step, 0, -height % step)
        self.register_buffer("inside", F.pad(torch.ones(1, 1, height, width), self._padding), persistent=False)
        self.register_buffer("unit", torch.ones(image_shape))
        generator = torch.Generator().manual_seed(_SEED)
        self.coarsest = nn.ModuleList()
        for channel in range(1, channels):
            known = [Plane(*EVEN, other) for other in range(channel)]
            self.coarsest.append(Pass(known, [Plane(*EVEN, channel)], generator))
        self.levels = nn.ModuleList(self._level(generator) for _ in range(self.num_levels))

    def _level(self, generator: torch.Generator) -> nn.ModuleList:
        channels = range(self._image_shape[0])
        passes, known = nn.ModuleList(), [Plane(*EVEN, channel) for channel in channels]
        for grids in ((DIAGONAL,), (RIGHT, BELOW)):
            for channel in channels:
                made = [Plane(*grid, channel) for grid in grids]
                passes.append(Pass(tuple(known), made, generator))
                known += made
        return passes

    def expect(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """f and h of every pixel, as earlier pixels have them: [N, C, H, W] each; 0 where nothing is known."""
        _, expected, change = self.walk(lambda _expected, _change, own: own, image)
        return expected, change

    @torch.no_grad()
    def solve(self, images: Tensor) -> Tensor:
        """Set every pass's f by least squares, and `unit`; returns what is left of each pixel, [N, C, H, W]."""

        def fitted(one: Pass, known: Tensor, own: Tensor) -> None:
            one.solve(known, own)

        self.walk(lambda _expected, _change, own: own, images, before=fitted)
        left = images - self.expect(images)[0]
        self.unit.copy_((left.square().mean(0).sqrt() / _WIDE).clamp(min=_LEAST_UNIT, max=1))
        return left

    def walk(
        self, make: Make, *tensors: Tensor, before: Callable[[Pass, Tensor, Tensor], None] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Make an image pass by pass: the image, f and h, [N, C, H, W] each.

        Args:
            make: the pixels of a pass, of its f and h and of these tensors' parts there.
            tensors: [N, C, H, W].
            before: told each pass with its known planes and the first tensor's part, before it is asked.
        """
        _, height, width = self._image_shape
        whole = torch.cat(tensors, dim=1)
        if any(self._padding):
            whole = F.pad(whole, self._padding, value=_MIDDLE)

        def follow(one: Pass, known: Tensor, planes: Tensor, first: int) -> Made:
            own = _parts(planes, len(tensors), first, len(one.made))
            if before:
                before(one, known, own[0])
            expected, change = one(known)
            return make(expected, change, *own), expected, change

        step = 2**self.num_levels
        planes = whole[..., ::step, ::step]
        own = _parts(planes, len(tensors), 0, 1)
        nothing = 0 * own[0]
        found = [(make(nothing, nothing, *own), nothing, nothing)]
        for channel, one in enumerate(self.coarsest.children(), start=1):
            assert isinstance(one, Pass)  # noqa: S101
            known = torch.cat([image for image, _, _ in found], dim=1)
            found.append(follow(one, known, planes, channel))
        image, expected, change = (torch.cat(kind, dim=1) for kind in zip(*found, strict=True))
        for level in self.levels:
            step //= 2
            planes = F.pixel_unshuffle(whole[..., ::step, ::step], 2)
            inside = F.pixel_unshuffle(self.inside[..., ::step, ::step], 2) > 0
            known, made = image, {}
            for one in level.children():
                assert isinstance(one, Pass)  # noqa: S101
                first = _PLACES.index(one.made[0][:2])
                pixels, *others = follow(one, known, planes, 4 * one.made[0].channel + first)
                if any(self._padding):
                    within = inside[:, first : first + len(one.made)]
                    pixels = torch.where(
                        within, pixels, torch.full((), _MIDDLE, dtype=pixels.dtype, device=pixels.device)
                    )
                made[one.made[0]] = pixels, *others
                known = torch.cat([known, pixels], dim=1)
            image, expected, change = (
                _finer(coarse, {plane: three[kind] for plane, three in made.items()})
                for kind, coarse in enumerate((image, expected, change))
            )
        return image[..., :height, :width], expected[..., :height, :width], change[..., :height, :width]


def _parts(planes: Tensor, count: int, first: int, number: int) -> list[Tensor]:
    """Some planes of each of `count` tensors, whose planes follow one another: [N, number, h, w]."""
    each = planes.shape[1] // count
    return [planes[:, start : start + number] for start in range(first, planes.shape[1], each)]


def _finer(coarse: Tensor, made: Mapping[Plane, Tensor]) -> Tensor:
    """A level [N, C, 2h, 2w] of the coarser one [N, C, h, w], and of what each pass has made."""
    planes = []
    for channel in range(coarse.shape[1]):
        even = coarse[:, channel : channel + 1]
        planes += [even, made[Plane(*RIGHT, channel)], made[Plane(*DIAGONAL, channel)]]
    return F.pixel_shuffle(torch.cat(planes, dim=1), 2)
