"""From a finished run to a version in the store: export, compare, evaluate, calibrate, publish."""

import dataclasses
import importlib.metadata
import platform
from pathlib import Path

import torch

from model_store import (
    BernoulliSpec,
    CalibrationProtocol,
    Description,
    ImageShape,
    PixelPreparation,
    Provenance,
    StoredModel,
    open_version,
    publish,
)
from service.engine.model import Model
from service.engine.runtime import Runtime
from training.data import DataSplits, binarise, derive_seed, unit_pixels
from training.errors import RunError
from training.evaluate import Evaluation, Protocol, evaluate, score
from training.export import PARITY_BATCHES, ExportedGraphs, check_parity, export
from training.networks import Vae
from training.run import Run, RunDescription
from training.trainer import build_state

SCORING_SEED = 0
SCORING_PROPOSAL = "encoder"
_PARITY = 4  # a stream of random numbers
_LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "torch")


@dataclasses.dataclass(frozen=True)
class Publication:
    """What `publish_run` did: the version in the store, its test figures, and how far ONNX is from PyTorch."""

    stored: StoredModel
    evaluation: Evaluation
    largest_difference: float


def load_model(run: Run) -> tuple[Vae, int]:
    """The averaged model of the run's last finished epoch, on the CPU, and that epoch's number.

    Raises:
        RunError: no epoch has finished, or the checkpoint cannot be read.
    """
    device = torch.device("cpu")
    checkpoint = run.load_checkpoint(device)
    if checkpoint is None:
        raise RunError(f"{run.folder}: no epoch has finished yet")
    description = run.description
    state = build_state(description.configuration, torch.zeros(description.image_shape), device)
    epoch = state.restore(checkpoint)
    return state.averaged, epoch


def describe(run: RunDescription, name: str, *, num_samples: int) -> Description:
    """The manifest's fields, but for the metrics; nothing in it tells where on which machine the model was trained."""
    channels, height, width = run.image_shape
    return Description(
        name=name,
        image=ImageShape(channels=channels, height=height, width=width),
        preparation=PixelPreparation(binarisation=run.configuration.binarisation),
        latent_dim=run.configuration.latent_dim,
        likelihood=BernoulliSpec(),
        calibration=CalibrationProtocol(
            proposal=SCORING_PROPOSAL,
            num_samples=num_samples,
            seed=SCORING_SEED,
            num_images=run.num_images["calibration"],
            source=f"images of {run.data_set} held out of training, prepared as the service prepares a request's",
        ),
        provenance=Provenance(
            data_set=f"{run.data_set} (pixels SHA-256 {run.sha256})",
            seed=run.configuration.seed,
            configuration=dataclasses.asdict(run.configuration) | {"num_images": dict(run.num_images)},
            library_versions=_library_versions(),
        ),
    )


def load_engine(description: Description, graphs: ExportedGraphs, *, runtime: Runtime) -> Model:
    """The serving engine's model of graphs that are not in a store (yet)."""
    return Model(description, graphs.encoder, graphs.decoder, runtime=runtime)


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
    run: Run, splits: DataSplits, *, name: str, store: Path, num_samples: int, runtime: Runtime, progress: bool = False
) -> Publication:
    """Publish the run's model as the next version of `name`; nothing is written before every check has passed.

    Args:
        run: trained to its last epoch.
        splits: the run's data.
        name: of the model in the store.
        store: the store's root folder.
        num_samples: importance samples an image, for test figures and calibration scores.
        runtime: where the exported graphs run.
        progress: draw a live bar on stderr.

    Raises:
        RunError: training has not finished, or the splits are of other data.
        ParityError: ONNX and PyTorch differ; see `check_parity`.
        StoreError: see `model_store.publish`.
    """
    vae, epoch = load_model(run)
    if splits.sha256 != run.description.sha256:
        raise RunError(f"{run.folder}: was not trained on these images of {splits.name}: their SHA-256 differs")
    if epoch < (epochs := run.description.configuration.epochs):
        raise RunError(f"{run.folder}: {epoch} of {epochs} epochs are done; finish it with fit --resume")
    description = describe(run.description, name, num_samples=num_samples)
    graphs = export(vae)
    difference = check_parity(vae, graphs, _parity_inputs(run, splits), runtime=runtime)
    model = load_engine(description, graphs, runtime=runtime)
    protocol = Protocol(SCORING_PROPOSAL, num_samples, SCORING_SEED)
    evaluation = evaluate(model, splits.test, protocol, progress=progress)
    calibration = score(model, splits.calibration, protocol, progress=progress)
    stored = publish(
        store,
        description.model_copy(update={"metrics": evaluation.as_metrics()}),
        encoder=graphs.encoder,
        decoder=graphs.decoder,
        calibration={"log_likelihood": calibration.log_likelihood, "elbo": calibration.elbo},
    )
    return Publication(stored, evaluation, difference)


def _parity_inputs(run: Run, splits: DataSplits) -> torch.Tensor:
    configuration = run.description.configuration
    generator = torch.Generator().manual_seed(derive_seed(configuration.seed, _PARITY))
    images = unit_pixels(torch.from_numpy(splits.validation[: max(PARITY_BATCHES)]))
    return binarise(images, configuration.binarisation, generator=generator)


def _library_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue  # of the two ONNX Runtimes only one is installed
    return versions
