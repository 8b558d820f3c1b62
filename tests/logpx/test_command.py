"""The command `logpx`: what it hands on, what it says where something is missing, and its exit codes."""

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from logpx import command
from model_store import BUNDLED, ImageShape, list_store
from tests.toys import bernoulli_toy

ROOT = Path(__file__).parents[2]
SCREEN_LINES = 50
Said = Callable[[], tuple[str, str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Standard output and standard error since the last time."""

    def read() -> tuple[str, str]:
        found = capsys.readouterr()
        return found.out, found.err

    return read


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three versions of one model; the environment says where."""
    for seed in (1, 2, 3):
        bernoulli_toy(ImageShape(channels=1, height=2, width=3), name="toy", seed=seed).publish(tmp_path)
    monkeypatch.setenv("LOGPX_MODEL_STORE", str(tmp_path))
    return tmp_path


def test_the_script_is_this_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"logpx": "logpx.command:main"}
    module = [sys.executable, "-m", "logpx", "--version"]
    done = subprocess.run(module, capture_output=True, text=True, check=True, cwd=ROOT)  # noqa: S603 (our own)
    assert done.stdout == f"logpx {project['version']}\n"


def test_the_help_names_every_command_and_exit_code_on_one_screen(said: Said) -> None:
    assert command.main(["--help"]) == 0
    shown, _ = said()
    assert all(f"\n  {name} " in shown for name in command.COMMANDS)
    assert [line.split()[0] for line in shown.partition("exit codes:")[2].splitlines() if line] == [
        "0",
        "1",
        "2",
        "130",
    ]
    assert len(shown.splitlines()) < 25
    assert command.main([]) == 2
    assert said() == ("", shown)


@pytest.mark.parametrize("name", ["serve", "score", "models", "calibrate", "evaluate", "publish"])
def test_the_help_of_a_command_fits_a_screen_and_says_how_it_was_called(name: str, said: Said) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([name, "--help"])
    assert ended.value.code == 0
    shown, _ = said()
    assert shown.startswith(f"usage: logpx {name} ")
    assert len(shown.splitlines()) <= SCREEN_LINES


def test_a_command_that_there_is_not(said: Said) -> None:
    assert command.main(["sevre"]) == 2
    assert said() == ("", "error: logpx has no command 'sevre' (logpx --help lists them)\n")


def test_a_wrong_option_is_one_line_that_names_the_command(said: Said) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["models", "pin", "toy", "many"])
    assert ended.value.code == 2
    _, told = said()
    assert told.startswith("error: argument version: must be a whole number")
    assert told.endswith("(logpx models pin --help lists the options)\n")


@pytest.mark.parametrize(
    ("name", "missing", "extras"),
    [("serve", "onnxruntime.capi", "service,cpu"), ("fit", "training", "service,cpu,training")],
)
def test_what_is_not_installed_is_said_in_one_sentence(
    name: str, missing: str, extras: str, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    def refuse(module: str) -> Any:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr("logpx.command.importlib.import_module", refuse)
    assert command.main([name]) == 2
    told = f"error: logpx {name} needs {missing}, which is not installed: pip install 'logpx[{extras}]'\n"
    assert said() == ("", told)


def test_a_fault_of_our_own_is_not_called_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(module: str) -> Any:
        raise ModuleNotFoundError("No module named 'service.nothing'", name="service.nothing")

    monkeypatch.setattr("logpx.command.importlib.import_module", refuse)
    with pytest.raises(ModuleNotFoundError):
        command.main(["serve"])


def test_models_are_listed_pinned_and_unpinned(store: Path, said: Said) -> None:
    assert command.main(["models"]) == 0
    assert said() == ("toy: default 3; versions 1, 2, 3\n", "")
    assert command.main(["models", "pin", "toy", "2"]) == 0
    assert said() == ("toy: version 2 is the default\n", "")
    assert command.main(["models", "--store", str(store)]) == 0
    assert said() == ("toy: default 2, pinned; versions 1, 2, 3\n", "")
    assert list_store(store).pins == {"toy": 2}
    assert command.main(["models", "pin", "toy", "7", "--store", str(store)]) == 2
    assert said() == ("", "error: model 'toy' has no version 7; it has 1, 2, 3\n")
    (store / "toy" / "pin").write_text("7")
    assert command.main(["models"]) == 0
    assert said()[1] == f"error: {store}/toy/pin: the pin names version 7, which the model does not have\n"
    assert command.main(["models", "unpin", "toy"]) == 0
    assert command.main(["models", "unpin", "toy"]) == 0
    assert said()[0].splitlines() == [f"toy: the newest version is the default{end}" for end in ("", ", as before")]
    assert command.main(["models", "unpin", "none"]) == 2
    assert command.main(["models", "--store", str(store / "nowhere")]) == 2
    assert "the model store is not a folder" in said()[1]


def test_without_a_store_the_bundled_models_are_meant(monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    monkeypatch.delenv("LOGPX_MODEL_STORE", raising=False)
    assert command.main(["models"]) == 0
    assert {line.partition(":")[0] for line in said()[0].splitlines()} == set(list_store(BUNDLED).versions)
