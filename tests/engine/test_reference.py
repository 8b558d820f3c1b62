"""The mixture that annealing starts from, against its density by SciPy and against the graph's own mixture."""

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm, ortho_group

from service.engine.posterior.gaussians import Gaussians
from service.engine.posterior.laplace import SHARES, WIDTHS, mixture, part_of
from service.engine.posterior.reference import (
    GROUP,
    Reference,
    drawn_by_encoder,
    is_usable,
    reference,
)
from service.engine.proposal import DiagonalGaussian, standard_normal
from tests.rounding import FLOAT32, FLOAT64, gamma
from tests.toys import AnyArray

INF = np.inf


def turned(count: int, latent_dim: int, *, seed: int = 0, steepest: float = 40.0) -> Gaussians:
    """Gaussians in random directions, with precisions from 1 to `steepest`."""
    rng = np.random.default_rng(seed)
    axes = np.ones((count, 1, 1))
    if latent_dim > 1:
        axes = ortho_group(latent_dim).rvs(count, random_state=seed).reshape(count, latent_dim, latent_dim)
    precisions = np.sort(rng.uniform(1, steepest, (count, latent_dim)), axis=1)[:, ::-1]
    return Gaussians(rng.standard_normal((count, latent_dim)), precisions, axes)


def an_encoder(num_images: int, latent_dim: int) -> DiagonalGaussian:
    rng = np.random.default_rng(9)
    mean, log_var = rng.standard_normal((2, num_images, latent_dim), np.float32)
    return DiagonalGaussian(mean, log_var - 1)


def some_reference(latent_dim: int, evidence: AnyArray) -> Reference:
    evidence = np.asarray(evidence, np.float64)
    return reference(turned(evidence.size, latent_dim), evidence, an_encoder(len(evidence), latent_dim))


def direct_log_density(around: Reference, image: int, points: AnyArray) -> AnyArray:
    """Part by part, by SciPy."""
    mean, scale = (part[image] for part in around.encoder)
    parts = [np.log(SHARES[-1]) + norm.logpdf(points, mean, scale).sum(axis=1)]
    for m, j in np.argwhere(around.counts[image]):
        axes = around.axes[image, m]
        covariance = (axes * around.scales[image, m, j] ** 2) @ axes.T
        density = np.atleast_1d(multivariate_normal(around.mode[image, m], covariance).logpdf(points))
        parts.append(np.log(around.counts[image, m, j] / GROUP) + density)
    return np.asarray(logsumexp(np.stack(parts), axis=0))


EVIDENCE = np.array([[0.0, -1.0, -3.0], [0.0, -INF, -INF], [0.0, -2.0, -INF], [-INF, -INF, -INF]])


@pytest.mark.parametrize("latent_dim", [1, 2, 11])
def test_the_density_is_the_mixtures(latent_dim: int) -> None:
    around = some_reference(latent_dim, EVIDENCE)
    points = around.draw(standard_normal(GROUP, latent_dim, seed=2))
    found = around.log_density(points)
    for image in range(len(EVIDENCE)):
        # Of squares up to a few hundred, by float64 matrices whose eigenvalues lie within a factor of 40.
        expected = direct_log_density(around, image, points[image])
        np.testing.assert_allclose(found[image], expected, rtol=0, atol=1e-9)
        np.testing.assert_array_equal(found[image], around.take(np.array([image])).log_density(points[[image]])[0])


def test_the_density_integrates_to_one() -> None:
    around = some_reference(1, EVIDENCE)
    line = np.linspace(-30, 30, 60_001)
    points = np.broadcast_to(line[None, :, None], (len(EVIDENCE), len(line), 1))
    np.testing.assert_allclose(np.exp(around.log_density(points)).sum(axis=1) * (line[1] - line[0]), 1, atol=1e-9)


@pytest.mark.parametrize("num_samples", [100, 400, 700])
def test_every_hundred_draws_have_each_parts_share(num_samples: int) -> None:
    """By parts so narrow and so far from one another that each draw tells which part it is of."""
    evidence = np.array([[0.0, -1.0, -3.0], [0.0, -INF, -INF], [-700.0, -701.0, -INF], [-INF, 0.0, 0.0]])
    centre = np.tile([[10.0], [20.0], [30.0]], (len(evidence), 1))
    gaussians = Gaussians(centre, np.full_like(centre, 1e12), np.ones((*centre.shape, 1)))
    nowhere = DiagonalGaussian(np.full((len(evidence), 1), -50, np.float32), np.zeros((len(evidence), 1), np.float32))
    around = reference(gaussians, evidence, nowhere)
    assert (around.counts.sum(axis=1) == np.rint(GROUP * np.array(SHARES[:-1]))).all()
    assert ((around.counts.sum(axis=2) > 0) == np.isfinite(evidence)).all()
    points = around.draw(standard_normal(num_samples, 1, seed=1))[..., 0]
    part = part_of(np.arange(num_samples))
    for image in range(len(evidence)):
        for start in range(0, num_samples, GROUP):
            hundred = slice(start, start + GROUP)
            assert (points[image, hundred] < 0).sum() == GROUP * SHARES[-1]
            np.testing.assert_array_equal(points[image, hundred] < 0, drawn_by_encoder(GROUP))
            for mode, width in np.ndindex(3, len(WIDTHS)):
                near = np.abs(points[image, hundred] - centre[mode]) < 1
                assert (near & (part[hundred] == width)).sum() == around.counts[image, mode, width]


def test_a_mode_of_less_evidence_gets_less_and_none_gets_nothing() -> None:
    counts = some_reference(2, np.array([[0.0, -1.0, -80.0], [-1e200, -INF, -1e200], [5.0, -INF, 5.0]])).counts
    whole = counts.sum(axis=2)
    assert whole[0, 0] > whole[0, 1] > whole[0, 2] >= 5  # however little there is of it
    assert whole[1:, 1].tolist() == [0, 0]
    assert whole[2, 0] == pytest.approx(whole[2, 2], abs=3)  # rounded in each width


@pytest.mark.parametrize("latent_dim", [1, 2, 30])
def test_the_draws_of_one_mode_are_those_of_the_graphs_mixture(latent_dim: int) -> None:
    gaussians, encoder = turned(3, latent_dim, steepest=1e4), an_encoder(3, latent_dim)
    around = reference(gaussians, np.zeros((3, 1)), encoder)
    noise = standard_normal(300, latent_dim, seed=5)
    graphs = mixture(gaussians, np.ones(3, np.bool_), encoder)
    part = np.tile(part_of(np.arange(300)), (3, 1))
    expected = graphs.latents(np.tile(noise, (3, 1, 1)), part, encoder)
    # Two products with an orthogonal matrix in float32: entries of at most √D·|noise|, twice, at a scale of at most 1.
    size = 1 + np.abs(gaussians.centre).max() + latent_dim * np.abs(noise).max()
    np.testing.assert_allclose(around.draw(noise), expected, rtol=0, atol=gamma(2 * latent_dim + 4, FLOAT32) * size)


def test_draws_are_numbers_that_the_decoder_sees() -> None:
    points = some_reference(4, EVIDENCE).draw(standard_normal(200, 4, seed=0))
    np.testing.assert_array_equal(points, points.astype(np.float32))


def test_the_covariance_is_the_modes_own() -> None:
    around = some_reference(3, np.array([[0.0, -INF]]))
    axes, scales = around.axes[0, 0], around.scales[0, 0, 1]
    np.testing.assert_allclose(around.covariance()[0], (axes * scales**2) @ axes.T, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6])
def test_scales_may_be_tiny_and_are_never_far_beyond_the_priors(scale: float) -> None:
    gaussians = Gaussians(np.zeros((1, 2)), np.full((1, 2), scale**-2.0), np.eye(2)[None])
    around = reference(gaussians, np.zeros((1, 1)), an_encoder(1, 2))
    points = around.draw(standard_normal(GROUP, 2, seed=3))
    assert np.isfinite(points).all()
    expected = direct_log_density(around, 0, points[0])
    np.testing.assert_allclose(around.log_density(points)[0], expected, rtol=gamma(100, FLOAT64), atol=1e-9)
    assert (around.scales <= np.sqrt(2)).all()


@pytest.mark.parametrize("value", [np.nan, INF, -INF, 3e38])
@pytest.mark.parametrize("where", ["mean", "log_var"])
def test_an_encoder_of_no_use_has_the_priors_part(where: str, value: float) -> None:
    given = an_encoder(2, 3)
    spoilt = {"mean": given.mean.copy(), "log_var": given.log_var.copy()}
    spoilt[where][1, 2] = value
    encoder = DiagonalGaussian(**spoilt)
    assert is_usable(encoder).tolist() == [True, False]
    around = reference(turned(2, 3), np.zeros((2, 1)), encoder)
    points = around.draw(standard_normal(GROUP, 3, seed=0))
    assert np.isfinite(points).all()
    assert np.isfinite(around.log_density(points)).all()
    assert around.encoder[0][1].tolist() == [0, 0, 0]
    assert around.encoder[1][1].tolist() == [1, 1, 1]
    bound = around.encoder_log_density(points)
    np.testing.assert_allclose(bound[0], norm.logpdf(points[0], given.mean[0], np.exp(given.log_var[0] / 2)).sum(1))
    assert np.isnan(bound[1]).all()
    alone = reference(turned(2, 3).take(np.array([0])), np.zeros((1, 1)), given.take(np.array([0])))
    np.testing.assert_array_equal(alone.draw(standard_normal(GROUP, 3, seed=0))[0], points[0])


@pytest.mark.parametrize("value", [np.nan, INF, 1e200])
def test_a_mode_that_is_no_number_is_none(value: float) -> None:
    gaussians = turned(4, 2)
    gaussians.centre[[1, 2, 3], 0] = value
    around = reference(gaussians, np.zeros((2, 2)), an_encoder(2, 2))
    assert around.counts.sum(axis=2).tolist() == [[90, 0], [90, 0]]  # in place of none, the prior
    points = around.draw(standard_normal(GROUP, 2, seed=0))
    for image in range(2):
        expected = direct_log_density(around, image, points[image])
        np.testing.assert_allclose(around.log_density(points)[image], expected, atol=1e-9)
