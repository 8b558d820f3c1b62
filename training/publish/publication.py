"""From a finished run to a version in the store: export, compare, evaluate, calibrate, publish."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model_store import (
    FITTING,
    CalibrationProtocol,
    Description,
    ImageShape,
    Metric,
    Provenance,
    StoredModel,
    open_version,
    publish,
)
from service.engine.model import Model
from service.engine.runtime import Runtime
from service.images.bottom_k import BottomKSketch
from service.images.brightness import BRIGHTNESS, Brightness, mean_pixels
from service.progress import Progress
from training.data.image_files import Pixels
from training.data.preparation import stored_preparation
from training.data.splits import DataSplits, Images, binarise, derive_seed, unit_pixels
from training.errors import RunError
from training.features.graph import FeatureGraph
from training.fit.loaded_model import FinishedEncoder, load_model
from training.fit.run import Run, RunDescription
from training.fit.session import Session
from training.fit.versions import OF_PUBLICATION, library_versions
from training.likelihoods import build_likelihood, spec_of
from training.publish.detection import Detection, detect
from training.publish.evaluation import (
    Evaluation,
    Protocol,
    calibration_arrays,
    evaluate,
    image_batches,
    image_statistics,
)
from training.publish.export import PARITY_BATCHES, ExportedGraphs, check_parity, export
from training.publish.features import checked_maps, features_of, stored_features
from training.publish.held_out import TRAINING_IMAGES, fingerprint_of
from training.publish.provenance import beside_the_configuration, versions_in_training
from training.publish.units import LatentUnits, latent_units

SCORING_SEED = 0
_PARITY = 4  # a stream of random numbers


@dataclasses.dataclass(frozen=True)
class Publication:
    """What `publish_run` did.

    Attributes:
        stored: the version in the store.
        evaluation: figures of the test images.
        encoder_evaluation: the same by the literature's protocol, samples from the encoder; None where left out.
        units: what each latent unit carries, over the test images.
        detection: how well scores tell images of defects from the test images; None where there are none.
        largest_difference: how far ONNX is from PyTorch.
        model: what was measured.
    """

    stored: StoredModel
    evaluation: Evaluation
    encoder_evaluation: Evaluation | None
    units: LatentUnits
    detection: Detection | None
    largest_difference: float
    model: Model


def describe(
    run: RunDescription,
    name: str,
    protocol: Protocol,
    *,
    sessions: Sequence[Session] = (),
    finished_encoder: FinishedEncoder | None = None,
) -> Description:
    """The manifest's fields, but for the metrics; no path and no name of a machine is in it.

    `protocol` is that of the calibration scores; `sessions` say on what the model was trained, and by which versions;
    `finished_encoder` what training the encoder alone has gained.
    """
    channels, height, width = run.pixel_shape
    kind = run.configuration.likelihood
    return Description(
        name=name,
        image=ImageShape(channels=channels, height=height, width=width),
        preparation=stored_preparation(run.configuration, run.pixel_shape),
        features=stored_features(run),
        latent_dim=run.configuration.latent_dim,
        likelihood=spec_of(build_likelihood(kind, run.image_shape, **run.configuration.likelihood_options)),
        calibration=CalibrationProtocol(
            proposal=protocol.proposal,
            num_samples=protocol.num_samples,
            seed=protocol.seed,
            num_images=run.num_images["calibration"],
            source=f"images of {run.data_set} held out of training, prepared as the service prepares a request's",
        ),
        provenance=Provenance(
            data_set=f"{run.data_set} {fingerprint_of(run.sha256)}",
            seed=run.configuration.seed,
            configuration=dataclasses.asdict(run.configuration)
            | beside_the_configuration(run, sessions, finished_encoder),
            library_versions=library_versions(OF_PUBLICATION) | versions_in_training(sessions),
        ),
    )


def load_engine(
    description: Description,
    graphs: ExportedGraphs,
    *,
    runtime: Runtime,
    chunk_rows: int | None = None,
    features: FeatureGraph | None = None,
) -> Model:
    """The serving engine's model of graphs that are not in a store (yet); `chunk_rows` as `Model` has it."""
    first = features.content if features else None
    return Model(description, **vars(graphs), features=first, runtime=runtime, chunk_rows=chunk_rows)


def open_stored(path: Path) -> StoredModel:
    """The version in the folder `store/NAME/VERSION`, or the latest one in `store/NAME`.

    Raises:
        StoreError: there is none, or it is not whole.
    """
    path = path.resolve()
    if path.name.isdigit() and path.parent.name:
        return open_version(path.parent.parent, path.parent.name, int(path.name))
    return open_version(path.parent, path.name)


def publish_run(
    run: Run,
    splits: DataSplits,
    *,
    name: str,
    store: Path,
    protocol: Protocol,
    encoder_samples: int,
    runtime: Runtime,
    scoring: Protocol | None = None,
    test: Images | None = None,
    defects: Mapping[str, Pixels] | None = None,
    progress: bool = False,
) -> Publication:
    """Publish the run's model as the next version of `name`; nothing is written before every check has passed.

    Args:
        run: trained to its end.
        splits: the run's data.
        name: of the model in the store.
        store: the store's root folder.
        protocol: of the test figures.
        encoder_samples: how many samples an image a second estimate takes from the encoder, as the literature's do; 0
            leaves it out, and so does a protocol whose proposal is the encoder already.
        runtime: where the exported graphs run.
        scoring: of anomaly scores and the calibration; by default that of the test figures.
        test: of which the figures are taken; by default all test images of the splits.
        defects: images [N, C, H, W] of defects by kind, prepared as the run's data.
        progress: say on stderr how far it has come.

    Raises:
        RunError: training has not finished, or the splits are of other data.
        ParityError: ONNX and PyTorch differ; see `check_parity`.
        StoreError: see `model_store.publish`.
    """
    loaded = load_model(run)
    if splits.sha256 != run.description.sha256:
        raise RunError(f"{run.folder}: was not trained on these images of {splits.name}: their SHA-256 differs")
    if (things := splits.things) != run.description.things:
        raise RunError(f"{run.folder}: images were divided by {run.description.things} in training, by {things} now")
    if not loaded.finished:
        epochs = run.description.configuration.epochs
        state = "its encoder is not" if loaded.trained else f"{loaded.epoch} of {epochs} epochs are"
        raise RunError(f"{run.folder}: {state} done; finish it with fit --resume")
    vae = loaded.vae
    scoring = scoring or protocol
    description = describe(
        run.description, name, scoring, sessions=run.read_sessions(), finished_encoder=loaded.finished_encoder
    )
    graphs, features = export(vae), features_of(run, runtime)
    difference = check_parity(vae, graphs, _parity_inputs(run, splits, features), runtime=runtime)
    model = load_engine(description, graphs, runtime=runtime, features=features)
    test = splits.test if test is None else test
    drawn = run.description.configuration.binarisation == "dynamic"  # test images afresh, and other images not
    shared = bool(defects) and scoring == protocol and not drawn
    evaluation = evaluate(model, test, protocol, statistics=shared, progress=progress)
    encoder_evaluation = None
    if encoder_samples and protocol.proposal != "encoder":
        encoder_protocol = Protocol("encoder", encoder_samples, protocol.seed)
        encoder_evaluation = evaluate(model, test, encoder_protocol, progress=progress)
    units = latent_units(model, test, seed=protocol.seed)
    calibration = calibration_arrays(model, splits.calibration, scoring, progress=progress)
    if splits.division is not None:
        calibration[FITTING] = splits.division.fitting
    detection = None
    if defects:
        ordinary = evaluation.statistics or image_statistics(model, test, scoring, "scoring", progress=progress)
        strange = {
            kind: image_statistics(model, images, scoring, f"scoring {kind}", progress=progress)
            for kind, images in defects.items()
        }
        detection = detect(calibration, ordinary, strange)
    with Progress("hashing training images", len(splits.train), shown=progress) as bar:
        means: list[NDArray[np.float64]] = []
        sketch = BottomKSketch.of(_measured(image_batches(splits.train), bar, means))
    known = {TRAINING_IMAGES: sketch.as_json(), BRIGHTNESS: Brightness.of(means).as_json()}
    configuration = description.provenance.configuration | known
    provenance = description.provenance.model_copy(update={"configuration": configuration})
    metrics = _metrics(evaluation, encoder_evaluation, units) + (detection.as_metrics() if detection else ())
    stored = publish(
        store,
        description.model_copy(update={"metrics": metrics, "provenance": provenance}),
        **vars(graphs),
        calibration=calibration,
        features=features.content if features else None,
    )
    return Publication(stored, evaluation, encoder_evaluation, units, detection, difference, model)


def _measured(batches: Iterable[Pixels], progress: Progress, means: list[NDArray[np.float64]]) -> Iterator[Pixels]:
    """The same batches; their images' mean pixels are added to `means`."""
    for batch in batches:
        means.append(mean_pixels(batch))
        yield batch
        progress.advance(len(batch))


def _metrics(evaluation: Evaluation, encoder_evaluation: Evaluation | None, units: LatentUnits) -> tuple[Metric, ...]:
    """The manifest's metrics; of the encoder's figures only log P(x), the others being near the same."""
    metrics = (*evaluation.as_metrics(), units.as_metric())
    if encoder_evaluation is None:
        return metrics
    by_encoder = encoder_evaluation.as_metrics()[0].model_copy(update={"name": "log_likelihood_encoder"})
    return (metrics[0], by_encoder, *metrics[1:])


def _parity_inputs(run: Run, splits: DataSplits, features: FeatureGraph | None) -> torch.Tensor:
    if features is not None:
        return checked_maps(run, splits, features)
    configuration = run.description.configuration
    generator = torch.Generator().manual_seed(derive_seed(configuration.seed, _PARITY))
    images = unit_pixels(torch.from_numpy(splits.validation[: max(PARITY_BATCHES)]))
    return binarise(images, configuration.binarisation, generator=generator)
