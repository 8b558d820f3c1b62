"""A run of features, from `fit --features` to the store: maps, whitening, resuming, publishing."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from scipy import stats

from model_store import FEATURES, open_version
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.runtime import Runtime
from tests.features import IMAGE, MAPS, features_graph, features_of, ordinary
from training.__main__ import main
from training.data.splits import DataSplits
from training.errors import DataError, RunError
from training.features.graph import feature_graph
from training.features.maps import FOLDER, GRAPH, KEY, cached_splits, feature_splits, run_graph
from training.features.whitening import Whitening
from training.fit.loaded_model import load_model
from training.fit.run import open_run
from training.publish.held_out import configuration_of

OPTIONS = ["--latent-dim", "2", "--num-validation", "20", "--num-calibration", "60", "--num-test", "20"]
NETWORK = ["--preset", "mlp", "--width", "16", "--depth", "1", "--epochs", "2"]


def fit(folder: Path, *more: str) -> int:
    return main(["fit", "--data", str(folder / "images.npy"), "--out", str(folder / "run"), "--workers", "0", *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a graph, and a finished run of them."""
    folder = tmp_path_factory.mktemp("features")
    np.save(folder / "images.npy", np.rint(255 * ordinary(220, seed=20)).astype(np.uint8))
    (folder / "graph.onnx").write_bytes(features_graph())
    assert fit(folder, "--features", str(folder / "graph.onnx"), *OPTIONS) == 0
    return folder


@pytest.fixture(scope="module")
def published(folder: Path) -> Model:
    arguments = ["publish", str(folder / "run"), "--name", "maps", "--store", str(folder / "store"), "--workers", "0"]
    assert main([*arguments, "--proposal", "laplace"]) == 0
    return Model.open(open_version(folder / "store", "maps"), runtime=Runtime("cpu"))


def test_maps_are_whitened_over_the_training_images_and_the_graph_makes_them(folder: Path) -> None:
    run = folder / "run"
    maps = np.load(run / FOLDER / "train.npy")
    assert maps.shape == (120, *MAPS.chw)
    np.testing.assert_allclose(maps.mean(axis=0), 0, atol=1e-5)
    rows = maps.transpose(0, 2, 3, 1).reshape(-1, MAPS.channels)
    values = np.linalg.eigvalsh(rows.T @ rows / len(rows))
    assert values.max() < 1  # each is v/(v + 0.03) of a variance v
    assert np.median(values) > 0.5
    assert open_run(run).description.pixel_shape == IMAGE.chw
    assert open_run(run).description.image_shape == MAPS.chw
    chosen = open_run(run).description.configuration
    assert (chosen.preset, chosen.likelihood, chosen.latent_dim, chosen.epochs) == ("linear", "gaussian", 2, 1)
    assert (chosen.size, chosen.colour, chosen.fit) == ((IMAGE.height, IMAGE.width), "grey", "crop")


def test_the_published_model_tells_defects_and_its_p_values_hold(published: Model) -> None:
    """Of ordinary images as many are flagged as 40 scores to compare with imply; a stained patch is always found."""
    manifest = published.manifest
    assert manifest.features is not None
    assert (manifest.features.chw, manifest.image.chw) == (MAPS.chw, IMAGE.chw)
    assert manifest.preparation.fit == "crop"
    graph = hashlib.sha256(features_graph()).hexdigest()
    assert graph in manifest.provenance.configuration["features"]
    assert configuration_of(manifest.provenance).likelihood == "gaussian"
    pixels = ordinary(120, seed=22)
    pixels[:20, 0, 4:8, 0:4] = np.random.default_rng(2).random((20, 4, 4)) > 0.5
    scores = complete(published.anomaly_scores(pixels, methods=["local", "log_likelihood"], alpha=0.1))
    assert scores.by_method["local"].is_anomaly[:20].all()
    assert (scores.by_method["local"].p_value[:20] == 1 / 41).mean() >= 0.9
    most = stats.betabinom(100, 4, 37).ppf(0.999)  # of 41 ranks the highest 4 are flagged at 0.1
    for name, judgement in scores.by_method.items():
        assert judgement.is_anomaly[20:].sum() <= most, name
    assert scores.reliable[20:].mean() > 0.9


def test_the_change_of_variables_is_that_of_the_graph(folder: Path, published: Model) -> None:
    """log_scale_sum is −log |det| of the affine map from plain features to the graph's, found by least squares."""
    features = published.manifest.features
    assert features is not None
    x = np.random.default_rng(23).random((200, *IMAGE.chw), np.float32)
    plain, whitened = features_of(x).reshape(200, -1), run_graph(folder / "run", Runtime("cpu")).of(x).reshape(200, -1)
    jacobian, residual, _, _ = np.linalg.lstsq(np.c_[plain, np.ones(200)], whitened.astype(np.float64), rcond=None)
    assert residual.max() < 1e-6
    assert -np.linalg.slogdet(jacobian[:-1])[1] == pytest.approx(features.log_scale_sum, abs=0.01)


def test_estimates_are_the_closed_form_of_probabilistic_pca(folder: Path, published: Model) -> None:
    """The normal density of NumPy's eigenvectors of the training maps' covariance, σ² of the validation maps."""
    maps = folder / "run" / FOLDER
    train, held_out = (np.load(maps / f"{part}.npy").reshape(-1, MAPS.size) for part in ("train", "validation"))
    values, axes = np.linalg.eigh(np.cov(train.T, bias=True))
    left, kept = values[:-2].mean(), axes[:, -2:]
    centred = held_out - train.mean(axis=0)
    variance = np.square(centred - centred @ kept @ kept.T).sum() / len(held_out) / (MAPS.size - 2)
    covariance = (kept * (values[-2:] - left)) @ kept.T + variance * np.eye(MAPS.size)
    exact = stats.multivariate_normal(train.mean(axis=0), covariance)
    pixels = ordinary(12, seed=27)
    pixels[:3, 0, :4, :4] = 1  # a defect: as exact where maps are strange
    x = run_graph(folder / "run", Runtime("cpu")).of(pixels).reshape(12, -1)
    estimate = complete(published.log_likelihood(pixels, proposal="auto"))
    assert estimate.reliable.all()
    assert (np.abs(estimate.log_likelihood - exact.logpdf(x)) < 3 * estimate.std_error).all()
    by_encoder = complete(published.log_likelihood(pixels, proposal="encoder", num_samples=4))  # which is the posterior
    np.testing.assert_allclose(by_encoder.log_likelihood, exact.logpdf(x), rtol=1e-5, atol=1e-4)
    assert np.abs(by_encoder.posterior_gap).max() < 1e-3


def test_a_network_of_features_trains_and_resumes(folder: Path, tmp_path: Path) -> None:
    arguments = ["fit", "--data", str(folder / "images.npy"), "--out", str(tmp_path / "run"), "--workers", "0"]
    assert main([*arguments, "--features", str(folder / "graph.onnx"), *OPTIONS, *NETWORK]) == 0
    chosen = open_run(tmp_path / "run").description.configuration
    assert (chosen.preset, chosen.likelihood, chosen.max_gradient_norm) == ("mlp", "gaussian", 500)
    assert main([*arguments, "--resume"]) == 0


def test_a_linear_run_that_ended_before_its_weights_were_kept_goes_on(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    weights = load_model(open_run(tmp_path / "run")).vae.state_dict()
    for name in ("checkpoint.pt", "metrics.jsonl"):
        (tmp_path / "run" / name).unlink()
    arguments = ["fit", "--data", str(folder / "images.npy"), "--out", str(tmp_path / "run"), "--workers", "0"]
    assert main([*arguments, "--resume"]) == 0
    for name, again in load_model(open_run(tmp_path / "run")).vae.state_dict().items():
        torch.testing.assert_close(again, weights[name])


def test_a_finished_run_resumes_from_its_own_maps_and_reports(
    folder: Path, published: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "run"
    before = (run / FOLDER / "train.npy").stat().st_mtime_ns
    assert fit(folder, "--resume") == 0
    assert (run / FOLDER / "train.npy").stat().st_mtime_ns == before
    report = (run / "report.html").read_text()
    assert "The most and the least likely images" in report
    assert "Reconstructions" not in report
    assert (run / "curves.png").is_file()
    assert not (run / "samples.png").exists()
    capsys.readouterr()
    assert main(["compare", str(run), str(run), "--data", str(folder / "images.npy"), "--images", "4"]) == 0
    assert "features.onnx" in capsys.readouterr().out
    del published


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--likelihood", "bernoulli"], "features are real numbers: likelihood gaussian"),
        (["--flip"], "flip varies images anew at each use"),
        (["--start-from", "RUN"], "features and start-from do not go together"),
        (["--start-from", "STORE"], "its features are whitened over other images than a run's"),
        (["--size", "16x8"], "the features are of images [1, 12, 8], these are [1, 16, 8]"),
        (["--max-memory", "0.00001"], "raise that, or make features of fewer channels or positions"),
        (["--features", "nowhere.onnx"], "No such file"),
        (["--features", "IMAGES"], "not a valid ONNX graph"),
        (["--width", "8"], "preset linear has no width"),
        (["--latent-dim", "30"], "latent_dim must be below"),
        (["--finish-encoder"], "its encoder is exact"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    folder: Path,
    published: Model,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    problem: str,
) -> None:
    places = {
        "STORE": str(folder / "store" / published.manifest.name),
        "RUN": str(folder / "run"),
        "IMAGES": str(folder / "images.npy"),
    }
    arguments = ["fit", "--data", places["IMAGES"], "--out", str(tmp_path / "new"), "--workers", "0", *OPTIONS]
    arguments += ["--features", str(folder / "graph.onnx"), *(places.get(word, word) for word in more)]
    assert main(arguments) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "new" / "run.json").exists()


def splits(tmp_path: Path, *, count: int = 40) -> DataSplits:
    pixels = ordinary(count, seed=24)
    return DataSplits("gradients", "ab" * 32, pixels[8:], pixels[:8], pixels[:4], pixels[:4])


def test_maps_cut_short_or_of_other_images_are_computed_again(tmp_path: Path) -> None:
    runtime = Runtime("cpu")
    graph = feature_graph(features_graph(), Path("graph.onnx"), runtime)
    given = splits(tmp_path)
    first = feature_splits(tmp_path, given, graph, seed=0, max_gibibytes=1, runtime=runtime)
    expected = np.array(first.splits.train)
    assert first.splits.calibration is given.calibration
    (tmp_path / FOLDER / "train.npy").write_bytes(b"cut short")
    (tmp_path / FOLDER / KEY).unlink()
    again = feature_splits(tmp_path, given, graph, seed=0, max_gibibytes=1, runtime=runtime)
    np.testing.assert_array_equal(again.splits.train, expected)
    assert again.record == first.record
    np.testing.assert_array_equal(run_graph(tmp_path, runtime).of(ordinary(40, seed=24)[:8]), again.splits.validation)
    with pytest.raises(RunError, match="features are gone or of other images"):
        cached_splits(tmp_path, replace(given, sha256="cd" * 32))
    (tmp_path / FOLDER / GRAPH).write_bytes(features_graph())
    with pytest.raises(RunError, match="not the graph that the run was trained with"):
        run_graph(tmp_path, runtime)
    other = feature_splits(
        tmp_path, replace(given, train=ordinary(20, seed=24)), graph, seed=0, max_gibibytes=1, runtime=runtime
    )
    assert len(other.splits.train) == 20


def test_whitening_is_of_scaled_channels_and_scales_are_shrunk_to_their_channel() -> None:
    """A number that never varies is divided by what its channel varies by; the graph's own names do not matter."""
    rng = np.random.default_rng(3)
    maps = (rng.normal(size=(500, 2, 3, 2)) * [[[1, 2], [3, 4], [5, 6]]] + 7).astype(np.float32)
    maps[:, 0, 0, 0] = 1
    whitening = Whitening.fit(lambda: np.split(maps, 5), "toy")
    np.testing.assert_allclose(1 / whitening.inverse_scale[1], maps[:, 1].std(axis=0), rtol=0.15)
    assert np.isfinite(whitening.inverse_scale).all()
    scaled = (maps - whitening.mean) * whitening.inverse_scale
    whitened = whitening.apply(maps).transpose(1, 0, 2, 3).reshape(2, -1)
    correlated = scaled.transpose(1, 0, 2, 3).reshape(2, -1)
    matrix = np.linalg.inv(np.cov(correlated, bias=True) + 0.03 * np.eye(2))
    np.testing.assert_allclose(whitening.matrix @ whitening.matrix, matrix, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(whitened, whitening.matrix @ correlated, atol=1e-5)
    with pytest.raises(DataError, match="the same for all images"):
        Whitening.fit(lambda: [np.ones((4, 2, 1, 1), np.float32)], "toy")


def test_the_folded_graph_computes_what_apply_does_whatever_its_names_are() -> None:
    model = onnx.load_from_string(features_graph())
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "whitening_0"
    runtime = Runtime("cpu")
    plain = feature_graph(model.SerializeToString(), Path(FEATURES), runtime)
    pixels = ordinary(30, seed=25)
    maps = plain.of(pixels)
    whitening = Whitening.fit(lambda: [maps], "toy")
    folded = feature_graph(whitening.fold(plain.content), Path(FEATURES), runtime)
    np.testing.assert_allclose(folded.of(pixels), whitening.apply(maps), atol=1e-5)
