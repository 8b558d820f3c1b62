"""Minus the Hessian of log p(x, z) around a centre, measured by differences one standard deviation wide."""

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Float64Array
from service.engine.chunks import Chunks
from service.engine.matrices import positive_definite
from service.engine.posterior.gaussians import Gaussians
from service.engine.posterior.newton import Slopes, Values, joint


def by_values(
    images: NDArray[np.intp], gaussians: Gaussians, chosen: NDArray[np.intp], values: Values
) -> Chunks[Float64Array]:
    """Minus the Hessian of log p(x, z) at the centre, measured in the dimensions chosen [n, C]: [n, A, A].

    By second differences one standard deviation wide: 1 + 2·C + C·(C − 1)/2 decoder rows an image.
    """
    block = _block(gaussians, chosen)
    count = chosen.shape[1]
    first, second = np.triu_indices(count, 1)
    unit = np.eye(count)
    coordinates = np.concatenate([np.zeros((1, count)), unit, -unit, unit[first] + unit[second]])
    points = _displaced(gaussians, chosen, coordinates @ block.function(1 / np.sqrt(block.precisions)))
    found = joint((yield from values(images, points)), points)  # [n, m]
    return _with_hessian(gaussians, chosen, block, _second_differences(found, count))


def by_slopes(
    images: NDArray[np.intp], gaussians: Gaussians, chosen: NDArray[np.intp], slopes: Slopes
) -> Chunks[Float64Array]:
    """The same by central differences of gradients, as wide: 2·C gradients an image."""
    block = _block(gaussians, chosen)
    count = chosen.shape[1]
    root = block.function(1 / np.sqrt(block.precisions))  # [n, C, C]
    points = _displaced(gaussians, chosen, np.concatenate([root, -root], axis=1))  # [n, 2·C, A]
    dimensions = points.shape[2]
    _, found = yield from slopes(np.repeat(images, 2 * count), points.reshape(-1, dimensions))
    gradient = found.reshape(points.shape) - points
    change = np.take_along_axis(gradient[:, :count] - gradient[:, count:], chosen[:, None], axis=2) / 2
    with np.errstate(invalid="ignore", over="ignore"):
        hessian = change @ root  # in standard deviations: rows are the directions that points moved in
        hessian = (hessian + hessian.transpose(0, 2, 1)) / 2
    return _with_hessian(gaussians, chosen, block, hessian)


def _block(gaussians: Gaussians, chosen: NDArray[np.intp]) -> Gaussians:
    """The Gaussian of the dimensions chosen [n, C], given the others."""
    every = np.arange(len(chosen))[:, None]
    precision = gaussians.function(gaussians.precisions)
    block = precision[every[..., None], chosen[:, :, None], chosen[:, None, :]]  # [n, C, C]
    return Gaussians.around(gaussians.centre[every, chosen], block)


def _displaced(gaussians: Gaussians, chosen: NDArray[np.intp], steps: Float64Array) -> Float64Array:
    """Centres moved in the dimensions chosen [n, C] by steps [n, m, C]: [n, m, A]."""
    points = np.repeat(gaussians.centre[:, None], steps.shape[1], axis=1)
    every = np.arange(len(chosen))[:, None, None]
    points[every, np.arange(steps.shape[1])[:, None], chosen[:, None]] += steps
    return points


def _with_hessian(
    gaussians: Gaussians, chosen: NDArray[np.intp], block: Gaussians, hessian: Float64Array
) -> Float64Array:
    """The precision with the block chosen put in place, from a Hessian in standard deviations [n, C, C]."""
    precision = gaussians.function(gaussians.precisions)
    finite = np.asarray(np.isfinite(hessian).all(axis=(1, 2)))
    scale = block.function(np.sqrt(block.precisions))
    measured = scale @ np.where(finite[:, None, None], -hessian, 0) @ scale
    some = np.flatnonzero(finite)[:, None, None]
    precision[some, chosen[finite][:, :, None], chosen[finite][:, None, :]] = measured[finite]
    return positive_definite(precision)


@np.errstate(invalid="ignore")  # ∞ − ∞
def _second_differences(found: Float64Array, count: int) -> Float64Array:
    """Values [n, m] at a centre, one step up and down along each of C axes, and up along each pair → [n, C, C]."""
    here, up, down = found[:, :1], found[:, 1 : count + 1], found[:, count + 1 : 2 * count + 1]
    first, second = np.triu_indices(count, 1)
    hessian = np.zeros((len(found), count, count))
    both = found[:, 2 * count + 1 :] - up[:, first] - up[:, second] + here
    hessian[:, first, second] = hessian[:, second, first] = both
    hessian[:, np.arange(count), np.arange(count)] = up + down - 2 * here
    return hessian
