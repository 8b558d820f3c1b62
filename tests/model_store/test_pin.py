"""The pin: which version is the default."""

import os
from pathlib import Path

import pytest

from model_store import (
    ImageShape,
    InvalidArtifactError,
    ModelNotFoundError,
    StoreError,
    list_store,
    open_version,
    pin,
    unpin,
)
from model_store.pin import pin_notice, read_pin
from tests.toys import bernoulli_toy

NAME = "toy"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three versions of one model."""
    for seed in (1, 2, 3):
        bernoulli_toy(ImageShape(channels=1, height=2, width=3), name=NAME, seed=seed).publish(tmp_path)
    return tmp_path


def test_a_pin_says_which_version_is_opened_where_none_is_named(store: Path) -> None:
    assert open_version(store, NAME).manifest.version == 3
    pin(store, NAME, 1)
    assert open_version(store, NAME).manifest.version == 1
    assert open_version(store, NAME, 2).manifest.version == 2
    found = list_store(store)
    assert (found.versions, found.pins, found.candidates(NAME)) == ({NAME: [1, 2, 3]}, {NAME: 1}, [1])
    pin(store, NAME, 2)
    assert (store / NAME / "pin").read_text() == "2\n"
    assert (store / NAME / "pin").stat().st_mode & 0o444 == 0o444
    assert sorted(entry.name for entry in (store / NAME).iterdir()) == ["1", "2", "3", "pin"]
    assert unpin(store, NAME)
    assert not unpin(store, NAME)
    assert list_store(store).candidates(NAME) == [1, 2, 3]
    assert list_store(store).candidates("none") == []


def test_who_publishes_is_told_that_another_version_is_pinned(store: Path) -> None:
    assert pin_notice(store, NAME, 3) is None
    pin(store, NAME, 3)
    assert pin_notice(store, NAME, 3) is None
    pin(store, NAME, 1)
    assert pin_notice(store, NAME, 3) == (
        "toy: version 1 is pinned and stays the default; `logpx models pin toy 3` makes version 3 the default, "
        f"`logpx models unpin toy` always the newest (with --store {store})"
    )
    (store / NAME / "pin").write_text("two")
    told = pin_notice(store, NAME, 3)
    assert told == (
        f"toy: no version is the default: {store}/toy/pin: the pin is not the number of a version; "
        "`logpx models unpin toy` makes the newest one that"
    )


def test_what_is_not_there_is_not_pinned(store: Path) -> None:
    pin(store, NAME, 2)
    with pytest.raises(ModelNotFoundError, match="'toy' has no version 9; it has 1, 2, 3"):
        pin(store, NAME, 9)
    with pytest.raises(ModelNotFoundError, match="no model 'none'"):
        pin(store, "none", 1)
    with pytest.raises(ModelNotFoundError, match="no model 'none'"):
        unpin(store, "none")
    assert read_pin(store, NAME) == 2


@pytest.mark.parametrize("content", ["9", "two", "", "0", "-1", "02", "2\n\n", "2 ", "2" * 17])
def test_a_pin_of_no_version_is_an_error_that_names_it_and_hides_no_other_model(store: Path, content: str) -> None:
    bernoulli_toy(ImageShape(channels=1, height=2, width=3), name="other").publish(store)
    (store / NAME / "pin").write_text(content)
    found = list_store(store)
    assert found.versions == {"other": [1]}
    assert found.unreadable[NAME].file == store / NAME / "pin"
    with pytest.raises(
        InvalidArtifactError, match=r"pin: (the pin names version 9, which|the pin is not the number|has 17)"
    ):
        open_version(store, NAME)
    assert open_version(store, NAME, 2).manifest.version == 2
    pin(store, NAME, 3)  # mends it
    assert list_store(store).candidates(NAME) == [3]


def test_only_a_file_is_a_pin(store: Path) -> None:
    path = store / NAME / "pin"
    path.symlink_to(store / NAME / "nowhere")
    assert "a link" in list_store(store).unreadable[NAME].problem
    path.unlink()
    os.mkfifo(path)
    assert "not a file" in list_store(store).unreadable[NAME].problem
    path.unlink()
    path.mkdir()
    assert NAME in list_store(store).unreadable
    with pytest.raises(StoreError, match="cannot be pinned: Is a directory"):
        pin(store, NAME, 1)
    assert sorted(entry.name for entry in (store / NAME).iterdir()) == ["1", "2", "3", "pin"]
    with pytest.raises(StoreError, match="cannot be unpinned"):
        unpin(store, NAME)
