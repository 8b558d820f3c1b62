"""Which draws of a model look most like an image."""

import numpy as np
import pytest

from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.posterior import bank
from service.engine.posterior.bank import NEAREST, Bank
from tests import reference
from tests.engine.oracles import SHAPE, exact_model, oracle
from tests.toys import AnyArray, bernoulli_toy


def rows(pixels: AnyArray) -> AnyArray:
    return pixels.reshape(len(pixels), -1)


def test_the_nearest_draws_are_those_of_the_highest_likelihood() -> None:
    model, x = exact_model(2), rows(oracle(2).draw(6, SHAPE, seed=4))
    nearest = complete(Bank(model._sampler).nearest(x, 5))
    assert nearest.shape == (6, 5, 2)
    values = complete(model._sampler.log_likelihoods(x, nearest))
    every = Bank(model._sampler)._draws.astype(np.float64)
    of_all = complete(model._sampler.log_likelihoods(x, np.repeat(every[None], len(x), axis=0)))
    np.testing.assert_allclose(values[:, 0], of_all.max(axis=1))  # a Gaussian's distance tells the likelihood


def test_draws_that_lie_apart_come_first() -> None:
    points = np.array([[[0.0], [0.1], [5.0], [0.2], [9.0], [5.5]]])
    value = np.array([[9.0, 8.0, 7.0, 6.0, 5.0, -np.inf]])
    for count in range(1, 7):
        chosen = bank._apart(points, value, count)
        assert chosen[0].tolist() == [0, 2, 4, 1, 5, 3][:count]


def test_half_of_the_draws_lie_further_out_than_the_priors() -> None:
    draws = Bank(exact_model(20)._sampler)._draws
    assert draws[::2].std() == pytest.approx(1, rel=0.02)
    assert draws[1::2].std() == pytest.approx(1.5, rel=0.02)


@pytest.mark.parametrize("chunk_rows", [61, 512])
def test_the_same_bits_alone_and_in_a_batch_and_whoever_decodes(chunk_rows: int) -> None:
    model = reference.load(bernoulli_toy(SHAPE, 5), chunk_rows=chunk_rows)
    x = (np.random.default_rng(1).random((4, SHAPE.size)) < 0.5).astype(np.float32)
    together = complete(Bank(model._sampler).nearest(x, 9))
    np.testing.assert_array_equal(together, complete(Bank(exact_copy()._sampler).nearest(x, 9)))
    shared = Bank(model._sampler)
    searches = [shared.nearest(x[[index]], 9) for index in range(4)]
    found: dict[int, AnyArray] = {}
    while len(found) < 4:  # in turns, as requests do
        for index, search in enumerate(searches):
            if index not in found:
                try:
                    next(search)
                except StopIteration as stop:
                    found[index] = stop.value
    for index in range(4):
        np.testing.assert_array_equal(found[index][0], together[index])


def exact_copy() -> Model:
    return reference.load(bernoulli_toy(SHAPE, 5), chunk_rows=200)


def test_one_that_was_given_up_is_finished_by_the_next() -> None:
    model = exact_copy()
    x = np.full((1, SHAPE.size), 0.5, np.float32)
    expected = complete(Bank(model._sampler).nearest(x, 3))
    shared = Bank(model._sampler)
    given_up = shared.nearest(x, 3)
    next(given_up)
    given_up.close()
    np.testing.assert_array_equal(complete(shared.nearest(x, 3)), expected)


def test_its_memory_is_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = exact_copy()
    before = model.run_bytes
    assert before >= model._estimator._search.num_bytes > 4 * 4096 * SHAPE.size
    monkeypatch.setattr(bank, "_NUMBERS", 100 * SHAPE.size)
    small = Bank(model._sampler)
    assert len(small._draws) == 100
    complete(small.nearest(np.zeros((1, SHAPE.size), np.float32), 3))
    kept = small._means.nbytes + small._squares.nbytes + small._draws.nbytes
    assert kept == small.num_bytes
    monkeypatch.setattr(bank, "_NUMBERS", 1)  # an image larger than all that may be kept
    least = Bank(model._sampler)
    assert len(least._draws) == NEAREST
    assert complete(least.nearest(np.zeros((1, SHAPE.size), np.float32), 3)).shape == (1, 3, 5)
