"""The search for a mode by gradients alone between informations: how larger images are searched."""

from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from model_store import BUNDLED, open_version
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.posterior import ladder
from service.engine.posterior.mode_search import MORE_STEPS
from service.engine.posterior.newton_state import Modes
from service.engine.runtime import Runtime
from tests import reference
from tests.engine.oracles import SHAPE, oracle
from tests.toys import AnyArray


def clothes_model(large: int) -> Model:
    with mock.patch.object(ladder, "_LARGE", large):
        return Model.open(open_version(BUNDLED, "fashion-mnist"), runtime=Runtime("cpu"), tried=True)


@cache
def far_going() -> Model:
    """Half of the images that this model draws need more than five iterations."""
    return clothes_model(784)


def digits(count: int) -> AnyArray:
    with np.load(Path(__file__).parents[1] / "data" / "digits.npz", allow_pickle=False) as archive:
        return np.asarray(archive["test"][:count, None] / np.float32(255), np.float32)


def from_encoder(model: Model, pixels: AnyArray) -> tuple[Modes, float]:
    """And decoder rows an image."""
    posterior = complete(model.encode(pixels))
    before = model.decoder_rows
    found = complete(model._estimator._search.from_encoder(pixels.reshape(len(pixels), -1), posterior))
    return found, (model.decoder_rows - before) / len(pixels)


def test_only_models_of_larger_images_search_further() -> None:
    assert far_going()._estimator._search.familiar_steps == MORE_STEPS
    assert clothes_model(785)._estimator._search.familiar_steps == 5


def test_it_finds_the_modes_in_fewer_rows() -> None:
    model, pixels = far_going(), digits(60)
    found, rows = from_encoder(model, pixels)
    sampler = model._sampler
    with mock.patch.object(sampler, "_gradient", None):
        expected, rows_before = from_encoder(model, pixels)
    assert found.converged.all()
    assert rows < 0.8 * rows_before
    gain = found.value - expected.value  # of several modes either may lead to the better one
    assert np.median(np.abs(gain)) < 0.3
    assert gain.mean() > -0.2
    assert (gain < -2).mean() < 0.1


@pytest.mark.parametrize("proposal", ["auto", "laplace"])
def test_an_images_digits_do_not_depend_on_its_batch(proposal: str) -> None:
    pixels = digits(3)
    every = complete(far_going().log_likelihood(pixels, proposal=proposal))
    for index in range(2):
        alone = complete(far_going().log_likelihood(pixels[index : index + 1], proposal=proposal))
        assert alone.log_likelihood[0] == every.log_likelihood[index]
        assert alone.std_error[0] == every.std_error[index]


def test_on_a_linear_gaussian_it_is_exact() -> None:
    model = reference.load(oracle(20).toy(SHAPE, widen=1.3))
    model._estimator._search.familiar_steps = MORE_STEPS
    x = oracle(20).draw(8, SHAPE, seed=4)
    record = complete(model.log_likelihood(x))
    assert (np.abs(record.log_likelihood - oracle(20).log_likelihood(x)) < 3 * record.std_error).all()
    assert record.reliable.all()
