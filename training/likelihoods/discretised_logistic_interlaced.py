"""8-bit pixels of an image that is made in passes, coarse to fine: logistics over bins about what is known."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from training.likelihoods.base import GOLDEN_RATIO, ImageShape
from training.likelihoods.discretised_logistic import (
    FLOOR,
    SCALE_OF_SPREAD,
    DiscretisedLogistic,
    standard_logistic,
    to_levels,
)
from training.likelihoods.interlacing import Interlacing
from training.likelihoods.location_scale import LOC_UNIT, initial_scale
from training.likelihoods.parts import Part, call_part
from training.likelihoods.reductions import join


class DiscretisedLogisticInterlaced(DiscretisedLogistic):
    """log P(x|z) of pixels each of which depends on z and on pixels of coarser grids and earlier channels.

    An image is made in passes (training/likelihoods/interlacing.py): every eighth row and column, say, then what lies
    between, twice as fine each time. With f and h what the pixels of earlier passes let expect,

        P(x|z) = Π_i P(x_i | loc = loc_i + f_i(earlier x), log_scale = log_scale_i + h_i(earlier x)),

    whose factors are those of `DiscretisedLogistic`, is a probability of images: no constant is left out. f is linear,
    h is not; both are of the image alone and not of z, so that they are computed once an image, and as derivatives of
    log P(x|z) along its parameters those of `DiscretisedLogistic` serve, at parameters that are moved by constants. The
    weights of f and h are the likelihood's own (`network`), trained with the networks', and constants of its graph.

    A draw takes the passes one after another: 3 + 6 · levels for colour, the logarithm of the image's size. So does
    E[x|z], which is exact but for the two ends of [0, 1], since f is linear.

    Args:
        image_shape: C, H, W.
        levels: L.

    >>> likelihood = DiscretisedLogisticInterlaced((1, 1, 2), levels=4)
    >>> images = torch.cartesian_prod(torch.arange(4) / 3, torch.arange(4) / 3).unsqueeze(1)
    >>> parameters = torch.full((1, 1, 2), 0.4), torch.full((1, 1, 2), -1.5)
    >>> torch.isclose(likelihood.log_prob(images, *parameters).exp().sum(), torch.tensor(1.0))
    tensor(True)
    """

    name = "discretised_logistic_interlaced"
    pixel = "256 levels, predicted from z and from coarser pixels and earlier channels"

    def __init__(self, image_shape: ImageShape, levels: int = 256) -> None:
        super().__init__(image_shape, levels)
        self.network: Interlacing = Interlacing(image_shape)
        self._spread: Tensor | None = None

    def begin(self, images: Tensor) -> None:
        """Set f by least squares of some training images [N, C, H, W], and remember what it leaves of each pixel."""
        left = self.network.solve(images)
        self._spread = left.std(0) if len(images) > 1 else None

    def initial_bias(self, pixel_mean: Tensor, pixel_spread: Tensor) -> Tensor:
        """What f lacks to the mean image; the scale of a density as wide as what f leaves, or as this spread."""
        with torch.no_grad():
            expected, _ = self.network.expect(pixel_mean.unsqueeze(0))
        spread = pixel_spread if self._spread is None else self._spread
        loc = (pixel_mean - expected[0]) / (LOC_UNIT * self.network.unit)
        return torch.stack([loc, initial_scale(spread, SCALE_OF_SPREAD, FLOOR)])

    def parameters(self, raw: Tensor) -> tuple[Tensor, ...]:
        """Location, in its pixel's unit, and the logarithm of the scale, bounded."""
        loc, log_scale = super().parameters(raw)
        return loc * self.network.unit, log_scale

    def log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """That of logistics at parameters that are moved."""
        return super().log_prob(x, *self._moved(x, parameters))

    def pixel_log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """log P(x_i | pixels of earlier passes, z)."""
        return super().pixel_log_prob(x, *self._moved(x, parameters))

    def derivatives(self, x: Tensor, *parameters: Tensor) -> tuple[Sequence[Tensor], Mapping[tuple[int, int], Tensor]]:
        """Those of logistics at parameters that are moved."""
        return super().derivatives(x, *self._moved(x, parameters))

    def mean(self, *parameters: Tensor) -> Tensor:
        """The image whose pixels all are what is expected of them."""
        (image,) = call_part(self, "mean", parameters[0])
        return self._rows(image, parameters[0])

    def sample(self, uniform: Tensor, *parameters: Tensor) -> Tensor:
        """Pass by pass loc + s·logit(u), moved to the nearest level."""
        return self._drawn(uniform, parameters)[0]

    def entropy(self, *parameters: Tensor) -> Tensor:
        """That of logistics at parameters that are moved as a draw of evenly spread uniform numbers moves them."""
        order = torch.arange(self.num_pixels, dtype=torch.float64) * GOLDEN_RATIO % 1
        uniform = order.to(parameters[0].dtype) + 0 * parameters[0]
        _, expected, change = self._drawn(uniform, parameters)
        return super().entropy(parameters[0] + expected, parameters[1] + change)

    @property
    def parts(self) -> Mapping[str, Part]:
        """f and h of an image; E[x|z] of loc; a draw of loc, log_scale and logit(u), with its f and h."""
        return {"expect": Part(self._expect, 2), "mean": Part(self._mean, 1), "draw": Part(self._draw, 3)}

    def _expect(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.expect(self._images(x))

    def _mean(self, loc: Tensor) -> tuple[Tensor]:
        image, _, _ = self.network.walk(lambda expected, _change, own: own + expected, self._images(loc))
        return (image,)

    def _draw(self, *rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def draw(expected: Tensor, change: Tensor, loc: Tensor, log_scale: Tensor, noise: Tensor) -> Tensor:
            return to_levels(loc + expected + torch.exp(log_scale + change) * noise, self.top)

        return self.network.walk(draw, *(self._images(one) for one in rows))

    def _drawn(self, uniform: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
        """An image, and its f and h, [B, K, P] each."""
        given = torch.broadcast_tensors(*parameters, standard_logistic(uniform))  # type: ignore[no-untyped-call]
        return [self._rows(one, given[0]) for one in call_part(self, "draw", *given)]

    def _moved(self, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """loc + f and log_scale + h, [B, K, P]."""
        expected, change = (self._rows(one, x) for one in call_part(self, "expect", x))
        return parameters[0] + expected, parameters[1] + change

    def _images(self, rows: Tensor) -> Tensor:
        """[B, K, P] as [B·K, C, H, W]."""
        return rows.reshape(-1, *self.image_shape)

    def _rows(self, images: Tensor, like: Tensor) -> Tensor:
        """[B·K, C, H, W] as [B, K, P]."""
        return join(images.unsqueeze(1)) if like.shape[1] == 1 else images.reshape(like.shape)
