"""What searches from several points have found: modes counted once, and how often each was reached."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.posterior import ladder
from service.engine.posterior.multistart import NUM_KEPT, FoundModes
from service.engine.posterior.newton_state import Modes
from tests import reference
from tests.engine.oracles import SHAPE
from tests.likelihoods import gaussian
from tests.toys import AnyArray, Toy, constant, describe, graph, node

SCALE = 0.3
PRECISION = 4.0


def ended(*searches: tuple[float, float], usable: bool = True) -> Modes:
    """One image's searches that ended at (place, log evidence) in two dimensions, where the precision is 4."""
    place, evidence = np.array(searches).T
    count = len(place)
    return Modes(
        mode=np.stack([place, np.zeros(count)], axis=1),
        value=evidence + 0.5 * np.log(PRECISION**2),
        precision=np.repeat(PRECISION * np.eye(2)[None], count, axis=0),
        converged=np.ones(count, np.bool_),
        usable=np.full(count, usable),
        num_steps=np.ones(count, np.int64),
        gain=np.zeros(count),
    )


EVERY = np.ones(4, np.bool_)


def test_searches_that_end_within_two_deviations_are_one_mode() -> None:
    found = FoundModes.of(ended((0, -1), (5, 0), (0.9, -1.5), (-3, -9)), 1)
    np.testing.assert_array_equal(found.best, [[5, 0]])
    assert found.log_evidence[0, :3] == pytest.approx([0, -1, -9])
    assert found.log_evidence[0, 3] == -np.inf
    assert found.hits[0, :3].tolist() == [1, 2, 1]
    assert found.is_mode[0].tolist() == [True, True, True, False]
    assert found.height == pytest.approx([np.log(PRECISION)])


def test_modes_are_confirmed_when_none_that_matters_was_reached_once_only() -> None:
    found = FoundModes.of(ended((0, 0), (0, 0), (5, -8), (9, -9)), 1)
    assert not found.is_confirmed[0]  # the best was reached twice only
    once_more = found.add(ended((0, 0), (0, 0), (7, -1), (9, -9)), is_independent=EVERY)
    assert once_more.hits[0, 0] == 4
    assert not once_more.is_confirmed[0]  # of the one at 7 there may be others
    again = once_more.add(ended((0, 0), (7, -1), (12, -4), (13, -4)), is_independent=EVERY)
    assert again.is_confirmed[0]
    better = again.add(ended((20, 3), (0, 0), (7, -1), (12, -4)), is_independent=EVERY)
    np.testing.assert_array_equal(better.best, [[20, 0]])
    assert not better.is_confirmed[0]
    assert len(better.hits[0]) == NUM_KEPT


def test_a_search_that_began_at_the_best_mode_and_returned_says_nothing() -> None:
    first = FoundModes.of(ended((0, 0), (0, 0), (5, -8), (9, -9)), 1)
    not_last = np.array([True, True, True, False])
    returned = first.add(ended((5, -8), (5, -8), (5, -8), (0, 0)), is_independent=not_last)
    assert returned.hits[0, :2].tolist() == [2, 4]
    elsewhere = first.add(ended((5, -8), (5, -8), (5, -8), (3, 1)), is_independent=not_last)
    np.testing.assert_array_equal(elsewhere.best, [[3, 0]])
    assert elsewhere.hits[0].tolist() == [1, 2, 4, 1]


def test_what_is_no_number_is_no_mode() -> None:
    nothing = FoundModes.of(ended((0, 0), (1, 0), (5, 0), (9, 0), usable=False), 1)
    assert not nothing.is_mode.any()
    assert not nothing.is_confirmed.any()
    assert nothing.know(np.array([0]), np.zeros((1, 2))).tolist() == [-1]
    mixed = nothing.add(ended((4, -7), (4, np.nan), (np.inf, -np.inf), (4, -7)), is_independent=EVERY)
    np.testing.assert_array_equal(mixed.best, [[4, 0]])
    assert mixed.hits[0, 0] == 2


def test_each_image_is_by_itself() -> None:
    one, other = ((0, 0),) * 5, ((0, 0), (0, 0), (0, 0), (5, -2), (9, -9))
    both = FoundModes.of(Modes.join([ended(*one), ended(*other)]), 2)
    assert both.is_confirmed.tolist() == [True, False]
    for index, searches in enumerate((one, other)):
        alone, taken = FoundModes.of(ended(*searches), 1), both.take(np.array([index]))
        np.testing.assert_array_equal(alone.modes.mode, taken.modes.mode)
        np.testing.assert_array_equal(alone.log_evidence, taken.log_evidence)
        np.testing.assert_array_equal(alone.hits, taken.hits)
    again = FoundModes.join([both.take(np.array([1])), both.take(np.array([0]))])
    assert again.is_confirmed.tolist() == [False, True]
    near = np.array([[5.0, 0.9], [5.0, 0.9]])
    assert both.know(np.array([0, 1]), near).tolist() == [-1, 1]


def folded() -> tuple[Toy, AnyArray]:
    """x = M·(z₁², z₂², z₁, z₂) + noise, an encoder that says (−1, −1) of every image, and M, [P, 4].

    A posterior has four modes, one for each pair of signs. They differ by what little of x is linear in z.
    """
    rng = np.random.default_rng(4)
    matrix = rng.standard_normal((SHAPE.size, 4)) * [0.3, 0.3, 0.03, 0.03]
    decoder = graph(
        [
            node("Mul", "z", "z", out="squares"),
            node("MatMul", "squares", constant("even", matrix[:, :2].T), out="of_squares"),
            node("MatMul", "z", constant("odd", matrix[:, 2:].T), out="of_signs"),
            node("Add", "of_squares", "of_signs", out="rows"),
            node("Reshape", "rows", constant("chw", np.array([-1, *SHAPE.chw])), out="loc"),
        ],
        inputs={"z": ["batch", 2]},
        outputs={"loc": ["batch", *SHAPE.chw]},
    )
    encoder = graph(
        [
            node("Reshape", "x", constant("flat", np.array([-1, SHAPE.size])), out="rows"),
            node("MatMul", "rows", constant("nothing", np.zeros((SHAPE.size, 2))), out="log_var"),
            node("Sub", "log_var", constant("one", np.ones(2)), out="mean"),
        ],
        inputs={"x": ["batch", *SHAPE.chw]},
        outputs={"mean": ["batch", 2], "log_var": ["batch", 2]},
    )
    scores = {"log_likelihood": np.zeros(50), "elbo": np.zeros(50)}
    return Toy(describe("folded", SHAPE, 2, gaussian(SCALE), num_images=50), encoder, decoder, scores), matrix


def images_of(matrix: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Latents with both signs positive, and their images: [5, 2] and [5, C, H, W]."""
    rng = np.random.default_rng(8)
    z = rng.uniform(0.8, 2, (5, 2))
    rows = np.concatenate([z**2, z], axis=1) @ matrix.T + SCALE * rng.standard_normal((5, SHAPE.size))
    return z, rows.reshape(-1, *SHAPE.chw).astype(np.float32)


def log_evidence(matrix: AnyArray, pixels: AnyArray) -> AnyArray:
    """log P(x) by sums over a grid in z, [B]: the squared distance is a quadratic form of the four features."""
    axis = np.linspace(-3, 3, 601)
    first, second = np.meshgrid(axis, axis, indexing="ij")
    features = np.stack([first**2, second**2, first, second], axis=-1).reshape(-1, 4)
    gram = ((features @ (matrix.T @ matrix)) * features).sum(axis=1)
    log_prior = -0.5 * (features[:, :2].sum(axis=1)) - np.log(2 * np.pi)
    found = []
    for x in pixels.reshape(len(pixels), -1).astype(np.float64):
        squares = gram - 2 * features @ (matrix.T @ x) + x @ x
        log_joint = log_prior - 0.5 * squares / SCALE**2 - 0.5 * SHAPE.size * np.log(2 * np.pi * SCALE**2)
        found.append(np.log(np.exp(log_joint - log_joint.max()).sum()) + log_joint.max())
    return np.asarray(np.array(found) + 2 * np.log(axis[1] - axis[0]))


def contesting(toy: Toy) -> Model:
    """A model to which every image looks strange."""
    model = reference.load(toy)
    model._estimator.ladder._familiar_gain = model._estimator.ladder._common_gain = -1.0
    return model


def test_the_better_mode_is_found_that_the_encoder_does_not_lead_to() -> None:
    toy, matrix = folded()
    z, pixels = images_of(matrix)
    model = contesting(toy)
    search, x = model._estimator._search, pixels.reshape(len(pixels), -1)
    reached = complete(search.from_encoder(x, complete(model.encode(pixels))))
    assert (reached.mode < 0).all()  # all signs are wrong there
    found = complete(search.candidates(x, reached, np.ones(len(x), np.bool_), np.zeros(len(x), np.bool_)))
    best = found.gaussians.centre.reshape(len(x), NUM_KEPT, 2)[:, 0]
    assert (np.abs(np.abs(best) - z) < 0.2).all()
    assert ((best > 0).all(axis=1)).sum() >= 3  # the noise turns the sign of some
    assert found.found.all()
    assert (np.diff(np.maximum(found.log_evidence, -1e9), axis=1) <= 0).all()


@pytest.mark.parametrize("proposal", ["annealed", "auto"])
def test_the_likelihood_has_all_modes_in_it(proposal: str) -> None:
    toy, matrix = folded()
    _, pixels = images_of(matrix)
    truth = log_evidence(matrix, pixels)
    record = complete(contesting(toy).log_likelihood(pixels, proposal=proposal))
    assert (np.abs(record.log_likelihood - truth) < 5 * record.std_error).all()
    assert (record.std_error < 0.3).all()
    assert record.reliable.all()
    trusting = reference.load(toy)
    trusting._estimator.ladder._familiar_gain = trusting._estimator.ladder._common_gain = np.inf
    one_mode = complete(trusting.log_likelihood(pixels, proposal=proposal))
    assert (one_mode.log_likelihood < truth - 1).sum() >= 2  # the toy is one where the others matter


def test_of_an_ordinary_image_of_a_large_model_better_modes_are_searched_for_beside_the_first() -> None:
    toy, matrix = folded()
    _, pixels = images_of(matrix)
    truth = log_evidence(matrix, pixels)
    model = reference.load(toy)
    model._estimator.ladder._familiar_gain = model._estimator.ladder._common_gain = np.inf
    small = complete(model.log_likelihood(pixels))
    with mock.patch.object(ladder, "_LARGE", SHAPE.size):
        large = complete(model.log_likelihood(pixels))
        alone = complete(model.log_likelihood(pixels[2:3]))
        annealed = complete(model.log_likelihood(pixels, proposal="annealed"))
    missed = small.log_likelihood < truth - 1
    assert missed.sum() == 3
    x = model._first.of_x.prepare(pixels).reshape(len(pixels), -1)
    reached = complete(model._estimator._search.from_encoder(x, complete(model.encode(pixels))))
    strange = model._estimator.ladder.is_strange(reached)
    assert strange.sum() == 2
    for record in (large, annealed):
        unseen = np.where(strange, 0.15, 0.3)
        assert (record.std_error >= unseen).all()  # what they may have missed is counted
        right = np.abs(record.log_likelihood - truth) < 5 * np.sqrt(record.std_error**2 - unseen**2 + 0.15**2)
        assert right[~missed].all()
        assert right[missed].sum() >= 2  # four searches do not find every mode
    assert (alone.log_likelihood[0], alone.std_error[0]) == (large.log_likelihood[2], large.std_error[2])


def test_only_images_of_a_large_model_that_look_ordinary_are_near() -> None:
    model = reference.load(folded()[0])
    searched = replace(
        ended((0, 0), (0, 0), (0, 0), (0, 0)),
        gain=np.array([9.0, 11.0, 99.0, 11.0]),
        converged=np.array([True, True, True, False]),
    )
    model._estimator.ladder._familiar_gain = 50.0
    assert not model._estimator.ladder.is_near(searched).any()
    with mock.patch.object(ladder, "_LARGE", SHAPE.size):
        assert model._estimator.ladder.is_near(searched).tolist() == [False, True, False, False]
