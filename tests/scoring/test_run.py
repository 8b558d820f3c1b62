"""A run as a whole: its numbers, its files, and what kills, full disks and other runs do to it."""

import errno
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from model_store import open_version
from service.engine.anomaly.conformal import benjamini_hochberg
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.runtime import Runtime
from service.folder_lock import lock_folder
from service.scoring.crew import Crew
from service.scoring.errors import ScoringError
from service.scoring.inputs import find_inputs
from service.scoring.parts import Results
from service.scoring.run import Plan, score
from service.scoring.scorer import COLUMNS, Options
from tests.scoring.conftest import COUNT
from tests.scoring.crew import InProcess
from tests.toys import AnyArray

Start = Callable[..., Path]


@pytest.fixture
def start(store: Path, folder: Path, tmp_path: Path) -> Start:
    """Score images; returns the folder of results."""

    def run(
        crew: Crew | None = None,
        *,
        images: Sequence[Path] = (folder,),
        out: Path = tmp_path / "out",
        fdr: float | None = None,
        size: int = 3,
        version: int | None = None,
        **options: Any,
    ) -> Path:
        inputs = find_inputs([*map(str, images)], out)
        chosen = Options.of(**{"proposal": "encoder", "num_samples": 200, **options})
        plan = Plan(open_version(store, "toy", version), chosen, fdr, inputs, size)
        score(plan, out, crew or InProcess())
        return out

    return run


def table(out: Path) -> Any:
    return pq.read_table(out)


def files(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(out.iterdir())}


@pytest.mark.parametrize("options", [{}, {"proposal": "auto", "num_samples": None, "seed": 3}])
def test_the_numbers_are_the_engine_s_to_the_bit(
    store: Path, start: Start, pixels: AnyArray, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of eleven images at once, with as many threads as it likes; the shards have three, and one thread."""
    found = table(start(**options)).to_pydict()
    model = Model.open(open_version(store, "toy"), runtime=Runtime("cpu"))
    images = pixels[:, None].astype(np.float32) / np.float32(255)
    chosen: dict[str, Any] = {"proposal": "encoder", "num_samples": 200, **options}
    record, scores = complete(model.log_likelihood(images, **chosen)), complete(model.anomaly_scores(images))
    (judged,) = scores.by_method.values()
    for name in COLUMNS:
        expected = getattr(judged if name in ("score", "p_value", "is_anomaly") else record, name)
        np.testing.assert_array_equal(np.array(found[name]), expected, err_msg=name)
    assert ("a second pass" in capsys.readouterr().out) == bool(options)


def test_the_files_say_what_they_are(store: Path, folder: Path, start: Start) -> None:
    (folder / "04.png").write_bytes(b"no image")
    out = start()
    assert sorted(files(out)) == [f"part-{number:05}-of-00004.parquet" for number in range(4)]
    found = table(out)
    assert found.column_names == ["path", "index", *COLUMNS, "error"]
    assert [str(field.type) for field in found.schema] == (
        [
            "string",
            "int64",
            "double",
            "double",
            "double",
            "double",
            "double",
            "double",
            "double",
            "int64",
            "bool",
            "double",
            "double",
            "bool",
            "string",
        ]
    )
    (bad,) = [row for row in found.to_pylist() if row["error"] is not None]
    assert bad.pop("error").startswith("the file cannot be read: it is none of PNG, JPEG, WebP")
    assert (bad.pop("path"), bad.pop("index")) == (f"{folder}/04.png", 0)
    assert set(bad.values()) == {None}
    metadata = pq.read_schema(out / "part-00002-of-00004.parquet").metadata
    told = {name.removeprefix("logpx."): metadata[name.encode()].decode() for name in map(bytes.decode, metadata)}
    assert re.fullmatch("[0-9a-f]{64}", told.pop("fingerprint"))
    assert told.pop("logpx")
    assert told == {
        "model": "toy",
        "version": "2",
        "sha256": open_version(store, "toy").digest,
        "proposal": "encoder",
        "num_samples": "200",
        "seed": "0",
        "resize": "false",
        "alpha": "0.05",
        "fdr": "null",
        "calibration": '{"proposal": "encoder", "num_samples": 200, "seed": 0, "num_images": 50}',
        "decided": "true",
        "part": "2",
        "parts": "4",
    }


def test_images_in_any_form_have_the_same_results(folder: Path, start: Start, pixels: AnyArray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels)
    np.save(tmp_path / "b.npy", pixels[:, None] / np.float32(255))
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for file in folder.rglob("*.png"):
            archive.write(file, file.relative_to(folder))
    whole = table(
        start(images=[folder, tmp_path / "a.npy", tmp_path / "b.npy", tmp_path / "c.zip"], size=5)
    ).to_pandas()
    assert len(whole) == 4 * COUNT
    for form in range(1, 4):
        for name in COLUMNS:
            np.testing.assert_array_equal(whole[name][form * COUNT :][:COUNT], whole[name][:COUNT], err_msg=name)


@pytest.mark.parametrize("fdr", [None, 0.9])
def test_killed_again_and_again_it_ends_with_the_same_files(start: Start, tmp_path: Path, fdr: float | None) -> None:
    straight = files(start(out=tmp_path / "straight", fdr=fdr))
    numbers: list[int] = []
    for ends_after in (1, 0, 2):
        crew = InProcess(ends_after)
        with pytest.raises(KeyboardInterrupt):
            start(crew, fdr=fdr)
        numbers += crew.numbers
        left = tmp_path / "out" / f".part-0000{len(numbers)}-of-00004.parquet.partial"
        left.write_bytes(b"half of what a kill has left")
    last = InProcess()
    out = start(last, fdr=fdr)
    assert numbers + last.numbers == [0, 1, 2, 3]
    assert files(out) == straight
    start(never := InProcess(), fdr=fdr)
    assert never.numbers == []
    assert files(out) == straight


def test_benjamini_hochberg_decides_over_all_parts_and_may_be_cut_short(
    start: Start, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "00.png").write_bytes(b"")
    straight = files(start(out=tmp_path / "straight", fdr=0.1))
    found = table(tmp_path / "straight").to_pandas()
    scored = found[found.error.isna()]
    expected = benjamini_hochberg(scored.p_value.to_numpy(), 0.1)
    assert 0 < expected.sum() < len(expected)
    assert scored.is_anomaly.tolist() == expected.tolist()
    assert found.is_anomaly.isna().sum() == 1
    with pytest.raises(KeyboardInterrupt):
        start(InProcess(3), fdr=0.1)
    assert table(tmp_path / "out")["is_anomaly"].null_count == 9
    write = Results.write
    written: list[int] = []

    def two_decisions(results: Results, number: int, content: bytes) -> None:
        if len(written) == 3:  # one part, and two of the decisions
            raise KeyboardInterrupt
        written.append(number)
        write(results, number, content)

    with monkeypatch.context() as patched:
        patched.setattr(Results, "write", two_decisions)
        with pytest.raises(KeyboardInterrupt):
            start(fdr=0.1)
    assert written == [3, 0, 1]
    assert files(start(fdr=0.1)) == straight


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"fdr": 0.1}, {"size": 4}, {"version": 1}, {"num_samples": 100}, {"resize": True}]
)
def test_the_parts_of_another_run_are_left_alone(start: Start, other: dict[str, Any]) -> None:
    before = files(out := start())
    with pytest.raises(ScoringError, match=r"part-00000-of-00004\.parquet is of another run .+ give another --out"):
        start(**other)
    assert files(out) == before


def test_other_images_are_another_run_and_so_is_what_others_wrote(start: Start, folder: Path, tmp_path: Path) -> None:
    start()
    (folder / "00.png").unlink()
    with pytest.raises(ScoringError, match="is of another run"):
        start()
    own = tmp_path / "own"
    own.mkdir()
    (own / "notes.csv").write_text("kept")
    (own / "part-0.parquet").write_bytes(b"of another program")
    with pytest.raises(ScoringError, match=r"part-0\.parquet: not a readable Parquet file .+: remove it"):
        start(out=own)
    (own / "part-0.parquet").unlink()
    assert (start(out=own) / "notes.csv").read_text() == "kept"


def test_two_runs_in_one_folder(start: Start, tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path / "out", "is scoring there"),
        pytest.raises(ScoringError, match=rf"out is in use: process {os.getpid()} on .+ is scoring there"),
    ):
        start()
    assert len(files(start())) == 4


def test_a_full_disk_is_one_sentence_and_what_was_done_is_kept(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []

    def fsync(descriptor: int) -> None:
        if synced:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced.append(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr("service.scoring.parts.os.fsync", fsync)
        with pytest.raises(ScoringError, match=r"part-00001-of-00004\.parquet: cannot be written \(No space left"):
            start()
    assert [*files(tmp_path / "out")] == ["part-00000-of-00004.parquet"]
    start(crew := InProcess())
    assert crew.numbers == [1, 2, 3]


def test_where_no_image_can_be_scored_it_says_why(start: Start, folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "large.npy", np.zeros((8, 6, 4), np.uint8))
    with pytest.raises(ScoringError) as told:
        start(images=[tmp_path / "large.npy"])
    first, *lines = str(told.value).splitlines()
    assert first == "no image could be scored; the column `error` says why:"
    assert lines[0].endswith(
        "large.npy: the image is 6×4 (height × width), the model takes 5×4; add --resize to have it resampled"
    )
    assert lines[1].lstrip().startswith(f"{tmp_path}/large.npy[1]: ")
    assert lines[5:] == ["  and 3 more"]
    assert table(start(images=[tmp_path / "large.npy"], out=tmp_path / "resized", resize=True))["error"].null_count == 8
