"""Imports run one way: web → engine, images → model_store, and training → all three, service.arguments,
service.folder_lock, service.printing and service.progress. logpx, the client, imports none of ours.

Nothing of these but training needs torch.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"logpx", "model_store", "service", "training", "tests", "benchmarks"}

# For each folder: which modules of ours it may import, and which of others' (None: any but torch).
ALLOWED: dict[str, tuple[set[str], set[str] | None]] = {
    "logpx": ({"logpx"}, {"httpx2", "numpy", "pandas", "PIL"}),
    "model_store": ({"model_store"}, {"numpy", "pydantic"}),
    "service/engine": (
        {"model_store", "service.child_process", "service.cores", "service.engine"},
        {"numpy", "onnx", "onnxruntime", "google", "PIL"},
    ),
    "service/images": ({"model_store", "service.child_process", "service.images"}, {"numpy", "PIL", "pyarrow"}),
    "service": ({"model_store", "service"}, None),
    "training": (
        {
            "model_store",
            "service.engine",
            "service.images",
            "service.arguments",
            "service.folder_lock",
            "service.printing",
            "service.progress",
            "training",
        },
        None,
    ),
}


@cache
def nodes(file: Path) -> list[ast.AST]:
    """All that stands in a file, parsed once for all tests."""
    return list(ast.walk(ast.parse(file.read_text())))


def imported(file: Path) -> Iterator[str]:
    """Every module a file imports, wherever in it: at the top, in a function, under TYPE_CHECKING."""
    for node in nodes(file):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "service")


def within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_run_one_way(folder: str) -> None:
    ours, others = ALLOWED[folder]
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    wrong = []
    for file in files:
        for module in imported(file):
            top = module.split(".")[0]
            if top in OURS:
                allowed = within(module, ours) or module == "service"
            elif top in sys.stdlib_module_names:
                allowed = True
            else:
                allowed = top in others if others is not None else folder == "training" or top != "torch"
            if not allowed:
                wrong.append(f"{file.relative_to(ROOT)} imports {module}")
    assert wrong == []


def test_nothing_imports_the_tests_or_the_benchmarks() -> None:
    files = [
        file for folder in ("logpx", "model_store", "service", "training") for file in (ROOT / folder).rglob("*.py")
    ]
    assert [
        file for file in files if {module.split(".")[0] for module in imported(file)} & {"tests", "benchmarks"}
    ] == []


def test_the_service_imports_without_torch() -> None:
    """Every module of the service and of the store, in a process of its own that then has no torch in it."""
    script = """
import importlib, pkgutil, sys
import model_store, service
names = [found.name for package in (model_store, service)
         for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
loaded = {name.split(".")[0] for name in sys.modules}
print(len(names), sorted(loaded & {"torch", "training", "matplotlib", "scipy"}), "service.engine.model" in names)
"""
    command = [sys.executable, "-c", script]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)  # noqa: S603
    assert process.returncode == 0, process.stderr
    count, found = process.stdout.split(maxsplit=1)
    assert int(count) > 10
    assert found.strip() == "[] True"


def test_the_client_imports_with_what_it_installs_alone() -> None:
    """pandas and Pillow are imported only where somebody asks for tables or pictures."""
    script = "import sys, logpx; print(sorted({name.split('.')[0] for name in sys.modules} & set(sys.argv[1:])))"
    absent = ["PIL", "fastapi", "model_store", "onnx", "onnxruntime", "pandas", "pydantic", "service", "training"]
    command = [sys.executable, "-c", script, *absent, "httpx2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT)  # noqa: S603
    assert done.stdout.strip() == "['httpx2']"


def test_matplotlib_is_imported_only_where_something_is_drawn() -> None:
    """Never with a module: it takes a second, and most commands and processes of training draw nothing."""
    found = []
    for file in (ROOT / "training").rglob("*.py"):
        module = nodes(file)[0]
        assert isinstance(module, ast.Module)
        imports = [ast.unparse(node) for node in module.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not [line for line in imports if "matplotlib" in line], file
        found += [file.name for name in imported(file) if name.startswith("matplotlib")]
    assert set(found) == {"charts.py", "figures.py"}


def test_nothing_that_serves_can_unpickle() -> None:
    """No module that runs code from data, and no NumPy reader that is let to."""
    runs_code = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "torch"}
    for file in (file for folder in ("model_store", "service") for file in (ROOT / folder).rglob("*.py")):
        assert not {module.split(".")[0] for module in imported(file)} & runs_code, file
        for node in nodes(file):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), file
                assert node.value.value is False, file
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "np.lib.format.read_array"):
                assert "allow_pickle" in {keyword.arg for keyword in node.keywords}, file


# The rooms: folders of service and training, and which of their neighbours each may use. A file that lies in no room
# (app.py, problems.py, model.py) is used by rooms only where it is named here, and then uses no room itself.
ROOMS: dict[str, dict[str, set[str]]] = {
    "service.engine": {
        "format1": {"arrays"},
        "posterior": {
            "arrays", "blocks", "chunks", "graphs", "matrices", "parts", "preparation", "proposal", "runtime",
            "side_by_side", "team", "verification",
        },
        "anomaly": {"arrays", "chunks", "parts", "posterior", "preparation", "proposal"},
    },
    "service.web": {
        "operations": {"answer_size", "memory_budget", "problem_format", "problems"},
        "connections": {"memory_budget", "operations", "outcome", "problem_format", "problems"},
        "decoding": {"memory_budget", "operations", "outcome", "rate"},
        "models": {"operations", "outcome", "problems", "schemas"},
        "serving": {
            "connections", "decoding", "memory_budget", "models", "operations", "outcome", "problems", "rate",
            "serialisation",
        },
        "v2": {
            "bodies", "connections", "endpoint", "media_types", "memory_budget", "models", "parameters", "problems",
            "requests", "responses", "routes", "schemas", "serving",
        },
    },
    "training": {
        "data": {"configuration", "errors"},
        "likelihoods": {"errors"},
        "networks": {"configuration", "likelihoods"},
        "features": {"data", "errors", "files"},
        "fit": {"configuration", "data", "errors", "features", "files", "likelihoods", "networks", "posterior"},
        "publish": {"configuration", "data", "errors", "features", "files", "fit", "likelihoods", "networks"},
        "report": {"configuration", "data", "errors", "files", "fit", "likelihoods", "networks", "publish"},
    },
}  # fmt: skip


ON_TOP = {"v2"}
"""Rooms that are put together from the others, as app.py is: no other room may use one."""


@cache
def modules() -> dict[str, set[str]]:
    """Each module of ours, with those of ours that it imports, wherever in it, also for types alone."""
    files = {}
    for folder in ("logpx", "model_store", "service", "training"):
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        found = set()
        for node in nodes(file):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= (whole & files.keys()) or {node.module}
        graph[name] = (found & files.keys()) - {name}
    return graph


def room_of(module: str) -> str:
    """The room that a module is in, or the module itself."""
    rooms = {f"{package}.{room}" for package, inside in ROOMS.items() for room in inside} | {
        "service.images",
        "model_store",
    }
    return next((room for room in rooms if within(module, {room})), module)


def rooms() -> dict[str, set[str]]:
    """The same graph with each room as one."""
    graph: dict[str, set[str]] = {}
    for module, imports in modules().items():
        graph.setdefault(room_of(module), set()).update({room_of(name) for name in imports} - {room_of(module)})
    return graph


@pytest.mark.parametrize("graph", [modules, rooms])
def test_nothing_imports_itself_by_a_detour(graph: Callable[[], dict[str, set[str]]]) -> None:
    try:
        list(TopologicalSorter(graph()).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("package", ROOMS)
def test_a_room_uses_only_what_it_may(package: str) -> None:
    graph = rooms()
    folders = {init.parent.name for init in (ROOT / package.replace(".", "/")).glob("*/__init__.py")}
    assert folders - {"engine", "images", "scoring", "web"} == set(ROOMS[package])
    used = {
        room: {name.removeprefix(package + ".") for name in graph[f"{package}.{room}"] if within(name, {package})}
        for room in ROOMS[package]
    }
    assert used == ROOMS[package]  # an arrow that nothing needs goes, too


def test_no_room_uses_what_is_put_together_from_rooms() -> None:
    """What several rooms share lies below all of them: it imports no room, not even by a detour."""
    graph = rooms()
    for package, inside in ROOMS.items():
        named = {f"{package}.{room}" for room in inside}
        assert not ON_TOP & {name for uses in inside.values() for name in uses}
        below_top = [uses for room, uses in inside.items() if room not in ON_TOP]
        waiting = [f"{package}.{name}" for uses in below_top for name in uses if name not in inside]
        below = set(waiting)
        while waiting:
            further = {name for name in graph[waiting.pop()] if within(name, {package})} - below
            below |= further
            waiting += further
        allowed = {
            "training.likelihoods"
        }  # by configuration.py, whose choices its classes are; it imports none of them
        assert below & named - allowed == set(), package


def test_the_map_shows_every_room_and_no_other() -> None:
    """CONTRIBUTING.md names each folder of code once, indented by how deep it lies."""
    told: list[str] = []
    path: list[str] = []
    for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines():
        if match := re.match(r"( *)([a-z_0-9]+)/( |$)", line):
            path[len(match[1]) // 2 :] = [match[2]]
            told.append("/".join(path))
    packages = {
        init.parent.relative_to(ROOT).as_posix()
        for top in ("logpx", "model_store", "service", "training")
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert sorted(told) == sorted(packages | {"service/web", "benchmarks", "deploy", "tests"})
