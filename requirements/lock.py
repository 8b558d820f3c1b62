"""Write the lock files beside this script: `make lock`.

pyproject.toml says what logpx needs and constraints.txt which version of it was tried; a lock file says that again with
the SHA-256 of every file of each version, for pip's --require-hashes. So what is installed is what was tried, to the
byte, whichever index it comes from.

service.txt holds what the client and the extra `service` need; each other file holds what one extra needs beyond that.
It is resolved for every system and Python at once: a line that only some of them need has a marker.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
EXTRAS = ("cpu", "gpu", "otel", "score", "ray", "training", "dev")
TOOLS = {
    "build": "setuptools",  # builds logpx itself
    "audit": "pip-audit",
    "lock": "uv",
    "sbom": "cyclonedx-bom",
    "deploy": "kubernetes-validate",
}
# Of training: torch, which some machines have as a file of their own, and what it needs to run on CUDA. A build of
# torch without CUDA, whose local version says +cpu, does without that.
TORCH = re.compile("torch")
CUDA = re.compile("(nvidia|cuda)-.*|triton")
# Files that some indexes have under the same version, beside those that PyPI has.
FURTHER_HASHES = {
    # torch's own build without CUDA: 2.13.0+cpu for CPython 3.11 on x86_64
    "torch==2.13.0": ["6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"],
}
_HEAD = "# Written by `make lock`. For pip install --require-hashes --no-deps --only-binary :all:\n"

Entries = Mapping[str, str]
"""By name, the line of a requirement with the lines of its hashes."""


def resolve(source: Path, preferred: Path, *, extras: Iterable[str] = ()) -> dict[str, str]:
    """All that `source` with these extras needs, in versions of constraints.txt or, if it can be, of `preferred`."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output.txt"
        output.write_bytes(preferred.read_bytes())  # uv keeps the versions that its output names already
        command = [sys.executable, "-m", "uv", "pip", "compile", str(source), "--quiet", "--universal"]
        command += ["--python-version", "3.11", "--generate-hashes", "--no-annotate", "--no-header"]
        command += ["--constraint", str(ROOT / "constraints.txt"), "--output-file", str(output)]
        command += [f"--extra={extra}" for extra in extras]
        subprocess.run(command, check=True, cwd=ROOT)  # noqa: S603 (our own)
        return parse(output.read_text())


def parse(text: str) -> dict[str, str]:
    r"""The entries of a lock file, in its order.

    >>> parse("# head\na==1 ; sys_platform == 'linux' \\\n    --hash=sha256:00\nb==2 \\\n    --hash=sha256:11\n")
    {'a': "a==1 ; sys_platform == 'linux' \\\n    --hash=sha256:00\n", 'b': 'b==2 \\\n    --hash=sha256:11\n'}

    Raises:
        ValueError: it has a name twice, or a line that belongs to no entry, as of a requirement without a hash.
    """
    found = re.findall(r"^(?:[a-z0-9].*\\\n)(?:    --hash=sha256:[0-9a-f]+(?: \\)?\n)+", text, re.MULTILINE)
    entries = {entry.partition("==")[0]: entry for entry in found}
    lines = [line for line in text.splitlines(keepends=True) if line.strip() and not line.startswith("#")]
    if "".join(lines) != "".join(entries.values()):
        raise ValueError("an entry has no hash, or a name is there twice")
    return entries


def with_further_hashes(entry: str) -> str:
    """The entry with what `FURTHER_HASHES` has for its version."""
    further = FURTHER_HASHES.get(entry.split()[0], [])
    known = [line.strip(" \\") for line in entry.splitlines()[1:]]
    hashes = sorted({*known, *(f"--hash=sha256:{value}" for value in further)})
    return entry.splitlines()[0] + "\n    " + " \\\n    ".join(hashes) + "\n"


def write(name: str, entries: Entries) -> None:
    """One lock file."""
    (FOLDER / f"{name}.txt").write_text(_HEAD + "".join(with_further_hashes(entries[key]) for key in sorted(entries)))


def main() -> None:
    """Write all lock files anew; versions change where pyproject.toml or constraints.txt says so."""
    project = ROOT / "pyproject.toml"
    with tempfile.TemporaryDirectory() as folder:
        preferred, tool = Path(folder) / "preferred.txt", Path(folder) / "tool.in"
        preferred.write_text("".join(file.read_text() for file in sorted(FOLDER.glob("*.txt"))))
        every = resolve(project, preferred, extras=["service", *EXTRAS])
        preferred.write_text("".join(every.values()))
        service = resolve(project, preferred, extras=["service"])
        write("service", service)
        for extra in EXTRAS:
            needed = resolve(project, preferred, extras=["service", extra])
            beyond = {name: entry for name, entry in needed.items() if name not in service}
            apart = {"cuda": CUDA, "torch": TORCH} if extra == "training" else {}
            for name, pattern in apart.items():
                write(name, {key: entry for key, entry in beyond.items() if pattern.fullmatch(key)})
                beyond = {key: entry for key, entry in beyond.items() if not pattern.fullmatch(key)}
            write(extra, beyond)
        for name, requirement in TOOLS.items():
            tool.write_text(f"{requirement}\n")
            before = FOLDER / f"{name}.txt"
            preferred.write_text(before.read_text() if before.exists() else "")
            write(name, resolve(tool, preferred))


if __name__ == "__main__":
    main()
