"""The folder of one training run: what defines it, where it stands, and its figures.

run.json          the configuration and the data set's identity; never changed
checkpoint.pt     the state after the last finished epoch, replaced atomically
metrics.jsonl     one line an epoch, those that train the encoder alone included
sessions.jsonl    one line each time that training began or went on: from which epoch, on what device, by which versions
curves.png, reconstructions.png, samples.png
skipped.txt       the images that cannot be read, where there are any
features/         of a run of features: the graph, and the maps that are trained on; see training/features/maps.py
.lock             while a process trains in the folder; see training/fit/lock.py
"""

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from training.configuration import Configuration
from training.data.splits import PARTS, DataSplits
from training.errors import ConfigurationError, RunError
from training.features.maps import FOLDER as FEATURES_FOLDER
from training.features.maps import RunFeatures
from training.files import remove_unfinished, write_atomically
from training.fit.devices import Acceleration
from training.fit.limits import check_limits
from training.fit.lock import LOCK
from training.fit.session import Session

RUN_FORMAT_VERSION = 2
RUN, CHECKPOINT, METRICS, SESSIONS = "run.json", "checkpoint.pt", "metrics.jsonl", "sessions.jsonl"
SKIPPED = "skipped.txt"


@dataclass(frozen=True)
class RunDescription:
    """What a run is made of; a run is resumed only with the very same.

    A run may move to another kind of device, where it goes on within rounding and not bit for bit; compilation, which
    changes no more than rounding either, may then change too. Elsewhere it may not, and the precision never.

    Attributes:
        configuration: the choices.
        data_set: the data set's name.
        sha256: of its pixels.
        image_shape: C, H and W.
        num_images: how many images each part has.
        source: where the data was read from. Not part of the run's identity.
        start: SHA-256 of the weights it began with, where they are another run's; see training/fit/start.py.
        acceleration: how the networks run, `auto` resolved; None in runs begun before it was recorded.
        device: the kind of device it began on, `cpu` or `cuda`; None likewise. Not part of the run's identity.
        features: of a run of features, what they are; `image_shape` is then theirs.
        things: where images were divided by what they show, by what, and how many things each part has.
    """

    configuration: Configuration
    data_set: str
    sha256: str
    image_shape: tuple[int, int, int]
    num_images: Mapping[str, int]
    source: str
    start: str | None = None
    acceleration: Acceleration | None = None
    device: str | None = None
    features: RunFeatures | None = None
    things: Mapping[str, Any] | None = None

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """C, H and W of the images, also of a run of features."""
        return self.image_shape if self.features is None else self.features.image_shape

    def differences(self, other: "RunDescription") -> list[str]:
        """What `other` has otherwise, one phrase for each difference; empty when the two are the same run."""
        mine, theirs = _identity(self), _identity(other)
        if self.acceleration and other.acceleration:
            mine["precision"], theirs["precision"] = self.acceleration.precision, other.acceleration.precision
            if self.device == other.device:
                mine["compiled"], theirs["compiled"] = self.acceleration.compiled, other.acceleration.compiled
        return [f"{key} is {mine[key]!r} there, {theirs[key]!r} now" for key in mine if mine[key] != theirs[key]]


@dataclass(frozen=True)
class Run:
    """A run's folder and description; see `create_run` and `open_run`."""

    folder: Path
    description: RunDescription

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a state to go on from."""
        return (self.folder / CHECKPOINT).exists()

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint, atomically: a kill at any moment leaves the old one or the new one, whole."""
        content = {"format_version": RUN_FORMAT_VERSION, **state}
        write_atomically(self.folder / CHECKPOINT, lambda stream: torch.save(content, stream))

    def load_checkpoint(self, device: torch.device) -> dict[str, Any] | None:
        """The last checkpoint, or None when no epoch has finished yet.

        Raises:
            RunError: the checkpoint cannot be read, or is of another format version.
        """
        if not self.has_checkpoint:
            return None
        file = self.folder / CHECKPOINT
        try:
            state: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise RunError(f"{file}: not a readable checkpoint ({reason})") from error
        if state.get("format_version") != RUN_FORMAT_VERSION:
            raise RunError(f"{file}: format version {state.get('format_version')!r}, not {RUN_FORMAT_VERSION}")
        return state

    def write_skipped(self, problems: Mapping[str, str]) -> None:
        """List the images that cannot be read, by name with what is wrong; no file where there are none."""
        text = "".join(f"{name}: {problem}\n" for name, problem in problems.items())
        if text:
            write_atomically(
                self.folder / SKIPPED, lambda stream: stream.write(text.encode("utf-8", "backslashreplace"))
            )

    def append_metrics(self, figures: Mapping[str, float]) -> None:
        """Add one epoch's line; on disk when this returns."""
        with (self.folder / METRICS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(figures) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def append_session(self, session: Session) -> None:
        """Add a session's line, atomically; a session of which no epoch was kept has none any more."""
        kept = [*self.read_sessions(before=session.first_epoch), session]
        text = "".join(json.dumps(asdict(each)) + "\n" for each in kept)
        write_atomically(self.folder / SESSIONS, lambda stream: stream.write(text.encode()))

    def read_sessions(self, *, before: int | None = None) -> list[Session]:
        """The sessions in order, or those that began before an epoch; none in runs begun before they were recorded."""
        file = self.folder / SESSIONS
        sessions: list[Session] = []
        for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            try:
                session = Session(**json.loads(text))
            except (ValueError, TypeError) as error:
                raise RunError(f"{file}: not a run's sessions ({error})") from error
            if before is None or session.first_epoch < before:
                sessions.append(session)
        return sessions

    def read_metrics(self, num_epochs: int | None = None) -> list[dict[str, float]]:
        """The lines of the first `num_epochs` epochs, or of all; none from one on that a kill cut short."""
        file = self.folder / METRICS
        lines: list[dict[str, float]] = []
        for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            try:
                line = json.loads(text)
            except ValueError:
                break
            if num_epochs is None or line["epoch"] <= num_epochs:
                lines.append(line)
        return lines

    def truncate_metrics(self, num_epochs: int) -> list[dict[str, float]]:
        """Drop the lines of epochs that no checkpoint knows, so that a resumed run writes each epoch once.

        Also what a kill has left of unfinished files. Only for the process that holds the folder.
        """
        for name in (CHECKPOINT, METRICS):
            remove_unfinished(self.folder / name)
        lines = self.read_metrics(num_epochs)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomically(self.folder / METRICS, lambda stream: stream.write(text.encode()))
        return lines


def describe_run(
    configuration: Configuration,
    splits: DataSplits,
    *,
    source: str,
    start: str | None = None,
    acceleration: Acceleration | None = None,
    device: str | None = None,
    features: RunFeatures | None = None,
) -> RunDescription:
    """The description of a run of `configuration` on `splits`, which were read from `source`.

    Raises:
        ConfigurationError: see `check_limits`.
    """
    check_limits(configuration, splits)
    return RunDescription(
        configuration=configuration,
        data_set=splits.name,
        sha256=splits.sha256,
        image_shape=splits.image_shape,
        num_images={part: len(getattr(splits, part)) for part in PARTS},
        source=source,
        start=start,
        acceleration=acceleration,
        device=device,
        features=features,
        things=splits.things,
    )


def create_run(folder: Path, description: RunDescription) -> Run:
    """Begin a run in a folder that is new or empty, or holds nothing but its lock and its features.

    Raises:
        RunError: something is there already.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_new(folder)
        content = {"format_version": RUN_FORMAT_VERSION, **asdict(description)}
        text = json.dumps(content, indent=2) + "\n"
        write_atomically(folder / RUN, lambda stream: stream.write(text.encode()))
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror})") from error
    return Run(folder, description)


def check_new(folder: Path) -> None:
    """Refuse a folder in which no run can begin.

    Raises:
        RunError: something else is there already.
        OSError: it cannot be read.
    """
    if folder.exists() and any(entry.name not in (LOCK, FEATURES_FOLDER) for entry in folder.iterdir()):
        raise RunError(f"{folder} is not empty: continue it with --resume, or choose another folder")


def open_run(folder: Path) -> Run:
    """Open the run in `folder`.

    Raises:
        RunError: there is none, or it is of another format version, or what it is cannot be; the message names it.
    """
    file = folder / RUN
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        if (version := fields.pop("format_version", None)) != RUN_FORMAT_VERSION:
            raise RunError(f"{file}: format version {version!r}, not {RUN_FORMAT_VERSION}")
        # A run begun before there was such a phase has none.
        fields["configuration"] = Configuration(**{"finish_encoder": False, **fields["configuration"]})
        fields["image_shape"] = tuple(fields["image_shape"])
        if fields.get("acceleration") is not None:
            fields["acceleration"] = Acceleration(**fields["acceleration"])
        if (features := fields.get("features")) is not None:
            fields["features"] = RunFeatures(**{**features, "image_shape": tuple(features["image_shape"])})
        return Run(folder, RunDescription(**fields))
    except OSError as error:
        raise RunError(f"{folder}: no training run there ({RUN}: {error.strerror})") from error
    except (ConfigurationError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{file}: not a run's description ({error})") from error


def resume_run(folder: Path, description: RunDescription) -> Run:
    """Open the run in `folder` to go on with it.

    Raises:
        RunError: there is none, or it is of another configuration or other data; the message names what differs.
    """
    run = open_run(folder)
    if differences := run.description.differences(description):
        raise RunError(f"{folder} is another run: {'; '.join(differences)}")
    return run


def _identity(description: RunDescription) -> dict[str, object]:
    return {
        **asdict(description.configuration),
        "data set": description.data_set,
        "data set's sha256": description.sha256,
        "image shape": description.image_shape,
        "start": description.start,
        "features": description.features and description.features.sha256,
        "things": description.things,
    }
