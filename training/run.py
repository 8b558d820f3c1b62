"""The folder of one training run: what defines it, where it stands, and its figures.

run.json          the configuration and the data set's identity; never changed
checkpoint.pt     the state after the last finished epoch, replaced atomically
metrics.jsonl     one line an epoch
curves.png, reconstructions.png, samples.png
.lock             while a process trains in the folder; see training/lock.py
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
from training.data import PARTS, DataSplits
from training.errors import ConfigurationError, RunError
from training.files import remove_unfinished, write_atomically
from training.lock import LOCK

RUN_FORMAT_VERSION = 2
RUN, CHECKPOINT, METRICS = "run.json", "checkpoint.pt", "metrics.jsonl"


@dataclass(frozen=True)
class RunDescription:
    """What a run is made of; a run is resumed only with the very same.

    Attributes:
        configuration: the choices.
        data_set: the data set's name.
        sha256: of its pixels.
        image_shape: C, H and W.
        num_images: how many images each part has.
        source: where the data was read from. Not part of the run's identity.
        start: SHA-256 of the weights it began with, where they are another run's; see training/start.py.
    """

    configuration: Configuration
    data_set: str
    sha256: str
    image_shape: tuple[int, int, int]
    num_images: Mapping[str, int]
    source: str
    start: str | None = None

    def differences(self, other: "RunDescription") -> list[str]:
        """What `other` has otherwise, one phrase for each difference; empty when the two are the same run."""
        mine, theirs = _identity(self), _identity(other)
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

    def append_metrics(self, figures: Mapping[str, float]) -> None:
        """Add one epoch's line; on disk when this returns."""
        with (self.folder / METRICS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(figures) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def read_metrics(self, num_epochs: int) -> list[dict[str, float]]:
        """The lines of the first `num_epochs` epochs; a line that a kill cut short, and any after it, is not there."""
        file = self.folder / METRICS
        lines: list[dict[str, float]] = []
        for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            try:
                line = json.loads(text)
            except ValueError:
                break
            if line["epoch"] <= num_epochs:
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
    configuration: Configuration, splits: DataSplits, *, source: str, start: str | None = None
) -> RunDescription:
    """The description of a run of `configuration` on `splits`, which were read from `source`.

    Raises:
        ConfigurationError: `shift` is not less than the images' height and width.
    """
    if configuration.shift >= (smallest := min(splits.image_shape[1:])):
        raise ConfigurationError(f"shift must be less than the images' {smallest} pixels, not {configuration.shift}")
    return RunDescription(
        configuration=configuration,
        data_set=splits.name,
        sha256=splits.sha256,
        image_shape=splits.image_shape,
        num_images={part: len(getattr(splits, part)) for part in PARTS},
        source=source,
        start=start,
    )


def create_run(folder: Path, description: RunDescription) -> Run:
    """Begin a run in a folder that is new or empty, or holds its lock alone.

    Raises:
        RunError: something is there already.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(entry.name != LOCK for entry in folder.iterdir()):
            raise RunError(f"{folder} is not empty: continue it with --resume, or choose another folder")
        content = {"format_version": RUN_FORMAT_VERSION, **asdict(description)}
        text = json.dumps(content, indent=2) + "\n"
        write_atomically(folder / RUN, lambda stream: stream.write(text.encode()))
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror})") from error
    return Run(folder, description)


def open_run(folder: Path) -> Run:
    """Open the run in `folder`.

    Raises:
        RunError: there is none, or it is of another format version.
    """
    file = folder / RUN
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        if (version := fields.pop("format_version", None)) != RUN_FORMAT_VERSION:
            raise RunError(f"{file}: format version {version!r}, not {RUN_FORMAT_VERSION}")
        fields["configuration"] = Configuration(**fields["configuration"])
        fields["image_shape"] = tuple(fields["image_shape"])
        return Run(folder, RunDescription(**fields))
    except OSError as error:
        raise RunError(f"{folder}: no training run there ({RUN}: {error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
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
    }
