"""Versions that run but are wrong are refused; honest ones are not, however odd they are."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from model_store import (
    BUNDLED,
    ImageShape,
    InvalidArtifactError,
    LikelihoodSpec,
    Manifest,
    PixelPreparation,
    StoredModel,
    list_versions,
    open_version,
)
from service.engine.acceptance import accept
from service.engine.anomaly.statistics import storable
from service.engine.chunks import complete
from service.engine.runtime import Runtime
from tests import reference
from tests.likelihoods import GAUSSIAN_WITH_SCALE, discretised_logistic, gaussian
from tests.toys import AnyArray, LinearGaussian, Toy, bernoulli_toy, nonlinear_toy

SHAPE = ImageShape(channels=1, height=7, width=5)
TOY = bernoulli_toy(SHAPE, 3)
RUNTIME = Runtime("cpu", 1)
FOLDER = Path("store", "toy", "1")


def stored(toy: Toy) -> StoredModel:
    """As if it had been read."""
    fields = {**dict(toy.description), "version": 1, "created": "2026-01-01T00:00:00Z", "sha256": {}}
    manifest = Manifest.model_construct(**fields)  # also what the store would refuse
    return StoredModel(FOLDER, manifest, "0" * 64, toy.encoder, toy.decoder, toy.likelihood, toy.calibration)


def refused(toy: Toy, **options: Any) -> tuple[str, str]:
    """The file that is to blame, and what is wrong."""
    with pytest.raises(InvalidArtifactError) as caught:
        accept(stored(toy), runtime=RUNTIME, **options)
    assert caught.value.file.parent == FOLDER
    return caught.value.file.name, caught.value.problem


def edited(content: bytes, name: str, change: Callable[[AnyArray], AnyArray]) -> bytes:
    """A graph with another weight."""
    model = onnx.load_from_string(content)
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    value = np.asarray(change(numpy_helper.to_array(weight)), np.float32)
    weight.CopyFrom(numpy_helper.from_array(value, name))
    return bytes(model.SerializeToString())


def other_decoder(change: Callable[[AnyArray], AnyArray], toy: Toy = TOY, weight: str = "w2") -> Toy:
    return replace(toy, decoder=edited(toy.decoder, weight, change))


def other_encoder(change: Callable[[AnyArray], AnyArray], weight: str = "g") -> Toy:
    return replace(TOY, encoder=edited(TOY.encoder, weight, change))


def some(value: float, entries: slice) -> Callable[[AnyArray], AnyArray]:
    """Some entries of a weight, flat, are this."""

    def change(weight: AnyArray) -> AnyArray:
        flat = weight.copy().ravel()
        flat[entries] = value
        return flat.reshape(weight.shape)

    return change


def with_logits(nodes: Callable[[onnx.ModelProto], None]) -> Toy:
    """The decoder with its last tensor renamed, for nodes that make `logits` of `plain`."""
    model = onnx.load_from_string(TOY.decoder)
    model.graph.node[-1].output[0] = "plain"
    nodes(model)
    return replace(TOY, decoder=bytes(model.SerializeToString()))


def only_at_the_origin(model: onnx.ModelProto) -> None:
    """A number at z = 0, and the logarithm of a negative one elsewhere."""
    make = onnx.helper.make_node
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 1, 1, 1]), "apart"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "unit"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(1e6, np.float32), "steep"))
    model.graph.node.extend(
        [
            make("Mul", ["z", "z"], ["squares"]),
            make("ReduceSum", ["squares", "axis"], ["far"]),
            make("Mul", ["far", "steep"], ["farther"]),
            make("Sub", ["unit", "farther"], ["left"]),
            make("Log", ["left"], ["logarithm"]),
            make("Reshape", ["logarithm", "apart"], ["bad"]),
            make("Add", ["plain", "bad"], ["logits"]),
        ]
    )


WRONG: dict[str, tuple[Toy, str, str]] = {
    "a decoder of NaN": (other_decoder(lambda w: w * np.nan), "decoder.onnx", "'logits' is not finite for 256 of 256"),
    "a decoder with one pixel of NaN": (
        other_decoder(some(np.nan, slice(1))),
        "decoder.onnx",
        "'logits' is not finite",
    ),
    "a decoder that is infinite": (other_decoder(lambda w: w + np.inf), "decoder.onnx", "'logits' is not finite"),
    "a decoder of NaN but at 0": (
        with_logits(only_at_the_origin),
        "decoder.onnx",
        "'logits' is not finite for 255 of 256",
    ),
    "a decoder beyond all sense": (other_decoder(lambda w: w * 1e20), "decoder.onnx", "'logits' is beyond ±1e+06"),
    "an encoder of NaN": (other_encoder(lambda w: w * np.nan), "encoder.onnx", "'mean' is not finite for 2"),
    "an encoder with NaN in a variance": (
        other_encoder(some(np.nan, slice(1)), "v"),
        "encoder.onnx",
        "'log_var' is not finite for 256 of 256 images that the model draws",
    ),
    "an encoder that is infinite": (other_encoder(lambda w: w + np.inf), "encoder.onnx", "'mean' is not finite"),
    "an encoder beyond all sense": (other_encoder(lambda w: w + 1e9), "encoder.onnx", "'mean' is beyond ±1e+06"),
    "variances too large": (other_encoder(lambda w: w * 0 + 1000, "v"), "encoder.onnx", "'log_var' is beyond ±87"),
    "variances too small": (other_encoder(lambda w: w * 0 - 1000, "v"), "encoder.onnx", "'log_var' is beyond ±87"),
}


@pytest.mark.parametrize(("toy", "file", "problem"), WRONG.values(), ids=WRONG)
def test_what_runs_but_gives_no_sense_is_refused(toy: Toy, file: str, problem: str) -> None:
    found, told = refused(toy)
    assert found == file
    assert problem in told


def described(**changed: Any) -> Toy:
    return replace(TOY, description=TOY.description.model_copy(update=changed))


def test_more_samples_than_any_image_may_take_are_refused() -> None:
    def calibrated(num_samples: int) -> Toy:
        return described(calibration=TOY.description.calibration.model_copy(update={"num_samples": num_samples}))

    file, problem = refused(calibrated(10**9))
    assert file == "manifest.json"
    assert problem.startswith(
        "calibration.num_samples is 1000000000, as many as every image would take; at most 100000"
    )
    assert refused(calibrated(501), max_num_samples=500)[0] == "manifest.json"
    accept(stored(calibrated(100_000)), runtime=RUNTIME)  # as many as are allowed do not make the questions long


def test_a_calibration_by_an_unknown_proposal_is_refused() -> None:
    toy = described(calibration=TOY.description.calibration.model_copy(update={"proposal": "oracle"}))
    assert refused(toy)[0] == "calibration.npz"


def familiar(toy: Toy, num_images: int = 40, seed: int = 1) -> AnyArray:
    """Images that the model draws."""
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((num_images, toy.description.latent_dim)).astype(np.float32)
    mean = complete(reference.load(toy).decode(latents))
    return (rng.random(mean.shape) < mean).astype(np.float32)


@pytest.fixture(scope="module")
def honest() -> Toy:
    """With a calibration of its own, which has codes and all."""
    return reference.calibrated(TOY, familiar(TOY))


def without_weights(content: bytes) -> bytes:
    """A graph all of whose weights are zero."""
    model = onnx.load_from_string(content)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(0 * numpy_helper.to_array(tensor), tensor.name))
    return bytes(model.SerializeToString())


def test_a_decoder_that_cannot_have_given_the_scores_is_refused() -> None:
    """Half grey whatever the code, it finds no digit likelier than 784 coins; the calibration says otherwise."""
    digits = open_version(BUNDLED, "mnist")
    spoilt = replace(digits, decoder=without_weights(digits.decoder))
    with pytest.raises(InvalidArtifactError) as caught:
        accept(spoilt, runtime=RUNTIME)
    assert caught.value.file.name == "decoder.onnx"
    assert caught.value.problem == (
        "cannot have given the scores in calibration.npz: at the codes of 64 of 64 calibration images "
        "no image is as likely as those are said to be"
    )


WIDE = bernoulli_toy(ImageShape(channels=1, height=20, width=16), 3)


def odd_images(toy: Toy) -> dict[str, AnyArray]:
    rng = np.random.default_rng(3)
    shape = (30, *toy.description.image.chw)
    return {
        "noise": rng.random(shape, np.float32),
        "black": np.zeros(shape, np.float32),
        "white": np.ones(shape, np.float32),
        "one image": np.repeat(rng.random((1, *shape[1:]), np.float32), 30, axis=0),
        "four": rng.random((4, *shape[1:]), np.float32),
    }


@pytest.mark.parametrize("kind", odd_images(TOY))
def test_a_model_calibrated_on_images_unlike_its_own_is_taken(kind: str) -> None:
    for toy in (TOY, WIDE):
        accept(stored(reference.calibrated(toy, odd_images(toy)[kind])), runtime=RUNTIME)


GAUSSIAN = LinearGaussian.random(SHAPE, 3, scale=0.2)
HONEST: dict[str, Toy] = {
    "linear": GAUSSIAN.toy(SHAPE, widen=1.1),
    "an encoder far too wide": GAUSSIAN.toy(SHAPE, widen=20.0),
    "an encoder far too narrow": GAUSSIAN.toy(SHAPE, widen=1e-3),
    "an encoder that knows nothing": other_encoder(lambda weight: 0 * weight),
    "a decoder that has collapsed": reference.calibrated(other_decoder(lambda w: 0 * w), odd_images(TOY)["noise"]),
    "a decoder that is very sure": other_decoder(lambda weight: 50 * weight),
    "pixels that never change": other_decoder(some(0.0, slice(0, None, 2))),
    "one pixel and one latent": bernoulli_toy(ImageShape(channels=1, height=1, width=1), 1),
    "many latents": bernoulli_toy(SHAPE, 40),
    "dynamic": bernoulli_toy(SHAPE, preparation=PixelPreparation(binarisation="dynamic")),
    "scaled to 255": bernoulli_toy(SHAPE, preparation=PixelPreparation(scale=255)),
    "scaled to 1/255": bernoulli_toy(SHAPE, preparation=PixelPreparation(scale=1 / 255, binarisation="threshold")),
}


@pytest.mark.parametrize("toy", HONEST.values(), ids=HONEST)
def test_an_honest_model_is_taken_however_odd(toy: Toy) -> None:
    model = accept(stored(toy), runtime=RUNTIME, chunk_rows=64)
    assert model.description == stored(toy).manifest


LIKELIHOODS: tuple[LikelihoodSpec, ...] = (
    gaussian(0.1),
    GAUSSIAN_WITH_SCALE,
    discretised_logistic(),
    discretised_logistic(2),
)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)
def test_every_likelihood_is_taken_with_a_calibration_of_familiar_or_odd_images(likelihood: LikelihoodSpec) -> None:
    toy = nonlinear_toy(likelihood, SHAPE, 3)
    for pixels in (familiar(toy), *odd_images(toy).values()):
        accept(stored(reference.calibrated(toy, pixels)), runtime=RUNTIME)


def test_scores_that_are_infinite_or_none_do_not_stop_a_model(honest: Toy) -> None:
    """A calibration may hold such, see `storable`; codes too, of an encoder that failed at an image."""
    for value in (np.inf, -np.inf, np.nan):
        spoilt = {name: np.where(np.arange(40) < 36, value, array) for name, array in honest.calibration.items()}
        spoilt["fitting"] = honest.calibration["fitting"]
        accept(stored(replace(honest, calibration=storable(spoilt))), runtime=RUNTIME)


@pytest.mark.parametrize("name", list_versions(BUNDLED))
def test_the_bundled_models_are_taken(name: str) -> None:
    accept(open_version(BUNDLED, name), runtime=RUNTIME)


def test_a_manifest_may_say_infinity_in_a_way_that_json_has_not(tmp_path: Path) -> None:
    """Python's reader takes the word."""
    published = TOY.publish(tmp_path)
    file = published.path / "manifest.json"
    fields = json.loads(file.read_text())
    for scale in ("Infinity", "1e999", "NaN", "-Infinity", "-1", "0"):
        file.write_text(json.dumps(fields).replace('"scale": 1.0', f'"scale": {scale}', 1))
        told = r"manifest\.json: (preparation\.scale|not JSON|a number is too large)"
        with pytest.raises(InvalidArtifactError, match=told):
            accept(open_version(tmp_path, "bernoulli"), runtime=RUNTIME)
