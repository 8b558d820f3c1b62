"""Imports run one way: web → engine, images → model_store, and training → all three, service.arguments,
service.printing and service.progress.

Nothing of these but training needs torch.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"model_store", "service", "training", "tests", "benchmarks"}

# For each folder: which modules of ours it may import, and which of others' (None: any but torch).
ALLOWED: dict[str, tuple[set[str], set[str] | None]] = {
    "model_store": ({"model_store"}, {"numpy", "pydantic"}),
    "service/engine": ({"model_store", "service.engine"}, {"numpy", "onnx", "onnxruntime", "google", "PIL"}),
    "service/images": ({"model_store", "service.images"}, {"numpy", "PIL"}),
    "service": ({"model_store", "service"}, None),
    "training": (
        {
            "model_store",
            "service.engine",
            "service.images",
            "service.arguments",
            "service.printing",
            "service.progress",
            "training",
        },
        None,
    ),
}


def imported(file: Path) -> Iterator[str]:
    """Every module a file imports, wherever in it: at the top, in a function, under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(file.read_text())):
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
    files = [file for folder in ("model_store", "service", "training") for file in (ROOT / folder).rglob("*.py")]
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


def test_nothing_that_serves_can_unpickle() -> None:
    """No module that runs code from data, and no NumPy reader that is let to."""
    runs_code = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "torch"}
    for file in (file for folder in ("model_store", "service") for file in (ROOT / folder).rglob("*.py")):
        assert not {module.split(".")[0] for module in imported(file)} & runs_code, file
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), file
                assert node.value.value is False, file
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "np.lib.format.read_array"):
                assert "allow_pickle" in {keyword.arg for keyword in node.keywords}, file
