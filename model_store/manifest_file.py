"""The bytes of manifest.json to a `Manifest`, bounded before anything is made of them."""

import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from model_store.errors import InvalidArtifactError
from model_store.format1 import likelihood_of
from model_store.manifest import FORMAT_VERSION, Manifest
from model_store.text import forbidden_character

MAX_MANIFEST_BYTES = 2**20
MAX_DEPTH = 32
"""Of lists and objects in one another. JSON readers and writers take 100 at least, where they have a bound."""
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
_MAX_PROBLEMS = 5


def parse_manifest(file: Path, content: bytes) -> Manifest:
    """What the bytes say; `file` is what an error names.

    Raises:
        InvalidArtifactError: they are too many, not UTF-8 JSON, of another format version, hold a value that cannot be
            written as JSON again, or are not what README.md says.
    """
    if len(content) > MAX_MANIFEST_BYTES:
        raise InvalidArtifactError(file, f"has {len(content)} bytes; at most {MAX_MANIFEST_BYTES} are read")
    try:
        fields = json.loads(content.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique)
        for problem in _impossible(fields):
            raise InvalidArtifactError(file, problem)
    except (ValueError, RecursionError) as error:
        raise InvalidArtifactError(file, f"not JSON ({error})") from error
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if version not in (1, FORMAT_VERSION) or isinstance(version, bool):
        raise InvalidArtifactError(file, f"format version {version!r}; this reader knows 1 and {FORMAT_VERSION}")
    within: tuple[str, ...] = ()
    try:
        if version == 1 and "likelihood" in fields:
            within = ("likelihood",)
            fields["likelihood"] = likelihood_of(fields["likelihood"])
            within = ()
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        shown = [
            f"{'.'.join(map(str, within + item['loc']))}: {item['msg']}"
            for item in islice(
                error.errors(include_url=False, include_context=False, include_input=False), _MAX_PROBLEMS
            )
        ]
        more = error.error_count() - len(shown)
        raise InvalidArtifactError(file, "; ".join([*shown, *([f"and {more} more"] if more > 0 else [])])) from error
    if version == 1 and manifest.features is not None:
        raise InvalidArtifactError(file, "features: format version 1 has none")
    return manifest


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of two values under one name, readers would take one or the other."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a name twice")
    return found


def _impossible(fields: Any) -> Iterator[str]:
    """What could not be written as JSON for every reader, or would not be shown as it is."""
    level, depth = [fields], 0
    while level:
        below: list[Any] = []
        if depth == MAX_DEPTH and any(isinstance(value, dict | list) for value in level):
            yield f"lists and objects lie more than {MAX_DEPTH} deep in one another"
            return
        for value in level:
            if isinstance(value, dict):
                below += value
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str):
                if character := forbidden_character(value):
                    yield f"a text holds {character}, which may not be in a manifest"
            elif isinstance(value, float):
                if not math.isfinite(value):
                    yield "a number is too large for a float"
            elif isinstance(value, int) and not _MIN_INT <= value <= _MAX_INT:
                yield "a whole number is too large: at most 64 bits are taken"
        level, depth = below, depth + 1
