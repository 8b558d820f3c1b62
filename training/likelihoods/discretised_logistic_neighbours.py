"""8-bit pixels that depend on their neighbours: logistics over bins about what earlier pixels let expect."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from training.likelihoods.base import ImageShape, Likelihood
from training.likelihoods.discretised_logistic import (
    FLOOR,
    SCALE_OF_SPREAD,
    DiscretisedLogistic,
    bin_derivatives,
    standard_logistic,
    to_levels,
)
from training.likelihoods.location_scale import LOC_UNIT, bounded_log_scale, initial_scale
from training.likelihoods.reductions import join, split, sum_pixels

Shift = tuple[int, int, int]
"""Channels, rows and columns by which an image is moved: to later channels, down, and to the right."""
NEIGHBOURS: Mapping[Shift, tuple[float, float]] = {
    (0, 0, 1): (0.7, 0.9),
    (0, 1, 0): (0.8, 0.9),
    (0, 1, -1): (0.1, 0.2),
    (0, 0, 2): (-0.1, 0.0),
    (0, 2, 0): (-0.1, 0.0),
}
"""Left, above, above to the right, two to the left and two above; with the coefficients before training, of the first
channel and of others. They are nearly what small photographs have; the difference of two channels is smooth.
"""
OTHER_CHANNEL = 0.9
"""The coefficient of the channel before, before training."""
UNPREDICTED = 0.3
"""Of a pixel's spread over the training images, what such neighbours leave of it before training."""


class DiscretisedLogisticNeighbours(Likelihood):
    """log P(x|z) of pixels each of which depends on z and on pixels before it: a linear prediction, and a logistic.

    The deviation r = x - loc of an image from what the decoder expects becomes white in steps. Step k moves the whole
    image (by a channel, by a column, by a row: `shifts`; zero comes in from outside) and subtracts a share of it,

        r ← r - a_k · moved_k(r),    with one coefficient a_k in (-1, 1) for each channel,

    and what is left at the end is e. As every step subtracts only what comes earlier in raster order (at each place
    channel by channel), x_i - e_i depends on z and on earlier pixels alone. With it as the location, and s_i the scale,

        P(x|z) = Π_i P(x_i | loc = x_i - e_i, s_i),

    whose factors are those of `DiscretisedLogistic`, is a probability of images: no constant is left out. The
    logarithm is computed for all pixels at once, and so is a draw, since each step is undone in log₂(rows or columns)
    doublings. E[x|z] is `loc`: exact but for the two ends of [0, 1], as that of `DiscretisedLogistic` is.

    The coefficients are few, and belong to the whole image: [steps · C, 1, 1]. The decoder makes them of z.

    Args:
        image_shape: C, H, W.
        levels: L.

    >>> likelihood = DiscretisedLogisticNeighbours((1, 1, 2), levels=4)
    >>> images = torch.cartesian_prod(torch.arange(4) / 3, torch.arange(4) / 3).unsqueeze(1)
    >>> parameters = torch.full((1, 1, 2), 0.4), torch.full((1, 1, 2), -1.5), torch.full((1, 1, 5), 0.8)
    >>> torch.isclose(likelihood.log_prob(images, *parameters).exp().sum(), torch.tensor(1.0))
    tensor(True)
    """

    name = "discretised_logistic_neighbours"
    pixel = "256 levels, predicted from z and from the pixels to the left and above"

    def __init__(self, image_shape: ImageShape, levels: int = 256) -> None:
        super().__init__(image_shape)
        self.levels: int = levels
        self._of_pixels = DiscretisedLogistic(image_shape, levels)
        channels, height, width = image_shape
        others = {(c, 0, 0): [OTHER_CHANNEL if c == 1 else 0.0] * channels for c in range(1, channels)}
        neighbours = {
            (c, y, x): [first, *[other] * (channels - 1)]
            for (c, y, x), (first, other) in NEIGHBOURS.items()
            if y < height and abs(x) < width
        }
        self._initial: Mapping[Shift, Sequence[float]] = others | neighbours
        self.shifts: Sequence[Shift] = tuple(self._initial)

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]:
        """Location, logarithm of the scale, and the steps' coefficients by channel."""
        shapes: dict[str, tuple[int, ...]] = {"loc": self.image_shape, "log_scale": self.image_shape}
        if self.shifts:  # else there is one pixel
            shapes["coefficients"] = (len(self.shifts) * self.image_shape[0], 1, 1)
        return shapes

    def initial_bias(self, pixel_mean: Tensor, pixel_spread: Tensor) -> Tensor:
        """The mean, and the scale of a density as wide as what neighbours leave of this spread."""
        scale = initial_scale(UNPREDICTED * pixel_spread, SCALE_OF_SPREAD, FLOOR)
        return torch.stack([pixel_mean / LOC_UNIT, scale])

    def initial_image_bias(self) -> Tensor | None:
        """What becomes coefficients, [steps · C]."""
        if not self.shifts:
            return None
        return torch.atanh(torch.tensor([*self._initial.values()])).flatten()

    def parameters(self, raw: Tensor) -> tuple[Tensor, ...]:
        """Location; logarithm of the scale, bounded."""
        return LOC_UNIT * raw[:, 0], bounded_log_scale(raw[:, 1], FLOOR)

    def image_parameters(self, raw: Tensor) -> tuple[Tensor, ...]:
        """tanh of the coefficients."""
        return (torch.tanh(raw).unsqueeze(-1).unsqueeze(-1),)

    def log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """That of logistics about x - e."""
        return self._of_pixels.log_prob(x, self._centre(x, parameters), parameters[1])

    def pixel_log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """log P(x_i | earlier pixels, z)."""
        return self._of_pixels.pixel_log_prob(x, self._centre(x, parameters), parameters[1])

    def mean(self, *parameters: Tensor) -> Tensor:
        """The location."""
        return parameters[0]

    def entropy(self, *parameters: Tensor) -> Tensor:
        """That of a logistic about the location; exact but where neighbours bring it near to an end of [0, 1]."""
        return self._of_pixels.entropy(*parameters[:2])

    def sample(self, uniform: Tensor, *parameters: Tensor) -> Tensor:
        """Logistic noise, each step undone, moved to the nearest level.

        Neighbours are predicted from as they are before they are moved to their levels, and cut at 0 and 1.
        """
        loc, log_scale, *coefficients = parameters
        noise = torch.exp(log_scale) * standard_logistic(uniform)
        drawn = loc + join(self._undo(split(noise, *self.image_shape), coefficients))
        return to_levels(drawn, self.levels - 1)

    def curvature(self, x: Tensor, parameters: Sequence[Tensor], tangents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Exact, for each direction, along which a number's change is written ∂.

        With f = log P as a function of c = x - e and g = log_scale, and sums over pixels:

            slope = Σ f_c ∂c + f_g ∂g
            information = -Σ f_cc ∂c ∂cᵀ + f_cg (∂c ∂gᵀ + ∂g ∂cᵀ) + f_gg ∂g ∂gᵀ + f_c ∂²c

        ∂c follows the steps forward. ∂²c is of products of a coefficient's change and the image's, to each of which f_c
        follows the steps backward.
        """
        loc, log_scale, *coefficients = parameters
        channels, places = self.image_shape[0], self.image_shape[1] * self.image_shape[2]
        deviation = split(x - loc, *self.image_shape)
        change = split(-tangents[0], *self.image_shape)  # of the deviation, [B, A, C, H, W]
        moved_changes: list[Tensor] = []
        steps = list(zip(self.shifts, self._shares(coefficients), self._shares(tangents[2:]), strict=True))
        for shift, share, share_change in steps:
            moved, moved_change = move(deviation, shift), move(change, shift)
            moved_changes.append(moved_change)
            change = change - share * moved_change - share_change * moved
            deviation = deviation - share * moved
        centre_change, scale_change = -join(change), tangents[1]
        scores, informations = bin_derivatives(x, x - join(deviation), log_scale, 0.5 / (self.levels - 1))
        slopes = sum_pixels(centre_change * scores[0] + scale_change * scores[1])
        crossed = torch.bmm(centre_change * informations[0, 1], scale_change.mT)
        information = torch.bmm(centre_change * informations[0, 0], centre_change.mT) + crossed + crossed.mT
        information = information + torch.bmm(scale_change * informations[1, 1], scale_change.mT)
        back = split(scores[0], *self.image_shape)
        ones = torch.ones(places, 1, dtype=x.dtype)
        for (shift, share, share_change), moved_change in reversed(list(zip(steps, moved_changes, strict=True))):
            # One product a channel, and not a sum, whose last digit may depend on the batch.
            met = torch.matmul(split(join(back * moved_change), channels, places), ones).squeeze(-1)  # [B, A, C]
            product = torch.bmm(share_change.squeeze(-1).squeeze(-1), met.mT)
            information = information - product - product.mT
            back = back - move(share * back, shift, -1)
        return slopes, information

    def _shares(self, coefficients: Sequence[Tensor]) -> Iterator[Tensor]:
        """Of each step, [B, K, C, 1, 1]."""
        channels = self.image_shape[0]
        for index in range(len(self.shifts)):
            share = coefficients[0].narrow(2, index * channels, channels)
            yield share.unsqueeze(-1).unsqueeze(-1)

    def _centre(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """x - e, [B, K, P]."""
        deviation = split(x - parameters[0], *self.image_shape)
        for shift, share in zip(self.shifts, self._shares(parameters[2:]), strict=True):
            deviation = deviation - share * move(deviation, shift)
        return x - join(deviation)

    def _undo(self, whitened: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        """The deviation [B, K, C, H, W] of which the steps leave `whitened`.

        (1 - a·m)⁻¹ = (1 + a·m)(1 + (a·m)²)(1 + (a·m)⁴)…, and no power of a move is left once it leaves the image.
        """
        found = whitened
        for shift, share in reversed(list(zip(self.shifts, self._shares(coefficients), strict=True))):
            times = 1
            while all(times * abs(one) < size for one, size in zip(shift, self.image_shape, strict=True)):
                found = found + share * move(found, shift, times)
                # Coefficients are the same at all places of a channel.
                share = share * (move(share, shift, times) if shift[0] else share)
                times *= 2
        return found


def move(image: Tensor, shift: Shift, times: int = 1) -> Tensor:
    """The image [B, K, C, H, W] moved so many times; zero comes in, and what leaves is lost.

    >>> move(torch.arange(4.0).reshape(1, 1, 1, 2, 2), (0, 0, 1)).tolist()
    [[[[[0.0, 0.0], [0.0, 2.0]]]]]
    """
    channel, row, column = (times * one for one in shift)
    return F.pad(image, (column, -column, row, -row, channel, -channel))
