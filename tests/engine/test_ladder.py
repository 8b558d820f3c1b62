"""`annealed` and `auto` through the engine: against closed forms, and on images that no model was trained on."""

import threading
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from model_store import ImageShape, PixelPreparation
from service.engine.blocks import CPU_BLOCKS
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.parts import gathered
from service.engine.posterior import annealing, ladder
from service.engine.posterior.estimate import REASONS, LogLikelihood, annealed_estimate
from service.engine.posterior.estimator import Estimator
from service.engine.posterior.ladder import NUM_PARTICLES, num_particles
from service.engine.posterior.sampling import Sampler
from service.engine.proposal import Effort
from service.engine.runtime import Runtime
from tests import reference
from tests.engine.oracles import SHAPE, exact_model, oracle
from tests.engine.weights import assert_same
from tests.toys import AnyArray, Toy, bernoulli_toy

GREY = ImageShape(channels=1, height=9, width=7)
LADDER = ("annealed", "auto")


@cache
def rugged(chunk_rows: int = 512, num_threads: int = 0) -> Model:
    """A decoder without a closed form, whose posteriors for noise have several modes."""
    toy = bernoulli_toy(GREY, 5, preparation=PixelPreparation(binarisation="threshold"))
    return reference.load(toy, chunk_rows=chunk_rows, num_threads=num_threads)


@cache
def noise(count: int) -> AnyArray:
    return (np.random.default_rng(3).random((count, *GREY.chw)) < 0.5).astype(np.float32)


def ask(model: Model, pixels: AnyArray, proposal: str, **effort: Any) -> LogLikelihood:
    return complete(model.log_likelihood(pixels, proposal=proposal, **effort))


def strange(latent_dim: int, count: int) -> AnyArray:
    """Images that the model does not draw, and that are no two the same."""
    return np.random.default_rng(5).random((count, *SHAPE.chw), np.float32)


@pytest.mark.parametrize("proposal", LADDER)
@pytest.mark.parametrize("latent_dim", [2, 20, 100])
def test_on_a_linear_gaussian_they_are_exact(latent_dim: int, proposal: str) -> None:
    x = np.concatenate([oracle(latent_dim).draw(4, SHAPE, seed=4), strange(latent_dim, 3)])
    truth = oracle(latent_dim).log_likelihood(x)
    for seed in range(2):
        record = ask(exact_model(latent_dim), x, proposal, seed=seed)
        assert (np.abs(record.log_likelihood - truth) < 5 * record.std_error).all()
        assert (record.std_error < 0.4).all()
        assert record.reliable.all()
        assert set(record.reason) == {""}
        np.testing.assert_allclose(record.bits_per_dim, -record.log_likelihood / SHAPE.size / np.log(2))
        np.testing.assert_allclose(record.posterior_gap, record.log_likelihood - record.elbo)


def test_the_mean_estimate_over_seeds_is_the_evidence() -> None:
    x = oracle(20).draw(3, SHAPE, seed=4)
    truth = oracle(20).log_likelihood(x)
    records = [ask(exact_model(20), x, "annealed", seed=seed) for seed in range(1, 31)]
    estimate = np.exp([record.log_likelihood - truth for record in records])  # [seeds, B]
    z = (estimate.mean(axis=0) - 1) / (estimate.std(axis=0, ddof=1) / np.sqrt(len(records)))
    assert (np.abs(z) < 5).all()


def test_an_encoder_that_leads_nowhere_does_not_matter() -> None:
    """Its mean is the origin for every image: the way from there looks strange, and the mode is found all the same."""
    toy = oracle(20).toy(SHAPE)
    gain = oracle(20).posterior()[0].astype(np.float32)
    blind = replace(toy, encoder=toy.encoder.replace(gain.tobytes(), np.zeros_like(gain).tobytes()))
    x = np.concatenate([oracle(20).draw(4, SHAPE, seed=4), strange(20, 2)])
    record = ask(reference.load(blind), x, "auto")
    assert (np.abs(record.log_likelihood - oracle(20).log_likelihood(x)) < 5 * record.std_error).all()
    assert record.reliable.all()


def is_strange(model: Model, pixels: AnyArray) -> AnyArray:
    posterior = complete(model.encode(pixels))
    x = model._first.of_x.prepare(pixels).reshape(len(pixels), -1)
    return model._estimator.ladder.is_strange(complete(model._estimator._search.from_encoder(x, posterior)))


@pytest.mark.parametrize("effort", [{}, {"num_samples": 40}, {"max_std_error": 0.05, "max_num_samples": 2000}], ids=str)
def test_auto_is_laplace_where_that_is_reliable_and_the_image_not_strange(effort: Mapping[str, Any]) -> None:
    for model, x in (
        (exact_model(20), np.concatenate([oracle(20).draw(5, SHAPE, seed=4), strange(20, 3)])),
        (rugged(), noise(12)),
    ):
        auto, laplace = (ask(model, x, proposal, **effort) for proposal in ("auto", "laplace"))
        same = auto.proposal == "laplace"
        expected = laplace.reliable & ~is_strange(model, x)
        if "max_std_error" in effort:  # what was not reliable on the way goes on at once
            assert (expected | ~same).all()
        else:
            np.testing.assert_array_equal(same, expected)
        assert same.any()
        assert_same(auto.take(same), laplace.take(same))
        assert set(auto.proposal[~same]) <= {"annealed"}
        annealed = auto.take(~same)
        assert np.isnan([annealed.pareto_k, annealed.effective_sample_size]).all()
        assert (annealed.num_samples >= NUM_PARTICLES).all()


def same_bits(model: Model, pixels: AnyArray, proposal: str, **effort: Any) -> LogLikelihood:
    """The record of all, which each has alone, among some, and in another order."""
    together = ask(model, pixels, proposal, **effort)
    every = np.arange(len(pixels))
    for images in [*(every[[index]] for index in range(len(pixels))), every[::-1], every[::2]]:
        assert_same(ask(model, pixels[images], proposal, **effort), together.take(images))
    return together


@pytest.mark.parametrize(
    "effort", [{}, {"num_samples": 100}, {"max_std_error": 0.06, "max_num_samples": 6000}], ids=str
)
@pytest.mark.parametrize("proposal", LADDER)
def test_the_same_bits_alone_and_in_any_batch(proposal: str, effort: Mapping[str, Any]) -> None:
    record = same_bits(rugged(), noise(7), proposal, **effort)
    assert len(set(record.num_samples.tolist())) > 1
    assert "annealed" in record.proposal


@pytest.mark.parametrize("proposal", LADDER)
def test_chunks_and_blocks_change_no_bit(proposal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ask(rugged(), noise(7), proposal)
    assert_same(ask(rugged(61), noise(7), proposal), expected)
    monkeypatch.setattr(ladder, "_BLOCK_NUMBERS", 3 * NUM_PARTICLES * 5)  # three images at once
    assert_same(ask(rugged(), noise(7), proposal), expected)


@pytest.mark.parametrize("proposal", LADDER)
def test_draws_have_the_same_bits_too(proposal: str) -> None:
    model = rugged()
    effort = Effort(400, seed=0, num_draws=9)
    together = complete(gathered(model.infer(noise(5), proposal, effort)))
    assert together.latents.shape == (5, 9, 5)
    plain = ask(model, noise(5), proposal)
    assert_same(together.record, plain)
    for index in range(5):
        alone = complete(gathered(model.infer(noise(5)[index : index + 1], proposal, effort)))
        np.testing.assert_array_equal(alone.latents[0], together.latents[index])


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("num_images", [1, 3])
def test_they_take_turns_and_may_be_given_up(
    num_threads: int, num_images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn has 64 rows for each thread; a helper that computes other images goes on meanwhile."""
    model, x, most = rugged(64, num_threads), noise(num_images), 64 * num_threads
    expected = ask(model, x, "auto")
    before, rows, own = np.geterr(), model.decoder_rows, 0
    count, caller = Sampler._count, threading.get_ident()

    def count_own(sampler: Sampler, more: int) -> None:
        nonlocal own
        own += more if threading.get_ident() == caller else 0
        count(sampler, more)

    monkeypatch.setattr(Sampler, "_count", count_own)
    chunks = model.log_likelihood(x, proposal="auto")
    turns = 0
    while True:
        last = own
        try:
            next(chunks)
        except StopIteration as stop:
            assert_same(stop.value, expected)
            break
        assert own - last <= most
        assert np.geterr() == before
        turns += 1
    taken = model.decoder_rows - rows
    assert turns > own // most
    assert own == taken or (num_threads > 1 and num_images > 1)
    assert taken > expected.num_samples.sum()  # also what finding modes takes
    late = turns - 2 if num_images == 1 else turns // 2  # side by side, how many the caller has differs
    for given_up in (turns // 3, late):
        chunks = model.log_likelihood(x, proposal="auto")
        for _ in range(given_up):
            next(chunks)
        chunks.close()
        assert np.geterr() == before
    assert_same(ask(model, x, "auto"), expected)


@pytest.mark.parametrize("num_samples", [4, 100, 400, 777, 1000])
def test_an_annealed_image_takes_particles_and_their_moves(num_samples: int) -> None:
    record = ask(rugged(), noise(4), "annealed", num_samples=num_samples)
    particles = num_particles(num_samples)
    assert particles == max(400, num_samples // 100 * 100)
    moves = particles - particles // annealing.NUM_STATES
    assert ((record.num_samples - particles) % moves == 0).all()
    assert record.num_samples.max() > particles
    assert set(record.proposal) == {"annealed"}
    assert np.isnan([record.pareto_k, record.effective_sample_size]).all()
    assert np.isfinite([record.log_likelihood, record.std_error, record.elbo]).all()


def test_the_error_gets_smaller_until_it_is_small_enough_or_there_is_no_more() -> None:
    x = oracle(20).draw(3, SHAPE, seed=4)
    once = ask(exact_model(20), x, "annealed")
    goal = float(once.std_error.min() / 2)
    record = ask(exact_model(20), x, "annealed", max_std_error=goal, max_num_samples=50_000)
    assert (record.std_error <= goal).all()
    assert record.reliable.all()
    assert (once.num_samples < record.num_samples).all()
    assert (record.num_samples < 50_000).all()
    assert (np.abs(record.log_likelihood - oracle(20).log_likelihood(x)) < 5 * record.std_error).all()
    limited = ask(exact_model(20), x, "annealed", max_std_error=1e-9, max_num_samples=3 * NUM_PARTICLES)
    assert (limited.num_samples >= 3 * NUM_PARTICLES).all()
    assert (limited.num_samples - once.num_samples < 3 * NUM_PARTICLES).all()  # one round beyond, at most
    assert_same(ask(exact_model(20), x, "annealed", max_std_error=goal), once)  # no more than at first
    generous = ask(exact_model(20), x, "annealed", max_std_error=1.0, max_num_samples=50_000)
    assert_same(generous, once)


def spoilt(toy: Toy, value: float, where: str) -> Toy:
    """A toy whose encoder, or decoder, gives this for every image."""
    if where == "decoder":
        bias = oracle(2).bias.astype(np.float32)
        return replace(toy, decoder=toy.decoder.replace(bias.tobytes(), np.full_like(bias, value).tobytes()))
    log_var = np.log(1.3**2 * np.diag(oracle(2).posterior()[1])).astype(np.float32)
    return replace(toy, encoder=toy.encoder.replace(log_var.tobytes(), np.full_like(log_var, value).tobytes()))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("proposal", LADDER)
def test_where_the_decoder_gives_no_number_there_is_no_likelihood(proposal: str, value: float) -> None:
    model = reference.load(spoilt(oracle(2).toy(SHAPE, widen=1.3), value, "decoder"))
    record = ask(model, oracle(2).draw(3, SHAPE, seed=1), proposal)
    assert not np.isfinite(record.log_likelihood).any()
    assert not record.reliable.any()
    assert set(record.reason) == {"mode"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 150.0, -150.0])
@pytest.mark.parametrize("proposal", LADDER)
def test_where_the_encoder_gives_no_number_the_likelihood_is_found_without(proposal: str, value: float) -> None:
    model = reference.load(spoilt(oracle(2).toy(SHAPE, widen=1.3), value, "encoder"))
    x = oracle(2).draw(3, SHAPE, seed=1)
    record = ask(model, x, proposal)
    assert (np.abs(record.log_likelihood - oracle(2).log_likelihood(x)) < 5 * record.std_error).all()
    assert record.reliable.all()
    assert np.isnan(record.elbo).all()


def test_every_reason_but_the_tail_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """An annealed estimate has no tail of weights; test_estimate.py has that one."""
    model, x = rugged(), noise(12)
    toy = bernoulli_toy(GREY, 5, preparation=PixelPreparation(binarisation="threshold"))
    hasty = Model(toy.description, toy.encoder, toy.decoder, toy.likelihood, runtime=Runtime("cpu"), max_steps=1)
    modes = ask(hasty, x, "auto")
    assert "mode" in modes.reason
    with monkeypatch.context() as patch:
        patch.setattr(annealing, "MAX_TEMPERATURES", 1)
        budget = ask(model, x, "annealed")
    assert "budget" in budget.reason
    with monkeypatch.context() as patch:
        patch.setattr(ladder, "annealed_estimate", disagreeing)
        groups = ask(model, x, "annealed")
    assert "groups" in groups.reason
    for record in (modes, budget, groups, ask(model, x, "auto"), ask(model, x, "laplace", num_samples=40)):
        np.testing.assert_array_equal(record.reason == "", record.reliable)
        assert set(record.reason) <= {"", *REASONS}


def disagreeing(log_estimates: AnyArray, *rest: Any, **named: Any) -> LogLikelihood:
    """As if one group had found four nats more."""
    return annealed_estimate(log_estimates + 4.0 * (np.arange(log_estimates.shape[2]) == 1), *rest, **named)


@pytest.mark.parametrize(("latent_dim", "num_images"), [(20, 12), (60, 4)])
@pytest.mark.parametrize("proposal", LADDER)
def test_memory_is_bounded_by_what_is_announced(latent_dim: int, num_images: int, proposal: str) -> None:
    toy = bernoulli_toy(GREY, latent_dim, seed=8)
    model = Model(toy.description, toy.encoder, toy.decoder, toy.likelihood, runtime=Runtime("cpu"), max_steps=8)
    assert isinstance(model._estimator, Estimator)
    assert model._estimator._block_images == CPU_BLOCKS.images
    chunks = model.log_likelihood(noise(num_images), proposal=proposal)
    tracemalloc.start()
    try:
        complete(chunks)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    announced = model.estimates_bytes(num_images, 400)
    assert peak < announced


def test_what_the_search_may_have_missed_is_said() -> None:
    model, x = rugged(), noise(6)
    prepared = model._first.of_x.prepare(x).reshape(len(x), -1)
    ladder_of = model._estimator.ladder
    reached = complete(model._estimator._search.from_encoder(prepared, complete(model.encode(x))))
    plain = ask(model, x, "laplace")
    gain = np.array([9.0, 11.0, 3001.0, 2999.0, 9.0, 11.0])
    far = replace(reached, gain=gain, converged=np.array([True, True, True, True, False, False]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder_of, "_familiar_gain", 0.5)
        judged = ladder_of.judge(plain, far)
        patch.setattr(ladder_of, "_familiar_gain", 11.0)
        familiar = ladder_of.judge(plain, far)
        patch.setattr(ladder, "_LARGE", 1)
        patch.setattr(ladder_of, "_familiar_gain", 2000.0)
        of_large = ladder_of.judge(plain, far)
    counted = gain > 10  # nats: nothing that matters is missed by a search that rose less
    np.testing.assert_array_equal(judged.std_error[~counted], plain.std_error[~counted])
    np.testing.assert_allclose(judged.std_error[counted] ** 2, plain.std_error[counted] ** 2 + 0.15**2)
    np.testing.assert_array_equal(judged.reliable, plain.reliable & (gain < 3000))
    np.testing.assert_array_equal(judged.reason, np.where(gain > 3000, "mode", plain.reason))
    np.testing.assert_array_equal(familiar.reliable, plain.reliable)
    assert (familiar.std_error == plain.std_error).tolist() == [True, True, False, False, True, False]
    unseen = np.array([0, 0.3, 0.15, 0.15, 0, 0.15])  # the third and the fourth are strange, and the last two
    np.testing.assert_allclose(of_large.std_error**2, plain.std_error**2 + unseen**2)


def test_only_a_very_heavy_tail_makes_a_doubtful_image_contested() -> None:
    record = replace(
        ask(rugged(), noise(4), "laplace"),
        reliable=np.array([True, False, False, False]),
        pareto_k=np.array([0.9, 0.84, 0.86, np.nan]),
    )
    assert rugged()._estimator.ladder.has_heavy_tail(record).tolist() == [False, False, True, True]
