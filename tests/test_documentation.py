"""What a reader is told exists, and what exists is told."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from fastapi.testclient import TestClient

import logpx
import model_store
import service
import training
from model_store import BUNDLED
from service.web import problems
from service.web.app import create_app
from service.web.operations.settings import MIN_KEY_LENGTH, Settings
from service.web.problems import PROBLEM_TYPES, ProblemType

ROOT = Path(__file__).parents[1]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
OPEN_INFERENCE = (ROOT / "docs" / "open-inference-protocol.md").read_text()
README = (ROOT / "README.md").read_text()
SECURITY = (ROOT / "docs" / "security.md").read_text()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented_with_its_default(name: str) -> None:
    default = Settings.model_fields[name].default
    shown = {None: "–", (): "–", "": "–", BUNDLED: "the bundled models"}.get(default, f"`{default}`")
    assert f"| `LOGPX_{name.upper()}` | {shown} |" in OPERATIONS


def test_no_setting_is_documented_that_does_not_exist() -> None:
    told = set(re.findall(r"LOGPX_([A-Z_]+[A-Z])", OPERATIONS + README + SECURITY)) - {"MAX"}
    told -= {"API_KEY", "TOKEN"}  # named as what looks like a setting and is none
    assert told <= {name.upper() for name in Settings.model_fields}


def test_every_limit_is_in_the_security_page_with_its_default() -> None:
    rows = dict(re.findall(r"^\| [^|]+ \| `LOGPX_([A-Z_]+)` \| ([0-9]+) \|", SECURITY, re.MULTILINE))
    limits = {name for name in Settings.model_fields if name.startswith("max_") or name.endswith("_seconds")}
    limits -= {"max_steps", "reload_seconds"}  # what an estimate is, and how often to look: no bounds on others
    assert {name.upper() for name in limits} <= rows.keys()
    defaults = {name: Settings.model_fields[name.lower()].default for name in rows}
    assert {name: int(told) for name, told in rows.items()} == defaults


def _anchors(text: str) -> set[str]:
    """What links can name in a page: its headings as they are turned into anchors where repositories are shown."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_of_the_security_page_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", SECURITY)
    assert len(links) > 10
    for link in links:
        path, _, anchor = link.partition("#")
        page = (ROOT / "docs" / path) if path else ROOT / "docs" / "security.md"
        assert page.is_file(), link
        assert not anchor or anchor in _anchors(page.read_text()), link


def test_the_length_that_keys_must_have_is_documented() -> None:
    assert f"A key has at least {MIN_KEY_LENGTH} characters" in OPERATIONS
    assert f"keys of at least {MIN_KEY_LENGTH} characters" in OPERATIONS


def _modules() -> Iterator[ModuleType]:
    """Every module of ours that defines exceptions."""
    for package in (logpx, model_store, service, training):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__") and _errors_of(module := importlib.import_module(found.name)):
                yield module


def _errors_of(module: ModuleType) -> dict[str, str]:
    """Exceptions that a module defines, each with its parent."""
    return {
        name: value.__bases__[0].__name__
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == module.__name__
    }


def _tree(text: str) -> dict[str, str]:
    """The exceptions of a tree drawn in a docstring, each with its parent; the root has none."""
    path: list[str] = []
    parents: dict[str, str] = {}
    for line in text.splitlines():
        if found := re.match(r"([│├└─ ]*)(\w+Error)\b", line):
            depth = len(found[1]) // 4
            assert depth <= len(path), line
            path[depth:] = [found[2]]
            parents[found[2]] = path[depth - 1] if depth else ""
    return parents


def test_every_tree_of_errors_is_the_classes_tree() -> None:
    drawn = [module for module in _modules() if "└──" in (module.__doc__ or "")]
    assert {"model_store.errors", "service.web.problems", "training.errors"} <= {module.__name__ for module in drawn}
    for module in drawn:
        found, told = _errors_of(module), _tree(module.__doc__ or "")
        root = next(iter(told))
        assert told == {**found, root: ""}, module.__name__


def test_every_list_of_errors_is_whole() -> None:
    listing = [module for module in _modules() if re.search(r"^    \w+Error  ", module.__doc__ or "", re.MULTILINE)]
    assert "service.web.outcome" in {module.__name__ for module in listing}
    for module in listing:
        told = re.findall(r"^    (\w+Error)  ", module.__doc__ or "", re.MULTILINE)
        assert sorted(told) == sorted(_errors_of(module)), module.__name__


@pytest.mark.parametrize(
    "slug",
    sorted(
        {kind.slug for kind in [*PROBLEM_TYPES.values(), *vars(problems).values()] if isinstance(kind, ProblemType)}
    ),
)
def test_every_problem_type_is_documented(slug: str) -> None:
    assert f"`{slug}`" in OPERATIONS


def test_every_route_is_in_the_readme_or_in_the_page_of_its_protocol_and_every_metric_in_the_operations_page() -> None:
    with TestClient(create_app(Settings())) as client:
        paths = client.get("/openapi.json").json()["paths"]
        metrics = re.findall(r"^# TYPE (logpx_\w+)", client.get("/metrics").text, re.MULTILINE)
    for path in paths:
        if not path.startswith("/v2"):
            assert path.replace("{name}", "mnist") in README
            continue
        whole = re.sub(r"^/v2/models/\{name\}(?=/|$)", "/v2/models/mnist.encode", path)
        told = whole.replace("{name}", "mnist").replace("{version}", "7")
        assert re.search(f"`(GET|POST) {re.escape(told)}`", OPEN_INFERENCE), path
    for metric in metrics:
        assert f"`{metric}`" in OPERATIONS or metric.endswith("_created")
    for told in re.findall(r"`(logpx_\w+)`", OPERATIONS):
        assert told in metrics
