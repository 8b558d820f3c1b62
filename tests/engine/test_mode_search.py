"""Climbs that compete for images far outside, on the bundled model: no toy has posteriors as rugged."""

import itertools
from functools import cache
from pathlib import Path

import numpy as np

from model_store import BUNDLED, open_version
from service.engine.chunks import Chunks, complete
from service.engine.model import Model
from service.engine.posterior.newton import find_modes
from service.engine.posterior.newton_state import Evaluation, Modes
from service.engine.runtime import Runtime
from tests.toys import AnyArray


@cache
def bundled(max_steps: int = 100) -> Model:
    return Model.open(open_version(BUNDLED, "mnist"), runtime=Runtime("cpu"), max_steps=max_steps)


def noise(count: int) -> AnyArray:
    return (np.random.default_rng(3).random((count, 1, 28, 28)) < 0.5).astype(np.float32)


def digits(count: int) -> AnyArray:
    with np.load(Path(__file__).parents[1] / "data" / "digits.npz", allow_pickle=False) as archive:
        return np.asarray(archive["test"][:count, None] > 127, np.float32)


def search(model: Model, pixels: AnyArray) -> Modes:
    posterior = complete(model.encode(pixels))
    return complete(model._estimator._search.fit(pixels.reshape(len(pixels), -1), posterior))[0]


@cache
def found_in_noise() -> Modes:
    """Of ten images."""
    return search(bundled(), noise(10))


def from_the_encoder(model: Model, pixels: AnyArray) -> Modes:
    """One search, in all dimensions, to the end."""
    x, sampler = pixels.reshape(len(pixels), -1), model._estimator._search._sampler
    return complete(
        find_modes(
            complete(model.encode(pixels)).mean.astype(np.float64),
            evaluate=lambda images, points: sampler.evaluate(x[images], points),
            values=lambda images, points: sampler.log_likelihoods(x[images], points),
            max_steps=100,
        )
    )


def test_several_starting_points_find_modes_that_the_encoders_mean_does_not_lead_to() -> None:
    found, alone = found_in_noise(), from_the_encoder(bundled(), noise(10))
    gain = found.value - alone.value
    assert gain.mean() > 10  # from most encoder means the search succeeds too; from the others it ends 95 nats lower
    assert (gain > -1).all()


def test_where_the_two_best_do_not_meet_the_estimate_is_not_called_reliable() -> None:
    met = found_in_noise().converged
    record = complete(bundled().log_likelihood(noise(10), proposal="laplace"))
    assert 0 < met.sum() < 10
    assert not record.reliable[~met].any()


def test_familiar_images_need_no_competition() -> None:
    found = search(bundled(), digits(20))
    assert found.converged.all()
    assert (found.num_steps <= 5).mean() > 0.9


def test_no_search_goes_on_beyond_the_cap() -> None:
    for cap in (1, 6, 20, 45):
        assert (search(bundled(cap), noise(3)).num_steps <= cap).all()


def negatives(count: int) -> AnyArray:
    return 1 - digits(count)


def log_joint(model: Model, pixels: AnyArray, points: AnyArray) -> AnyArray:
    """log p(x, z) at points [B, D], without the prior's constant, by the model's own graph."""
    x = pixels.reshape(len(pixels), -1)
    found = complete(model._estimator._search._sampler.log_likelihoods(x, points[:, None]))[:, 0]
    return np.asarray(found - 0.5 * (points**2).sum(axis=1))


def test_a_mode_is_never_worse_than_where_the_search_began_whatever_the_number_of_steps() -> None:
    """6 to 37 steps leave none for the last search; what the others found must be kept, as not converged."""
    pixels = np.concatenate([noise(2), negatives(1)])
    start = complete(bundled().encode(pixels)).mean.astype(np.float64)
    least = log_joint(bundled(), pixels, start)
    for cap in (1, 6, 37):
        found = search(bundled(cap), pixels)
        assert found.usable.all()
        assert not found.converged.any()
        reached = log_joint(bundled(), pixels, found.mode)
        assert (reached >= least).all()
        least = reached - 30  # other steps lead to other modes, tens of nats apart; thrown away, it is thousands


def test_estimates_do_not_get_worse_with_more_steps() -> None:
    pixels = np.concatenate([noise(2), negatives(1)])
    records = [complete(bundled(cap).log_likelihood(pixels, proposal="laplace")) for cap in (1, 5, 6, 16, 38)]
    for fewer, more in itertools.pairwise(records):
        assert (more.log_likelihood > fewer.log_likelihood - 30).all()
    for record in records:
        assert set(record.proposal) == {"laplace"}
        assert not record.reliable.any()
    assert (records[0].log_likelihood < records[-1].log_likelihood - 10_000).all()  # so much there was to gain


def test_a_search_that_takes_no_step_keeps_its_start() -> None:
    """At a point that no step improves, stuck or out of steps, the result is that point."""

    def evaluate(images: AnyArray, points: AnyArray) -> Chunks[Evaluation]:
        yield
        uphill = np.ones_like(points)  # the gradient says up, and every step goes down
        return Evaluation(-1e3 * np.abs(points).sum(axis=1), 10 * uphill, np.zeros((len(points), 2, 2)))

    def values(images: AnyArray, points: AnyArray) -> Chunks[AnyArray]:
        yield
        return np.asarray(-1e3 * np.abs(points).sum(axis=-1))

    for max_steps in (0, 1, 50):
        modes = complete(find_modes(np.zeros((3, 2)), evaluate=evaluate, values=values, max_steps=max_steps))
        assert modes.usable.all()
        assert not modes.converged.any()
        assert (modes.num_steps == 0).all()
        assert (modes.mode == 0).all()


def test_searches_that_take_turns_leave_numpys_error_state_alone() -> None:
    """As requests do on the inference thread: while one waits, another's overflow is nobody else's business."""

    def evaluate(images: AnyArray, points: AnyArray) -> Chunks[Evaluation]:
        yield
        information = np.repeat(1e-3 * np.eye(2)[None], len(points), axis=0)
        return Evaluation(-np.abs(points).sum(axis=1), -np.sign(points), information)

    def values(images: AnyArray, points: AnyArray) -> Chunks[AnyArray]:
        yield
        return np.asarray(-np.abs(points).sum(axis=-1))

    before = np.geterr()
    starts = np.array([[[1e200, 1.0]], [[7.0, 1.0]], [[1.0, 30.0]]])  # no float64 holds the square of the first
    searches = [find_modes(start, evaluate=evaluate, values=values, max_steps=9) for start in starts]
    waiting = list(searches)
    while waiting:
        for searching in list(waiting):
            try:
                next(searching)
            except StopIteration:
                waiting.remove(searching)
            assert np.geterr() == before
    unfinished = find_modes(np.ones((1, 2)), evaluate=evaluate, values=values, max_steps=3)
    next(unfinished)
    unfinished.close()
    assert np.geterr() == before
