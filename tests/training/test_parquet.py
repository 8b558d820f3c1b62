"""Parquet as Hugging Face's datasets write it: a column of structs with an image file's bytes."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.data.image_sets import Reading
from training.data.sources import StreamedSource, open_source, read_source
from training.errors import CorruptImageError, DataError

IMAGES = np.random.default_rng(4).integers(0, 256, (7, 4, 3), dtype=np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="png")
    return stream.getvalue()


PNGS: list[bytes | None] = [png(image) for image in IMAGES]


def structs(contents: Sequence[bytes | None]) -> Any:
    return pa.array([{"bytes": content, "path": f"{index}.png"} for index, content in enumerate(contents)])


def write(file: Path, columns: dict[str, Any], row_group_size: int = 3) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file, row_group_size=row_group_size)


@pytest.mark.parametrize("column", [structs(PNGS), pa.array(PNGS), pa.array(PNGS, pa.large_binary())])
def test_structs_and_plain_binary(tmp_path: Path, column: Any) -> None:
    write(tmp_path / "some.parquet", {"label": pa.array(range(7)), "picture": column})
    assert (read_source(tmp_path / "some.parquet").train[:, 0] == IMAGES).all()
    assert (read_source(tmp_path).train[:, 0] == IMAGES).all()


def test_parts_by_the_names_of_hugging_face(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000-of-00002.parquet", {"img": structs(PNGS[:3])})
    write(tmp_path / "data" / "train-00001-of-00002.parquet", {"img": structs(PNGS[3:5])})
    write(tmp_path / "data" / "test-00000-of-00001.parquet", {"img": structs(PNGS[5:])})
    write(tmp_path / "data" / "notes.parquet", {"text": pa.array(["of no part"])})
    source = read_source(tmp_path)
    assert source.test is not None
    assert (source.train[:, 0] == IMAGES[:5]).all()
    assert (source.test[:, 0] == IMAGES[5:]).all()
    assert source.validation is None


def test_parts_in_folders(tmp_path: Path) -> None:
    for part, rows in {"train": slice(4), "val": slice(4, 6), "test": slice(6, 7)}.items():
        write(tmp_path / part / "0000.parquet", {"image": structs(PNGS[rows])})
    source = read_source(tmp_path)
    assert [len(part) for part in (source.train, source.validation, source.test) if part is not None] == [4, 2, 1]


def test_the_column_called_image_is_preferred(tmp_path: Path) -> None:
    thumbnails = pa.array([png(image[:2]) for image in IMAGES])
    write(tmp_path / "a.parquet", {"thumbnail": thumbnails, "image": pa.array(PNGS)})
    assert read_source(tmp_path).train.shape == (7, 1, 4, 3)
    write(tmp_path / "a.parquet", {"thumbnail": thumbnails, "picture": pa.array(PNGS)})
    with pytest.raises(DataError, match=r"several columns could hold images .there are: thumbnail, picture"):
        read_source(tmp_path)
    write(tmp_path / "a.parquet", {"label": pa.array(range(7))})
    with pytest.raises(DataError, match=r"no column of encoded images .there are: label"):
        read_source(tmp_path)


def test_rows_are_named(tmp_path: Path) -> None:
    contents = [*PNGS[:4], b"no image", None, PNGS[6]]
    write(tmp_path / "a.parquet", {"image": structs(contents)})
    expected = r"a\.parquet row 4: not a readable image .*so are .*a\.parquet row 5; 2 of 7 images cannot be read"
    with pytest.raises(CorruptImageError, match=expected):
        read_source(tmp_path)
    source = read_source(tmp_path, skip_corrupt=True)
    assert (source.train[:, 0] == IMAGES[[0, 1, 2, 3, 6]]).all()
    assert source.skipped[f"{tmp_path / 'a.parquet'} row 5"] == "holds no bytes of an image"


def test_the_same_pixels_have_the_same_hash_however_they_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "parquet" / "a.parquet", {"image": structs(PNGS)})
    np.save(tmp_path / "array.npy", IMAGES)
    assert read_source(tmp_path / "parquet").sha256 == read_source(tmp_path / "array.npy").sha256


def test_files_that_are_not_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(DataError, match=r"a\.parquet: not a readable Parquet file"):
        read_source(tmp_path)
    write(tmp_path / "test.parquet", {"image": structs(PNGS)})
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(DataError, match="has Parquet files called test, but none called train"):
        read_source(tmp_path)


def test_a_row_group_that_would_fill_a_workers_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", {"image": structs(PNGS)}, row_group_size=7)
    assert isinstance(open_source(tmp_path, Reading(max_memory=0)), StreamedSource)
    monkeypatch.setattr("training.data.image_sets._MAX_BLOCK_BYTES", 100)
    with pytest.raises(DataError, match=r"a\.parquet row 0: lies in a row group of .*row_group_size"):
        open_source(tmp_path, Reading(max_memory=0))


def test_broken_bytes_are_refused_by_name_or_read(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write(file, {"image": structs(PNGS)})
    whole = file.read_bytes()
    mutations = np.random.default_rng(2)
    refused = 0
    for _ in range(200):
        content = bytearray(whole)
        for position in mutations.integers(0, len(content), mutations.integers(1, 4)):
            content[position] = mutations.integers(0, 256)
        file.write_bytes(content)
        try:
            read_source(file)
        except DataError as error:
            assert str(error.file).startswith(str(file))  # noqa: PT017 (some are read after all)
            refused += 1
    assert refused > 50


def test_a_data_set_that_is_a_folder_called_like_a_file(tmp_path: Path) -> None:
    """As Spark and Dask write them, with their notes beside."""
    for part, rows in {"train": slice(5), "test": slice(5, 7)}.items():
        folder = tmp_path / "set" / f"{part}.parquet"
        write(folder / "part-00000-8d3f.snappy.parquet", {"image": structs(PNGS[rows])})
        (folder / "_SUCCESS").write_bytes(b"")
        (folder / ".part-00000-8d3f.snappy.parquet.crc").write_bytes(b"crc")
        write(folder / "_temporary" / "0.parquet", {"text": pa.array(["not finished"])})
    source = read_source(tmp_path / "set")
    assert (source.train[:, 0] == IMAGES[:5]).all()
    assert source.test is not None
    assert (source.test[:, 0] == IMAGES[5:]).all()
    assert source.ignored == {
        "file without a suffix": (2, "test.parquet/_SUCCESS"),
        "hidden file": (2, "test.parquet/_temporary/0.parquet"),
    }
    assert (read_source(tmp_path / "set" / "train.parquet").train[:, 0] == IMAGES[:5]).all()


@pytest.mark.parametrize(
    "names", [("a-train.parquet", "a-eval.parquet"), ("split=training/0.PARQUET", "split=testing/0.parquet")]
)
def test_parts_by_words_in_names(tmp_path: Path, names: tuple[str, str]) -> None:
    write(tmp_path / names[0], {"image": structs(PNGS[:5])})
    write(tmp_path / names[1], {"image": structs(PNGS[5:])})
    write(tmp_path / "contest.parquet", {"image": structs(PNGS[:1])})
    Image.fromarray(IMAGES[0]).save(tmp_path / "preview.png")
    source = read_source(tmp_path)
    assert source.test is not None
    assert (len(source.train), len(source.test)) == (5, 2)
    assert source.ignored == {"Parquet file of no part": (1, "contest.parquet"), ".png file": (1, "preview.png")}
