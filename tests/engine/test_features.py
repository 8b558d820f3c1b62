"""Models of features: log P(x) against its closed form, the graph's checks, local scores and maps."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from model_store import (
    FEATURES,
    Description,
    InvalidArtifactError,
    LikelihoodSpec,
    Manifest,
    PixelPreparation,
    open_version,
)
from service.engine.acceptance import accept
from service.engine.anomaly.detector import UnknownMethodError
from service.engine.anomaly.local import at_image_size, least_likely
from service.engine.anomaly.scores import FEATURE_METHODS
from service.engine.chunks import complete
from service.engine.features import FeatureStage, PlainMaps
from service.engine.model import Model
from service.engine.preparation import PreparedImages
from service.engine.runtime import Runtime
from tests import reference
from tests.features import DENSITY, IMAGE, MAPS, PLAIN_MAPS, WEIGHT, feature_toy, features_graph, features_of, ordinary
from tests.toys import Toy, constant, graph, node


@cache
def toy() -> Toy:
    return reference.calibrated(feature_toy(), ordinary(90, seed=1))


@cache
def model() -> Model:
    return reference.load(toy())


def stage(graph: bytes) -> FeatureStage:
    return FeatureStage(graph, IMAGE, MAPS, runtime=Runtime("cpu"), file=Path(FEATURES))


def test_log_likelihood_is_that_of_the_features() -> None:
    """Estimated from pixels, against the multivariate normal density of the features that NumPy computes of them."""
    pixels = ordinary(6, seed=2)
    exact = DENSITY.log_likelihood(features_of(pixels))
    record = complete(model().log_likelihood(pixels, proposal="laplace"))
    np.testing.assert_allclose(record.log_likelihood, exact, atol=0.02)
    np.testing.assert_allclose(record.bits_per_dim, -record.log_likelihood / (MAPS.size * np.log(2)))
    assert record.reliable.all()
    gain, _ = DENSITY.posterior()
    code = complete(model().encode(pixels))
    centred = features_of(pixels).reshape(len(pixels), -1) - DENSITY.bias
    np.testing.assert_allclose(code.mean, centred @ gain, atol=1e-5)


def test_an_image_has_the_same_bits_alone_and_in_a_batch() -> None:
    """Maps, codes, estimates and scores; the maps of 37 images are those of each by itself."""
    pixels = ordinary(37, seed=3)
    maps = complete(stage(features_graph()).maps(pixels))
    together = complete(model().anomaly_scores(pixels, methods=list(FEATURE_METHODS), explain=True))
    estimate = complete(model().log_likelihood(pixels))
    for index in (0, 17, 36):
        one = pixels[index : index + 1]
        np.testing.assert_array_equal(complete(stage(features_graph()).maps(one))[0], maps[index])
        alone = complete(model().anomaly_scores(one, methods=list(FEATURE_METHODS), explain=True))
        for method in FEATURE_METHODS:
            assert alone.by_method[method].score[0] == together.by_method[method].score[index], method
        assert alone.explanation is not None
        assert together.explanation is not None
        np.testing.assert_array_equal(alone.explanation[0], together.explanation[index])
        assert complete(model().log_likelihood(one)).log_likelihood[0] == estimate.log_likelihood[index]


def test_decoded_reconstructed_and_sampled_are_maps_that_nothing_clips() -> None:
    latents = np.array([[0, 0], [9, -9]], np.float32)
    expected = (latents @ DENSITY.weight.T + DENSITY.bias).reshape(2, *MAPS.chw)
    assert expected.min() < 0
    np.testing.assert_allclose(complete(model().decode(latents)), expected, atol=1e-5)
    assert complete(model().sample(3, seed=1)).images.shape == (3, *MAPS.chw)
    pixels = ordinary(2, seed=4)
    found = complete(model().reconstruct(pixels))
    np.testing.assert_allclose(found.prepared, features_of(pixels), atol=1e-5)
    code = complete(model().encode(pixels)).mean
    np.testing.assert_array_equal(found.reconstructed, complete(model().decode(code)))


def test_local_is_the_least_likely_position_at_the_code() -> None:
    pixels = ordinary(5, seed=5)
    code = complete(model().encode(pixels)).mean.astype(np.float64)
    residual = (features_of(pixels).reshape(5, -1) - code @ DENSITY.weight.T - DENSITY.bias) / DENSITY.scale
    cost = 0.5 * residual**2 + np.log(DENSITY.scale * np.sqrt(2 * np.pi))
    expected = cost.reshape(5, MAPS.channels, -1).sum(1).max(1)
    found = complete(model().anomaly_scores(pixels, methods=["local"])).by_method["local"].score
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_small_defect_is_found_where_it_is() -> None:
    """One patch of each image is altered: `local` flags them at the smallest p-value, and the map is highest there."""
    pixels = ordinary(20, seed=6)
    pixels[:10, 0, 8:12, 4:8] = np.random.default_rng(1).random((10, 4, 4)) > 0.5
    scores = complete(model().anomaly_scores(pixels, methods=["local", "combined", "log_likelihood"], explain=True))
    assert scores.calibration_size == 60
    assert (scores.by_method["local"].p_value[:10] == 1 / 61).mean() >= 0.9
    assert scores.by_method["local"].is_anomaly[10:].sum() <= 3
    maps = scores.explanation
    assert maps is not None
    assert maps.shape == (20, 1, IMAGE.height, IMAGE.width)
    highest = [np.unravel_index(one.argmax(), one.shape) for one in maps[:10, 0]]
    assert np.mean([row >= 8 and column >= 4 for row, column in highest]) >= 0.9


def test_on_larger_maps_the_mean_of_a_sixteenth_counts() -> None:
    """Of 8×5 positions the two least likely; a number that is none makes the score none."""
    rng = np.random.default_rng(8)
    log_prob = rng.normal(size=(3, 2 * 40))
    log_prob[2, 7] = np.nan
    sampler: Any = SimpleNamespace(chunk_rows=2, pixel_log_prob=lambda x, z: log_prob[z[:, 0].astype(int)])
    maps = PreparedImages(np.zeros((3, 2, 8, 5), np.float32), PlainMaps())
    found = complete(least_likely(maps, np.arange(3, dtype=np.float32)[:, None], sampler))
    by_position = np.sort(-log_prob.reshape(3, 2, 40).sum(1), axis=1)
    np.testing.assert_allclose(found[:2], by_position[:2, -2:].mean(1))
    assert np.isnan(found[2])


def test_methods_of_the_other_space_are_refused() -> None:
    assert model().detector.available == tuple(FEATURE_METHODS)
    assert model().detector.choose([]) == ("local",)
    with pytest.raises(UnknownMethodError, match="input_complexity is for models of pixels, which this is not"):
        model().detector.choose(["input_complexity"])
    pixels_alone = reference.load(DENSITY.toy(PLAIN_MAPS))
    with pytest.raises(UnknownMethodError, match="local is for models of features, which this is not; it can score by"):
        pixels_alone.detector.choose(["local"])


@pytest.mark.parametrize(("count", "size"), [(1, 5), (2, 7), (8, 64), (8, 3)])
def test_maps_are_interpolated_as_bilinear_resampling_does(count: int, size: int) -> None:
    """Against NumPy's interpolation along each axis; constant maps stay constant."""
    rng = np.random.default_rng(9)
    values = rng.normal(size=(2, 3, count, 4))
    centres, wanted = (np.arange(count) + 0.5) / count, (np.arange(size) + 0.5) / size
    across = (np.arange(4) + 0.5) / 4, (np.arange(6) + 0.5) / 6
    summed = values.sum(1)
    down = np.stack([[np.interp(wanted, centres, column) for column in one.T] for one in summed])  # [2, 4, size]
    expected = np.stack([[np.interp(across[1], across[0], row) for row in one.T] for one in down])
    np.testing.assert_allclose(at_image_size(values, size, 6)[:, 0], expected, atol=1e-12)
    np.testing.assert_allclose(at_image_size(np.ones((1, 2, count, 4)), size, 6), 2)


def mixing() -> bytes:
    """Maps less their mean over the batch."""
    weight = constant("w", np.random.default_rng(4).normal(size=(IMAGE.size, MAPS.size)))
    return graph(
        [
            node("Reshape", "x", constant("flat", np.array([0, IMAGE.size])), out="rows"),
            node("MatMul", "rows", weight, out="y"),
            node("Reshape", "y", constant("chw", np.array([-1, *MAPS.chw])), out="maps"),
            node("ReduceMean", "maps", constant("axes", np.array([0])), out="mean"),
            node("Sub", "maps", "mean", out="features"),
        ],
        inputs={"x": ["batch", *IMAGE.chw]},
        outputs={"features": ["batch", *MAPS.chw]},
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (lambda: b"nonsense", "not a valid ONNX graph"),
        (lambda: features_graph(tail="Log"), "not finite"),
        (mixing, "differs by .* with the other images of its batch"),
        (lambda: features_graph(weight=np.repeat(WEIGHT, 2, axis=0)), "cannot be run|came out as|refuses it"),
    ],
)
def test_a_graph_that_is_no_first_stage_is_refused(content: object, problem: str) -> None:
    assert callable(content)
    broken = replace(toy(), features=content())
    with pytest.raises(InvalidArtifactError, match=problem) as caught:
        reference.load(broken)
    assert caught.value.file.name == FEATURES


def test_graph_and_manifest_belong_together(tmp_path: Path) -> None:
    with pytest.raises(InvalidArtifactError, match="belong together"):
        reference.load(replace(toy(), features=None))
    for wrong in (replace(toy(), features=None), replace(DENSITY.toy(PLAIN_MAPS), features=features_graph())):
        with pytest.raises(InvalidArtifactError, match="belong together"):
            wrong.publish(tmp_path)
    assert not any(tmp_path.iterdir())


def test_the_store_keeps_the_graph_and_checks_every_byte(tmp_path: Path) -> None:
    stored = toy().publish(tmp_path)
    assert stored.features == features_graph()
    assert stored.manifest.features == MAPS
    assert (stored.manifest.space, stored.manifest.x_shape) == ("features", MAPS)
    assert set(stored.manifest.sha256) == set(stored.manifest.files) >= {FEATURES}
    accepted = accept(stored, runtime=Runtime("cpu"))
    pixels = ordinary(2, seed=7)
    found = complete(accepted.anomaly_scores(pixels)).by_method
    np.testing.assert_array_equal(
        next(iter(found.values())).score, next(iter(complete(model().anomaly_scores(pixels)).by_method.values())).score
    )
    (stored.path / FEATURES).write_bytes(b"other")
    with pytest.raises(InvalidArtifactError, match="truncated or altered"):
        open_version(tmp_path, "maps")
    (stored.path / FEATURES).unlink()
    with pytest.raises(InvalidArtifactError, match=r"features\.onnx: missing"):
        open_version(tmp_path, "maps")


def test_the_manifest_of_a_model_of_pixels_is_as_it_was(tmp_path: Path) -> None:
    """A reader that knows no features reads it."""
    stored = DENSITY.toy(PLAIN_MAPS, name="pixels").publish(tmp_path)
    assert "features" not in (stored.path / "manifest.json").read_text()
    assert (stored.manifest.space, stored.manifest.x_shape) == ("pixels", stored.manifest.image)


@pytest.mark.parametrize(
    "changed",
    [
        {"likelihood": LikelihoodSpec(kind="discretised_logistic", levels=256)},
        {"preparation": PixelPreparation(binarisation="dynamic")},
        {"preparation": PixelPreparation(scale=2.0)},
        {"features": {"channels": 2**12, "height": 2**12, "width": 2}},
    ],
)
def test_features_are_of_plain_pixels(changed: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"features are real numbers|channels × height × width"):
        Description(**{**dict(toy().description), **changed})


def test_format_1_has_no_features(tmp_path: Path) -> None:
    stored = toy().publish(tmp_path)
    file = stored.path / "manifest.json"
    fields = stored.manifest.model_dump(mode="json")
    fields |= {"format_version": 1, "likelihood": {"kind": "gaussian", "scale": 0.3}}
    fields["sha256"].pop("likelihood.onnx")
    file.write_text(Manifest.model_construct(**fields).model_dump_json(warnings=False))
    with pytest.raises(InvalidArtifactError, match="format version 1 has none"):
        open_version(tmp_path, "maps")
