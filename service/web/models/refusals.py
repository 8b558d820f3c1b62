"""What is wrong with versions that are refused, and what a client is told of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model_store import InvalidArtifactError
from service.web.schemas import RefusedVersion

Key = tuple[str, int]
"""A model's name, and a version of it."""
Stamp = tuple[tuple[str, int, int, int], ...]
"""See `model_store.version_stamp`."""


@dataclass(frozen=True)
class Refusal:
    """What is wrong with a version, and the stamp it had then: it is not read again before that changes."""

    stamp: Stamp
    file: Path
    problem: str


def refused_versions(
    name: str, refused: Mapping[Key, Refusal], unreadable: Mapping[str, InvalidArtifactError]
) -> list[RefusedVersion]:
    """One model's: first its folder as a whole, where that cannot be listed, then versions in ascending order.

    Where on the machine the store lies is not the client's business.
    """
    whole = [RefusedVersion(version=None, reason=f"{name}: {unreadable[name].problem}")] if name in unreadable else []
    return whole + [
        RefusedVersion(version=version, reason=f"{refusal.file.name}: {refusal.problem}")
        for (other, version), refusal in sorted(refused.items(), key=lambda item: item[0])
        if other == name
    ]
