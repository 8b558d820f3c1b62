"""The moves of annealing: around what other groups' particles say, and the same bits alone and in a batch."""

import numpy as np
import pytest
from numpy.typing import NDArray

from service.engine.posterior.crank_nicolson import CrankNicolson

IMAGES, PARTICLES, CHAINS, DIMENSIONS = 3, 30, 2, 5
"""Particles and chains of one group."""


def population(num_groups: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Points, weights and expected covariances of some images."""
    rng = np.random.default_rng(num_groups)
    points = rng.normal(size=(IMAGES, num_groups * PARTICLES, DIMENSIONS)) * np.array([1, 2, 3, 0.5, 0.1])
    weight = rng.random(points.shape[:2])
    return points, weight / weight.sum(axis=1, keepdims=True), np.broadcast_to(np.eye(DIMENSIONS), (IMAGES, 5, 5))


@pytest.mark.parametrize("num_groups", [1, 2, 4, 5, 9])
def test_a_step_is_a_rotation_in_standard_deviations(num_groups: int) -> None:
    around = CrankNicolson(*population(num_groups), num_groups, CHAINS)
    rng = np.random.default_rng(7)
    z = rng.normal(size=(IMAGES, num_groups * CHAINS, DIMENSIONS))
    along, noise = rng.random((*z.shape[:2], 1)), rng.normal(size=z.shape[1:])
    u = around.normal(z)
    np.testing.assert_allclose(around.moved(u, np.zeros_like(along), noise), z, atol=1e-10)
    moved = around.normal(around.moved(u, along, noise))
    np.testing.assert_allclose(moved, np.sqrt(1 - along**2) * u + along * noise, atol=1e-9)


@pytest.mark.parametrize("num_groups", [2, 4, 5])
def test_a_group_moves_around_the_particles_of_others(num_groups: int) -> None:
    points, weight, expected = population(num_groups)
    around = CrankNicolson(points, weight, expected, num_groups, CHAINS)
    still = np.zeros((IMAGES, num_groups * CHAINS, DIMENSIONS))
    centre = around.moved(still, np.ones((*still.shape[:2], 1)), still[0])
    fold = np.arange(num_groups) % 4
    for group in range(num_groups):
        others = np.repeat(fold != fold[group], PARTICLES)
        mean = np.average(points[0, others], axis=0, weights=weight[0, others])
        np.testing.assert_allclose(centre[0, group * CHAINS : (group + 1) * CHAINS], [mean] * CHAINS, atol=1e-12)


@pytest.mark.parametrize("num_groups", [4, 5])
def test_an_images_bits_do_not_depend_on_its_batch(num_groups: int) -> None:
    points, weight, expected = population(num_groups)
    rng = np.random.default_rng(3)
    z = rng.normal(size=(IMAGES, num_groups * CHAINS, DIMENSIONS))
    along, noise = rng.random((*z.shape[:2], 1)), rng.normal(size=z.shape[1:])
    every = CrankNicolson(points, weight, expected, num_groups, CHAINS)
    moved = every.moved(every.normal(z), along, noise)
    for i in range(IMAGES):
        one = slice(i, i + 1)
        alone = CrankNicolson(points[one], weight[one], expected[one], num_groups, CHAINS)
        np.testing.assert_array_equal(alone.moved(alone.normal(z[one]), along[one], noise)[0], moved[i])
