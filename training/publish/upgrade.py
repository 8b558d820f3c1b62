"""Versions of the store's format 1, published again in format 2: `python -m training upgrade STORE`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store import (
    FORMAT_VERSION,
    Description,
    StoredModel,
    StoreError,
    list_store,
    open_version,
    pin_notice,
    publish,
)
from service.engine.arrays import Float64Array
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.runtime import Runtime
from training.errors import LikelihoodError, ParityError, TrainingError
from training.likelihoods import likelihood_of
from training.publish.likelihood_export import export_likelihood

AGREEMENT, _RELATIVE_AGREEMENT = 1e-6, 1e-7
"""How far log P(x) may move: nats, and where that is more, a share of it that float32 does not resolve."""
_NUM_IMAGES, _NUM_SAMPLES = 8, 50


def upgrade(store: Path, name: str | None = None, *, runtime: Runtime, tell: Callable[[str], None]) -> int:
    """Publish each model's newest version in the newest format, where it is not; returns how many could not be.

    Encoder, decoder, calibration, metrics and provenance stay as they are, to the byte; what is new is
    `likelihood.onnx`, exported from the class that the manifest names. Before it is published, log P(x) of drawn
    images is compared: see `AGREEMENT`. One model that cannot be upgraded keeps no other from it.

    Args:
        store: its root folder.
        name: of one model; without it, of all.
        runtime: where both versions are opened.
        tell: told each step, in a line.

    Raises:
        StoreError: the store cannot be listed; or the one model that was named cannot be read.
        TrainingError: the one model that was named cannot be upgraded.
    """
    if name is not None:
        _upgrade_one(store, name, runtime, tell)
        return 0
    listing = list_store(store)
    failed = len(listing.unreadable)
    for model, error in listing.unreadable.items():
        tell(f"{model}: not upgraded: {error}")
    for model in sorted(listing.versions):
        try:
            _upgrade_one(store, model, runtime, tell)
        except (StoreError, TrainingError) as error:
            failed += 1
            tell(f"{model}: not upgraded: {error}")
    if not listing.versions and not failed:
        tell(f"{store}: no model is there")
    return failed


def _upgrade_one(store: Path, name: str, runtime: Runtime, tell: Callable[[str], None]) -> None:
    versions = list_store(store).versions.get(name)
    stored = open_version(
        store, name, versions[-1] if versions else None
    )  # the newest, also where an older one is pinned
    manifest = stored.manifest
    if manifest.format_version == FORMAT_VERSION:
        tell(f"{name} version {manifest.version}: of format {FORMAT_VERSION} already")
        return
    tell(f"{name} version {manifest.version}: exporting likelihood {manifest.likelihood.kind}")
    try:
        likelihood = export_likelihood(likelihood_of(manifest.likelihood, manifest.image.chw))
    except LikelihoodError as error:
        raise LikelihoodError(f"{stored.path}: {error}") from error
    description = Description(**{field: getattr(manifest, field) for field in Description.model_fields})
    difference = _check_agreement(stored, description, likelihood, runtime)
    new = publish(
        store,
        description,
        encoder=stored.encoder,
        decoder=stored.decoder,
        likelihood=likelihood,
        calibration=stored.calibration,
    )
    tell(
        f"{name}: published version {new.manifest.version}, of format {FORMAT_VERSION}; log P(x) of {_NUM_IMAGES} "
        f"drawn images differs by at most {difference:.1g} nats"
    )
    if notice := pin_notice(store, name, new.manifest.version):
        tell(notice)


def _check_agreement(stored: StoredModel, description: Description, likelihood: bytes, runtime: Runtime) -> float:
    """The largest difference of log P(x) between a version and its successor, in nats.

    Raises:
        ParityError: it is more than rounding.
    """
    old = Model.open(stored, runtime=runtime)
    new = Model(description, stored.encoder, stored.decoder, likelihood, runtime=runtime)
    drawn = complete(old.sample(_NUM_IMAGES // 2, seed=0)).images
    noise = np.random.default_rng(0).random(drawn.shape, np.float32)
    pixels = np.concatenate([np.clip(drawn, 0, 1), noise])
    before, after = (_log_likelihoods(model, pixels) for model in (old, new))
    difference = np.abs(before - after)
    if not (difference <= np.maximum(AGREEMENT, _RELATIVE_AGREEMENT * np.abs(before))).all():
        raise ParityError(f"{stored.path}: log P(x) of a drawn image would change by {difference.max():.3g} nats")
    return float(difference.max())


def _log_likelihoods(model: Model, pixels: NDArray[np.float32]) -> Float64Array:
    """Of each image by the encoder's samples, which the likelihood has no part in choosing: [N]."""
    return complete(model.log_likelihood(pixels, proposal="encoder", num_samples=_NUM_SAMPLES)).log_likelihood
