import gzip
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.data.sources import read_source
from training.errors import CorruptImageError, DataError
from training.terminal import print_skipped

RANDOM = np.random.default_rng(5)
TRAIN = RANDOM.integers(0, 256, (6, 4, 3), dtype=np.uint8)
TEST = RANDOM.integers(0, 256, (2, 4, 3), dtype=np.uint8)


def write_idx(file: Path, images: NDArray[np.uint8]) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in images.shape)
    content = bytes([0, 0, 8, images.ndim]) + sizes + images.tobytes()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def write_png(file: Path, pixels: NDArray[np.uint8]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def test_an_idx_folder_of_mnist(tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", TRAIN)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", TEST)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"not looked at")
    source = read_source(tmp_path)
    assert source.train.shape == (6, 1, 4, 3)
    assert (source.train[:, 0] == TRAIN).all()
    assert source.test is not None
    assert (source.test[:, 0] == TEST).all()
    assert source.validation is None
    assert source.name == tmp_path.name


def test_an_idx_folder_of_binarised_images(tmp_path: Path) -> None:
    for name, images in {"train": TRAIN, "valid": TEST[:1], "test": TEST}.items():
        write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", (images > 127).astype(np.uint8))
    source = read_source(tmp_path)
    assert source.validation is not None
    assert source.validation.shape == (1, 1, 4, 3)
    assert (source.train[:, 0] == np.where(TRAIN > 127, 255, 0)).all()
    assert set(np.unique(source.train)) == {0, 255}


def test_one_dark_part_is_not_taken_for_binarised_images(tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", TRAIN)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", (TEST > 127).astype(np.uint8))
    source = read_source(tmp_path)
    assert source.test is not None
    assert source.test.max() == 1


def test_compression_and_place_do_not_change_the_hash_but_pixels_do(tmp_path: Path) -> None:
    for name in ("plain", "packed", "other"):
        (tmp_path / name).mkdir()
    write_idx(tmp_path / "plain" / "train-images-idx3-ubyte", TRAIN)
    write_idx(tmp_path / "packed" / "train-images-idx3-ubyte.gz", TRAIN)
    write_idx(tmp_path / "other" / "train-images-idx3-ubyte", TRAIN[::-1].copy())
    np.save(tmp_path / "array.npy", TRAIN)
    plain, packed, other = (read_source(tmp_path / name).sha256 for name in ("plain", "packed", "other"))
    assert plain == packed == read_source(tmp_path / "array.npy").sha256 != other


def test_an_idx_folder_without_training_images(tmp_path: Path) -> None:
    write_idx(tmp_path / "t10k-images-idx3-ubyte", TEST)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte: missing"):
        read_source(tmp_path)


def test_parts_of_different_sizes(tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", TRAIN)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", TEST[:, :3])
    with pytest.raises(DataError, match=r"test images are uint8 \[1, 3, 3\], but train images uint8 \[1, 4, 3\]"):
        read_source(tmp_path)


def test_a_folder_of_grey_files_in_class_subfolders(tmp_path: Path) -> None:
    for index, image in enumerate(TRAIN):
        write_png(tmp_path / "ab"[index % 2] / f"{index}.png", image)
    (tmp_path / "README.txt").write_text("not looked at")
    source = read_source(tmp_path)
    assert (source.train[:, 0] == TRAIN[[0, 2, 4, 1, 3, 5]]).all()
    assert source.test is None


def test_folders_come_one_after_another(tmp_path: Path) -> None:
    for index, name in enumerate(("shoe", "shoe-left", "shoe.old")):  # - and . come before / where text is sorted
        write_png(tmp_path / name / "0.png", TRAIN[index])
    assert (read_source(tmp_path).train[:, 0] == TRAIN[:3]).all()


def test_a_flat_folder_with_one_colour_file_has_three_channels(tmp_path: Path) -> None:
    colour = RANDOM.integers(0, 256, (4, 3, 3), dtype=np.uint8)
    write_png(tmp_path / "0.png", TRAIN[0])
    write_png(tmp_path / "1.PNG", colour)
    source = read_source(tmp_path)
    assert source.train.shape == (2, 3, 4, 3)
    assert (source.train[0] == TRAIN[0]).all()
    assert (source.train[1] == np.moveaxis(colour, -1, 0)).all()


def test_jpeg_and_part_folders(tmp_path: Path) -> None:
    grey = np.full((16, 8), 200, dtype=np.uint8)
    for part in ("train", "val", "test"):
        (tmp_path / part).mkdir()
        Image.fromarray(grey).save(tmp_path / part / "0.jpg", quality=95)
    source = read_source(tmp_path)
    assert source.train.shape == (1, 1, 16, 8)
    assert np.abs(source.train.astype(int) - 200).max() <= 2
    assert source.validation is not None
    assert source.test is not None


def test_class_folders_that_are_links_and_all_suffixes_of_jpeg(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_png(tmp_path / "set" / "a" / "0.png", TRAIN[0])
    write_png(tmp_path / "elsewhere" / "0.png", TRAIN[1])
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    write_png(tmp_path / "set" / "c" / ".ipynb_checkpoints" / "0.png", TRAIN[2])
    (tmp_path / "set" / "a" / "._0.png").write_bytes(b"\0\5\x16\7")
    Image.fromarray(TRAIN[3]).save(tmp_path / "set" / "1.bmp")
    for suffix in ("jfif", "jpe"):
        Image.fromarray(TRAIN[3]).save(tmp_path / "set" / "a" / f"1.{suffix}", format="JPEG")
    source = read_source(tmp_path / "set")
    assert len(source.train) == 4
    assert (source.train[[0, 3], 0] == TRAIN[:2]).all()
    assert source.ignored == {"hidden file": (2, "a/._0.png"), ".bmp file": (1, "1.bmp")}
    assert source.skipped == {}
    print_skipped(source)
    print_skipped(replace(source, ignored={"hidden file": (2, "a/._0.png")}))
    assert capsys.readouterr().out.splitlines() == [
        "skipped: 2 hidden files (a/._0.png, …), 1 .bmp file (1.bmp)",
        "PNG, JPEG and WebP files are read: convert the others if they are to count",
        "skipped: 2 hidden files (a/._0.png, …)",
    ]


def test_other_formats_alone_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("0.bmp", "1.bmp", "2.gif"):
        Image.fromarray(TRAIN[0]).save(tmp_path / name)
    with pytest.raises(
        DataError, match=r"no .*\.webp files there; there are 2 \.bmp files \(0\.bmp, …\), 1 \.gif file"
    ):
        read_source(tmp_path)


@pytest.mark.parametrize("names", [("training", "testing"), ("Train", "Evaluation"), ("seg_train", "seg_test")])
def test_test_images_are_not_trained_on(tmp_path: Path, names: tuple[str, str]) -> None:
    write_png(tmp_path / names[0] / "a" / "0.png", TRAIN[0])
    write_png(tmp_path / names[1] / "a" / "0.png", TRAIN[1])
    write_png(tmp_path / "figures" / "0.png", TRAIN[2].T.copy())
    source = read_source(tmp_path)
    assert source.test is not None
    assert (source.train[:, 0] == TRAIN[:1]).all()
    assert (source.test[:, 0] == TRAIN[1:2]).all()
    assert source.ignored == {"image file in no folder of a part": (1, "figures/0.png")}


def test_a_part_or_a_class_must_be_told(tmp_path: Path) -> None:
    write_png(tmp_path / "bus" / "0.png", TRAIN[0])
    write_png(tmp_path / "train" / "0.png", TRAIN[1])
    with pytest.raises(DataError, match=r"has a folder 'train' beside other images \(bus/0\.png\), and none for valid"):
        read_source(tmp_path)
    (tmp_path / "train").rename(tmp_path / "test")
    with pytest.raises(DataError, match=r"has a folder 'test' beside other images \(bus/0\.png\), and none for train"):
        read_source(tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("service.images.folder.os.scandir", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
        read_source(tmp_path)


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    write_png(folder / os.fsdecode(b"\xe9.png"), TRAIN[0])
    source = read_source(folder)
    assert source.name == r"caf\xe9"
    assert len(source.train) == 1


def test_a_file_of_another_size_is_named(tmp_path: Path) -> None:
    write_png(tmp_path / "0.png", TRAIN[0])
    write_png(tmp_path / "1.png", TRAIN[1].T.copy())
    with pytest.raises(DataError, match=r"1\.png: is 3×4 \(height × width\), but .*0\.png is 4×3: .*--size auto"):
        read_source(tmp_path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    noise = RANDOM.integers(0, 256, (64, 64), dtype=np.uint8)
    write_png(tmp_path / "0.png", noise)
    write_png(tmp_path / "1.png", noise)
    content = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"1\.png: cannot be decoded: it is cut off"):
        read_source(tmp_path)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"0\.png: not a readable image"):
        read_source(tmp_path)


def test_a_file_of_sixteen_bits_makes_the_set_float(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 3), 40_000, dtype=np.uint16)).save(tmp_path / "0.png")
    write_png(tmp_path / "1.png", TRAIN[1])
    train = read_source(tmp_path).train
    assert train.dtype == np.float32
    assert train.shape == (2, 1, 4, 3)
    assert (train[0] == np.float32(40_000) / np.float32(65_535)).all()
    assert (train[1, 0] == TRAIN[1].astype(np.float32) / np.float32(255)).all()


def test_sixteen_bits_beside_colour(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 3), 40_000, dtype=np.uint16)).save(tmp_path / "0.png")
    write_png(tmp_path / "1.png", RANDOM.integers(0, 256, (4, 3, 3), dtype=np.uint8))
    train = read_source(tmp_path).train
    assert train.dtype == np.float32
    assert train.shape == (2, 3, 4, 3)
    assert (train[0] == np.float32(40_000) / np.float32(65_535)).all()


def test_corrupt_files_are_counted_and_named(tmp_path: Path) -> None:
    for index, image in enumerate(TRAIN):
        write_png(tmp_path / f"{index}.png", image)
    (tmp_path / "2.png").write_bytes(b"no image")
    (tmp_path / "4.png").write_bytes((tmp_path / "4.png").read_bytes()[:45])
    with pytest.raises(CorruptImageError, match=r"2\.png: not a readable image .*4\.png; 2 of 6 images cannot be read"):
        read_source(tmp_path)
    source = read_source(tmp_path, skip_corrupt=True)
    assert (source.train[:, 0] == TRAIN[[0, 1, 3, 5]]).all()
    assert {Path(name).name for name in source.skipped} == {"2.png", "4.png"}
    for file in tmp_path.iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(CorruptImageError, match=r"0\.png: .*; none of the 6 training images can be read"):
        read_source(tmp_path, skip_corrupt=True)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (TRAIN, TRAIN[:, None]),
        (TRAIN[:, None] > 127, np.where(TRAIN > 127, 255, 0)[:, None]),
        (TRAIN / 255.0, (TRAIN / 255.0).astype(np.float32)[:, None]),
        (np.stack([TRAIN, TRAIN // 2], 1), np.stack([TRAIN, TRAIN // 2], 1)),
    ],
    ids=["8-bit", "boolean", "floats", "two channels"],
)
def test_npy(tmp_path: Path, array: NDArray[np.generic], expected: NDArray[np.generic]) -> None:
    np.save(tmp_path / "images.npy", array)
    source = read_source(tmp_path / "images.npy")
    assert source.train.shape == expected.shape
    assert (source.train == expected).all()


@pytest.mark.parametrize("keys", [("train", "test"), ("x_train", "x_test"), ("train_images", "test_images")])
def test_npz(tmp_path: Path, keys: tuple[str, str]) -> None:
    arrays: dict[str, NDArray[np.generic]] = {keys[0]: TRAIN, keys[1]: TEST, "labels": np.arange(6), "masks": TEST}
    np.savez(tmp_path / "images.npz", allow_pickle=False, **arrays)
    source = read_source(tmp_path / "images.npz")
    assert (source.train[:, 0] == TRAIN).all()
    assert source.test is not None
    assert (source.test[:, 0] == TEST).all()
    assert source.ignored == {"array": (1, "masks")}


def test_npz_with_one_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", whatever=TRAIN)
    assert (read_source(tmp_path / "images.npz").train[:, 0] == TRAIN).all()


def test_npz_without_a_training_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=TRAIN, labels=np.arange(6))
    with pytest.raises(DataError, match=r"images\.npz: holds the arrays images, labels; one called 'train'"):
        read_source(tmp_path / "images.npz")


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (TRAIN.reshape(6, 12), r"shape \[6, 12\]; images are"),
        (np.zeros((6, 32, 32, 3), np.uint8), "channels come second"),
        (TRAIN.astype(np.int64), "is int64; pixels are 8-bit"),
        (TRAIN / 200.0, r"not in \[0, 1\]"),
        (TRAIN * 1e300, r"not in \[0, 1\]"),
        (np.full((2, 4, 3), np.nan), r"not in \[0, 1\]"),
        (TRAIN[:0], "the train part holds no pixels"),
        (np.zeros_like(TRAIN), "every pixel of every image is 0"),
    ],
)
def test_an_array_that_is_no_images_is_refused(tmp_path: Path, array: NDArray[np.generic], problem: str) -> None:
    np.save(tmp_path / "images.npy", array)
    with pytest.raises(DataError, match=problem) as caught:
        read_source(tmp_path / "images.npy")
    assert caught.value.file == tmp_path / "images.npy"


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"images\.npy: not a readable array file"):
        read_source(tmp_path / "images.npy")


@pytest.mark.parametrize("name", ["images.npy", "images.npz"])
def test_a_truncated_array_file_is_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    np.save(file, TRAIN) if file.suffix == ".npy" else np.savez(file, train=TRAIN)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"{name}: not a readable array file"):
        read_source(file)


def _npy_with_header(header: str, content: bytes = b"") -> bytes:
    padded = header.encode() + b"\n"
    return b"\x93NUMPY\x01\0" + len(padded).to_bytes(2, "little") + padded + content


@pytest.mark.parametrize(
    "header",
    [
        "(",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000000000)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999999, 1)}",
        "{'descr': [], 'fortran_order': False, 'shape': (1,)}",
        "{" + " " * 20_000 + "}",
    ],
    ids=["unclosed", "huge shape", "shape beyond 64 bits", "no type", "long"],
)
def test_a_lying_header_is_refused_by_name(tmp_path: Path, header: str) -> None:
    (tmp_path / "images.npy").write_bytes(_npy_with_header(header, TRAIN.tobytes()))
    with pytest.raises(DataError, match=r"images\.npy: ") as caught:
        read_source(tmp_path / "images.npy")
    assert "\n" not in str(caught.value)


# NumPy remarks on headers that look like Python 2's and on types by old names, and reads on.
@pytest.mark.filterwarnings("ignore:Reading `.npy` or `.npz` file:UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["8-bit npy", "float npy", "npz", "compressed npz"])
def test_broken_bytes_are_refused_by_name_or_read(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"images.{kind[-3:]}"
    with file.open("wb") as stream:
        if kind.endswith("npy"):
            np.save(stream, TRAIN if kind == "8-bit npy" else TRAIN / 255)
        else:
            (np.savez if kind == "npz" else np.savez_compressed)(stream, train=TRAIN, test=TEST)
    whole = file.read_bytes()
    mutations = np.random.default_rng(3)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(mutations.integers(1, 4)):
            end = len(content) if mutations.random() < 0.5 else 100  # a header is worth half of them
            content[mutations.integers(0, end)] = mutations.choice(np.frombuffer(b"([{'\"0129, \0\xff\x7f", np.uint8))
        file.write_bytes(content[: mutations.integers(1, len(content))] if mutations.random() < 0.1 else content)
        try:
            read_source(file)
        except DataError as error:
            assert error.file == file  # noqa: PT017 (some are read after all)
            refused += 1
    assert refused > 100


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.npz", "w") as archive:
        archive.writestr("train", b"a text")
    with pytest.raises(DataError, match=r"images\.npz: 'train' is not an array"):
        read_source(tmp_path / "images.npz")


def test_what_is_not_there_or_not_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: does not exist"):
        read_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no IDX files, no Parquet rows and no \.png"):
        read_source(tmp_path)
    (tmp_path / "images.xls").write_text("1,2,3")
    with pytest.raises(
        DataError, match=r"images\.xls: not a folder, and not a \.zip, \.tar, \.csv, \.parquet, \.npy or"
    ):
        read_source(tmp_path / "images.xls")
