"""The file that says which version of a model is the default, where it is not the newest one."""

import os
import re
import shlex
from pathlib import Path

from model_store.errors import InvalidArtifactError
from model_store.files import read_file

PIN = "pin"
_PIN = re.compile(rb"([1-9][0-9]{0,8})\n?")
_MAX_PIN_BYTES = 16


def read_pin(root: Path, name: str) -> int | None:
    """The version that a model's pin names; None if it has no pin. Whether there is such a version is not checked.

    Raises:
        InvalidArtifactError: the pin is not a regular file, cannot be read, or holds anything but a version.
    """
    path = root / name / PIN
    if not os.path.lexists(path):
        return None
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InvalidArtifactError(path, f"cannot be read ({error.strerror})") from error
    try:
        content = read_file(path, folder, most_bytes=_MAX_PIN_BYTES)
    except InvalidArtifactError:
        if os.path.lexists(path):
            raise
        return None  # removed just now
    finally:
        os.close(folder)
    found = _PIN.fullmatch(content)
    if found is None:
        raise InvalidArtifactError(path, "the pin is not the number of a version")
    return int(found[1])


def pin_notice(root: Path, name: str, version: int) -> str | None:
    """A sentence for whoever has just published this version: that it is not its model's default, because of the pin.

    None if it is: there is no pin, or it names this version.
    """
    try:
        pinned = read_pin(root, name)
    except InvalidArtifactError as error:
        return f"{name}: no version is the default: {error}; `logpx models unpin {name}` makes the newest one that"
    if pinned in (None, version):
        return None
    return (
        f"{name}: version {pinned} is pinned and stays the default; `logpx models pin {name} {version}` makes version "
        f"{version} the default, `logpx models unpin {name}` always the newest (with --store {shlex.quote(str(root))})"
    )
