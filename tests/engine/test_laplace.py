"""The Laplace proposal against exact posteriors, and where it has nothing to go by."""

from pathlib import Path

import numpy as np
import pytest

from model_store import BUNDLED, ImageShape, PixelPreparation, open_version
from service.engine.chunks import complete
from service.engine.graphs import DIFFERENCE_STEP
from service.engine.matrices import MIN_PRECISION, positive_definite
from service.engine.model import Model
from service.engine.posterior.estimate import LogLikelihood
from service.engine.posterior.laplace import PATTERN, SHARES, balanced, part_of
from service.engine.posterior.newton import find_modes
from service.engine.posterior.newton_state import Evaluation, Modes
from service.engine.runtime import Runtime
from tests import reference
from tests.engine.oracles import SHAPE, exact_model, oracle
from tests.rounding import FLOAT32, FLOAT64, FUNCTION, density_error, gamma, network_error
from tests.toys import AnyArray, Toy, bernoulli_toy


def modes_of(model: Model, pixels: AnyArray) -> Modes:
    """The search from the encoder's mean, through the model's own graphs."""
    posterior = complete(model.encode(pixels))
    x = model._first.of_x.prepare(pixels).reshape(len(pixels), -1)
    return complete(model._estimator._search.fit(x, posterior))[0]


@pytest.mark.parametrize("latent_dim", [2, 20, 128])
def test_on_a_linear_gaussian_it_is_exact_and_wastes_few_samples(latent_dim: int) -> None:
    x = oracle(latent_dim).draw(8, SHAPE, seed=4)
    for seed in range(3):
        record = complete(exact_model(latent_dim).log_likelihood(x, seed=seed, proposal="laplace"))
        assert (np.abs(record.log_likelihood - oracle(latent_dim).log_likelihood(x)) < 3 * record.std_error).all()
        assert (record.effective_sample_size > 0.5 * record.num_samples).all()
        assert record.reliable.all()


@pytest.mark.parametrize("latent_dim", [2, 20])
def test_mode_and_precision_are_the_posteriors(latent_dim: int) -> None:
    x = oracle(latent_dim).draw(5, SHAPE, seed=4)
    modes = modes_of(exact_model(latent_dim), x)
    gain, covariance = oracle(latent_dim).posterior()
    assert modes.converged.all()
    weight, variance = oracle(latent_dim).weight, oracle(latent_dim).scale ** 2
    centred = x.reshape(5, -1) - oracle(latent_dim).bias
    mode = centred @ gain
    # The Jacobian is a difference of two decoder outputs, and of two latents, all rounded to float32, over the step.
    # The gradient and the information are sums of its products with scores and with 1/scale².
    decoder = network_error(oracle(latent_dim).toy(SHAPE).decoder, z=np.abs(mode) + DIFFERENCE_STEP)["loc"]
    latents = 2 * FLOAT32 * (np.abs(mode).max() + DIFFERENCE_STEP) * np.abs(weight)
    jacobian = (2 * decoder.reshape(5, -1, 1) + latents) / DIFFERENCE_STEP  # [B, P, D]
    score = (np.abs(centred - mode @ weight.T)[:, :, None] + decoder.reshape(5, -1, 1)) / variance
    summed = gamma(SHAPE.size + FUNCTION)
    gradient = (jacobian * score + summed * np.abs(weight) * score).sum(axis=1)
    gradient += np.abs(weight).T @ decoder.reshape(5, -1, 1)[..., 0].max(axis=0) / variance
    half = np.abs(weight).T @ jacobian / variance  # [B, D, D]
    information = half + half.transpose(0, 2, 1) + jacobian.transpose(0, 2, 1) @ jacobian / variance
    information += summed * np.abs(weight).T @ np.abs(weight) / variance
    assert (np.abs(modes.mode - mode) <= 1.1 * gradient @ np.abs(covariance)).all()  # a tenth for the second order
    assert (np.abs(modes.precision - np.linalg.inv(covariance)) <= information).all()


def test_an_encoder_that_knows_nothing_does_not_matter() -> None:
    """Started from a mean of zero for every image, the search ends where the exact encoder would have begun."""
    toy = oracle(20).toy(SHAPE, widen=1.3)
    gain = oracle(20).posterior()[0].astype(np.float32)
    blind = toy.encoder.replace(gain.tobytes(), np.zeros_like(gain).tobytes())
    model = reference.load(Toy(toy.description, blind, toy.decoder, toy.calibration))
    x = oracle(20).draw(8, SHAPE, seed=4)
    truth = oracle(20).log_likelihood(x)
    record = complete(model.log_likelihood(x, proposal="laplace"))
    assert (np.abs(record.log_likelihood - truth) < 3 * record.std_error).all()
    encoder = complete(model.log_likelihood(x, proposal="encoder", num_samples=5000))
    assert (encoder.log_likelihood < truth - 5).all()  # what it mends
    assert (record.posterior_gap > 5).all()


@pytest.mark.parametrize(
    "shape", [ImageShape(channels=1, height=9, width=7), ImageShape(channels=3, height=4, width=5)]
)
def test_an_images_estimate_does_not_depend_on_its_batch(shape: ImageShape) -> None:
    model = reference.load(bernoulli_toy(shape, 5, preparation=PixelPreparation(binarisation="dynamic")))
    x = np.random.default_rng(0).random((64, *shape.chw), np.float32)
    together = complete(model.log_likelihood(x, proposal="laplace"))
    order = np.random.default_rng(1).permutation(64)
    shuffled = complete(model.log_likelihood(x[order], proposal="laplace"))
    error = density_error(shape.size, np.abs(together.log_likelihood).max())
    np.testing.assert_allclose(shuffled.log_likelihood, together.log_likelihood[order], rtol=0, atol=error)
    for index in (0, 31, 63):
        alone = complete(model.log_likelihood(x[index : index + 1], proposal="laplace"))
        np.testing.assert_allclose(alone.log_likelihood, together.log_likelihood[index], rtol=0, atol=error)


def test_the_bundled_models_estimates_do_not_depend_on_the_batch_even_far_outside() -> None:
    """A search of fifty steps must not amplify a difference in the last bit: equal bit by bit, on the CPU."""
    model = Model.open(open_version(BUNDLED, "mnist"), runtime=Runtime("cpu"))
    with np.load(Path(__file__).parents[1] / "data" / "digits.npz", allow_pickle=False) as archive:
        digits = archive["test"][:8, None].astype(np.float32) / np.float32(255)
    noise = (np.random.default_rng(0).random((8, 1, 28, 28)) < 0.5).astype(np.float32)
    pixels = np.concatenate([digits, digits[:, :, ::-1], noise])
    together = complete(model.log_likelihood(pixels, proposal="laplace"))
    for index in (0, 5, 9, 15, 16, 20, 23):
        alone = complete(model.log_likelihood(pixels[index : index + 1], proposal="laplace"))
        assert alone.log_likelihood[0] == together.log_likelihood[index]
    fewer = complete(model.log_likelihood(pixels[10:20], proposal="laplace"))
    np.testing.assert_array_equal(fewer.log_likelihood, together.log_likelihood[10:20])


def test_far_outside_it_still_converges_and_seeds_agree() -> None:
    shape = ImageShape(channels=1, height=9, width=7)
    model = reference.load(bernoulli_toy(shape, 5))
    noise = (np.random.default_rng(3).random((20, *shape.chw)) < 0.5).astype(np.float32)
    assert modes_of(model, noise).converged.all()
    first, second = (
        complete(model.log_likelihood(noise, seed=seed, num_samples=2000, proposal="laplace")) for seed in (0, 1)
    )
    distance = np.abs(first.log_likelihood - second.log_likelihood)
    assert np.median(distance) < 0.2
    encoder = complete(model.log_likelihood(noise, proposal="encoder"))
    assert np.median(first.log_likelihood - encoder.log_likelihood) > -0.05


def test_where_the_decoder_gives_no_number_the_encoder_stands_in_and_it_says_so() -> None:
    toy = oracle(2).toy(SHAPE)
    bias = oracle(2).bias.astype(np.float32)
    broken = toy.decoder.replace(bias.tobytes(), np.full_like(bias, np.nan).tobytes())
    model = reference.load(Toy(toy.description, toy.encoder, broken, toy.calibration))
    record = complete(model.log_likelihood(oracle(2).draw(3, SHAPE, seed=1), proposal="laplace"))
    assert set(record.proposal) == {"encoder"}
    assert not record.reliable.any()


def test_a_search_cut_short_is_unreliable_and_does_not_sample_on() -> None:
    shape = ImageShape(channels=1, height=9, width=7)
    toy = bernoulli_toy(shape, 5)
    noise = (np.random.default_rng(3).random((4, *shape.chw)) < 0.5).astype(np.float32)
    one_step = Model(toy.description, toy.encoder, toy.decoder, toy.likelihood, runtime=Runtime("cpu"), max_steps=1)
    record = complete(one_step.log_likelihood(noise, max_std_error=1e-3, max_num_samples=4000, proposal="laplace"))
    assert not record.reliable.any()
    assert (record.num_samples == 400).all()
    assert set(record.proposal) == {"laplace"}


def test_narrow_targets_stop_early_and_hard_ones_sample_on() -> None:
    x = oracle(2).draw(6, SHAPE, seed=4)
    record = complete(
        exact_model(2).log_likelihood(x, num_samples=50, max_std_error=0.03, max_num_samples=6400, proposal="laplace")
    )
    assert (record.std_error <= 0.03).all()
    assert (record.num_samples > 50).all()
    assert (record.num_samples < 6400).all()
    assert (np.abs(record.log_likelihood - oracle(2).log_likelihood(x)) < 4 * record.std_error).all()


@pytest.mark.parametrize("num_samples", [4, 7, 10, 64, 401])
def test_the_mean_of_balanced_weights_gives_each_part_its_share(num_samples: int) -> None:
    """Weights that only depend on the part: the mean is Σ share·weight, however the samples fall on the parts."""
    weight = np.array([1.0, 2.0, 5.0, 11.0])
    log_weight = np.log(weight[part_of(np.arange(num_samples))])[None]
    np.testing.assert_allclose(
        np.exp(balanced(log_weight)).mean(), np.array(SHARES) @ weight, rtol=gamma(num_samples + 4 * FUNCTION, FLOAT64)
    )


def test_the_pattern_has_the_shares_and_opens_with_one_of_each() -> None:
    assert np.allclose(np.bincount(PATTERN) / len(PATTERN), SHARES)
    assert set(PATTERN[:4]) == {0, 1, 2, 3}


def test_eigenvalues_are_raised_and_good_matrices_left_alone() -> None:
    good = np.diag([1.0, 3.0])[None]
    assert positive_definite(good) is good
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    bad = (rotation * [-2.0, 0.1, 4.0]) @ rotation.T
    raised = np.linalg.eigvalsh(positive_definite(bad[None])[0])
    np.testing.assert_allclose(raised, [MIN_PRECISION, MIN_PRECISION, 4.0])


def rosenbrock(points: AnyArray) -> AnyArray:
    """A curved valley, in which Gauss-Newton alone crawls; the prior is taken off again, so the mode is (1, 1)."""
    a, b = points[..., 0], points[..., 1]
    return np.asarray(-((1 - a) ** 2) - 20 * (b - a**2) ** 2 + 0.5 * (points**2).sum(axis=-1))


@pytest.mark.parametrize(
    ("by_gradients", "expected"),
    [
        (False, None),
        (True, None),
        (True, np.tile(np.eye(2), (3, 1, 1))),
        (True, np.full((3, 2, 2), 30.0) + 30 * np.eye(2)),
        (True, np.stack([np.full((2, 2), np.nan), np.full((2, 2), np.nan), np.eye(2)])),  # not of the first two
    ],
)
def test_newtons_method_follows_a_curved_valley_and_images_leave_as_they_finish(
    by_gradients: bool, expected: AnyArray | None
) -> None:
    sizes: list[int] = []

    def evaluate(images: AnyArray, points: AnyArray):  # type: ignore[no-untyped-def]
        sizes.append(len(images))
        a = points[:, 0]
        gradient = gradient_at(points)
        jacobian = np.stack([np.stack([-2 * a, np.ones_like(a)], axis=1), np.tile([1.0, 0.0], (len(a), 1))], axis=1)
        weights = np.array([40.0, 2.0])[None, :, None]
        information = jacobian.transpose(0, 2, 1) @ (weights * jacobian)
        yield
        return Evaluation(rosenbrock(points), gradient, information)

    def values(images: AnyArray, points: AnyArray):  # type: ignore[no-untyped-def]
        yield
        return rosenbrock(points)

    def gradient_at(points: AnyArray) -> AnyArray:
        a, b = points[:, 0], points[:, 1]
        return np.asarray(np.stack([2 * (1 - a) + 80 * a * (b - a**2), -40 * (b - a**2)], axis=1) + points)

    def by_gradient(images: AnyArray, points: AnyArray):  # type: ignore[no-untyped-def]
        yield
        return rosenbrock(points), gradient_at(points)

    start = np.array([[-1.2, 1.0], [1.0, 1.0], [0.9, 0.7]])
    slopes = by_gradient if by_gradients else None
    found = find_modes(start, evaluate=evaluate, values=values, slopes=slopes, expected=expected, max_steps=200)
    modes = complete(found)
    assert modes.converged.all()
    assert (rosenbrock(modes.mode) - 0.5 * (modes.mode**2).sum(axis=1) > -0.2).all()
    assert modes.num_steps[1] == 0
    known = 0 if expected is None else int(np.isfinite(expected).all(axis=(1, 2)).sum())
    assert sizes[0] == (3 - known or 1)
    assert sizes[-1] == 1
    if by_gradients:
        assert sum(sizes) < modes.num_steps.sum() / 2  # most steps take no information


def test_records_join_whatever_their_proposals() -> None:
    x = oracle(2).draw(2, SHAPE, seed=4)
    parts = [complete(exact_model(2).log_likelihood(x, proposal=name)) for name in ("encoder", "laplace")]
    assert list(LogLikelihood.join(parts).proposal) == ["encoder", "encoder", "laplace", "laplace"]
