"""CSV and Parquet files that say where images are, for what, and of what class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.training.photographs import photographs
from training.data.sources import read_source
from training.errors import CorruptImageError, DataError

PIXELS = photographs(10, 8, 6)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for index, image in enumerate(PIXELS):
        Image.fromarray(image[0]).save(tmp_path / "pictures" / f"{index}.png")
    return tmp_path


def write(file: Path, head: str, rows: Sequence[str]) -> Path:
    file.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8-sig")
    return file


@pytest.mark.parametrize(
    ("head", "row"),
    [
        ("path", "pictures/{}.png"),
        ("File_Name,label", "pictures/{}.png,x"),
        ("label;image", "a, b;pictures\\{}.png"),
        ("image_path\tclass", "./pictures/../pictures/{}.png\t1"),
        ("path,note", '"pictures/{}.png","two\nlines, and a ""comma"""'),
    ],
)
def test_a_table_gives_the_images_in_its_order(head: str, row: str, root: Path) -> None:
    order = [3, 0, 9, 4]
    file = write(root / "images.csv", head, [row.format(index) for index in order])
    source = read_source(file)
    assert np.array_equal(source.train, PIXELS[order])
    assert source.ignored == {}


def test_splits_and_labels_make_parts_and_defects(root: Path) -> None:
    rows = [f"pictures/{index}.png,{split},{label}" for index, split, label in [
        *((index, "Train", "good") for index in range(5)), (5, "val", "good"), (6, "test", "good"), (7, "test", "cut"),
        (8, "test", "cut"), (9, "test", "dent"),
    ]]  # fmt: skip
    source = read_source(write(root / "t.csv", "path,split,label", rows))
    assert np.array_equal(source.train, PIXELS[:5])
    assert source.validation is not None
    assert source.test is not None
    assert (len(source.validation), len(source.test)) == (1, 1)
    defects, problems = source.defects.read()
    assert {kind: len(images) for kind, images in defects.items()} == {"cut": 2, "dent": 1}
    assert np.array_equal(defects["dent"], PIXELS[9:])
    assert problems == {}
    classes = [row.replace("good", str(index % 2)) for index, row in enumerate(rows)]  # labels that are no defects
    both = read_source(write(root / "c.csv", "path,split,label", classes))
    assert both.test is not None
    assert len(both.test) == 4


def test_a_parquet_file_of_paths_is_a_table_and_one_of_images_is_not(root: Path) -> None:
    paths = [f"pictures/{index}.png" for index in range(6)]
    pq.write_table(pa.table({"path": paths, "split": ["train"] * 4 + ["test"] * 2}), root / "t.parquet")
    source = read_source(root / "t.parquet")
    assert np.array_equal(source.train, PIXELS[:4])
    assert source.test is not None
    assert np.array_equal(source.test, PIXELS[4:6])
    content = [(root / path).read_bytes() for path in paths]
    pq.write_table(pa.table({"path": paths, "image": pa.array(content, pa.binary())}), root / "i.parquet")
    assert np.array_equal(read_source(root / "i.parquet").train, PIXELS[:6])


def test_what_is_not_taken_is_counted(root: Path) -> None:
    rows = ["pictures/0.png", "pictures/1.png", "pictures/./0.png", "notes.txt", '""', ".hidden/1.png", "Thumbs.db"]
    source = read_source(write(root / "t.csv", "path", rows))
    assert len(source.train) == 2
    assert source.ignored == {
        "file named again": (1, "pictures/0.png"),
        ".txt file": (1, "notes.txt"),
        "row without a path": (1, "row 5"),
        "hidden file": (1, ".hidden/1.png"),
        "file of the system": (1, "Thumbs.db"),
    }


def test_an_absolute_path_counts_where_it_lies_beside_the_table(root: Path) -> None:
    assert len(read_source(write(root / "t.csv", "path", [str(root / "pictures" / "0.png")])).train) == 1


@pytest.mark.parametrize(
    ("head", "rows", "problem"),
    [
        ("path", ["pictures/0.png", "../0.png"], r"row 2 names '\.\./0\.png', which is not in the table's folder"),
        ("path", ["/etc/passwd"], r"row 1 names '/etc/passwd', which is not in the table's folder"),
        ("where,label", ["pictures/0.png,1"], r"has no column of paths \(there are: 'where', 'label'\)"),
        ("path,split", ["pictures/0.png,holdout"], r"row 1 has the split 'holdout'; known are train, validation, test"),
        ("path,split", ["pictures/0.png,test"], r"has rows for test, but none for training"),
        ("path,split", ["pictures/0.png,train", "pictures/1.png"], r"row 2 has 1 values, the header has 2"),
        ("path", ["a.gif"], r"no \.png, .* files there; there are 1 \.gif file"),
        ("path", [], r"no \.png, .* files there"),
    ],
)
def test_a_table_that_cannot_be_used_says_which_row(head: str, rows: list[str], problem: str, root: Path) -> None:
    with pytest.raises(DataError, match=problem):
        read_source(write(root / "t.csv", head, rows))


def test_missing_files_are_named(root: Path) -> None:
    file = write(root / "t.csv", "path", ["pictures/0.png", "pictures/none.png"])
    with pytest.raises(CorruptImageError, match=r"pictures/none\.png: cannot be read \(No such file"):
        read_source(file)
    (root / "empty.csv").write_bytes(b"")
    (root / "binary.csv").write_bytes(b"path\n\xff\xfe\0")
    (root / "broken.parquet").write_bytes(b"PAR1")
    for name in ("empty.csv", "binary.csv", "broken.parquet"):
        with pytest.raises(DataError, match=f"{name}: not a readable "):
            read_source(root / name)
