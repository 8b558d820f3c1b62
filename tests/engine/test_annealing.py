"""Tempered sequential Monte Carlo against integrals that are known, from references good and bad."""

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from service.engine.chunks import Chunks, complete
from service.engine.posterior import annealing
from service.engine.posterior.annealing import Annealed, anneal, log_mean_exp, next_increment, start
from service.engine.posterior.estimate import LogLikelihood, annealed_estimate
from service.engine.posterior.gaussians import Gaussians
from service.engine.posterior.newton import Values
from service.engine.posterior.reference import GROUP, Reference, reference
from service.engine.proposal import DiagonalGaussian, standard_normal
from tests.toys import AnyArray

INF = np.inf
WIDTH = 0.2
"""Of the likelihood."""
CENTRE = 0.7
NUM_PARTICLES = 400

LogDensity = Callable[[AnyArray, AnyArray], AnyArray]
"""Images [n] and points [n, K, D] → log p(x|z), [n, K]."""


def likelihood(images: AnyArray, points: AnyArray) -> AnyArray:
    """A Gaussian's, the same along each axis and of all images."""
    return np.asarray(norm.logpdf(points, CENTRE, WIDTH).sum(axis=2))


def evidence(latent_dim: int) -> float:
    """Its log P(x)."""
    return latent_dim * float(norm.logpdf(CENTRE, 0, np.hypot(1, WIDTH)))


def posterior() -> tuple[float, float]:
    """Its mean and standard deviation, along each axis."""
    precision = 1 + WIDTH**-2
    return CENTRE / WIDTH**2 / precision, precision**-0.5


def around(centre: AnyArray, scale: AnyArray, *, log_evidence: AnyArray | None = None) -> Reference:
    """Round Gaussians: centre [B, M, D], scale [B, M]; the encoder's is the prior."""
    num_images, num_modes, latent_dim = centre.shape
    precisions = np.repeat(scale.reshape(-1, 1) ** -2.0, latent_dim, axis=1)
    axes = np.repeat(np.eye(latent_dim)[None], num_images * num_modes, axis=0)
    zeros = np.zeros((num_images, latent_dim), np.float32)
    modes = np.zeros((num_images, num_modes)) if log_evidence is None else log_evidence
    gaussians = Gaussians(centre.reshape(-1, latent_dim), precisions, axes)
    return reference(gaussians, modes, DiagonalGaussian(zeros, zeros))


def beside(num_images: int, latent_dim: int, *, shift: float = 0.0, width: float = 1.0) -> Reference:
    """One mode, so many of the posterior's deviations beside its own along each axis, and so many times as wide."""
    mean, deviation = posterior()
    centre = np.full((num_images, 1, latent_dim), mean + shift * deviation)
    return around(centre, np.full((num_images, 1), width * deviation))


def values_of(log_density: LogDensity) -> Values:
    def values(images: AnyArray, points: AnyArray) -> Chunks[AnyArray]:
        yield
        return log_density(images, points)

    return values


def annealing_of(reference: Reference, log_density: LogDensity, *, seed: int = 0) -> Chunks[Annealed]:
    values = values_of(log_density)
    noise = standard_normal(NUM_PARTICLES, reference.mode.shape[2], seed=1000 + seed)
    population = yield from start(reference, values, noise)
    return (yield from anneal(population, reference, values, lambda number: np.random.default_rng([seed, number])))


def run(reference: Reference, log_density: LogDensity = likelihood, *, seed: int = 0) -> Annealed:
    return complete(annealing_of(reference, log_density, seed=seed))


def record_of(annealed: Annealed) -> LogLikelihood:
    zeros = np.zeros(len(annealed.num_rows))
    return annealed_estimate(
        annealed.log_estimates[:, None],
        annealed.inner_variance,
        zeros,
        annealed.num_rows,
        10,
        found=np.ones(len(zeros), np.bool_),
        finished=annealed.finished,
    )


def errors(reference: Reference, truth: float, *, num_seeds: int) -> tuple[AnyArray, LogLikelihood]:
    """Estimates of one image by many seeds, less the truth; and their records."""
    records = LogLikelihood.join([record_of(run(reference, seed=seed)) for seed in range(num_seeds)])
    return records.log_likelihood - truth, records


@pytest.mark.parametrize(("shift", "width"), [(0, 1), (1, 1), (0, 0.7), (0, 3)])
def test_the_mean_estimate_is_the_evidence(shift: float, width: float) -> None:
    error, record = errors(beside(1, 3, shift=shift, width=width), evidence(3), num_seeds=40)
    estimate = np.exp(error)
    assert abs(estimate.mean() - 1) < 5 * estimate.std(ddof=1) / np.sqrt(len(error))
    assert estimate.std() < 0.5
    assert record.reliable.mean() > 0.9
    assert (np.abs(error) < 5 * record.std_error).all()


@pytest.mark.parametrize(("shift", "width"), [(-4, 1), (3, 3), (0, 0.3)])
def test_from_a_poor_reference_the_error_bar_holds(shift: float, width: float) -> None:
    """The moves are tuned by the particles that they move, so the estimate may be low; by less than the error bar."""
    error, record = errors(beside(1, 4, shift=shift, width=width), evidence(4), num_seeds=30)
    assert abs(logsumexp(error) - np.log(len(error))) < record.std_error.mean() + 5 * error.std() / np.sqrt(len(error))
    covered = np.abs(error) < 1.96 * record.std_error
    assert covered.mean() > 0.95 - 5 * np.sqrt(0.95 * 0.05 / len(error))
    importance = log_mean_exp(log_ratio(beside(1, 4, shift=shift, width=width)))[0] - evidence(4)
    assert np.sqrt((error**2).mean()) < max(0.2, abs(importance) + 0.5)


def log_ratio(reference: Reference) -> AnyArray:
    """Of importance samples."""
    points = reference.draw(standard_normal(NUM_PARTICLES, reference.mode.shape[2], seed=1000))
    found = likelihood(np.arange(len(points)), points)
    return np.asarray(annealing.log_joint(found, points) - reference.log_density(points))


@pytest.mark.parametrize("latent_dim", [1, 2, 20])
def test_whatever_the_dimensions_the_error_bar_holds(latent_dim: int) -> None:
    """Beside the posterior by a deviation along each axis: in 20 dimensions that is 4.5 of them."""
    annealed = run(beside(1, latent_dim, shift=1), seed=3)
    record = record_of(annealed)
    assert abs(record.log_likelihood[0] - evidence(latent_dim)) < 4 * record.std_error[0]
    assert record.reliable.all()
    mean, deviation = posterior()
    weight = np.exp(annealed.log_weight - logsumexp(annealed.log_weight, axis=1, keepdims=True))
    found = (weight[..., None] * annealed.points).sum(axis=1)[0]
    assert np.abs(found - mean).mean() < 0.5 * deviation  # the particles are the posterior's


FAR = 3.0
LESS = -1.5
"""Nats by which the second of two Gaussians has less mass."""


def two_modes(images: AnyArray, points: AnyArray) -> AnyArray:
    """A likelihood of two Gaussians, 2·FAR apart along the first axis."""
    apart = np.zeros(points.shape[2])
    apart[0] = FAR
    first = norm.logpdf(points, apart, WIDTH).sum(axis=2)
    second = norm.logpdf(points, -apart, WIDTH).sum(axis=2) + LESS
    return np.asarray(np.logaddexp(first, second))


def mass_of_first(latent_dim: int) -> float:
    apart = np.zeros(latent_dim)
    apart[0] = FAR
    return float(norm.logpdf(apart, 0, np.hypot(1, WIDTH)).sum())


def bimodal(num_modes: int, latent_dim: int) -> Reference:
    _, deviation = posterior()
    centre = np.zeros((1, 2, latent_dim))
    centre[0, :, 0] = np.array([1, -1]) * FAR / (1 + WIDTH**2)
    log_evidence = np.array([[0.0, LESS if num_modes == 2 else -INF]])
    return around(centre, np.full((1, 2), deviation), log_evidence=log_evidence)


def test_two_modes_in_the_reference_have_the_masses_that_they_have() -> None:
    annealed = run(bimodal(2, 4), two_modes)
    record = record_of(annealed)
    truth = np.logaddexp(mass_of_first(4), mass_of_first(4) + LESS)
    assert record.reliable.all()
    assert abs(record.log_likelihood[0] - truth) < 4 * record.std_error[0]
    weight = np.exp(annealed.log_weight[0] - logsumexp(annealed.log_weight[0]))
    share = weight[annealed.points[0, :, 0] > 0].sum()
    assert abs(share - 1 / (1 + np.exp(LESS))) < 0.1


def test_of_two_modes_the_one_that_is_not_in_the_reference_is_missed() -> None:
    """The encoder's samples fall there in four dimensions one time in a million: nothing can show it."""
    record = record_of(run(bimodal(1, 4), two_modes))
    assert abs(record.log_likelihood[0] - mass_of_first(4)) < 4 * record.std_error[0]


def spoilt(value: float, *, share: float = 1.0) -> LogDensity:
    """Image 1 has this value at a share of the points."""

    def log_density(images: AnyArray, points: AnyArray) -> AnyArray:
        found = likelihood(images, points)
        chosen = np.abs(np.sin(1e3 * points[..., 0])) <= np.sin(share * np.pi / 2)
        return np.where(chosen & (images == 1)[:, None], value, found)

    return log_density


@pytest.mark.parametrize("value", [np.nan, INF, -INF])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99, 1.0])
def test_what_is_no_number_spoils_only_its_own_image(value: float, share: float) -> None:
    start_from = beside(3, 3, shift=2)
    expected = run(start_from)
    found = run(start_from, spoilt(value, share=share))
    others = np.array([0, 2])
    for field in fields(Annealed):
        np.testing.assert_array_equal(getattr(found, field.name)[others], getattr(expected, field.name)[others])
    record = record_of(found)
    assert (record.reason[1] == "") == record.reliable[1]
    assert not np.isnan(found.log_estimates).any()
    if share == 1:
        assert record.log_likelihood[1] == -INF
        assert record.bits_per_dim[1] == INF
        assert np.isnan(record.std_error[1])
        assert not record.reliable[1]
        assert found.num_rows[1] == NUM_PARTICLES  # nothing to move
    elif share < 0.9:  # a likelihood that is zero here and there is smaller on the whole
        assert record.log_likelihood[1] < expected.log_estimates[1].max()
        assert np.isfinite(record.log_likelihood[1])


@pytest.mark.parametrize("lowest", [-1e13, -1e100])
def test_a_likelihood_however_low_is_a_number(lowest: float) -> None:
    """A Gaussian of scale 1e-6 gives −1e15 nats, which is more than where the decoder gives no number."""
    record = record_of(run(beside(2, 2), spoilt(lowest)))
    np.testing.assert_allclose(record.log_likelihood[1], lowest, rtol=1e-9)
    assert np.isfinite(record.std_error).all()


def test_groups_where_nothing_is_possible_count_as_zero() -> None:
    """One particle alone has a likelihood: the groups without it have an estimate of zero."""

    def rare(images: AnyArray, points: AnyArray) -> AnyArray:
        chosen = (np.arange(points.shape[1]) == 7) & (points.shape[1] == NUM_PARTICLES)
        return np.where(chosen, likelihood(images, points), np.nan)

    annealed = run(beside(1, 2), rare)
    record = record_of(annealed)
    assert (annealed.log_estimates[0, 1:] == -INF).all()
    assert np.isfinite(record.log_likelihood).all()
    assert not record.reliable.any()


def test_an_image_has_the_same_bits_alone_in_a_batch_and_in_another_order() -> None:
    rng = np.random.default_rng(4)
    mean, deviation = posterior()
    centre = mean + deviation * rng.standard_normal((7, 2, 5)) * np.array([0, 1, 1, 2, 2, 3, 3])[:, None, None]
    log_evidence = np.where(rng.random((7, 2)) < 0.7, rng.standard_normal((7, 2)), -INF)
    start_from = around(centre, np.full((7, 2), deviation), log_evidence=log_evidence)
    together = run(start_from)
    assert len(set(together.num_temperatures.tolist())) > 2
    for images in [np.array([index]) for index in range(7)] + [np.array([6, 2, 4, 0]), np.arange(7)[::-1]]:
        some = run(start_from.take(images))
        for field in fields(Annealed):
            np.testing.assert_array_equal(getattr(some, field.name), getattr(together, field.name)[images])


def test_rows_are_counted_and_others_take_turns_between_them() -> None:
    rows = np.zeros(2, np.int64)

    def counted(images: AnyArray, points: AnyArray) -> AnyArray:
        rows[images] += points.shape[1]
        return likelihood(images, points)

    mean, deviation = posterior()
    start_from = around(np.full((2, 1, 3), mean), deviation * np.array([[1.0], [0.3]]))
    chunks = annealing_of(start_from, counted)
    turns = 0
    while True:
        before = rows.copy()
        try:
            next(chunks)
        except StopIteration as stop:
            annealed = stop.value
            break
        turns += 1
        assert (rows - before <= NUM_PARTICLES).all()
    np.testing.assert_array_equal(annealed.num_rows, rows)
    moves = (annealing.NUM_STATES - 1) * (annealed.num_temperatures - 1)
    np.testing.assert_array_equal(rows, NUM_PARTICLES + moves * NUM_PARTICLES // annealing.NUM_STATES)
    assert annealed.num_temperatures[0] == 1  # an image that needs no temperatures takes no moves
    assert annealed.num_temperatures[1] > 1
    assert turns == 1 + moves.max()


def test_one_that_is_given_up_leaves_nothing_behind() -> None:
    start_from, before = beside(1, 3, shift=3), np.geterr()
    expected = run(start_from)
    for turns in (1, 2, 30):
        abandoned = annealing_of(start_from, likelihood)
        for _ in range(turns):
            next(abandoned)
            assert np.geterr() == before
        abandoned.close()
    np.testing.assert_array_equal(run(start_from).log_estimates, expected.log_estimates)


def test_more_temperatures_than_are_allowed_are_a_matter_of_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annealing, "MAX_TEMPERATURES", 2)
    annealed = run(beside(1, 4, shift=-4))
    assert annealed.num_temperatures.tolist() == [2]
    assert not annealed.finished.any()
    assert record_of(annealed).reason.tolist() == ["budget"]
    assert np.isfinite(annealed.log_estimates).all()


def test_a_temperature_leaves_half_of_the_effective_samples() -> None:
    rng = np.random.default_rng(0)
    ratio = rng.standard_normal((4, 400)) * np.array([0.1, 2, 20, 400])[:, None] - 90
    most = np.array([1.0, 1.0, 0.5, 1.0])
    increment, arrives = next_increment(ratio, most)
    assert arrives.tolist() == [True, False, False, False]
    assert increment[0] == 1
    effective = _effective(np.exp(increment[:, None] * (ratio - ratio.max(axis=1, keepdims=True))))
    np.testing.assert_allclose(effective[1:], 200, rtol=0.02)


def test_the_first_temperature_leaves_a_fourth_where_the_way_is_short() -> None:
    """Half where β = 1 has more than a fourth, or nearly no effective sample."""
    rng = np.random.default_rng(0)
    ratio = rng.standard_normal((3, 400)) * np.array([1.0, 1.6, 20])[:, None]
    weight = np.exp(ratio - ratio.max(axis=1, keepdims=True))
    assert [100 < at_one < 200 for at_one in _effective(weight)] == [True, False, False]
    assert [8 < at_one < 100 for at_one in _effective(weight)] == [False, True, False]
    increment, arrives = next_increment(ratio, np.ones(3), first=True)
    assert not arrives.any()
    found = _effective(np.exp(increment[:, None] * (ratio - ratio.max(axis=1, keepdims=True))))
    np.testing.assert_allclose(found, [200, 100, 200], rtol=0.02)


def _effective(weight: AnyArray) -> AnyArray:
    return np.asarray(weight.sum(axis=1) ** 2 / (weight**2).sum(axis=1))


def test_a_temperature_is_never_none_at_all() -> None:
    ratio = np.zeros((1, 400))
    ratio[0, :100] = -1e9
    ratio[0, 100:250] = -1e8  # even the least step leaves fewer
    increment, arrives = next_increment(ratio, np.array([1.0]))
    assert increment[0] > 0
    assert not arrives[0]


def test_the_mean_of_weights_that_are_all_zero_is_zero() -> None:
    values = np.array([[-INF, -INF], [0.0, -INF], [-1e300, -1e300]])
    np.testing.assert_allclose(log_mean_exp(values), [-INF, -np.log(2), -1e300])


def test_particles_that_come_from_one_say_so() -> None:
    """The variance by descent: of K particles of equal weight from K ancestors none, from one as much as there is."""
    log_weight = np.zeros((2, GROUP))
    ancestor = np.stack([np.arange(GROUP), np.zeros(GROUP, np.intp)])
    np.testing.assert_allclose(annealing._descent_variance(log_weight, ancestor), [0, 1 - 1 / GROUP], atol=1e-12)
