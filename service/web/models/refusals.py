"""Why versions are refused, and what clients are told about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model_store import InvalidArtifactError
from service.web.schemas import RefusedVersion

Key = tuple[str, int]
"""The name and version of a model."""
Stamp = tuple[tuple[str, int, int, int], ...]
"""See `model_store.version_stamp`."""


@dataclass(frozen=True)
class Refusal:
    """Why a version is refused, and its stamp then. It is not read again before the stamp changes."""

    stamp: Stamp
    file: Path
    problem: str


def refused_versions(
    name: str, refused: Mapping[Key, Refusal], unreadable: Mapping[str, InvalidArtifactError]
) -> list[RefusedVersion]:
    """The refusals of one model: first of its folder, if that cannot be listed, then of versions in ascending order.

    Clients are not told where the store is on the machine.
    """
    whole = [RefusedVersion(version=None, reason=f"{name}: {unreadable[name].problem}")] if name in unreadable else []
    return whole + [
        RefusedVersion(version=version, reason=f"{refusal.file.name}: {refusal.problem}")
        for (other, version), refusal in sorted(refused.items(), key=lambda item: item[0])
        if other == name
    ]
