"""docs/scoring.md: its first command, and its examples of Python, give what is shown."""

import doctest
import re
import shlex
import shutil
from pathlib import Path

import pytest

from logpx import command
from tests.scoring.crew import InProcess

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_s_examples_give_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (DOCS / "scoring.md").read_text()
    (tmp_path / "photos").mkdir()
    for name in ("seven.png", "boot.png"):
        shutil.copy(DOCS / name, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOGPX_MODEL_STORE", raising=False)
    monkeypatch.setattr("service.scoring.crew.Processes", lambda num_workers: InProcess())
    first = re.findall(r"^logpx (score .*)$", text, re.MULTILINE)[0]
    assert command.main(shlex.split(first)) == 0
    told = capsys.readouterr()
    assert told.out.endswith("\nscores: 2 of 2 images scored, 1 anomaly\n")
    assert told.err == ""
    examples = doctest.DocTestParser().get_doctest(text, {}, "scoring.md", "docs/scoring.md", 0)
    wrong: list[str] = []
    results = doctest.DocTestRunner().run(examples, out=wrong.append)
    assert results.failed == 0, "".join(wrong)
    assert results.attempted > 8


def test_every_option_is_one_that_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    told = set(re.findall(r"(?<=[` ])--[a-z-]+", (DOCS / "scoring.md").read_text()))
    with pytest.raises(SystemExit):
        command.main(["score", "--help"])
    there = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert {"--images", "--fdr", "--ray"} <= told <= there
