"""Zip and tar files of images give the pixels of the same folder, and traps are refused."""

import io
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.images.archives import MAX_FILE_BYTES
from tests.training.photographs import photographs
from training.data.archives import Archive, ArchiveImages
from training.data.image_sets import Reading
from training.data.sources import StreamedSource, open_source, read_source
from training.errors import CorruptImageError, DataError

Files = Mapping[str, bytes]


def png(pixels: "np.typing.NDArray[np.uint8]") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


IMAGES = [png(image[0]) for image in photographs(14, 8, 6)]
FILES: Files = {
    **{f"set/train/good/{index}.png": content for index, content in enumerate(IMAGES[:8])},
    **{f"set/test/good/{index}.png": content for index, content in enumerate(IMAGES[8:11])},
    **{f"set/test/cut/{index}.png": content for index, content in enumerate(IMAGES[11:])},
    "set/ground_truth/cut/0.png": IMAGES[0],
    "set/readme.txt": b"hello",
    "__MACOSX/set/train/good/._0.png": b"macOS",
    "set/.DS_Store": b"",
}


def write_zip(file: Path, files: Files, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(file, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of duplicate names
        for name, content in files.items():
            archive.writestr(name, content)
    return file


def write_tar(file: Path, files: Files) -> Path:
    suffix = file.suffix.removeprefix(".")
    with tarfile.open(file, f"w:{suffix if suffix != 'tar' else ''}") as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}" if name[0] != "/" else name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder")
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.zip", write_zip),
        ("a.ZIP", write_zip),
        ("a.tar", write_tar),
        ("a.tar.gz", write_tar),
        ("a.tar.bz2", write_tar),
        ("a.tar.xz", write_tar),
    ],
)
def test_an_archive_is_read_like_the_folder_that_it_holds(
    name: str, write: Callable[[Path, Files], Path], folder: Path, tmp_path: Path
) -> None:
    expected, found = read_source(folder), read_source(write(tmp_path / name, FILES))
    assert found.sha256 == expected.sha256
    assert expected.test is not None
    assert found.ignored == {
        "hidden file": (1, "__MACOSX/set/train/good/._0.png"),
        ".txt file": (1, "set/readme.txt"),
        "mask file": (1, "set/ground_truth/cut/0.png"),
        "test image file of another class than the training images'": (3, "set/test/cut/0.png"),
    }
    assert found.ignored == expected.ignored
    for kind, images in expected.defects.read()[0].items():
        assert np.array_equal(found.defects.read()[0][kind], images)


def test_images_of_an_archive_stream_and_go_to_other_processes(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "a.tar.gz", FILES)
    streamed, loaded = open_source(file, Reading(max_memory=0.0)), read_source(file)
    assert isinstance(streamed, StreamedSource)
    assert streamed.sha256 == loaded.sha256
    assert np.array_equal(streamed.train.read(np.array([1, 5])), loaded.train[[1, 5]])
    archive = Archive(file)
    images = ArchiveImages(archive, archive.image_names()[0])
    copied = pickle.loads(pickle.dumps(images))  # noqa: S301 (as PyTorch's loader does)
    assert copied.open(0).read() == images.open(0).read() == FILES[archive.image_names()[0][0]]
    assert copied.name(0) == f"{file}/set/test/cut/0.png"


@pytest.mark.parametrize("name", ["../0.png", "/etc/0.png", "a/../../0.png", "C:/0.png", "..\\0.png"])
def test_names_that_lead_out_of_the_archive_are_refused(name: str, tmp_path: Path) -> None:
    problem = "which leads out of it: such an archive is not read"
    with pytest.raises(DataError, match=problem):
        read_source(write_zip(tmp_path / "a.zip", {**FILES, name: IMAGES[0]}))
    if "\\" not in name:
        with pytest.raises(DataError, match=problem):
            read_source(write_tar(tmp_path / "a.tar", {**FILES, name: IMAGES[0]}))


def test_what_unpacks_to_far_more_than_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.images.archives.AT_LEAST_BYTES", 2**20)
    bomb = {**FILES, "set/train/good/bomb.png": bytes(2**21)}
    for file in (write_zip(tmp_path / "a.zip", bomb), write_tar(tmp_path / "a.tar.xz", bomb)):
        with pytest.raises(DataError, match="unpacks to more than 100 times its own size"):
            read_source(file)
    assert len(read_source(write_zip(tmp_path / "b.zip", FILES)).train) == 8


def test_links_and_files_named_twice_are_counted(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "a.tar", {f"{index}.png": image for index, image in enumerate(IMAGES)})
    with tarfile.open(file, "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        again = tarfile.TarInfo("3.png")
        again.size = len(IMAGES[0])
        archive.addfile(again, io.BytesIO(IMAGES[0]))
    source = read_source(file)
    assert source.ignored == {
        "link or special file": (1, "link.png"),
        "file of the same name as a later one": (1, "3.png"),
    }
    assert len(source.train) == 14
    assert np.array_equal(source.train[7], photographs(1, 8, 6)[0])  # 3.png, after 10 to 13: the later file counts


@pytest.mark.parametrize(
    ("name", "write", "cut"),
    [
        ("a.zip", write_zip, 0.5),
        ("a.zip", write_zip, 0.98),
        ("a.tar", write_tar, 0.3),
        ("a.tar.gz", write_tar, 0.5),
        ("a.tar.gz", write_tar, 0.98),
    ],
)
def test_archives_that_are_cut_off_end_in_one_sentence(
    name: str, write: Callable[[Path, Files], Path], cut: float, tmp_path: Path
) -> None:
    file = write(tmp_path / name, FILES)
    content = file.read_bytes()
    file.write_bytes(content[: int(cut * len(content))])
    with pytest.raises(DataError, match=rf"^{re.escape(str(file))}[^\n]+$"):
        read_source(file)


def test_broken_images_in_an_archive_are_named_and_can_be_left_out(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "a.zip", FILES, zipfile.ZIP_STORED)
    content = bytearray(file.read_bytes())
    place = content.index(IMAGES[3]) + 40
    content[place] ^= 255
    file.write_bytes(content)
    with pytest.raises(CorruptImageError, match=r"a\.zip/set/train/good/3\.png: cannot be read \(Bad CRC-32"):
        read_source(file)
    source = read_source(file, skip_corrupt=True)
    assert (len(source.train), [Path(name).name for name in source.skipped]) == (7, ["3.png"])


def test_an_image_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_FILE_BYTES == 2**28
    monkeypatch.setattr("service.images.archives.MAX_FILE_BYTES", max(map(len, IMAGES)) - 1)
    with pytest.raises(CorruptImageError, match=r"bytes, more than "):
        read_source(write_zip(tmp_path / "a.zip", FILES))


def test_an_encrypted_zip_and_one_without_images_say_what_to_do(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "a.zip", {"0.png": IMAGES[0]}, zipfile.ZIP_STORED)
    content = bytearray(file.read_bytes())
    for start in (content.index(b"PK\3\4") + 6, content.index(b"PK\1\2") + 8):
        content[start] |= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"is encrypted: unpack it, and give the folder$"):
        read_source(file)
    with pytest.raises(DataError, match=r"no \.png, .* files there; there are 1 \.txt file \(a\.txt\)"):
        read_source(write_zip(tmp_path / "b.zip", {"a.txt": b""}))
    (tmp_path / "c.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"c\.zip: not a readable archive \(File is not a zip file\)"):
        read_source(tmp_path / "c.zip")
