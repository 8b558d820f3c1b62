"""An image in passes, coarse to fine: what the pixels of earlier passes say of a pass's own."""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.likelihoods.base import ImageShape
from training.likelihoods.passes import MIDDLE, Pass, Plane, expect_at_once

SMALLEST = 4
"""Pixels: the coarsest grid has no shorter side, unless the image has."""
_WIDE, _LEAST_UNIT = 0.25, 0.005
"""What is left of a pixel of which nothing is known, about; and the unit of one that is nearly known."""
_SEED = 0
EVEN, DIAGONAL, RIGHT, BELOW = (0, 0), (1, 1), (0, 1), (1, 0)
"""Rows and columns of a level, every second one from here on."""
_PLACES = (EVEN, RIGHT, BELOW, DIAGONAL)
"""In the order in which `pixel_shuffle` has them."""

Make = Callable[..., Tensor]
"""Pixels of planes [N, made, h, w], of what is expected of them, f and h, and of the parts of given tensors there."""
Made = tuple[Tensor, Tensor, Tensor]
"""Pixels, f and h."""


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
        """f and h of every pixel, as earlier pixels have them: [N, C, H, W] each; 0 where nothing is known.

        All pixels are known beforehand, so a level's passes on its diagonals are taken at once, and so are the others.
        """
        _, height, width = self._image_shape
        whole, step = self._whole(image), 2**self.num_levels
        coarsest = whole[..., ::step, ::step]
        found = [0 * coarsest] * 2
        if len(self.coarsest):
            after = expect_at_once(_passes(self.coarsest), coarsest[:, :-1])
            found = [torch.cat([0 * coarsest[:, :1], one], dim=1) for one in after]
        for level in self.levels:
            step //= 2
            passes = _passes(level)
            order = [4 * plane.channel + _PLACES.index(plane[:2]) for plane in passes[-1].known]
            planes = F.pixel_unshuffle(whole[..., ::step, ::step], 2)[:, order]
            made: list[dict[Plane, Tensor]] = [{}, {}]  # f and h
            for group in (passes[: self._image_shape[0]], passes[self._image_shape[0] :]):
                after = expect_at_once(group, planes[:, : len(group[-1].known)])
                firsts, sizes = [one.made[0] for one in group], [len(one.made) for one in group]
                for of, one in zip(made, after, strict=True):
                    of |= dict(zip(firsts, torch.split(one, sizes, dim=1), strict=True))
            found = [_finer(coarse, of) for coarse, of in zip(found, made, strict=True)]
        expected, change = (one[..., :height, :width] for one in found)
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
        whole = self._whole(torch.cat(tensors, dim=1))

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
        for channel, one in enumerate(_passes(self.coarsest), start=1):
            known = torch.cat([image for image, _, _ in found], dim=1)
            found.append(follow(one, known, planes, channel))
        image, expected, change = (torch.cat(kind, dim=1) for kind in zip(*found, strict=True))
        for level in self.levels:
            step //= 2
            planes = F.pixel_unshuffle(whole[..., ::step, ::step], 2)
            inside = F.pixel_unshuffle(self.inside[..., ::step, ::step], 2) > 0
            known, made = image, {}
            for one in _passes(level):
                first = _PLACES.index(one.made[0][:2])
                pixels, *others = follow(one, known, planes, 4 * one.made[0].channel + first)
                if any(self._padding):
                    within = inside[:, first : first + len(one.made)]
                    pixels = torch.where(
                        within, pixels, torch.full((), MIDDLE, dtype=pixels.dtype, device=pixels.device)
                    )
                made[one.made[0]] = pixels, *others
                known = torch.cat([known, pixels], dim=1)
            image, expected, change = (
                _finer(coarse, {plane: three[kind] for plane, three in made.items()})
                for kind, coarse in enumerate((image, expected, change))
            )
        return image[..., :height, :width], expected[..., :height, :width], change[..., :height, :width]

    def _whole(self, image: Tensor) -> Tensor:
        """With what is added so that levels have even sides."""
        return F.pad(image, self._padding, value=MIDDLE) if any(self._padding) else image


def _passes(modules: nn.Module) -> list[Pass]:
    """In their order."""
    passes = list(modules.children())
    assert all(isinstance(one, Pass) for one in passes)  # noqa: S101
    return cast("list[Pass]", passes)


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
