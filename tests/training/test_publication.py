from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import PIL
import pyarrow
import pytest
import torch

from model_store import FITTING, StoreError, list_versions, open_version
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.runtime import Runtime
from service.images.bottom_k import BottomKSketch, image_hashes
from tests.rounding import density_error
from tests.training.measured import network_rounding
from training.data.sources import Source
from training.data.splits import DataSplits
from training.errors import ParityError, RunError
from training.fit.loaded_model import load_model
from training.fit.run import Run, create_run
from training.fit.session import Session
from training.fit.trainer import fit
from training.publish.evaluation import Protocol, in_unit_interval
from training.publish.held_out import held_out_images
from training.publish.publication import Publication, describe, open_stored, publish_run

NATS = density_error(28 * 28, 400)
LAPLACE, FEW = Protocol("laplace", num_samples=40, seed=0), Protocol("encoder", num_samples=10, seed=0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def publication(store: Path, finished_run: Run, splits: DataSplits, runtime: Runtime) -> Publication:
    return publish_run(
        finished_run, splits, name="tiny", store=store, protocol=LAPLACE, encoder_samples=30, runtime=runtime
    )


def test_the_manifest_tells_what_was_done(publication: Publication, store: Path, finished_run: Run) -> None:
    manifest = open_version(store, "tiny").manifest
    assert manifest == publication.stored.manifest
    assert manifest.image.chw == (1, 28, 28)
    assert manifest.latent_dim == 6
    assert manifest.likelihood.kind == "bernoulli"
    assert manifest.preparation.binarisation == "dynamic"
    assert publication.encoder_evaluation is not None
    assert {metric.name: metric.value for metric in manifest.metrics} == {
        "log_likelihood": publication.evaluation.log_likelihood,
        "log_likelihood_encoder": publication.encoder_evaluation.log_likelihood,
        "elbo": publication.evaluation.elbo,
        "bits_per_dim": publication.evaluation.bits_per_dim,
        "reliable": publication.evaluation.reliable,
        "active_units": publication.units.num_active,
    }
    assert manifest.metrics[0].num_images == 100
    protocols = {metric.name: metric.protocol for metric in manifest.metrics}
    assert "proposal laplace, 40 samples" in protocols["log_likelihood"]
    assert "proposal encoder, 30 samples" in protocols["log_likelihood_encoder"]
    provenance = manifest.provenance
    assert provenance.data_set == f"digits.npz (pixels SHA-256 {finished_run.description.sha256})"
    assert provenance.configuration["epochs"] == 25
    assert provenance.configuration["num_images"] == {"train": 160, "validation": 20, "calibration": 20, "test": 100}
    assert provenance.library_versions["torch"] == torch.__version__
    assert provenance.library_versions["pillow"] == PIL.__version__
    assert provenance.library_versions["pyarrow"] == pyarrow.__version__
    assert (provenance.configuration["precision"], provenance.configuration["compiled"]) == ("float32", "no")
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    assert provenance.configuration["trained_on"] == f"from epoch 1: cpu ({capability}), {threads} threads, 1 process"


def test_the_manifest_tells_of_every_session(finished_run: Run) -> None:
    old, new = {"torch": "2.12.1", "pillow": "13.0.0"}, {"torch": "2.13.0", "pillow": "13.0.0"}
    gpu = "cuda (NVIDIA H100 80GB HBM3)"
    sessions = [
        Session(1, gpu, "bfloat16", True, 8, 2, old),
        Session(7, gpu, "bfloat16", True, 8, 1, old),
        Session(9, "cpu (AVX512)", "bfloat16", False, 4, 1, new),
    ]
    provenance = describe(finished_run.description, "tiny", FEW, sessions=sessions).provenance
    assert provenance.library_versions["torch"] == "2.12.1, then 2.13.0"
    assert provenance.library_versions["pillow"] == "13.0.0"
    assert provenance.library_versions["onnx"] == onnx.__version__
    found = {name: provenance.configuration[name] for name in ("precision", "compiled", "trained_on")}
    assert found == {
        "precision": "bfloat16",
        "compiled": "yes, then no",
        "trained_on": f"from epoch 1: {gpu}, 2 processes; from epoch 7: {gpu}, 1 process; "
        "from epoch 9: cpu (AVX512), 4 threads, 1 process",
    }
    # What an older run did not record is left out.
    assert (
        not {"precision", "compiled", "trained_on"}
        & describe(finished_run.description, "tiny", FEW).provenance.configuration.keys()
    )


def test_no_file_of_a_version_tells_of_this_machine(publication: Publication, finished_run: Run) -> None:
    secrets = [str(finished_run.folder), finished_run.description.source, str(Path.home()), str(Path.cwd())]
    for file in publication.stored.path.iterdir():
        content = file.read_bytes()
        assert not [secret for secret in secrets if len(secret) > 1 and secret.encode() in content], file.name


def test_the_calibration_is_what_a_request_would_get(
    publication: Publication, splits: DataSplits, runtime: Runtime
) -> None:
    protocol = publication.stored.manifest.calibration
    assert (protocol.proposal, protocol.num_samples, protocol.seed, protocol.num_images) == ("laplace", 40, 0, 20)
    model = Model.open(publication.stored, runtime=runtime)
    record = complete(model.log_likelihood(in_unit_interval(splits.calibration), proposal="laplace", num_samples=40))
    assert np.allclose(record.log_likelihood, publication.stored.calibration["log_likelihood"], atol=NATS)
    assert np.allclose(record.elbo, publication.stored.calibration["elbo"], atol=NATS)
    statistics = complete(
        model.statistics(in_unit_interval(splits.calibration), proposal="laplace", num_samples=40, seed=0)
    )
    for name, array in statistics.measured().items():
        assert np.allclose(array, publication.stored.calibration[name], atol=NATS), name
    compared = publication.stored.calibration[FITTING] == 0
    scores = complete(model.anomaly_scores(in_unit_interval(splits.calibration[compared])))
    assert list(scores.by_method) == ["combined"]
    assert scores.calibration_size == compared.sum() == 14
    assert np.abs(np.sort(scores.by_method["combined"].p_value) - np.arange(2, 16) / 15).max() < 0.15


def test_the_manifest_knows_its_training_images(publication: Publication, splits: DataSplits) -> None:
    sketch = BottomKSketch.from_json(publication.stored.manifest.provenance.configuration["training_images"])
    assert sketch is not None
    for images, found in ((splits.train, len(splits.train)), (splits.calibration, 0), (splits.test, 0)):
        assert isinstance(images, np.ndarray)
        assert sketch.look_up(image_hashes(in_unit_interval(images))) == (len(images), found)


def test_the_published_graphs_are_the_averaged_weights(
    publication: Publication, finished_run: Run, splits: DataSplits, runtime: Runtime
) -> None:
    model = Model.open(publication.stored, runtime=runtime)
    pixels = np.where(splits.test > 127, 1, 0).astype(np.float32)
    vae, x = load_model(finished_run)[0], torch.from_numpy(pixels)
    with torch.no_grad():
        mean, _ = vae.encode(x)
    rounding = network_rounding(vae, x)
    assert rounding < 1e-4
    assert np.allclose(complete(model.encode(pixels)).mean, mean.numpy(), rtol=0, atol=rounding)
    assert publication.largest_difference < rounding


@pytest.mark.parametrize(("proposal", "encoder_samples"), [("laplace", 0), ("encoder", 5)])
def test_the_encoders_estimate_can_be_left_out(
    tmp_path: Path, finished_run: Run, splits: DataSplits, runtime: Runtime, proposal: str, encoder_samples: int
) -> None:
    protocol, few = Protocol(proposal, num_samples=4, seed=0), replace(splits, test=splits.test[:5])
    published = publish_run(
        finished_run,
        few,
        name="tiny",
        store=tmp_path,
        protocol=protocol,
        encoder_samples=encoder_samples,
        runtime=runtime,
    )
    assert published.encoder_evaluation is None
    names = [metric.name for metric in published.stored.manifest.metrics]
    assert names == ["log_likelihood", "elbo", "bits_per_dim", "reliable", "active_units"]
    assert published.stored.manifest.calibration.proposal == proposal


def test_a_manifest_that_does_not_tell_the_split(publication: Publication) -> None:
    provenance = publication.stored.manifest.provenance
    other = provenance.model_copy(update={"configuration": {"method": "another program's"}})
    sha256 = publication.stored.manifest.provenance.data_set.split()[-1].rstrip(")")
    source = Source("digits", sha256, np.zeros((200, 1, 28, 28), np.uint8))
    assert len(held_out_images(source, provenance)[0]) == 20
    with pytest.raises(RunError, match="digits: the model was trained on these images"):
        held_out_images(source, other)


@pytest.mark.usefixtures("exported_anew")
def test_publishing_again_adds_a_version(
    publication: Publication, store: Path, finished_run: Run, splits: DataSplits, runtime: Runtime
) -> None:
    again = publish_run(
        finished_run, splits, name="tiny", store=store, protocol=LAPLACE, encoder_samples=30, runtime=runtime
    )
    assert again.stored.manifest.version == 2
    assert again.evaluation == publication.evaluation
    assert again.stored.encoder == publication.stored.encoder
    assert again.stored.manifest.sha256 == publication.stored.manifest.sha256
    assert open_stored(store / "tiny").manifest.version == 2
    assert open_stored(store / "tiny" / "1").manifest.version == 1
    with pytest.raises(StoreError, match="has no version 3"):
        open_stored(store / "tiny" / "3")


def test_graphs_that_differ_are_not_published(
    tmp_path: Path, finished_run: Run, splits: DataSplits, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.publish.export.PARITY_TOLERANCE", -1.0)
    with pytest.raises(ParityError, match="output 'mean' at batch 1 differs"):
        publish_run(finished_run, splits, name="tiny", store=tmp_path, protocol=FEW, encoder_samples=0, runtime=runtime)
    assert list_versions(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_scores_can_have_a_protocol_of_their_own(
    tmp_path: Path, finished_run: Run, splits: DataSplits, runtime: Runtime
) -> None:
    scoring = Protocol("encoder", 7, 0)
    published = publish_run(
        finished_run,
        splits,
        name="tiny",
        store=tmp_path,
        protocol=FEW,
        encoder_samples=0,
        runtime=runtime,
        scoring=scoring,
    )
    manifest = published.stored.manifest
    assert (manifest.calibration.proposal, manifest.calibration.num_samples) == ("encoder", 7)
    assert f"proposal {FEW.proposal}, {FEW.num_samples} samples" in manifest.metrics[0].protocol
    pixels = splits.calibration[:5].astype(np.float32) / np.float32(255)
    model = Model.open(published.stored, runtime=runtime)
    again = complete(model.statistics(pixels, proposal="encoder", num_samples=7, seed=0))
    np.testing.assert_allclose(again.elbo, published.stored.calibration["elbo"][:5], rtol=0, atol=NATS)


def test_an_unfinished_run_is_not_published(
    tmp_path: Path, finished_run: Run, splits: DataSplits, runtime: Runtime
) -> None:
    run = create_run(tmp_path / "run", finished_run.description)
    with pytest.raises(RunError, match="no epoch has finished yet"):
        publish_run(run, splits, name="tiny", store=tmp_path, protocol=FEW, encoder_samples=0, runtime=runtime)

    def stop(figures: object, model: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(run, splits, device=torch.device("cpu"), on_epoch=stop)
    with pytest.raises(RunError, match="1 of 25 epochs are done"):
        publish_run(run, splits, name="tiny", store=tmp_path, protocol=FEW, encoder_samples=0, runtime=runtime)


def test_other_data_than_the_runs_is_refused(
    tmp_path: Path, finished_run: Run, splits: DataSplits, runtime: Runtime
) -> None:
    other = replace(splits, sha256="0" * 64)
    with pytest.raises(RunError, match=r"was not trained on these images of digits\.npz"):
        publish_run(finished_run, other, name="tiny", store=tmp_path, protocol=FEW, encoder_samples=0, runtime=runtime)
