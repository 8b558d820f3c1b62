"""docs/kubernetes.md and what other pages say of deploying: values, paths and links that exist, a recipe that runs."""

import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.web.operations.settings import Settings
from tests.test_deploy import ROOT, SCHEMA, VALUES, refusals
from tests.test_documentation import _anchors

KUBERNETES = (ROOT / "docs" / "kubernetes.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "model_store" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:python|torchrun|logpx) ", re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a page in one language, without the indentation of a list."""
    found = re.findall(rf"^ *```{language}\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def test_the_page_s_values_fit_the_chart() -> None:
    shown = [yaml.safe_load(block) for block in blocks(KUBERNETES, "yaml")]
    assert len(shown) >= 5
    for values in shown:
        assert refusals(values) == [], values
    wrong = {"replcias", "settings.LOGPX_PROT"}
    for path in set(re.findall(r"--set ([\w.]+)=", KUBERNETES)) - wrong:
        value: Any = VALUES
        for key in path.split("."):
            value = value[key]
    for path in wrong:
        assert f"additional properties '{path.rpartition('.')[2]}' not allowed" in KUBERNETES
    told = set(re.findall(r"`([a-z]\w+)\.(\w+)[`.]", KUBERNETES))
    assert ("keys", "secret") not in told or "secret" in SCHEMA["properties"]["keys"]["properties"]
    for outer, inner in told:
        if outer in VALUES:
            assert inner in VALUES[outer], f"{outer}.{inner}"


@pytest.mark.parametrize("page", ["kubernetes.md", "operations.md"])
def test_links_lead_somewhere(page: str) -> None:
    folder = ROOT / "docs"
    for link in re.findall(r"\]\(([^)]+)\)", (folder / page).read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.replace("\n", " ").partition("#")
        target = folder / path if path else folder / page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target.read_text()), link


def test_files_that_are_named_exist() -> None:
    named = set(re.findall(r"\b(?:deploy|benchmarks|\.ci)/[\w./-]*\w", KUBERNETES + OPERATIONS))
    assert len(named) >= 8
    for path in named:
        assert (ROOT / path).exists(), path


def test_nginx_s_line_is_the_file_s() -> None:
    (block,) = blocks(OPERATIONS, "nginx")
    assert block.strip() in (ROOT / "deploy" / "nginx" / "logpx.conf").read_text()


def commands_of(text: str) -> list[str]:
    """Blocks of a page that have a command of ours."""
    found = blocks(text, "sh") + blocks(text, "console")
    return [block for block in found if COMMAND.search(block.replace("$ ", ""))]


def test_most_pages_have_commands() -> None:
    assert len([page for page in PAGES if commands_of(page.read_text())]) >= 6


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_says_how_to_activate_the_environment_before_its_first_command(page: Path) -> None:
    text = page.read_text()
    commands = commands_of(text)
    if commands:
        first = text.index(next(line for line in commands[0].splitlines() if COMMAND.match(line.removeprefix("$ "))))
        assert re.search(r"\. \.venv/bin/activate|pip install 'logpx\[", text[:first] + commands[0])


def test_the_recipe_for_ray_serve_builds_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for Ray, which calls what it is given in a process of its own."""

    class Deployment:
        def bind(self) -> "Deployment":
            return self

    built: list[Any] = []
    serve = ModuleType("ray.serve")
    serve.ingress = lambda build: lambda: built.append(build)  # type: ignore[attr-defined]
    serve.deployment = lambda _, num_replicas: Deployment()  # type: ignore[attr-defined]
    ray = ModuleType("ray")
    ray.serve = serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    (recipe,) = blocks(KUBERNETES, "python")
    names: dict[str, Any] = {}
    exec(recipe, names)  # noqa: S102 (our own)
    assert isinstance(names["app"], Deployment)
    (build,) = built
    monkeypatch.setenv("LOGPX_PAGE", "off")
    app = build()
    assert isinstance(app, FastAPI)
    client = TestClient(app)  # no model is loaded: that begins with the app's lifespan
    assert client.get("/livez").status_code == 200
    assert client.get("/").status_code == 404
    assert Settings().page == "off"
