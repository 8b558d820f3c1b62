"""How many images and samples go through the networks at once, so that memory has a bound at any image size."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from training.networks.vae import Vae

MOST_ELEMENTS = 2**29
"""Numbers that the networks may keep for the backward pass: 2 GiB of float32."""
_BATCH_PIXELS = 2**24


@dataclass(frozen=True)
class Footprint:
    """How many numbers a model keeps for the backward pass.

    Attributes:
        image: for each image, by the encoder.
        row: for each image and sample, by decoder and likelihood.
    """

    image: int
    row: int

    def at_once(self, num_samples: int) -> tuple[int, int]:
        """How many images, and samples of each, to work on at once; fewer than all samples only for a single image.

        >>> Footprint(image=2**19, row=2**19).at_once(7), Footprint(image=2**29, row=2**27).at_once(50)
        ((128, 7), (1, 1))
        """
        images = MOST_ELEMENTS // (self.image + num_samples * self.row)
        return (images, num_samples) if images else (1, max(1, (MOST_ELEMENTS - self.image) // self.row))


def footprint(vae: Vae) -> Footprint:
    """What `vae` keeps, found by passes of one image and of two; its networks must not be compiled yet."""
    model = copy.deepcopy(vae).requires_grad_(True)
    device = next(model.parameters()).device

    def image(batch: int) -> None:
        model.encode(torch.zeros(batch, *vae.image_shape, device=device))

    def row(batch: int) -> None:
        x = torch.zeros(batch, *vae.image_shape, device=device)
        z = torch.zeros(batch, 1, vae.latent_dim, device=device, requires_grad=True)
        model.conditional_log_likelihood(x, z)

    # The difference of two images and one is what grows with the batch: weights are kept too, but once.
    return Footprint(*(_kept(function, 2) - _kept(function, 1) for function in (image, row)))


def images_a_batch(most: int, image_shape: tuple[int, int, int]) -> int:
    """At most so many images that are only looked at; fewer where they are large, so that a batch takes 64 MiB.

    >>> [images_a_batch(250, (3, size, size)) for size in (28, 300, 512)]
    [250, 62, 21]
    """
    channels, height, width = image_shape
    return max(1, min(most, _BATCH_PIXELS // (channels * height * width)))


def _kept(function: Callable[[int], None], batch: int) -> int:
    elements = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal elements
        elements += tensor.numel()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(batch)
    return elements
