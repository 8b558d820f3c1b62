import gc
from collections.abc import Generator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime import InferenceSession

from model_store import ImageShape, InvalidArtifactError, PixelPreparation, open_version
from service.engine.anomaly.detector import UncalibratedModelError, UnknownMethodError
from service.engine.anomaly.explanation import NUM_DRAWS
from service.engine.chunks import Chunks, complete
from service.engine.graphs import SHAPE
from service.engine.model import Model
from service.engine.posterior.estimate import LogLikelihood
from service.engine.proposal import NoiseCache, UnknownProposalError, standard_normal
from service.engine.runtime import Runtime, Session
from tests import reference
from tests.engine.weights import assert_near, assert_same, figure_errors
from tests.rounding import FUNCTION, density_error, gamma, network_error
from tests.toys import AnyArray, LinearGaussian, Toy, bernoulli_toy

GREY = ImageShape(channels=1, height=9, width=7)
COLOUR = ImageShape(channels=3, height=4, width=5)
ORACLE = LinearGaussian.random(GREY, 3, scale=0.4)
TOYS: dict[str, Toy] = {
    "gaussian": ORACLE.toy(GREY, widen=1.2),
    "dynamic": bernoulli_toy(GREY, 5, preparation=PixelPreparation(binarisation="dynamic", binarisation_seed=3)),
    "colour": bernoulli_toy(COLOUR, 4, preparation=PixelPreparation(binarisation="threshold")),
}
BOTH = ("encoder", "prior")
NATS = density_error(GREY.size, 200)


@cache
def model_of(toy: str, chunk_rows: int = 512) -> Model:
    return reference.load(TOYS[toy], chunk_rows=chunk_rows)


def images(toy: str, num_images: int, *, seed: int = 0) -> AnyArray:
    shape = TOYS[toy].description.image
    return np.random.default_rng(seed).random((num_images, *shape.chw), np.float32)


@pytest.mark.parametrize("toy", ["gaussian", "dynamic"])
def test_decoder_rows_are_those_that_the_graphs_really_run(toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of finding modes, which for images unlike any are many times the samples."""
    model = reference.load(TOYS[toy], chunk_rows=64)
    run = Session.run
    seen = [0]

    def counted(self: Session, inputs: Any) -> Any:
        if SHAPE in inputs:
            seen[0] += int(inputs[SHAPE][0] * inputs[SHAPE][1])
        elif "z" in inputs:
            seen[0] += len(inputs["z"])
        return run(self, inputs)

    monkeypatch.setattr(Session, "run", counted)

    def taken(chunks: Generator[None, None, Any]) -> int:
        before, seen[0] = model.decoder_rows, 0
        complete(chunks)
        assert model.decoder_rows - before == seen[0]
        return seen[0]

    strange = images(toy, 5)
    assert taken(model.log_likelihood(strange, proposal="encoder", num_samples=100)) == 500
    assert taken(model.log_likelihood(strange, proposal="prior", num_samples=100)) == 1000  # the ELBO takes as many
    assert taken(model.log_likelihood(strange, proposal="laplace", num_samples=100)) > 500
    scored = taken(model.anomaly_scores(strange))
    assert taken(model.anomaly_scores(strange, explain=True)) == scored + 5 * NUM_DRAWS


def count(chunks: Generator[None, None, Any]) -> int:
    return sum(1 for _ in chunks)


def errors_of(toy: str, pixels: AnyArray, *, proposal: str, num_samples: int, seed: int = 0) -> dict[str, AnyArray]:
    """How far apart two computations of the same estimates may be, whose log weights each have a float32 error."""
    log_weight = reference.log_weights(TOYS[toy], pixels, proposal=proposal, num_samples=num_samples, seed=seed)
    return figure_errors(log_weight, 2 * NATS, pixels[0].size)


def test_a_model_that_nobody_holds_is_freed_at_once() -> None:
    """By reference counting: a service that replaces models would else hold old ones until the collector comes by."""

    def alive() -> int:
        # By type(), for isinstance() asks an object for its __class__, and some of torch's then warn.
        return sum(type(item) in (Model, NoiseCache, InferenceSession) for item in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = alive()
        model = reference.load(TOYS["dynamic"], chunk_rows=512)
        complete(model.log_likelihood(images("dynamic", 3), num_samples=40))
        begun = model.log_likelihood(images("dynamic", 3), num_samples=40)
        next(begun)
        del model
        assert alive() > before  # who computes still holds it
        del begun
        assert alive() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("proposal", BOTH)
@pytest.mark.parametrize("num_samples", [1, 2, 5, 700])
def test_log_likelihood_is_the_reference(toy: str, proposal: str, num_samples: int) -> None:
    x = images(toy, 4)
    record = complete(model_of(toy).log_likelihood(x, proposal=proposal, num_samples=num_samples, seed=6))
    expected = reference.log_weights(TOYS[toy], x, proposal=proposal, num_samples=num_samples, seed=6)
    bound = reference.log_weights(TOYS[toy], x, proposal="encoder", num_samples=num_samples, seed=6)
    np.testing.assert_allclose(
        record.log_likelihood, np.logaddexp.reduce(expected, axis=1) - np.log(num_samples), atol=NATS, rtol=0
    )
    np.testing.assert_allclose(record.elbo, bound.mean(axis=1), atol=NATS, rtol=0)
    assert np.abs(expected).max() < 200
    assert record.num_samples.tolist() == [num_samples] * 4
    assert np.isnan(record.std_error).all() == (num_samples == 1)
    assert not (num_samples < 21 and record.reliable.any())


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("proposal", BOTH)
def test_an_images_answer_does_not_depend_on_its_batch(toy: str, proposal: str) -> None:
    model, x = model_of(toy), images(toy, 64)
    batch = complete(model.log_likelihood(x, proposal=proposal, num_samples=90))
    order = np.random.default_rng(1).permutation(64)
    shuffled = complete(model.log_likelihood(x[order], proposal=proposal, num_samples=90))
    chosen = np.array([0, 17, 63])
    errors = errors_of(toy, x[chosen], proposal=proposal, num_samples=90)
    assert_near(shuffled.take(order.argsort()[chosen]), batch.take(chosen), errors)
    np.testing.assert_allclose(shuffled.log_likelihood, batch.log_likelihood[order], rtol=0, atol=2 * NATS)
    alone = [complete(model.log_likelihood(x[[index]], proposal=proposal, num_samples=90)) for index in chosen]
    assert_near(LogLikelihood.join(alone), batch.take(chosen), errors)
    assert batch.log_likelihood.std() > 0.1


@pytest.mark.parametrize("toy", TOYS)
def test_encoding_does_not_depend_on_the_batch_either(toy: str) -> None:
    model, x = model_of(toy, 7), images(toy, 20)
    batch = complete(model.encode(x))
    assert batch.mean.shape == batch.log_var.shape == (20, TOYS[toy].description.latent_dim)
    for index in (0, 6, 7, 19):
        alone = complete(model.encode(x[index : index + 1]))
        error = network_error(TOYS[toy].encoder, x=model._first.of_x.prepare(x[index : index + 1]))
        assert (np.abs(alone.mean - batch.mean[index]) <= 2 * error["mean"]).all()
        assert (np.abs(alone.log_var - batch.log_var[index]) <= 2 * error["log_var"]).all()


@pytest.mark.parametrize("proposal", BOTH)
@pytest.mark.parametrize("chunk_rows", [1, 7])
def test_chunks_change_no_number(proposal: str, chunk_rows: int) -> None:
    x = images("dynamic", 5)
    whole = complete(model_of("dynamic").log_likelihood(x, proposal=proposal, num_samples=60, seed=4))
    cut = complete(model_of("dynamic", chunk_rows).log_likelihood(x, proposal=proposal, num_samples=60, seed=4))
    assert_near(cut, whole, errors_of("dynamic", x, proposal=proposal, num_samples=60, seed=4))


@pytest.mark.parametrize("seed", [0, 12345])
def test_the_same_question_has_the_same_answer_to_the_byte(seed: int) -> None:
    x = images("dynamic", 3)
    answers = [
        complete(reference.load(TOYS["dynamic"]).log_likelihood(x, num_samples=900, seed=seed)) for _ in range(2)
    ]
    answers.append(complete(model_of("dynamic").log_likelihood(x, num_samples=900, seed=seed)))
    for field in fields(LogLikelihood):
        assert len({getattr(answer, field.name).tobytes() for answer in answers}) == 1
    other = complete(model_of("dynamic").log_likelihood(x, num_samples=900, seed=seed + 1))
    assert (other.log_likelihood != answers[0].log_likelihood).all()


def test_computations_that_take_turns_do_not_touch_each_other() -> None:
    model, x = model_of("dynamic", 16), images("dynamic", 2)
    questions: list[dict[str, Any]] = [
        {"seed": 0},
        {"seed": 1},
        {"seed": 2, "proposal": "prior"},
        {"seed": 0, "num_samples": 150},
    ]

    def ask(question: dict[str, Any]) -> Chunks[LogLikelihood]:
        return model.log_likelihood(x, **{"num_samples": 100, **question})

    running, answers = {index: ask(question) for index, question in enumerate(questions)}, {}
    while running:
        for index, chunks in list(running.items()):
            try:
                next(chunks)
            except StopIteration as stop:
                answers[index] = stop.value
                del running[index]
    for index, question in enumerate(questions):
        assert_same(answers[index], complete(ask(question)))


@pytest.mark.parametrize(
    ("num_images", "num_samples", "chunk_rows"), [(1, 5000, 512), (64, 8, 100), (3, 50, 7), (2, 3, 1)]
)
def test_it_yields_once_a_chunk(num_images: int, num_samples: int, chunk_rows: int) -> None:
    model = reference.load(TOYS["dynamic"], chunk_rows=chunk_rows, num_threads=1)
    x = images("dynamic", num_images)
    if num_samples >= chunk_rows:
        weights = num_images * -(-num_samples // chunk_rows)
    else:
        weights = -(-num_images // (chunk_rows // num_samples))
    encoding = -(-num_images // chunk_rows)
    assert count(model.log_likelihood(x, num_samples=num_samples, proposal="encoder")) == encoding + weights
    assert count(model.log_likelihood(x, num_samples=num_samples, proposal="prior")) == encoding + 2 * weights
    assert count(model.encode(x)) == encoding
    assert count(model.decode(np.zeros((num_images, 5), np.float32))) == encoding


def test_no_images_have_no_answers() -> None:
    nothing = images("gaussian", 0)
    assert complete(model_of("gaussian").log_likelihood(nothing)).log_likelihood.shape == (0,)
    assert complete(model_of("gaussian").encode(nothing)).mean.shape == (0, 3)
    assert complete(model_of("gaussian").decode(np.zeros((0, 3), np.float32))).shape == (0, *GREY.chw)
    assert complete(model_of("gaussian").anomaly_scores(nothing)).log_likelihood.shape == (0,)


def test_each_image_samples_until_its_own_error_is_small() -> None:
    """Easy: near the prior's mean. Hard: far out, where few of the prior's samples fall."""
    model = model_of("gaussian")
    easy = ORACLE.bias
    hard = ORACLE.bias + ORACLE.weight @ np.array([1.4, -1.2, 1.0])
    x = np.stack([hard, easy, hard]).reshape(3, *GREY.chw).astype(np.float32)
    ask: dict[str, Any] = {"proposal": "prior", "num_samples": 250, "max_std_error": 0.1}
    record = complete(model.log_likelihood(x, max_num_samples=64_000, **ask))
    assert (record.std_error <= 0.1).all()
    assert record.reliable.all()
    assert 250 <= record.num_samples[1] < record.num_samples[0] == record.num_samples[2]
    assert all(samples % 250 == 0 and (samples // 250).bit_count() == 1 for samples in record.num_samples.tolist())
    assert (np.abs(record.log_likelihood - ORACLE.log_likelihood(x)) < 3.5 * record.std_error).all()
    for index in range(3):  # what it stopped at is what asking for so many gives
        num_samples = int(record.num_samples[index])
        plain = complete(model.log_likelihood(x[index : index + 1], proposal="prior", num_samples=num_samples))
        np.testing.assert_allclose(record.log_likelihood[index], plain.log_likelihood[0], rtol=0, atol=2 * NATS)
        np.testing.assert_allclose(record.std_error[index], plain.std_error[0], rtol=1e-3)

    limited = complete(model.log_likelihood(x, max_num_samples=700, **ask))
    assert limited.num_samples.max() == 700
    assert complete(model.log_likelihood(x, **ask)).num_samples.tolist() == [250] * 3
    assert complete(model.log_likelihood(x, max_num_samples=10, **ask)).num_samples.tolist() == [250] * 3
    generous = complete(model.log_likelihood(x, num_samples=5000, max_std_error=100.0, max_num_samples=5000))
    assert generous.num_samples.tolist() == [5000] * 3


@pytest.mark.parametrize("where", ["encoder", "decoder"])
@pytest.mark.parametrize("proposal", BOTH)
def test_graphs_that_give_no_number_say_so(where: str, proposal: str) -> None:
    """A weight that is NaN: every figure NaN and unreliable, but no exception and no warning."""
    spoilt = LinearGaussian(ORACLE.weight * (np.nan if where == "decoder" else 1), ORACLE.bias, ORACLE.scale)
    graphs = {"encoder": TOYS["gaussian"].encoder, "decoder": spoilt_decoder(spoilt)}
    if where == "encoder":
        graphs = {"encoder": spoilt_encoder(), "decoder": TOYS["gaussian"].decoder}
    toy = Toy(TOYS["gaussian"].description, graphs["encoder"], graphs["decoder"], TOYS["gaussian"].calibration)
    model, x = reference.load(toy), images("gaussian", 2)
    record = complete(model.log_likelihood(x, proposal=proposal, num_samples=50))
    assert np.isnan(record.elbo).all()
    assert np.isnan(record.posterior_gap).all()
    if where == "decoder" or proposal == "encoder":
        assert np.isnan([record.log_likelihood, record.std_error, record.effective_sample_size, record.pareto_k]).all()
        assert not record.reliable.any()
    (judgement,) = complete(model.anomaly_scores(x)).by_method.values()
    assert judgement.p_value.tolist() == [1 / 201] * 2
    assert judgement.is_anomaly.all()


def spoilt_decoder(oracle: LinearGaussian) -> bytes:
    exact = LinearGaussian(np.ones_like(oracle.weight), oracle.bias, oracle.scale)
    return exact.toy(GREY).decoder.replace(
        exact.weight.T.astype(np.float32).tobytes(), oracle.weight.T.astype(np.float32).tobytes()
    )


def spoilt_encoder() -> bytes:
    log_var = np.log(1.2**2 * np.diag(ORACLE.posterior()[1])).astype(np.float32)
    return TOYS["gaussian"].encoder.replace(log_var.tobytes(), (log_var * np.float32(np.nan)).tobytes())


@pytest.mark.parametrize("log_var", [-200.0, 60.0, 150.0, 1000.0])
def test_a_hopeless_encoder_is_marked_unreliable(log_var: float) -> None:
    """A posterior far too narrow or too wide: NaN or a bad estimate, never a crash, a warning or a claim."""
    encoder = TOYS["gaussian"].encoder
    exact = np.log(1.2**2 * np.diag(ORACLE.posterior()[1])).astype(np.float32)
    encoder = encoder.replace(exact.tobytes(), np.full(3, log_var, np.float32).tobytes())
    toy = Toy(TOYS["gaussian"].description, encoder, TOYS["gaussian"].decoder, TOYS["gaussian"].calibration)
    record = complete(reference.load(toy).log_likelihood(images("gaussian", 3), proposal="encoder", num_samples=500))
    assert not record.reliable.any()


def test_decoding_gives_the_mean_as_pixels() -> None:
    z = np.random.default_rng(2).standard_normal((20, 3)).astype(np.float32)
    expected = np.clip(z @ ORACLE.weight.T + ORACLE.bias, 0, 1).reshape(20, *GREY.chw)
    error = network_error(TOYS["gaussian"].decoder, z=z)["loc"]
    for chunk_rows in (1, 7, 512):
        pixels = complete(model_of("gaussian", chunk_rows).decode(z))
        assert pixels.dtype == np.float32
        assert (np.abs(pixels - expected) <= error).all()
    np.testing.assert_array_equal(complete(model_of("gaussian").decode(np.asfortranarray(z))), pixels)


@pytest.mark.parametrize("toy", TOYS)
def test_samples_are_decoded_draws_from_the_prior(toy: str) -> None:
    model, latent_dim = model_of(toy), TOYS[toy].description.latent_dim
    drawn = complete(model.sample(6, seed=8))
    np.testing.assert_array_equal(drawn.latents, standard_normal(6, latent_dim, seed=8))
    np.testing.assert_array_equal(drawn.images, complete(model.decode(drawn.latents)))
    assert drawn.images.min() >= 0
    assert drawn.images.max() <= 1
    cooler = complete(model.sample(6, seed=8, temperature=0.5))
    np.testing.assert_array_equal(cooler.latents, drawn.latents / 2)
    # Neither a sigmoid nor cutting off at 0 and 1 stretches a distance; a sigmoid has a rounding error of its own.
    (error,) = network_error(TOYS[toy].decoder, z=drawn.latents[:2]).values()
    assert (np.abs(complete(model.sample(2, seed=8)).images - drawn.images[:2]) <= 2 * (error + gamma(FUNCTION))).all()


def test_anomaly_scores_follow_the_calibration_protocol() -> None:
    model, x = model_of("gaussian"), ORACLE.draw(30, GREY, seed=3)
    x[0, 0] = np.indices((9, 7)).sum(axis=0) % 2
    scores = complete(model.anomaly_scores(x, methods=["log_likelihood"], alpha=0.1))
    judgement = scores.by_method["log_likelihood"]
    protocol = TOYS["gaussian"].description.calibration
    record = complete(
        model.log_likelihood(x, proposal=protocol.proposal, num_samples=protocol.num_samples, seed=protocol.seed)
    )
    np.testing.assert_array_equal(scores.log_likelihood, record.log_likelihood)
    np.testing.assert_array_equal(scores.posterior_gap, record.posterior_gap)
    np.testing.assert_array_equal(judgement.score, -record.log_likelihood)
    stranger = TOYS["gaussian"].calibration["log_likelihood"] <= record.log_likelihood[:, None]
    np.testing.assert_array_equal(judgement.p_value, (1 + stranger.sum(axis=1)) / 201)
    np.testing.assert_array_equal(judgement.is_anomaly, judgement.p_value <= 0.1)
    assert scores.calibration_size == 200
    assert judgement.p_value[0] == 1 / 201
    assert judgement.p_value[1:].min() > 1 / 201


def test_what_cannot_be_answered_is_refused() -> None:
    toy = TOYS["gaussian"]
    uncalibrated = Model(toy.description, toy.encoder, toy.decoder, toy.likelihood, runtime=Runtime("cpu"))
    with pytest.raises(UncalibratedModelError):
        complete(uncalibrated.anomaly_scores(images("gaussian", 1)))
    with pytest.raises(UnknownMethodError):
        complete(model_of("gaussian").anomaly_scores(images("gaussian", 1), methods=["magic"]))
    with pytest.raises(UnknownProposalError):
        complete(model_of("gaussian").log_likelihood(images("gaussian", 1), proposal="magic"))
    with pytest.raises(TypeError, match="has not been published"):
        _ = uncalibrated.manifest


def test_scores_made_with_an_unknown_proposal_are_refused_at_load() -> None:
    toy = TOYS["gaussian"]
    protocol = toy.description.calibration.model_copy(update={"proposal": "magic"})
    description = toy.description.model_copy(update={"calibration": protocol})
    with pytest.raises(InvalidArtifactError, match=r"^calibration\.npz: made with the proposal 'magic'; known here: "):
        reference.load(Toy(description, toy.encoder, toy.decoder, toy.calibration))


def test_a_stored_model_is_the_model(tmp_path: Path) -> None:
    toy = TOYS["dynamic"]
    toy.publish(tmp_path)
    model = Model.open(open_version(tmp_path, "bernoulli"), runtime=Runtime("cpu"))
    x = images("dynamic", 3)
    assert_same(complete(model.log_likelihood(x)), complete(model_of("dynamic").log_likelihood(x)))
    scores, expected = (complete(m.anomaly_scores(x)).by_method["log_likelihood"] for m in (model, model_of("dynamic")))
    np.testing.assert_array_equal(scores.p_value, expected.p_value)
    assert (model.manifest.name, model.manifest.version, model.provider) == ("bernoulli", 1, "CPUExecutionProvider")


def test_a_fault_names_the_file_in_its_folder(tmp_path: Path) -> None:
    toy = TOYS["dynamic"]
    replace(toy, encoder=toy.decoder).publish(tmp_path)
    with pytest.raises(InvalidArtifactError, match="input 'x' is missing; found z") as caught:
        Model.open(open_version(tmp_path, "bernoulli"), runtime=Runtime("cpu"))
    assert caught.value.file == tmp_path / "bernoulli" / "1" / "encoder.onnx"
