"""Maps of surprising pixels: of likelihoods whose expectations are known, and of draws from known posteriors."""

import numpy as np
import pytest
from scipy import stats

from model_store import ImageShape, LikelihoodSpec
from service.engine.anomaly.explanation import NUM_DRAWS
from service.engine.chunks import complete
from service.engine.parts import gathered
from service.engine.posterior.sampling import resample
from service.engine.proposal import PROPOSALS, Effort
from tests import reference
from tests.likelihoods import (
    BERNOULLI,
    GAUSSIAN_WITH_SCALE,
    discretised_logistic,
    gaussian,
    graph_of,
    reference_of,
    run_likelihood,
)
from tests.toys import AnyArray, LinearGaussian, bernoulli_toy, nonlinear_toy

GREY = ImageShape(channels=1, height=6, width=5)
COLOUR = ImageShape(channels=3, height=4, width=5)
SPECS: list[LikelihoodSpec] = [
    BERNOULLI,
    gaussian(0.3),
    GAUSSIAN_WITH_SCALE,
    discretised_logistic(2),
    discretised_logistic(),
]


def parameters_of(spec: LikelihoodSpec, *, num_images: int, num_pixels: int, seed: int = 1) -> dict[str, AnyArray]:
    """Of each image, [B, 1, P]."""
    rng = np.random.default_rng(seed)
    shape = num_images, 1, num_pixels
    drawn = {
        "logits": 2 * rng.standard_normal(shape),
        "loc": rng.uniform(-0.1, 1.1, shape),
        "log_scale": rng.uniform(-5, -1, shape),
    }
    return {name: drawn[name].astype(np.float32) for name in reference_of(spec).outputs}


def ask(spec: LikelihoodSpec, wanted: str, parameters: dict[str, AnyArray], **inputs: AnyArray) -> AnyArray:
    """One output of the likelihood's graph."""
    num_pixels = next(iter(parameters.values())).shape[-1]
    content = graph_of(spec, num_pixels)
    given = {"x": np.zeros((1, 1, num_pixels)), **inputs}
    return run_likelihood(content, [wanted], {**given, **parameters})[0]


def draw(spec: LikelihoodSpec, parameters: dict[str, AnyArray]) -> AnyArray:
    """x ~ p(x|z): [B, 1, P]."""
    values = next(iter(parameters.values()))
    num_uniforms = values.shape[-1] * (2 if spec.kind == "gaussian" else 1)
    uniform = np.random.default_rng(2).random((len(values), 1, num_uniforms), np.float32)
    return ask(spec, "sample", parameters, uniform=uniform)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("num_pixels", [90, 96])
def test_pixels_add_up_to_the_image(spec: LikelihoodSpec, num_pixels: int) -> None:
    parameters = parameters_of(spec, num_images=4, num_pixels=num_pixels)
    x = draw(spec, parameters)
    by_pixel = ask(spec, "pixel_log_prob", parameters, x=x)
    assert by_pixel.shape == (4, 1, num_pixels)
    whole = ask(spec, "log_prob", parameters, x=x)
    np.testing.assert_allclose(by_pixel.sum(axis=2), whole, rtol=0, atol=1e-5 * np.abs(by_pixel).sum())


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_entropy_is_the_expected_cost(spec: LikelihoodSpec) -> None:
    """Of 20 pixels, over 20 000 draws: images of as many pixels, with the same parameters."""
    one = parameters_of(spec, num_images=1, num_pixels=20)
    many = {name: np.repeat(value, 20_000, axis=0) for name, value in one.items()}
    cost = -ask(spec, "pixel_log_prob", many, x=draw(spec, many))[:, 0]
    noise = cost.std(axis=0) / np.sqrt(len(cost))
    assert (np.abs(cost.mean(axis=0) - ask(spec, "entropy", one)[0, 0]) < 4.5 * noise + 1e-3).all()


def test_the_entropy_of_levels_is_a_sum_over_them() -> None:
    spec = discretised_logistic(16)
    one = parameters_of(spec, num_images=30, num_pixels=1)
    levels = np.broadcast_to(np.arange(16, dtype=np.float32) / 15, (30, 1, 16))
    log_prob = ask(
        spec, "pixel_log_prob", {name: np.repeat(value, 16, axis=2) for name, value in one.items()}, x=levels
    )
    expected = -(np.exp(log_prob) * log_prob).sum(axis=2, keepdims=True)
    np.testing.assert_allclose(ask(spec, "entropy", one), expected, atol=1e-6)  # of float32 levels, k/15


@pytest.mark.parametrize("logit", [-2000.0, 2000.0])
def test_a_sure_pixel_has_no_entropy_and_an_unsure_one_no_surprise(logit: float) -> None:
    parameters = {"logits": np.array([[[0.0, logit, logit]]], np.float32)}
    sure = float(logit > 0)
    log_prob = ask(BERNOULLI, "pixel_log_prob", parameters, x=np.array([[[1, sure, 1 - sure]]], np.float32))
    surprise = -log_prob - ask(BERNOULLI, "entropy", parameters)
    np.testing.assert_allclose(surprise, [[[0, 0, 2000]]], atol=1e-12)


def test_resampling_follows_the_weights() -> None:
    log_weight = np.array([[0, np.log(3), -np.inf, np.nan], [np.nan] * 4, [-np.inf] * 4, [-4000, -9000, -9000, -9000]])
    drawn = resample(log_weight.astype(np.float32), 8)
    assert drawn[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert drawn[3].tolist() == [0] * 8
    assert ((drawn >= 0) & (drawn < 4)).all()
    assert resample(log_weight.astype(np.float32), 0).shape == (4, 0)


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_draws_are_of_the_posterior(proposal: str) -> None:
    """Of a linear-Gaussian model, whose posterior is known: 400 draws from 20 000 samples, in each direction."""
    shape = ImageShape(channels=1, height=4, width=3)
    oracle = LinearGaussian.random(shape, 2, scale=0.3)
    model, x = reference.load(oracle.toy(shape, widen=1.3)), oracle.draw(3, shape, seed=4)
    inference = complete(gathered(model.infer(x, proposal, Effort(num_samples=20_000, seed=2, num_draws=400))))
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
    if spec == BERNOULLI:
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
