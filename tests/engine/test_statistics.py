"""Statistics of models whose truth is known, and the methods made of them."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from model_store import ImageShape, PixelPreparation
from service.engine.anomaly.complexity import complexity
from service.engine.anomaly.detector import fitting_images
from service.engine.anomaly.scores import METHODS
from service.engine.anomaly.statistics import Statistics, derived, divergence
from service.engine.chunks import complete
from tests import reference
from tests.rounding import FLOAT64, density_error, gamma, network_error, sampling_error
from tests.toys import AnyArray, LinearGaussian, bernoulli_toy

GREY = ImageShape(channels=1, height=9, width=7)
WIDEN = 1.2
ORACLE = LinearGaussian.random(GREY, 3, scale=0.4)
NUM_SAMPLES = 20_000


@pytest.fixture(scope="module")
def x() -> AnyArray:
    drawn = ORACLE.draw(6, GREY, seed=31)
    drawn[0, 0] = np.indices((9, 7)).sum(axis=0) % 2  # a chequerboard, far outside
    return drawn


@pytest.fixture(scope="module")
def statistics(x: AnyArray) -> Statistics:
    model = reference.load(ORACLE.toy(GREY, widen=WIDEN))
    return complete(model.statistics(x, proposal="encoder", num_samples=NUM_SAMPLES, seed=1))


def test_statistics_of_a_linear_gaussian_model_are_the_closed_forms(statistics: Statistics, x: AnyArray) -> None:
    gain, covariance = ORACLE.posterior()
    variance = WIDEN**2 * np.diag(covariance)
    mean = (x.reshape(len(x), -1) - ORACLE.bias) @ gain  # [B, D], of q and of p(z|x) alike
    kl = 0.5 * (mean**2 + variance - np.log(variance) - 1).sum(axis=1)
    residual = x.reshape(len(x), -1) - ORACLE.bias - mean @ ORACLE.weight.T
    spread = (ORACLE.weight**2 @ variance).sum()
    constant = GREY.size * math.log(ORACLE.scale * math.sqrt(2 * math.pi))
    reconstruction = 0.5 * ((residual**2).sum(axis=1) + spread) / ORACLE.scale**2 + constant
    precision = np.linalg.inv(covariance)
    gap = 0.5 * (np.diag(precision) @ variance - 3 + np.log(np.linalg.det(covariance) / variance.prod()))

    values = derived(statistics.measured())
    # Of the encoder's outputs by rounding; of means over samples by chance, as the log weights spread.
    toy = ORACLE.toy(GREY, widen=WIDEN)
    encoder = network_error(toy.encoder, x=x)
    kl_error = (np.abs(mean) * encoder["mean"] + np.abs(variance - 1) / 2 * encoder["log_var"]).sum(axis=1)
    log_weight = reference.log_weights(toy, x, proposal="encoder", num_samples=NUM_SAMPLES, seed=1)
    weight = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
    rounding = density_error(GREY.size, np.abs(log_weight).max())
    elbo_error = rounding + sampling_error(log_weight.std(axis=1), NUM_SAMPLES, num_means=2 * len(x))
    error = rounding + sampling_error(weight.std(axis=1) / weight.mean(axis=1), NUM_SAMPLES, num_means=2 * len(x))
    assert (np.abs(values["kl"] - kl) <= 1.01 * kl_error).all()  # a hundredth for what is beyond the first order
    assert (np.abs(values["log_likelihood"] - ORACLE.log_likelihood(x)) < error).all()
    assert (np.abs(values["elbo"] - (ORACLE.log_likelihood(x) - gap)) < elbo_error).all()
    assert (np.abs(values["reconstruction"] - reconstruction) < elbo_error + kl_error).all()
    assert (np.abs(values["posterior_gap"] - gap) < elbo_error + error).all()


def test_one_pass_measures_what_log_likelihood_and_encode_do(x: AnyArray) -> None:
    model = reference.load(bernoulli_toy(GREY, 4))
    found = complete(model.statistics(x, proposal="laplace", num_samples=40, seed=3))
    record = complete(model.log_likelihood(x, proposal="laplace", num_samples=40, seed=3))
    np.testing.assert_array_equal(found.log_likelihood, record.log_likelihood)
    np.testing.assert_array_equal(found.elbo, record.elbo)
    posterior = complete(model.encode(x))
    np.testing.assert_array_equal(found.kl, divergence(posterior))
    np.testing.assert_array_equal(found.mean, posterior.mean)
    np.testing.assert_array_equal(found.measured()["latent_3"], posterior.mean[:, 3])
    alone = [complete(model.statistics(one[None], proposal="laplace", num_samples=40, seed=3)) for one in x]
    for name, array in Statistics.join(alone).measured().items():
        np.testing.assert_allclose(array, found.measured()[name], atol=density_error(x[0].size, 100), err_msg=name)


def test_complexity_is_the_size_of_a_lossless_file() -> None:
    rng = np.random.default_rng(5)
    levels = np.stack(
        [np.zeros((1, 12, 10)), np.indices((12, 10)).sum(axis=0)[None], rng.integers(0, 256, (1, 12, 10))]
    )
    found = complete(complexity((levels / 255).astype(np.float32)))
    for nats, image in zip(found, levels.astype(np.uint8), strict=True):
        stream = io.BytesIO()
        Image.fromarray(image[0]).save(stream, "WEBP", lossless=True, quality=75, method=4)
        assert nats == pytest.approx(len(stream.getvalue()) * 8 * math.log(2), rel=gamma(2, FLOAT64))
        stream.seek(0)
        with Image.open(stream) as decoded:
            np.testing.assert_array_equal(np.asarray(decoded.convert("L")), image[0])  # nothing is lost
    assert found[0] < found[1] < found[2]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_complexity_takes_any_number_of_channels(channels: int) -> None:
    noise = np.random.default_rng(6).random((2, channels, 16, 16)).astype(np.float32)
    flat, found = complete(complexity(0 * noise)), complete(complexity(noise))
    assert (found - flat > 0.8 * channels * 256 * 8 * math.log(2)).all()


def test_complexity_is_of_the_prepared_image() -> None:
    grey = np.random.default_rng(7).uniform(0, 0.4, (3, *GREY.chw)).astype(np.float32)
    shown = bernoulli_toy(GREY, preparation=PixelPreparation(binarisation="threshold"))
    black = complete(reference.load(shown).statistics(grey, proposal="encoder", num_samples=4, seed=0)).complexity
    np.testing.assert_array_equal(black, complete(complexity(np.zeros_like(grey))))


def known() -> dict[str, AnyArray]:
    rng = np.random.default_rng(9)
    count = 300
    return {
        "log_likelihood": rng.normal(-80, 10, count),
        "elbo": rng.normal(-86, 10, count),
        "kl": rng.gamma(9, 2, count),
        "complexity": rng.normal(400, 30, count),
        "latent_0": rng.normal(size=count),
        "latent_1": rng.normal(size=count),
        "fitting": fitting_images(count),
    }


def test_methods_are_their_formulas() -> None:
    values = derived(known())
    reference_images = {name: array[known()["fitting"] == 1] for name, array in values.items()}
    centre = (-reference_images["log_likelihood"]).mean()
    expected = {
        "log_likelihood": -values["log_likelihood"],
        "posterior_gap": values["log_likelihood"] - values["elbo"],
        "typicality": np.abs(-values["log_likelihood"] - centre),
        "input_complexity": -values["log_likelihood"] - values["complexity"],
        "reconstruction": -values["kl"] - values["elbo"],
        "kl": values["kl"],
    }
    for name, scores in expected.items():
        np.testing.assert_allclose(METHODS[name].fit(reference_images)(values), scores, err_msg=name)
    assert set(METHODS) == {*expected, "combined"}
    for method in METHODS.values():
        assert set(method.needs) <= set(values)


def test_of_a_large_image_each_is_coded_in_a_turn_of_its_own() -> None:
    assert sum(1 for _ in complexity(np.zeros((3, 3, 80, 80), np.float32))) == 3
    assert sum(1 for _ in complexity(np.zeros((40, 1, 8, 8), np.float32))) == 1


def test_complexity_of_many_tall_channels() -> None:
    assert np.isfinite(complete(complexity(np.zeros((1, 70, 300, 4), np.float32)))).all()
