"""Models whose truth is known in closed form, or by quadrature."""

import itertools

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from model_store import ImageShape, LikelihoodSpec
from service.engine.chunks import complete
from service.engine.posterior.estimate import LogLikelihood
from service.engine.proposal import standard_normal
from tests import reference
from tests.likelihoods import GAUSSIAN_WITH_SCALE, Bernoulli, Gaussian, discretised_logistic, gaussian, reference_of
from tests.rounding import FLOAT64, FUNCTION, gamma, network_error, sampling_error, sum_error
from tests.toys import AnyArray, LinearGaussian, bernoulli_toy, nonlinear_toy

SHAPES = {1: ImageShape(channels=1, height=4, width=5), 3: ImageShape(channels=3, height=2, width=5)}
SHAPES[10] = ImageShape(channels=1, height=7, width=6)


def linear_gaussian(latent_dim: int) -> LinearGaussian:
    """A scale at which both proposals have weights of finite variance."""
    return LinearGaussian.random(SHAPES[latent_dim], latent_dim, scale=0.4)


def all_images(shape: ImageShape) -> AnyArray:
    """Every binary image: [2^P, C, H, W]."""
    return np.array(list(itertools.product([0, 1], repeat=shape.size)), np.float32).reshape(-1, *shape.chw)


def quadrature(latent_dim: int, num_nodes: int = 801) -> tuple[AnyArray, AnyArray]:
    """Nodes [N, D] and log weights [N], that integrate against N(0, I)."""
    nodes = np.linspace(-9, 9, num_nodes if latent_dim == 1 else 181)
    log_weight = norm.logpdf(nodes) + np.log(nodes[1] - nodes[0])
    grid = np.array(list(itertools.product(nodes, repeat=latent_dim)))
    return grid, np.array(list(itertools.product(log_weight, repeat=latent_dim))).sum(axis=1)


@pytest.mark.parametrize("latent_dim", SHAPES)
@pytest.mark.parametrize(("proposal", "num_samples"), [("encoder", 2000), ("prior", 20_000)])
def test_log_likelihood_is_the_closed_form(latent_dim: int, proposal: str, num_samples: int) -> None:
    oracle = linear_gaussian(latent_dim)
    x = oracle.draw(8, SHAPES[latent_dim], seed=41)
    model = reference.load(oracle.toy(SHAPES[latent_dim], widen=1.15))
    exact = oracle.log_likelihood(x)
    assert exact.std() > 0.5  # the images differ
    for seed in range(5):
        record = complete(model.log_likelihood(x, proposal=proposal, num_samples=num_samples, seed=seed))
        assert (record.std_error < (0.3 if proposal == "encoder" else 1.2)).all()
        assert (np.abs(record.log_likelihood - exact) < np.minimum(3 * record.std_error, 0.9)).all()
        np.testing.assert_allclose(record.bits_per_dim, -record.log_likelihood / (x[0].size * np.log(2)))


@pytest.mark.parametrize("latent_dim", SHAPES)
@pytest.mark.parametrize("proposal", ["encoder", "prior"])
def test_elbo_and_gap_are_the_closed_form(latent_dim: int, proposal: str) -> None:
    """The gap is KL[q(z|x) ‖ p(z|x)] between two Gaussians: the encoder's bound, whatever the proposal."""
    oracle, shape, widen, num_samples = linear_gaussian(latent_dim), SHAPES[latent_dim], 1.5, 20_000
    toy = oracle.toy(shape, widen=widen)
    x = oracle.draw(5, shape, seed=42)
    _, covariance = oracle.posterior()
    variance = widen**2 * np.diag(covariance)
    divergence = 0.5 * (
        np.trace(np.linalg.solve(covariance, np.diag(variance)))
        - latent_dim
        + np.linalg.slogdet(covariance)[1]
        - np.log(variance).sum()
    )
    record = complete(reference.load(toy).log_likelihood(x, proposal=proposal, num_samples=num_samples))
    spread = reference.log_weights(toy, x, proposal="encoder", num_samples=num_samples, seed=0).std(axis=1)
    bound_error = 4 * spread / np.sqrt(num_samples)
    assert divergence > 5 * bound_error.max()
    assert (np.abs(record.elbo - (oracle.log_likelihood(x) - divergence)) < bound_error).all()
    assert (np.abs(record.posterior_gap - divergence) < bound_error + 3 * record.std_error).all()


@pytest.mark.parametrize("proposal", ["encoder", "prior"])
def test_the_error_bar_covers_the_truth_as_often_as_it_says(proposal: str) -> None:
    oracle, shape, num_seeds = linear_gaussian(3), SHAPES[3], 400
    x = oracle.draw(3, shape, seed=43)
    model = reference.load(oracle.toy(shape, widen=1.3))
    records = [
        complete(model.log_likelihood(x, proposal=proposal, num_samples=2000, seed=seed))
        for seed in range(1, num_seeds + 1)
    ]
    estimate = np.array([record.log_likelihood for record in records])  # [seeds, B]
    std_error = np.array([record.std_error for record in records])
    deviation = (estimate - oracle.log_likelihood(x)) / std_error
    coverage = (np.abs(deviation) < 1.96).mean(axis=0)
    assert (np.abs(coverage - 0.95) < 4 * np.sqrt(0.95 * 0.05 / num_seeds)).all()
    assert (
        np.abs(deviation.mean(axis=0)) < 4 / np.sqrt(num_seeds) + std_error.mean(axis=0) / 2
    ).all()  # −se²/2: Jensen's
    np.testing.assert_allclose(estimate.std(axis=0), std_error.mean(axis=0), rtol=4 / np.sqrt(2 * num_seeds))


def quadrature_error(log_prob: AnyArray, log_measure: AnyArray) -> float:
    """Of log Σ_x ∫ p(x|z) p(z) dz, whose integrand's sum over x [X, N] is 1 at every node.

    Beyond 9 deviations lie 10⁻¹⁸, and between nodes of step h ≤ 0.1 exp(−2π²/h²) is nothing: what is left is rounding,
    of the sums and of each logarithm.
    """
    largest = float(np.abs(log_prob).max() + np.abs(log_measure).max())
    return gamma(log_prob.size, FLOAT64) + gamma(4 * FUNCTION, FLOAT64) * largest


@pytest.mark.parametrize("scale", [0.1, 0.7])
def test_gaussian_likelihood_integrates_to_one(scale: float) -> None:
    likelihood = Gaussian(scale)
    line = np.linspace(-6, 7, 1301)
    one = likelihood.log_prob(line.reshape(-1, 1, 1, 1), {"loc": np.full((1, 1, 1), 0.3)})
    pairs = np.stack(np.meshgrid(line[::4], line[::4], indexing="ij"), axis=-1).reshape(-1, 1, 1, 2)
    two = likelihood.log_prob(pairs, {"loc": np.array([[[0.3, 0.8]]])})
    # The rectangle rule has no error here: its first, exp(−2π²·scale²/step²), is below 10⁻⁵⁰. What is left is rounding:
    # of the sums, and of nodes of up to 7, in units of the scale.
    nodes = gamma(FUNCTION * round(7 / scale), FLOAT64)
    np.testing.assert_allclose(np.exp(one).sum() * 0.01, 1, rtol=gamma(one.size, FLOAT64) + nodes)
    np.testing.assert_allclose(np.exp(two).sum() * 0.04**2, 1, rtol=gamma(two.size, FLOAT64) + 2 * nodes)


def joint_error(record: LogLikelihood, measure: float = 1.0) -> float:
    """Of Σ_x P(x)·measure by estimates that share their noise: at worst, all are off by as many standard errors."""
    return float(sampling_error((np.exp(record.log_likelihood) * record.std_error).sum() * measure, 1, num_means=10))


@pytest.mark.parametrize("proposal", ["encoder", "laplace"])
@pytest.mark.parametrize("width", [1, 2])
def test_gaussian_evidence_integrates_to_one(width: int, proposal: str) -> None:
    shape = ImageShape(channels=1, height=1, width=width)
    oracle = LinearGaussian(
        weight=np.array([[0.7, -0.2], [0.1, 0.4]])[:width], bias=np.array([0.3, 0.6])[:width], scale=0.3
    )
    step = 0.02 if width == 1 else 0.15
    line = np.arange(-4.0, 5.0, step)
    x = np.array(list(itertools.product(line, repeat=width)), np.float32).reshape(-1, *shape.chw)
    model = reference.load(oracle.toy(shape, widen=1.3))
    record = complete(model.log_likelihood(x, proposal=proposal, num_samples=2000))
    deviation = np.sqrt((oracle.weight**2).sum(axis=1) + oracle.scale**2)
    outside = 2 * norm.sf(4 / deviation - oracle.bias / deviation).sum() + gamma(len(x))
    total = np.exp(record.log_likelihood).sum() * step**width
    assert abs(total - 1) < joint_error(record, step**width) + outside


@pytest.mark.parametrize(
    "shape", [ImageShape(channels=1, height=2, width=4), ImageShape(channels=3, height=1, width=3)]
)
def test_bernoulli_likelihood_sums_to_one(shape: ImageShape) -> None:
    logits = 4 * np.random.default_rng(3).standard_normal((5, 1, *shape.chw))
    log_prob = Bernoulli().log_prob(all_images(shape), {"logits": logits})  # [5, 2^P]
    # Relative errors of probabilities are absolute ones of their logarithms.
    error = gamma(log_prob.shape[1] + FUNCTION, FLOAT64) + sum_error(shape.size, float(np.abs(log_prob).max()), FLOAT64)
    np.testing.assert_allclose(logsumexp(log_prob, axis=1), 0, atol=error)


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_bernoulli_evidence_is_the_integral_over_z_and_sums_to_one(latent_dim: int) -> None:
    shape = ImageShape(channels=1, height=2, width=3)
    toy, x = bernoulli_toy(shape, latent_dim), all_images(shape)
    nodes, log_measure = quadrature(latent_dim)
    logits = reference.run(toy.decoder, z=nodes)["logits"]
    log_prob = Bernoulli().log_prob(x[:, None], {"logits": logits})  # [2^P, N]
    exact = logsumexp(log_prob + log_measure, axis=1)
    np.testing.assert_allclose(logsumexp(exact), 0, atol=quadrature_error(log_prob, log_measure))

    model = reference.load(toy)
    for proposal in ("prior", "encoder", "laplace"):
        record = complete(model.log_likelihood(x, proposal=proposal, num_samples=10_000))
        assert (np.abs(record.log_likelihood - exact) < 3.5 * record.std_error).all()  # 64 images under one noise
        # Under one noise, the prior's estimates sum to one exactly: Σ_x mean_k p(x|z_k) = mean_k 1.
        error = joint_error(record)
        if proposal == "prior":
            z = standard_normal(10_000, latent_dim, seed=0)
            logits = np.abs(reference.run(toy.decoder, z=z)["logits"])
            decoded = 2 * network_error(toy.decoder, z=z)["logits"].sum(axis=(1, 2, 3)).mean()
            error = (
                decoded + sum_error(shape.size, float((1 + 2 * logits).sum(axis=(1, 2, 3)).mean())) + gamma(FUNCTION)
            )
        assert abs(logsumexp(record.log_likelihood)) < error


@pytest.mark.parametrize("proposal", ["encoder", "laplace"])
@pytest.mark.parametrize("latent_dim", [1, 2])
@pytest.mark.parametrize("likelihood", [GAUSSIAN_WITH_SCALE, gaussian(0.3), discretised_logistic(3)], ids=str)
def test_evidence_is_the_integral_over_z_whatever_the_likelihood(
    likelihood: LikelihoodSpec, latent_dim: int, proposal: str
) -> None:
    shape = ImageShape(channels=1, height=2, width=2)
    toy = nonlinear_toy(likelihood, shape, latent_dim)
    x = np.array(list(itertools.product([0, 0.5, 1], repeat=shape.size)), np.float32).reshape(-1, *shape.chw)
    nodes, log_measure = quadrature(latent_dim)
    parameters = reference.run(toy.decoder, z=nodes)
    log_prob = reference_of(likelihood).log_prob(x[:, None], parameters)
    exact = logsumexp(log_prob + log_measure, axis=1)
    if likelihood.levels:
        # every image of three levels
        np.testing.assert_allclose(logsumexp(exact), 0, atol=quadrature_error(log_prob, log_measure))

    record = complete(reference.load(toy).log_likelihood(x, proposal=proposal, num_samples=10_000))
    assert (np.abs(record.log_likelihood - exact) < 4 * record.std_error + 1e-4).all()  # 81 images under one noise
    assert np.median(record.std_error) < 0.05
    assert set(record.proposal) == {proposal}
