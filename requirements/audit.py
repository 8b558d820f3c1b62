"""Compare what the lock files pin with advisories in the OSV format, offline: `make audit ADVISORIES=FILE`.

    python requirements/audit.py ADVISORIES LOCK_FILE...

ADVISORIES is a JSON file, or a folder of them at any depth: each one advisory, a list of them, or an answer of an OSV
server (`{"vulns": [...]}`), as PyPA's advisory database and OSV's exports have them. The exit status is 1 where a
pinned version is affected, 2 where an advisory cannot be read, or there is none, or nothing is pinned: what was not
looked at is not safe.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

# The schema: https://ossf.github.io/osv-schema/
Advisory = dict[str, Any]


def advisories(path: Path) -> Iterator[Advisory]:
    """Every advisory of a file, or of all JSON files under a folder.

    Raises:
        ValueError: a file is not JSON, or holds something that is no advisory, or there is none at all.
    """
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: there is no .json file in it")
    for file in files:
        try:
            content = json.loads(file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{file}: not JSON ({error})") from error
        if isinstance(content, dict) and "vulns" in content:
            content = content["vulns"]
        for advisory in content if isinstance(content, list) else [content]:
            if not isinstance(advisory, dict) or "id" not in advisory:
                raise ValueError(f"{file}: holds something that is no advisory of the OSV format")
            yield advisory


def pins(lock: str) -> Iterator[tuple[str, Version]]:
    r"""The name and version of each entry of a lock file.

    >>> list(pins("# head\npy-spng==0.1.4 ; python_version < '4' \\\n    --hash=sha256:00\n"))
    [('py-spng', <Version('0.1.4')>)]
    """
    for line in lock.splitlines():
        if "==" in line and not line.startswith(("#", " ")):
            name, _, version = line.split()[0].partition("==")
            yield canonicalize_name(name), Version(version)


def is_affected(version: Version, affected: Advisory) -> bool:
    """Whether one `affected` entry means this version: it lists it, or one of its ranges holds it.

    >>> at = [{"introduced": "0"}, {"fixed": "1.2"}, {"introduced": "2.0"}, {"last_affected": "2.3"}]
    >>> ranges = {"ranges": [{"type": "ECOSYSTEM", "events": at}]}
    >>> [text for text in ("1.1", "1.2", "2.0", "2.3", "2.4") if is_affected(Version(text), ranges)]
    ['1.1', '2.0', '2.3']
    """
    if any(_same(version, text) for text in affected.get("versions", [])):
        return True
    return any(_within(version, item["events"]) for item in _ranges(affected))


def _ranges(affected: Advisory) -> list[dict[str, Any]]:
    """Those of versions, and not of commits."""
    return [item for item in affected.get("ranges", []) if item["type"] != "GIT"]


def _same(version: Version, text: str) -> bool:
    try:
        return Version(text) == version
    except InvalidVersion:
        return False


def _within(version: Version, events: list[dict[str, str]]) -> bool:
    """OSV's own rule: go through the events in order of their versions; each opens or closes."""
    order = {"introduced": 0, "fixed": 1, "limit": 1, "last_affected": 2}
    ordered = sorted(
        ((Version(text), order[kind], kind) for event in events for kind, text in event.items()),
        key=lambda item: item[:2],
    )
    inside = False
    for at, _, kind in ordered:
        if kind == "introduced" and version >= at:
            inside = True
        elif version > at or (version == at and kind in ("fixed", "limit")):
            inside = False
    return inside


def findings(known: Iterator[Advisory], pinned: set[tuple[str, Version]]) -> Iterator[str]:
    """A sentence for each pinned version that an advisory means; one that was withdrawn means none.

    Raises:
        ValueError, LookupError: an advisory does not say which packages, or which versions of one.
    """
    by_name: dict[str, list[Version]] = {}
    for name, version in pinned:
        by_name.setdefault(name, []).append(version)
    for advisory in known:
        if advisory.get("withdrawn"):
            continue
        if "affected" not in advisory:
            raise ValueError(f"{advisory['id']}: it does not say what is affected")
        for affected in advisory["affected"]:
            package = affected.get("package", {})
            if package.get("ecosystem") != "PyPI":
                continue
            if "versions" not in affected and not _ranges(affected):
                raise ValueError(f"{advisory['id']}: it does not say which versions of {package['name']} are affected")
            for version in by_name.get(canonicalize_name(package["name"]), []):
                if is_affected(version, affected):
                    summary = " ".join(str(advisory.get("summary", "")).split())
                    yield f"{advisory['id']}: {package['name']} {version}{': ' if summary else ''}{summary}"


def main(arguments: list[str]) -> int:
    """Print the findings; the exit status."""
    source, *locks = arguments
    pinned = {pin for lock in locks for pin in pins(Path(lock).read_text())}
    try:
        known = list(advisories(Path(source)))
        found = sorted(set(findings(iter(known), pinned)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not known or not pinned:
        print(
            f"error: {len(known)} advisories and {len(pinned)} pinned versions: nothing was compared", file=sys.stderr
        )
        return 2
    print("\n".join([*found, f"{len(known)} advisories, {len(pinned)} pinned versions, {len(found)} findings"]))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
