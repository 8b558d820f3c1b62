"""What `DiscretisedLogisticInterlaced` expects of pixels once more, in NumPy and number by number."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.likelihoods import Likelihood
from training.likelihoods.discretised_logistic_interlaced import DiscretisedLogisticInterlaced
from training.likelihoods.passes import Pass

IN_PASSES = (3, 9, 8)
"""With a level between the coarsest grid and the image, which lacks a row."""


def with_drawn_weights(likelihood: Likelihood) -> Likelihood:
    """Those of its own, if it has any, so that they count."""
    if likelihood.network is not None:
        generator = torch.Generator().manual_seed(7)
        for weights in likelihood.network.requires_grad_(False).parameters():
            weights.copy_(0.1 * torch.randn(weights.shape, generator=generator))
    return likelihood


def moved(likelihood: Likelihood, x: Tensor, parameters: list[Tensor]) -> list[NDArray[np.float64]]:
    """loc + f and log_scale + h of an image in passes, number by number."""
    assert isinstance(likelihood, DiscretisedLogisticInterlaced)
    network, (channels, height, width) = likelihood.network, likelihood.image_shape
    step = 2**network.num_levels
    image = np.full((len(x), channels, -(-height // step) * step, -(-width // step) * step), 0.5)
    image[..., :height, :width] = x.double().numpy().reshape(len(x), channels, height, width)
    expected, change = np.zeros_like(image), np.zeros_like(image)
    for one, step, apart in passes_of(likelihood):
        weights = {name: weight.detach().double().numpy() for name, weight in one.named_parameters()}
        grids = [
            image[:, plane.channel, plane.row * step :: apart, plane.column * step :: apart] for plane in one.known
        ]
        known = np.pad(np.stack(grids, axis=1), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge") - 0.5
        for y, w in np.ndindex(*grids[0].shape[1:]):
            around = known[:, None, :, y : y + 3, w : w + 3]
            filtered = (around * weights["filters.weight"]).sum((2, 3, 4)) + weights["filters.bias"]
            sizes = np.log(np.abs(filtered) + 0.01) + 2
            scales = sizes @ weights["scales.weight"][:, :, 0, 0].T + weights["scales.bias"]
            centres = (around * weights["linear.weight"]).sum((2, 3, 4)) + weights["linear.bias"]
            for index, plane in enumerate(one.made):
                place = plane.channel, plane.row * step + y * apart, plane.column * step + w * apart
                expected[(slice(None), *place)] = centres[:, index]
                change[(slice(None), *place)] = 3 * np.tanh(scales[:, index] / 3)
    inside = (one[:, None, :, :height, :width].reshape(len(x), 1, -1) for one in (expected, change))
    return [parameter.double().numpy() + one for parameter, one in zip(parameters, inside, strict=True)]


def passes_of(likelihood: DiscretisedLogisticInterlaced) -> Iterator[tuple[Pass, int, int]]:
    """Each with how far rows of its level lie apart, and those of a plane."""
    step = 2**likelihood.network.num_levels
    for one in likelihood.network.coarsest.children():
        assert isinstance(one, Pass)
        yield one, step, step
    for level in likelihood.network.levels.children():
        step //= 2
        for one in level.children():
            assert isinstance(one, Pass)
            yield one, step, 2 * step
