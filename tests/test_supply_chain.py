"""What is installed: lock files with hashes that say what pyproject.toml and constraints.txt say, and the audit."""

import json
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
OF_LOGPX = ("service", "cpu", "gpu", "otel", "score", "ray", "training", "torch", "cuda", "dev")
TOOLS = ("audit", "build", "deploy", "lock", "sbom")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
ENTRY = re.compile(
    r"(?P<name>[a-z0-9-]+)==(?P<version>[0-9][0-9.a-z]*)(?: ; (?P<marker>[^\\\n]+))? \\\n"
    r"(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)"
)


def entries(name: str) -> dict[str, Requirement]:
    """The requirements of a lock file by name, with their markers."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    found = list(ENTRY.finditer(text))
    return {
        entry["name"]: Requirement(
            f"{entry['name']}=={entry['version']}" + (f" ; {entry['marker']}" if entry["marker"] else "")
        )
        for entry in found
    }


def pinned(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    return specifier.version


@pytest.mark.parametrize("file", LOCKS, ids=lambda file: file.stem)
def test_a_lock_file_holds_nothing_but_exact_versions_with_hashes(file: Path) -> None:
    head, _, text = file.read_text().partition("\n")
    assert head.startswith("# Written by `make lock`.")
    assert ENTRY.sub("", text) == ""
    names = [entry["name"] for entry in ENTRY.finditer(text)]
    assert names == sorted({canonicalize_name(name) for name in names})
    assert names


def test_there_is_a_lock_file_for_each_extra_and_tool_and_no_other() -> None:
    assert {file.stem for file in LOCKS} == {*OF_LOGPX, *TOOLS}
    assert set(PROJECT["project"]["optional-dependencies"]) < set(OF_LOGPX)


@pytest.mark.parametrize("name", [*OF_LOGPX, *TOOLS])
def test_a_lock_file_has_the_versions_that_were_tried(name: str) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tried = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    for package, requirement in entries(name).items():
        assert pinned(requirement) == tried.get(package, pinned(requirement)), package


def test_the_lock_files_of_one_environment_agree() -> None:
    versions: dict[str, set[str]] = {}
    for name in OF_LOGPX:
        for package, requirement in entries(name).items():
            versions.setdefault(package, set()).add(pinned(requirement))
    assert {package: found for package, found in versions.items() if len(found) > 1} == {}


@pytest.mark.parametrize("extra", [None, *PROJECT["project"]["optional-dependencies"]])
def test_whatever_the_project_asks_for_is_locked(extra: str | None) -> None:
    """A dependency added without `make lock` would be missing from what is installed: nothing else is."""
    project = PROJECT["project"]
    files = ("service",) if extra is None else ("service", extra, *(("torch",) if extra == "training" else ()))
    locked = {name: requirement for file in files for name, requirement in entries(file).items()}
    for line in project["dependencies"] if extra is None else project["optional-dependencies"][extra]:
        requirement = Requirement(line)
        found = locked[canonicalize_name(requirement.name)]
        assert pinned(found) in requirement.specifier
        assert found.marker is None or found.marker.evaluate({"sys_platform": "linux", "python_full_version": "3.11.7"})


def test_only_one_runtime_is_ever_locked_and_torch_is_none_of_the_service_s() -> None:
    for name, lacks in (("service", "onnxruntime"), ("cpu", "onnxruntime-gpu"), ("gpu", "onnxruntime")):
        assert lacks not in entries(name)
    assert [name for name in OF_LOGPX if "torch" in entries(name)] == ["torch"]
    assert list(entries("build")) == ["setuptools"]


def test_make_and_the_images_install_by_hash_and_build_nothing_else() -> None:
    makefile, dockerfile = (ROOT / "Makefile").read_text(), (ROOT / "Dockerfile").read_text()
    installs = [line.strip() for line in makefile.splitlines() if "pip install" in line]
    (locked,) = [line for line in installs if line.startswith("locked = ")]
    for option in ("--require-hashes", "--no-deps", "--only-binary :all:"):
        assert option in locked
    assert [line for line in installs if line != locked] == [
        "$(PY) -m pip install --disable-pip-version-check --no-deps --no-build-isolation --no-index --editable ."
    ]
    assert "ENV PIP_REQUIRE_HASHES=1 PIP_NO_DEPS=1 PIP_ONLY_BINARY=:all:" in dockerfile
    unhashed = [line for line in dockerfile.splitlines() if "PIP_REQUIRE_HASHES=0" in line]
    assert len(unhashed) == 1
    assert "--no-build-isolation --no-index" in unhashed[0]
    assert unhashed[0].rstrip(" \\").endswith("/app .")


ADVISORY = {
    "id": "PYSEC-0000-1",
    "summary": "An image\nthat is  not one",
    "affected": [
        {"package": {"ecosystem": "npm", "name": "pillow"}, "versions": ["13.0.0"]},
        {
            "package": {"ecosystem": "PyPI", "name": "Pillow"},
            "ranges": [
                {"type": "GIT", "repo": "r", "events": [{"introduced": "0"}]},
                {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "13.0.1"}]},
            ],
        },
    ],
}


def audit(source: Path, lock: Path) -> tuple[int, str]:
    command = [sys.executable, "requirements/audit.py", str(source), str(lock)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)  # noqa: S603 (our own)
    return done.returncode, done.stdout + done.stderr


def change(**fields: Any) -> dict[str, Any]:
    """The advisory, with its PyPI package's fields changed."""
    affected = {"package": {"ecosystem": "PyPI", "name": "pillow"}, **fields}
    return ADVISORY | {"affected": [affected]}


def between(*events: dict[str, str]) -> dict[str, Any]:
    return change(ranges=[{"type": "ECOSYSTEM", "events": list(events)}])


@pytest.mark.parametrize(
    ("advisory", "affected"),
    [
        (ADVISORY, True),
        ([ADVISORY], True),
        ({"vulns": [ADVISORY, change(versions=[])]}, True),
        (ADVISORY | {"withdrawn": "2026-01-01T00:00:00Z"}, False),
        (change(package={"ecosystem": "PyPI", "name": "PILLOW"}, versions=["13.0"]), True),
        (change(package={"ecosystem": "PyPI", "name": "pillow-simd"}, versions=["13.0.0"]), False),
        (change(versions=["13.0.0.post1", "no version", "12.9"]), False),
        (between({"introduced": "0"}), True),
        (between({"introduced": "13.0.0"}), True),
        (between({"introduced": "13.0.1"}), False),
        (between({"introduced": "0"}, {"fixed": "13.0.0"}), False),
        (between({"introduced": "0"}, {"last_affected": "13.0.0"}), True),
        (between({"introduced": "0"}, {"last_affected": "12.9"}), False),
        (between({"fixed": "12.0"}, {"introduced": "0"}, {"introduced": "13.0.0"}, {"fixed": "13.0.1"}), True),
    ],
)
def test_an_advisory_is_found_by_name_and_version(tmp_path: Path, advisory: object, affected: bool) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(
        "# head\npillow==13.0.0 ; python_version > '3' \\\n    --hash=sha256:00\nnumpy==2.4.6 \\\n  --hash=sha256:11\n"
    )
    (tmp_path / "advisory.json").write_text(json.dumps(advisory))
    status, told = audit(tmp_path / "advisory.json", lock)
    assert status == int(affected), told
    assert ("13.0.0" in told) == affected
    assert told.endswith(f"2 pinned versions, {int(affected)} findings\n")
    if affected:
        assert "PYSEC-0000-1" in told
        assert ": An image that is not one\n" in told


@pytest.mark.parametrize(
    "content",
    [
        *(
            "",
            "{",
            "[1]",
            "3",
            "[]",
            '{"vulns": []}',
            '{"id": "A"}',
            '{"vulns": [{"id": "A", "modified": "2026-01-01"}]}',
        ),
        '{"id": "A", "affected": [{"package": {"ecosystem": "PyPI"}}]}',
        '{"id": "A", "affected": [{"package": {"ecosystem": "PyPI", "name": "x"}}]}',
        '{"id": "A", "affected": [{"package": {"ecosystem": "PyPI", "name": "x"}, "ranges": [{"type": "GIT"}]}]}',
    ],
)
def test_what_cannot_be_looked_at_fails_the_audit(tmp_path: Path, content: str) -> None:
    (tmp_path / "advisory.json").write_text(content)
    for source in (tmp_path / "advisory.json", tmp_path, tmp_path / "absent.json"):
        status, told = audit(source, ROOT / "requirements" / "service.txt")
        assert (status, told.count("\n")) == (2, 1)
        assert told.startswith("error: ")


def test_an_audit_of_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "advisory.json").write_text(json.dumps(ADVISORY))
    lock = tmp_path / "lock.txt"
    lock.write_text("# head\n")
    assert audit(tmp_path / "advisory.json", lock)[0] == 2
    command = [sys.executable, "requirements/audit.py", str(tmp_path / "advisory.json")]
    assert subprocess.run(command, capture_output=True, cwd=ROOT, check=False, timeout=60).returncode == 2  # noqa: S603 (our own)


@pytest.mark.parametrize(
    "text",
    [
        "a==1 \\\n    --hash=sha256:00\na==2 ; sys_platform == 'win32' \\\n    --hash=sha256:11\n",
        "a==1 \\\n    --hash=sha256:00\nb==2\n",
        "a==1\nb==2 \\\n    --hash=sha256:00\n",
    ],
)
def test_a_lock_file_that_would_lose_a_line_is_not_written(text: str) -> None:
    parse = runpy.run_path(str(ROOT / "requirements" / "lock.py"))["parse"]
    with pytest.raises(ValueError, match="no hash"):
        parse(text)


def test_what_is_written_is_what_was_locked() -> None:
    parse = runpy.run_path(str(ROOT / "requirements" / "lock.py"))["parse"]
    for file in LOCKS:
        assert list(parse(file.read_text())) == [entry["name"] for entry in ENTRY.finditer(file.read_text())]


def test_a_folder_of_advisories_is_read_whole_and_a_folder_without_one_is_an_error(tmp_path: Path) -> None:
    assert audit(tmp_path, ROOT / "requirements" / "service.txt")[0] == 2
    (tmp_path / "in").mkdir()
    version = pinned(entries("service")["pillow"])
    (tmp_path / "in" / "b.json").write_text(json.dumps(change(versions=[version])))
    (tmp_path / "a.json").write_text(json.dumps(between({"introduced": str(Version(version).major + 1)})))
    status, told = audit(tmp_path, ROOT / "requirements" / "service.txt")
    assert status == 1
    assert "\n2 advisories, " in told
