"""Which images `--images` names, in which order, and how they are cut into shards."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.scoring.errors import ScoringError
from service.scoring.inputs import Broken, Inputs, find_inputs
from service.scoring.reading import Batch, batches, one_by_one
from tests.toys import AnyArray


def read(inputs: Inputs, size: int = 4) -> Batch:
    """Every image, shard by shard."""
    whole = Batch()
    for shard in inputs.shards(size):
        for batch in batches(shard, 3):
            whole.paths += batch.paths
            whole.indices += batch.indices
            whole.contents += batch.contents
    return whole


def parquet(file: Path, contents: list[Any], **options: Any) -> Path:
    pq.write_table(
        pa.table({"image": pa.array([{"bytes": x} for x in contents]), "label": [*map(str, contents)]}), file
    )
    return file


@pytest.fixture
def contents(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in (*sorted(folder.glob("*.png")), *sorted((folder / "more").glob("*.png")))]


def test_a_folder_a_pattern_a_list_and_files_name_the_same_images(
    folder: Path, contents: list[bytes], tmp_path: Path
) -> None:
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    names = [f"{folder}/{index:02}.png" if index < 8 else f"{folder}/more/{index:02}.png" for index in range(11)]
    of_folder = find_inputs([f"{folder}/"], tmp_path / "out")
    assert dict(of_folder.skipped) == {".txt file": (1, "notes.txt"), "hidden file": (1, ".hidden.png")}
    listed = tmp_path / "list.txt"
    listed.write_text("\r\n".join(reversed([name.removeprefix(f"{tmp_path}/") for name in names])) + "\n\n")
    for given in ([str(folder)], [f"{folder}/**/*.png"], [str(listed)], [*reversed(names), names[0], str(listed)]):
        found = find_inputs(given, tmp_path / "out")
        whole = read(found)
        assert whole.paths == names
        assert whole.contents == contents
        assert whole.indices == [0] * 11
        assert len(found) == 11


def test_files_of_many_images_come_last_and_their_rows_are_numbered(
    folder: Path, contents: list[bytes], pixels: AnyArray, tmp_path: Path
) -> None:
    (folder / "more" / "_metadata.parquet").write_bytes(b"Spark's")
    table = parquet(folder / "more" / "rows.parquet", [contents[3], None, contents[1]])
    np.save(array := tmp_path / "some.npy", pixels[:3] / np.float32(255))
    np.save(turned := tmp_path / "turned.npy", np.asfortranarray(pixels[:3]))
    with zipfile.ZipFile(packed := tmp_path / "packed.zip", "w") as archive:
        archive.writestr("b/1.png", contents[1])
        archive.writestr("a.png", contents[0])
        archive.writestr("a.gif", b"")
    found = find_inputs([str(turned), str(array), str(packed), str(folder)], tmp_path / "out")
    assert dict(found.skipped) == {".gif file": (1, "a.gif"), "hidden file": (1, "more/_metadata.parquet")}
    whole = read(found)
    assert whole.paths[11:] == [
        *[str(table)] * 3,
        f"{packed}/a.png",
        f"{packed}/b/1.png",
        *[str(array)] * 3,
        *[str(turned)] * 3,
    ]
    assert whole.indices[11:] == [0, 1, 2, 0, 0, 0, 1, 2, 0, 1, 2]
    assert whole.contents[11:16] == [contents[3], "holds no bytes of an image", contents[1], *contents[:2]]
    for index in range(3):
        np.testing.assert_array_equal(whole.contents[16 + index], pixels[index] / np.float32(255))
        np.testing.assert_array_equal(whole.contents[19 + index], pixels[index])


@pytest.mark.parametrize("size", [1, 3, 7, 22, 100])
def test_shards_hold_every_image_once_and_in_order(folder: Path, pixels: AnyArray, tmp_path: Path, size: int) -> None:
    np.save(tmp_path / "a.npy", pixels)
    found = find_inputs([str(folder), str(tmp_path / "a.npy")], tmp_path / "out")
    shards = [[*one_by_one(shard, {})] for shard in found.shards(size)]
    assert {len(shard) for shard in shards[:-1]} <= {size}
    every = [(*batch.paths, *batch.indices) for shard in shards for batch in shard]
    assert every == [*zip(read(found).paths, read(found).indices, strict=True)]
    assert len(every) == 22


def test_the_list_s_hash_is_of_every_name_and_number(folder: Path, pixels: AnyArray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels)
    given = [str(folder), str(tmp_path / "a.npy")]
    hashes = [find_inputs(given, tmp_path / "out").sha256()]
    assert find_inputs(given[::-1], tmp_path / "out").sha256() == hashes[0]
    np.save(tmp_path / "a.npy", pixels[1:])
    hashes.append(find_inputs(given, tmp_path / "out").sha256())
    (folder / "03.png").rename(folder / "03a.png")
    hashes.append(find_inputs(given, tmp_path / "out").sha256())
    assert len({*hashes}) == 3


def test_results_are_not_scored_where_they_lie_among_the_images(folder: Path, contents: list[bytes]) -> None:
    for out in (folder, folder / "scores"):
        out.mkdir(exist_ok=True)
        parquet(out / "part-00000-of-00001.parquet", contents[:1])
        parquet(folder / "own.parquet", contents[:1])
        assert len(find_inputs([str(folder)], out)) == 12
        (out / "part-00000-of-00001.parquet").unlink()


def test_a_file_of_many_images_that_is_broken_is_one_row(folder: Path, tmp_path: Path, pixels: AnyArray) -> None:
    broken = {
        "a.parquet": "not a readable Parquet file",
        "b.npy": "not a readable .npy file",
        "c.zip": "not a readable archive",
        "d.npy": "has int64 [3]; images are uint8",
        "e.npy": "not an .npy file",
    }
    for name in ("a.parquet", "b.npy", "c.zip"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
    np.save(tmp_path / "d.npy", np.arange(3))
    np.savez(tmp_path / "e.npz", pixels)
    (tmp_path / "e.npz").rename(tmp_path / "e.npy")
    found = find_inputs([str(folder), *(str(tmp_path / name) for name in broken)], tmp_path / "out")
    whole = read(found)
    assert whole.indices[11:] == [None] * 5
    for (name, problem), path, content in zip(broken.items(), whole.paths[11:], whole.contents[11:], strict=True):
        assert path == str(tmp_path / name)
        assert str(content).startswith(problem)
    with pytest.raises(ScoringError, match=r"b\.npy: not a readable \.npy file"):
        find_inputs([str(tmp_path / "b.npy")], tmp_path / "out")
    assert sum(isinstance(group, Broken) for group in found.groups) == 5


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("nowhere", "nowhere: does not exist"),
        ("no*.png", r"no\*\.png: nothing matches"),
        ("empty", "empty: no image there"),
    ],
)
def test_where_there_is_nothing_one_sentence_says_so(given: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScoringError, match=problem):
        find_inputs([str(tmp_path / given)], tmp_path / "out")


def test_a_folder_that_cannot_be_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("service.images.folder.os.scandir", refuse)
    with pytest.raises(ScoringError, match=r"images: cannot be read \(Permission denied\)"):
        find_inputs([str(folder)], tmp_path / "out")


def test_what_has_changed_since_it_was_listed_is_a_row_with_an_error(
    folder: Path, contents: list[bytes], pixels: AnyArray, tmp_path: Path
) -> None:
    table = parquet(tmp_path / "rows.parquet", contents[:3])
    np.save(array := tmp_path / "some.npy", pixels[:3])
    with zipfile.ZipFile(packed := tmp_path / "packed.zip", "w") as archive:
        archive.writestr("a.png", contents[0])
        archive.writestr("b.png", contents[1])
    found = find_inputs([str(folder), str(table), str(array), str(packed)], tmp_path / "out")
    (folder / "00.png").unlink()
    parquet(table, contents[:1])
    np.save(array, pixels[:2])
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("b.png", contents[1])
    whole = read(found)
    problems = {index: content for index, content in enumerate(whole.contents) if isinstance(content, str)}
    assert problems == {
        0: "it cannot be read (No such file or directory)",
        11: "the archive has changed: it has no such file",
        14: "the file has changed: it has fewer rows",
        15: "the file has changed: it has fewer rows",
        18: "the file has changed: it has fewer images",
    }
    with array.open("r+b") as stream:
        stream.truncate(array.stat().st_size - 1)
    assert [str(x)[:20] for x in read(found).contents[16:]] == ["not a readable .npy "] * 3


def test_what_is_too_large_or_no_file_is_not_read(
    folder: Path, tmp_path: Path, contents: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:

    os.mkfifo(folder / "aa.png")
    table = parquet(tmp_path / "rows.parquet", contents[:2])
    listed = tmp_path / "list.txt"
    listed.write_text(f"{folder}/aa.png\n{folder}/00.png\n{table}\n")
    found = find_inputs([str(listed)], tmp_path / "out")
    size = len(contents[0])
    monkeypatch.setattr("service.scoring.reading.MAX_FILE_BYTES", size - 1)
    too_large = f"it has {size} bytes, more than {size - 1}"
    assert read(found).contents[:3] == [too_large, "it is not a file", too_large]
    monkeypatch.setattr("service.scoring.reading.MAX_BLOCK_BYTES", 10)
    assert str(read(found).contents[2]).startswith("its row group has ")


def test_batches_are_bounded_by_images_and_bytes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shard,) = find_inputs([str(folder)], tmp_path / "out").shards(100)
    assert [len(batch) for batch in batches(shard, 4)] == [4, 4, 3]
    size = (folder / "00.png").stat().st_size
    monkeypatch.setattr("service.scoring.reading._BATCH_BYTES", size + 1)
    assert [len(batch) for batch in batches(shard, 4)] == [2, 2, 2, 2, 2, 1]


def test_names_that_are_no_text_are_found_and_written_as_text(
    folder: Path, tmp_path: Path, contents: list[bytes]
) -> None:

    os.rename(os.fsencode(folder / "00.png"), os.fsencode(folder) + b"/caf\xe9.png")  # noqa: PTH104
    found = find_inputs([str(folder)], tmp_path / "out")
    whole = read(found)
    place = whole.paths.index(f"{folder}/caf\\xe9.png")
    assert whole.contents[place] == contents[0]


def test_the_paths_of_a_list_begin_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x").write_bytes(b"content")
    (tmp_path / "a" / "list.txt").write_text("b/x\n")
    assert read(find_inputs([str(tmp_path / "a" / "list.txt")], tmp_path)).contents == [b"content"]
