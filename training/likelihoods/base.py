"""What every likelihood p(x|z) states about itself: one class says it to training, and by export to the service."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from training.likelihoods.parts import Part
from training.likelihoods.reductions import add, sum_pixels, use_sums

ImageShape = tuple[int, int, int]
NUM_DRAWS = 32
"""Of an expected cost that has no closed form; fewer of large images."""
NUMBERS_AT_ONCE = 2**22
"""Of one image that an expectation is taken over at once: 32 MiB of float64."""
_MOST_PASSES = 4
GOLDEN_RATIO = 0.6180339887498949


class Option(NamedTuple):
    """A choice of the configuration that one likelihood alone takes."""

    argument: str
    """Of the class, by which it is given."""
    unset: str
    """What it is where the user does not say, in words."""


class Likelihood(ABC):
    """A density over images x, given the decoder's outputs. All logarithms are natural: nats.

    Images and outputs are flat, so that shapes read the same for all: x [B, 1, P], P = C·H·W in this order, and each
    of the decoder's outputs [B, K, Q], where Q is the product of its shape. Methods are traced by
    `torch.onnx.export`: they take no Python decision on numbers, and sum by training/likelihoods/reductions.py.

    A new likelihood is a subclass with `name`, `pixel` and the abstract members, and a line in
    training/likelihoods/__init__.py. `log_prob`, `entropy` and `curvature` may be written more quickly than here.

    Args:
        image_shape: C, H, W.

    Attributes:
        name: what configuration and manifest call it.
        pixel: what a pixel is under it, in a few words for the command line's help.
        is_binary: whether pixels are 0 or 1, so that grey ones may be binarised.
        configured: by name, the fields of the configuration that it takes and no other likelihood does.
        options: its arguments but for shape and levels, as the manifest has them.
        outputs: the decoder's outputs in order, each with its shape [*, H, W] without the batch.
        levels: how many values a pixel can take, k/(levels - 1); None where it is not bound to levels.
        num_uniforms: uniform numbers that one image of `sample` takes.
        network: weights of its own, which depend on no z and are trained with the decoder's; None: it has none.
    """

    name: ClassVar[str]
    pixel: ClassVar[str]
    is_binary: ClassVar[bool] = False
    configured: ClassVar[Mapping[str, Option]] = {}
    levels: int | None = None
    network: nn.Module | None = None

    def __init__(self, image_shape: ImageShape) -> None:
        self.image_shape = image_shape
        self.num_pixels = image_shape[0] * image_shape[1] * image_shape[2]

    @classmethod
    def build(cls, image_shape: ImageShape, **arguments: Any) -> "Likelihood":
        """The likelihood of this name with the arguments that are given; others have their defaults."""
        return cls(image_shape, **arguments)

    @property
    def options(self) -> Mapping[str, int | float]:
        """Its arguments but for shape and levels."""
        return {}

    @property
    @abstractmethod
    def outputs(self) -> Mapping[str, tuple[int, ...]]:
        """The decoder's outputs by name, in order, with their shapes."""

    @property
    def num_outputs(self) -> int:
        """Numbers of all the decoder's outputs for one image."""
        return sum(map(math.prod, self.outputs.values()))

    @property
    def num_uniforms(self) -> int:
        """Uniform numbers that one image of `sample` takes: one a pixel and channel."""
        return self.num_pixels

    @property
    def parts(self) -> Mapping[str, Part]:
        """By name, what is exported apart: see training/likelihoods/parts.py."""
        return {}

    def begin(self, images: Tensor) -> None:  # noqa: B027
        """Give its own weights what some training images [N, C, H, W] in [0, 1] say before training."""

    @abstractmethod
    def initial_bias(self, pixel_mean: Tensor, pixel_spread: Tensor) -> Tensor:
        """What a network's raw outputs are before training: those of a density that fits the training set as a whole.

        Args:
            pixel_mean: mean of each pixel over the training images, in [0, 1], [C, H, W].
            pixel_spread: its standard deviation over them, [C, H, W].

        Returns:
            [M, C, H, W] or [M, 1, H, W].
        """

    @abstractmethod
    def parameters(self, raw: Tensor) -> tuple[Tensor, ...]:
        """A network's raw outputs, [N, *shape of initial_bias], as the decoder's outputs [N, *shape], in order.

        Those of `image_parameters` follow them.
        """

    def initial_image_bias(self) -> Tensor | None:
        """What raw outputs that belong to the image, and to no pixel, are before training: [S]; None: there are none.

        The decoder makes them of z by one linear layer.
        """
        return None

    def image_parameters(self, raw: Tensor) -> tuple[Tensor, ...]:
        """Such raw outputs, [N, S], as the last of the decoder's outputs, [N, *shape] each."""
        return ()

    @abstractmethod
    def pixel_log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """log p(x_i|z), or log p(x_i|x_1 … x_{i-1}, z), of each pixel and channel, nats: [B, K, P].

        x [B, 1, P] or [B, K, P], parameters [B, K, Q].
        """

    @abstractmethod
    def mean(self, *parameters: Tensor) -> Tensor:
        """E[x|z] in x's unit: [B, K, P]."""

    @abstractmethod
    def sample(self, uniform: Tensor, *parameters: Tensor) -> Tensor:
        """x ~ p(x|z) made of uniform numbers in [0, 1), [B, K, num_uniforms] → [B, K, P]."""

    def log_prob(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """log p(x|z) in nats: x [B, 1, P], parameters [B, K, Q] → [B, K]."""
        return sum_pixels(self.pixel_log_prob(x, *parameters))

    def entropy(self, *parameters: Tensor) -> Tensor:
        """-E[log p(x_i|z)] over x ~ p(x|z) of each pixel and channel, nats: parameters [B, 1, Q] → [B, 1, P].

        Here the mean over draws from evenly spaced uniform numbers, in another order for each that an image takes: 32
        draws, or as many as four passes of `NUMBERS_AT_ONCE` hold.
        """
        at_once = min(NUM_DRAWS, max(1, NUMBERS_AT_ONCE // self.num_outputs))
        num_passes = min(_MOST_PASSES, -(-NUM_DRAWS // at_once))
        num_draws = min(NUM_DRAWS, num_passes * at_once)
        order = torch.floor(torch.arange(self.num_uniforms, dtype=torch.float64) * GOLDEN_RATIO % 1 * num_draws)
        total = torch.zeros((), dtype=parameters[0].dtype)
        for some in torch.split(torch.arange(num_draws, dtype=torch.float64), at_once):
            uniform = (some[:, None] + order + 0.5) / num_draws % 1  # [draws, U]
            x = self.sample(uniform.to(total.dtype)[None] + 0 * parameters[0][..., :1], *parameters)
            total = total - self.pixel_log_prob(x, *parameters).sum(1, keepdim=True)  # [B, 1, P]
        return total / num_draws

    def curvature(self, x: Tensor, parameters: Sequence[Tensor], tangents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """How log p(x|z) changes along A directions of the parameters: slopes [B, A] and information [B, A, A].

        slope_a = ∂ log p · t_a, and information_ab = -t_a · ∂² log p · t_b, the observed information: minus the
        Hessian. Observed, and not Fisher's, which is its mean over x: a pixel that the model was sure of tells nothing
        more, and Fisher's would say that it does.

        Here both come from `log_prob` by automatic differentiation, twice in reverse.

        Args:
            x: [B, 1, P].
            parameters: [B, 1, Q] each.
            tangents: the directions t, [B, A, Q] each, in the parameters' order.
        """
        with torch.enable_grad(), use_sums("plain"):
            moved = [(p + 0 * t).detach().requires_grad_() for p, t in zip(parameters, tangents, strict=True)]
            score = torch.autograd.grad(self.log_prob(x, *moved).sum(), moved, create_graph=True)
            slopes = torch.stack([(s * t).sum(-1) for s, t in zip(score, tangents, strict=True)]).sum(0)  # [B, A]
            along = torch.autograd.grad(slopes.sum(), moved, allow_unused=True)
        information = [-torch.bmm(h, t.mT) for h, t in zip(along, tangents, strict=True) if h is not None]
        return slopes.detach(), torch.stack(information).sum(0)


class IndependentPixels(Likelihood):
    """A likelihood whose pixels are independent given z, with one number of each output a pixel: Q = P.

    It may state its score and information in closed form, from which the curvature comes by two products.
    """

    @abstractmethod
    def derivatives(self, x: Tensor, *parameters: Tensor) -> tuple[Sequence[Tensor], Mapping[tuple[int, int], Tensor]]:
        """∂ log p(x_i|z) / ∂ output, and -∂² log p / ∂ output ∂ output′ of each pair of outputs, once: [B, 1, P]."""

    def curvature(self, x: Tensor, parameters: Sequence[Tensor], tangents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Slopes Σ t·score [B, A] and information Σ t·W·tᵀ [B, A, A], over pixels and pairs of outputs."""
        scores, informations = self.derivatives(x, *parameters)
        slopes = [sum_pixels(tangent * score) for tangent, score in zip(tangents, scores, strict=True)]
        products = []
        for (first, second), information in informations.items():
            product = torch.bmm(tangents[first] * information, tangents[second].mT)  # [B, A, A]
            products.append(product)
            if first != second:
                products.append(product.mT)
        return add(slopes), add(products)
