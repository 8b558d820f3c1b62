"""Climbs that compete for images far outside, on the bundled model: no toy has posteriors as rugged."""

from functools import cache
from pathlib import Path

import numpy as np

from model_store import BUNDLED, open_version
from service.engine.chunks import complete
from service.engine.climb import Modes, find_modes
from service.engine.model import Model
from service.engine.runtime import Runtime
from tests.toys import Array


@cache
def bundled(max_steps: int = 100) -> Model:
    return Model.open(open_version(BUNDLED, "mnist"), runtime=Runtime("cpu"), max_steps=max_steps)


def noise(count: int) -> Array:
    return (np.random.default_rng(3).random((count, 1, 28, 28)) < 0.5).astype(np.float32)


def digits(count: int) -> Array:
    with np.load(Path(__file__).parents[1] / "data" / "digits.npz", allow_pickle=False) as archive:
        return np.asarray(archive["test"][:count, None] > 127, np.float32)


def search(model: Model, pixels: Array) -> Modes:
    posterior = complete(model.encode(pixels))
    return complete(model._estimator._search.fit(pixels.reshape(len(pixels), -1), posterior))[0]


def from_the_encoder(model: Model, pixels: Array) -> Modes:
    """One climb, in all dimensions, to the end."""
    x, sampler = pixels.reshape(len(pixels), -1), model._estimator._search._sampler
    return complete(
        find_modes(
            complete(model.encode(pixels)).mean.astype(np.float64),
            evaluate=lambda images, points: sampler.evaluate(x[images], points),
            values=lambda images, points: sampler.log_likelihoods(x[images], points),
            max_steps=100,
        )
    )


def test_climbs_that_compete_find_modes_that_the_encoders_mean_does_not_lead_to() -> None:
    found, alone = search(bundled(), noise(10)), from_the_encoder(bundled(), noise(10))
    gain = found.value - alone.value
    assert gain.mean() > 10  # from most encoder's means the climb arrives, too; from the others it ends 95 nats lower
    assert (gain > -1).all()


def test_where_the_two_best_do_not_meet_the_estimate_is_not_called_reliable() -> None:
    met = search(bundled(), noise(10)).converged
    record = complete(bundled().log_likelihood(noise(10)))
    assert 0 < met.sum() < 10
    assert not record.reliable[~met].any()


def test_familiar_images_need_no_competition() -> None:
    found = search(bundled(), digits(20))
    assert found.converged.all()
    assert (found.num_steps <= 5).mean() > 0.9


def test_no_climb_goes_on_beyond_the_cap() -> None:
    for cap in (1, 6, 20, 45):
        assert (search(bundled(cap), noise(3)).num_steps <= cap).all()
