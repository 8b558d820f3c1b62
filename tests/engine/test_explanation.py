"""Maps of surprising pixels: of likelihoods whose expectations are known, and of draws from known posteriors."""

import numpy as np
import pytest
from scipy import stats

from model_store import BernoulliSpec, DiscretisedLogisticSpec, GaussianSpec, ImageShape, LikelihoodSpec
from service.engine.anomaly.explanation import NUM_DRAWS, surprise
from service.engine.chunks import complete
from service.engine.likelihood import likelihood_of
from service.engine.posterior.estimator import resample
from tests import reference
from tests.toys import AnyArray, LinearGaussian, bernoulli_toy, nonlinear_toy

GREY = ImageShape(channels=1, height=6, width=5)
COLOUR = ImageShape(channels=3, height=4, width=5)
SPECS: list[LikelihoodSpec] = [
    BernoulliSpec(),
    GaussianSpec(scale=0.3),
    GaussianSpec(scale=None),
    DiscretisedLogisticSpec(levels=2),
    DiscretisedLogisticSpec(levels=256),
]


def parameters_of(spec: LikelihoodSpec, shape: tuple[int, ...], *, seed: int = 1) -> dict[str, AnyArray]:
    rng = np.random.default_rng(seed)
    drawn = {
        "logits": 2 * rng.standard_normal(shape),
        "loc": rng.uniform(-0.1, 1.1, shape),
        "log_scale": rng.uniform(-5, -1, shape),
    }
    return {name: drawn[name].astype(np.float32) for name in likelihood_of(spec).outputs}


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_pixels_add_up_to_the_image(spec: LikelihoodSpec) -> None:
    likelihood, parameters = likelihood_of(spec), parameters_of(spec, (4, 3, 6, 5))
    x = likelihood.sample(parameters, np.random.default_rng(2))
    by_pixel = likelihood.pixel_log_prob(x, parameters)
    assert by_pixel.shape == (4, 3, 6, 5)
    np.testing.assert_allclose(by_pixel.sum(axis=(1, 2, 3)), likelihood.log_prob(x, parameters))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_entropy_is_the_expected_cost(spec: LikelihoodSpec) -> None:
    likelihood, parameters = likelihood_of(spec), parameters_of(spec, (20, 1, 1))
    rng = np.random.default_rng(3)
    cost = np.stack([-likelihood.pixel_log_prob(likelihood.sample(parameters, rng), parameters) for _ in range(20_000)])
    noise = cost.std(axis=0) / np.sqrt(len(cost))
    assert (np.abs(cost.mean(axis=0) - likelihood.pixel_entropy(parameters)) < 4.5 * noise + 1e-3).all()


def test_the_entropy_of_levels_is_a_sum_over_them() -> None:
    likelihood = likelihood_of(DiscretisedLogisticSpec(levels=16))
    parameters = parameters_of(DiscretisedLogisticSpec(), (30, 1, 1, 1))
    log_prob = likelihood.pixel_log_prob(np.arange(16).reshape(1, 1, 1, 16) / 15, parameters)  # [30, 1, 1, 16]
    expected = -(np.exp(log_prob) * log_prob).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(likelihood.pixel_entropy(parameters), expected, atol=1e-9)


@pytest.mark.parametrize("logit", [-2000.0, 2000.0])
def test_a_sure_pixel_has_no_entropy_and_an_unsure_one_no_surprise(logit: float) -> None:
    likelihood = likelihood_of(BernoulliSpec())
    parameters = {"logits": np.array([[[[0.0, logit, logit]]]], np.float32)}
    sure = float(logit > 0)
    found = surprise(np.array([[[1, sure, 1 - sure]]], np.float32), parameters, likelihood)
    np.testing.assert_allclose(found, [[[0, 0, 2000]]], atol=1e-12)


def test_resampling_follows_the_weights() -> None:
    log_weight = np.array([[0, np.log(3), -np.inf, np.nan], [np.nan] * 4, [-np.inf] * 4, [-4000, -9000, -9000, -9000]])
    drawn = resample(log_weight.astype(np.float32), 8)
    assert drawn[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert drawn[3].tolist() == [0] * 8
    assert ((drawn >= 0) & (drawn < 4)).all()
    assert resample(log_weight.astype(np.float32), 0).shape == (4, 0)


@pytest.mark.parametrize("proposal", ["encoder", "prior", "laplace"])
def test_draws_are_of_the_posterior(proposal: str) -> None:
    """Of a linear-Gaussian model, whose posterior is known: 400 draws from 20 000 samples, in each direction."""
    shape = ImageShape(channels=1, height=4, width=3)
    oracle = LinearGaussian.random(shape, 2, scale=0.3)
    model, x = reference.load(oracle.toy(shape, widen=1.3)), oracle.draw(3, shape, seed=4)
    inference = complete(
        model._estimator.infer(
            x.reshape(3, -1),
            complete(model.encode(x)),
            proposal=proposal,
            num_samples=20_000,
            seed=2,
            max_std_error=None,
            max_num_samples=20_000,
            num_draws=400,
        )
    )
    gain, covariance = oracle.posterior()
    mean = (x.reshape(3, -1) - oracle.bias) @ gain
    root = np.linalg.cholesky(np.linalg.inv(covariance))
    for image in range(3):
        standard = (inference.latents[image] - mean[image]) @ root
        for direction in standard.T:
            assert stats.kstest(direction, "norm").statistic < 0.08


@pytest.mark.parametrize("shape", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_map_has_the_images_shape_and_does_not_depend_on_the_batch(spec: LikelihoodSpec, shape: ImageShape) -> None:
    toy = nonlinear_toy(spec, shape, 3)
    rng = np.random.default_rng(5)
    pixels = rng.random((30, *shape.chw), np.float32)
    if isinstance(spec, BernoulliSpec):
        pixels = np.rint(pixels)
    model = reference.load(reference.calibrated(toy, pixels, proposal="laplace", num_samples=40))
    together = complete(model.anomaly_scores(pixels[:4], explain=True)).explanation
    assert together is not None
    assert together.shape == (4, *shape.chw)
    assert np.isfinite(together).all()
    for index in range(4):
        alone = complete(model.anomaly_scores(pixels[index : index + 1], explain=True)).explanation
        assert alone is not None
        np.testing.assert_allclose(alone[0], together[index], atol=2e-3, rtol=1e-3)
    assert complete(model.anomaly_scores(pixels[:1])).explanation is None


def test_the_pixel_that_is_wrong_is_the_one_that_surprises() -> None:
    shape = ImageShape(channels=1, height=8, width=8)
    oracle = LinearGaussian.random(shape, 3, scale=0.05)
    x = oracle.draw(6, shape, seed=6)
    model = reference.load(reference.calibrated(oracle.toy(shape), oracle.draw(60, shape, seed=7)))
    for index in range(6):
        x[index, 0, index, 7 - index] = 1 - np.rint(x[index, 0, index, 7 - index])
    maps = complete(model.anomaly_scores(x, explain=True)).explanation
    assert maps is not None
    for index in range(6):
        assert np.unravel_index(maps[index, 0].argmax(), (8, 8)) == (index, 7 - index)


def test_the_map_is_the_mean_over_draws_by_hand() -> None:
    """Against NumPy: the draws' own decoder outputs, one after the other."""
    shape = ImageShape(channels=1, height=5, width=4)
    toy = bernoulli_toy(shape, 3)
    pixels = np.rint(np.random.default_rng(8).random((1, *shape.chw))).astype(np.float32)
    model = reference.load(reference.calibrated(toy, np.repeat(pixels, 3, axis=0)))
    found = complete(model.anomaly_scores(pixels, explain=True)).explanation
    protocol = toy.description.calibration
    weights = reference.log_weights(toy, pixels, proposal="encoder", num_samples=protocol.num_samples, seed=0)
    drawn = resample(weights.astype(np.float32), NUM_DRAWS)[0]
    posterior = reference.run(toy.encoder, x=pixels)
    noise = np.random.Generator(np.random.PCG64(0)).standard_normal((protocol.num_samples, 3), np.float32)
    latents = posterior["mean"] + np.exp(posterior["log_var"] / 2) * noise[drawn]
    logits = reference.run(toy.decoder, z=latents)["logits"].astype(np.float64)
    p = 1 / (1 + np.exp(-logits))
    cost = -np.log(np.where(pixels > 0, p, 1 - p))
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    assert found is not None
    np.testing.assert_allclose(found, (cost - entropy).mean(axis=0, keepdims=True), atol=1e-4)
