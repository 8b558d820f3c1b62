"""On what, and by which versions, a run was trained: for its manifest."""

import itertools
from collections.abc import Sequence

from training.fit.loaded_model import FinishedEncoder
from training.fit.run import RunDescription
from training.fit.session import Session

FINISHED_ENCODER = "finished_encoder"
"""In the manifest: what training the encoder alone has gained, the fields of `FinishedEncoder`."""
BESIDE = "num_images", "start", "things", "features", "precision", "compiled", "trained_on", FINISHED_ENCODER
"""In the manifest among the configuration's fields, without being one: what `beside_the_configuration` says."""


def beside_the_configuration(
    run: RunDescription, sessions: Sequence[Session], finished_encoder: FinishedEncoder | None
) -> dict[str, object]:
    """What a manifest holds among the configuration's fields, without being one of them."""
    beside: dict[str, object] = {"num_images": dict(run.num_images)}
    if run.start is not None:
        beside["start"] = f"weights SHA-256 {run.start}"
    if run.things is not None:
        beside["things"] = dict(run.things)
    if run.features is not None:
        beside["features"] = f"of a graph of SHA-256 {run.features.sha256}, whitened over the training images"
    if finished_encoder is not None:
        beside[FINISHED_ENCODER] = finished_encoder._asdict()
    if sessions:
        beside["precision"] = _one_after_another([session.precision for session in sessions])
        beside["compiled"] = _one_after_another(["yes" if session.compiled else "no" for session in sessions])
        beside["trained_on"] = "; ".join(map(_in_words, sessions))
    return beside


def _in_words(session: Session) -> str:
    """`from epoch 1: cpu (AVX2), 2 threads, 1 process`."""
    threads = f"{session.num_threads} threads, " if session.device.startswith("cpu") else ""
    processes = "1 process" if session.num_processes == 1 else f"{session.num_processes} processes"
    return f"from epoch {session.first_epoch}: {session.device}, {threads}{processes}"


def versions_in_training(sessions: Sequence[Session]) -> dict[str, str]:
    """Of the libraries that training uses; where a run went on with another version, both."""
    libraries = {library for session in sessions for library in session.library_versions}
    return {
        library: _one_after_another([session.library_versions.get(library, "none") for session in sessions])
        for library in sorted(libraries)
    }


def _one_after_another(values: Sequence[str]) -> str:
    """Equal neighbours once: `2.12.1, then 2.13.0`."""
    return ", then ".join(value for value, _ in itertools.groupby(values))
