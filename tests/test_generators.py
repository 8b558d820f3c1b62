"""What a generator sets by `with` around a `yield` holds for whoever runs next: here, for another request."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [
    file for folder in ("model_store", "service", "training", "benchmarks") for file in (ROOT / folder).rglob("*.py")
]
STATE = (
    "errstate",
    "printoptions",
    "catch_warnings",
    "redirect_stdout",
    "redirect_stderr",
    "chdir",
    "threadpool_limits",
    "no_grad",
    "enable_grad",
    "set_grad_enabled",
    "inference_mode",
    "autocast",
    "fork_rng",
    "localcontext",
    "bound_contextvars",
)
"""Context managers that set something of the thread or of the process."""


def held_across_a_yield(source: str) -> Iterator[tuple[int, str]]:
    """Lines and context managers, of those above, whose body yields. `@contextmanager` is made to do that."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        decorators = [ast.unparse(item) for item in node.decorator_list]
        if any("contextmanager" in item for item in decorators):
            continue
        own = list(within(node))
        yields = any(isinstance(item, ast.Yield | ast.YieldFrom) for item in own)
        for decorator in decorators:
            if yields and any(name in decorator for name in STATE if name not in ("no_grad", "inference_mode")):
                yield node.lineno, decorator  # holds while the generator is made, and not while it runs
        for item in own:
            if isinstance(item, ast.With | ast.AsyncWith) and any(
                isinstance(part, ast.Yield | ast.YieldFrom) for part in within(item)
            ):
                for entered in item.items:
                    if any(name in ast.unparse(entered.context_expr) for name in STATE):
                        yield item.lineno, ast.unparse(entered.context_expr)


def within(node: ast.AST) -> Iterator[ast.AST]:
    """All that is below a node, but for the bodies of further functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from within(child)


def test_no_generator_holds_a_setting_across_a_yield() -> None:
    assert len(FILES) > 100
    found = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in FILES
        for line, name in held_across_a_yield(file.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def f():\n with np.errstate(all='ignore'):\n  yield 1", 1),
        ("def f():\n with open(p) as file, np.errstate():\n  x = yield from g()", 1),
        ("@np.errstate(all='ignore')\ndef f():\n yield", 1),
        ("def f():\n with np.errstate():\n  def g():\n   yield\n  return g", 0),
        ("def f():\n with np.errstate():\n  x = 1\n yield x", 0),
        ("@contextmanager\ndef f():\n with np.errstate():\n  yield", 0),
        ("def f():\n with open(p) as file:\n  yield file", 0),
    ],
)
def test_the_check_finds_what_it_is_for(source: str, count: int) -> None:
    assert len(list(held_across_a_yield(source))) == count
