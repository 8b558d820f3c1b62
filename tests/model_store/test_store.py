import errno
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from model_store import (
    ImageShape,
    InvalidArtifactError,
    Listing,
    Manifest,
    ModelNotFoundError,
    StoredModel,
    StoreError,
    list_store,
    list_versions,
    open_version,
    publication,
    publish,
    version_stamp,
)
from tests.likelihoods import gaussian
from tests.toys import AnyArray, describe

FILES = ("calibration.npz", "decoder.onnx", "encoder.onnx", "likelihood.onnx", "manifest.json")
NUM_IMAGES = 5
ROOT = Path(__file__).parents[2]
SCORES = np.linspace(-91.5, -80.25, NUM_IMAGES)


def add(root: Path, name: str = "toy", mark: int = 0, scores: AnyArray = SCORES) -> StoredModel:
    """Publish a version whose files tell which publisher wrote them; the store does not read graphs."""
    description = describe(name, ImageShape(channels=1, height=2, width=3), 2, gaussian(0.5), num_images=NUM_IMAGES)
    calibration = {"log_likelihood": scores - mark, "elbo": scores - mark - 1}
    return publish(
        root,
        description,
        encoder=b"e%d" % mark,
        decoder=b"d%d" % mark,
        likelihood=b"l%d" % mark,
        calibration=calibration,
    )


def add_many(root: Path, marks: range) -> list[tuple[int, int]]:
    return [(mark, add(root, mark=mark).manifest.version) for mark in marks]


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_is_published_is_what_is_opened(tmp_path: Path) -> None:
    published = add(tmp_path / "new" / "store", mark=3)
    opened = open_version(tmp_path / "new" / "store", "toy")
    assert opened.manifest == published.manifest
    assert (opened.encoder, opened.decoder) == (b"e3", b"d3")
    assert opened.path == tmp_path / "new" / "store" / "toy" / "1"
    assert sorted(file.name for file in opened.path.iterdir()) == list(FILES)
    np.testing.assert_array_equal(opened.calibration["log_likelihood"], SCORES - 3)
    np.testing.assert_array_equal(opened.calibration["elbo"], SCORES - 4)
    for file, digest in opened.manifest.sha256.items():
        assert hashlib.sha256((opened.path / file).read_bytes()).hexdigest() == digest


def test_an_opened_model_can_be_published_again(tmp_path: Path) -> None:
    first = add(tmp_path)
    second = publish(
        tmp_path,
        first.manifest,
        encoder=b"better",
        decoder=first.decoder,
        likelihood=b"l",
        calibration=first.calibration,
    ).manifest
    assert (second.version, second.latent_dim) == (2, first.manifest.latent_dim)
    assert second.sha256["encoder.onnx"] != first.manifest.sha256["encoder.onnx"]


def test_versions_count_up_and_the_latest_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "toy" / "9").mkdir(parents=True)  # a number once taken is never used again, whatever is left of it
    assert [add(tmp_path, mark=mark).manifest.version for mark in (0, 1)] == [10, 11]
    assert add(tmp_path, "other").manifest.version == 1
    assert list_versions(tmp_path) == {"other": [1], "toy": [9, 10, 11]}
    assert open_version(tmp_path, "toy").encoder == b"e1"
    assert open_version(tmp_path, "toy", 10).encoder == b"e0"


def test_only_models_and_versions_are_listed(tmp_path: Path) -> None:
    add(tmp_path)
    for stray in (
        "lost+found",
        ".publishing-x/1",
        "_old/1",
        "Upper/1",
        "empty",
        "toy/01",
        "toy/0",
        "toy/latest",
        "toy/2\n",
    ):
        (tmp_path / stray).mkdir(parents=True)
    (tmp_path / "notes").write_text("not a folder")
    assert list_versions(tmp_path) == {"toy": [1]}
    with pytest.raises(StoreError, match="notes: the model store is not a folder"):
        list_versions(tmp_path / "notes")


@pytest.mark.parametrize("name", ["..", ".", "", "/", "toy/1", "../toy", ".hidden", "Toy", "toy\n", "unknown"])
def test_no_name_leads_out_of_the_store(tmp_path: Path, name: str) -> None:
    add(tmp_path / "store")
    add(tmp_path, "toy")
    with pytest.raises(ModelNotFoundError):
        open_version(tmp_path / "store", name)
    if name != "unknown":
        with pytest.raises(ValidationError, match="name"):
            add(tmp_path / "store", name)


def test_an_unknown_version_is_answered_with_those_there_are(tmp_path: Path) -> None:
    add_many(tmp_path, range(2))
    for version in (0, -1, 3):
        with pytest.raises(ModelNotFoundError, match=f"no version {version}; it has 1, 2"):
            open_version(tmp_path, "toy", version)


def test_concurrent_publishers_never_collide(tmp_path: Path) -> None:
    with (
        multiprocessing.get_context("spawn").Pool(2) as processes,
        ThreadPoolExecutor(4) as threads,
    ):
        others = [processes.apply_async(add_many, (tmp_path, range(start, start + 20))) for start in (100, 200)]
        own = [threads.submit(add_many, tmp_path, range(start, start + 10)) for start in (300, 400, 500, 600)]
        taken = [pair for other in others for pair in other.get(60)] + [pair for one in own for pair in one.result()]
    assert sorted(version for _, version in taken) == list(range(1, 81))
    for mark, version in taken:
        stored = open_version(tmp_path, "toy", version)
        assert (stored.encoder, stored.decoder) == (b"e%d" % mark, b"d%d" % mark)
        np.testing.assert_array_equal(stored.calibration["log_likelihood"], SCORES - mark)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".given-toy-80", "toy"]


KILLED_AT_EVERY_STEP = """
import itertools, os, signal, sys
from pathlib import Path
from tests.model_store.test_store import add

CALLS = {"mkdir", "open", "write", "flush", "fsync", "chmod", "rename"}

for last_step in itertools.count(1):
    store = Path(sys.argv[1]) / str(last_step)
    add(store, mark=0)
    child = os.fork()
    if child == 0:
        steps = itertools.count(1)
        def kill(frame, event, function):
            if event == "c_call" and function.__name__ in CALLS and next(steps) == last_step:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.setprofile(kill)
        add(store, mark=1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    if status == 0:
        break
"""


def run(script: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)  # noqa: S603


def test_kill_9_at_any_step_leaves_a_whole_store(tmp_path: Path) -> None:
    driver = run(KILLED_AT_EVERY_STEP, tmp_path)
    assert driver.returncode == 0, driver.stderr
    outcomes = []
    for store in sorted(tmp_path.iterdir(), key=lambda path: int(path.name)):
        versions = list_versions(store)
        assert versions in ({"toy": [1]}, {"toy": [1, 2]})
        contents = [open_version(store, "toy", version).encoder for version in versions["toy"]]
        assert contents == [b"e0", b"e1"][: len(contents)]
        outcomes.append(len(contents))
        next_one = add(store, mark=2).manifest.version
        assert next_one in (len(contents) + 1, len(contents) + 2)  # the one that was killed may have had its number
    assert outcomes == sorted(outcomes)  # once it is there, it stays
    assert outcomes.count(1) > 15  # killed before the rename
    assert outcomes.count(2) > 2  # and after it


def test_all_is_synced_to_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut cannot be staged here; the order of calls that outlasts one can be watched."""
    synced: list[Path] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(tmp_path))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    add(tmp_path)
    *files, folder, model, root = synced
    assert sorted(file.name for file in files) == list(FILES)
    assert {file.parent for file in files} == {folder}
    assert folder.name.startswith(".publishing-")
    assert (model, root) == (Path("toy"), Path())


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    add(tmp_path, mark=0)
    before = folder_bytes(tmp_path)
    script = """
import resource, signal, sys
from pathlib import Path
from tests.model_store.test_store import add

sys.dont_write_bytecode = True
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))  # enough for the graphs of this test, not for the calibration
add(Path(sys.argv[1]), sys.argv[2])
"""
    for name in ("toy", "newcomer"):
        assert f"StoreError: {tmp_path}: {name} is not published: File too large" in run(script, tmp_path, name).stderr
    assert folder_bytes(tmp_path) == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".given-toy-1", "toy"]


def test_a_number_is_never_given_twice(tmp_path: Path) -> None:
    assert [add(tmp_path, mark=mark).manifest.version for mark in range(3)] == [1, 2, 3]
    shutil.rmtree(tmp_path / "toy" / "3")
    assert add(tmp_path).manifest.version == 4
    shutil.rmtree(tmp_path / "toy" / "4")
    shutil.rmtree(tmp_path / "toy" / "2")
    assert add(tmp_path).manifest.version == 5
    shutil.rmtree(tmp_path / "toy")  # the model as a whole
    assert list_versions(tmp_path) == {}
    assert add(tmp_path).manifest.version == 6
    assert add(tmp_path, "toy-6").manifest.version == 1  # whose record looks much like the other's
    assert add(tmp_path, "toy-6").manifest.version == 2
    assert add(tmp_path).manifest.version == 7
    records = [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")]
    assert sorted(records) == [".given-toy-6-2", ".given-toy-7"]
    assert list_versions(tmp_path) == {"toy": [6, 7], "toy-6": [1, 2]}


def test_a_copy_without_the_records_goes_on_from_its_folders(tmp_path: Path) -> None:
    for mark in range(3):
        add(tmp_path / "here", mark=mark)
    shutil.copytree(tmp_path / "here" / "toy", tmp_path / "there" / "toy")
    assert add(tmp_path / "there").manifest.version == 4


def test_a_number_whose_record_was_removed_for_a_higher_one_is_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One publisher has chosen 2; before it goes on, another publishes 2 and 3, and both are removed."""
    add(tmp_path)
    place = publication._place
    waiting = [True]

    def later(root: Path, manifest: Manifest, contents: Mapping[str, bytes]) -> bool:
        if waiting:
            waiting.clear()
            assert [add(tmp_path, mark=mark).manifest.version for mark in (5, 6)] == [2, 3]
            shutil.rmtree(tmp_path / "toy" / "2")
            shutil.rmtree(tmp_path / "toy" / "3")
        return place(root, manifest, contents)

    monkeypatch.setattr(publication, "_place", later)
    assert add(tmp_path, mark=7).manifest.version == 4
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == [".given-toy-4"]


def test_a_failed_rename_gives_its_number_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path)
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if target.name == "2":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StoreError, match="toy is not published: Input/output error"):
        add(tmp_path)
    monkeypatch.undo()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".given-toy-1", "toy"]
    assert add(tmp_path).manifest.version == 2


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_what_is_published_can_be_read_by_all_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        path = add(tmp_path / "new" / "store").path
        add(tmp_path / "new" / "store")
    finally:
        os.umask(before)
    files, folders = [path / file for file in FILES], [path, *path.parents[:3]]
    assert [stat.S_IMODE(file.stat().st_mode) & 0o755 for file in files] == [0o644] * 5
    assert [stat.S_IMODE(folder.stat().st_mode) & 0o755 for folder in folders] == [0o755] * 4
    assert folders[-1] == tmp_path / "new"
    if umask == 0o002:  # what a group may do, it may still do
        assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders[1:]] == [0o775] * 3


def test_the_mode_of_a_folder_that_was_there_is_its_owners_business(tmp_path: Path) -> None:
    (tmp_path / "store" / "toy").mkdir(parents=True)
    for folder in (tmp_path / "store", tmp_path / "store" / "toy"):
        folder.chmod(0o700)
    add(tmp_path / "store")
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("store", "store/toy")] == [0o700, 0o700]


READS_AS_NOBODY = """
import os, sys
from pathlib import Path
from model_store import BUNDLED, list_store, open_version

open_version(BUNDLED, "mnist")  # has imported by now what it needs, which may be closed to nobody
os.chdir(sys.argv[1])  # and so may be what lies above the store
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
found = list_store(Path())
print(found.versions, [error.problem for error in found.unreadable.values()])
for name in found.versions:
    print(open_version(Path(), name).encoder)
"""


def test_another_user_reads_all_but_what_is_closed_to_it(tmp_path: Path) -> None:
    """As root, a child becomes nobody; as anybody else, one's own folder closed to oneself is as good."""
    store = tmp_path / "store"
    before = os.umask(0o077)
    try:
        add(store, "open", mark=3)
        add(store, "closed")
    finally:
        os.umask(before)
    (store / "closed").chmod(0o700 if os.getuid() == 0 else 0o300)
    reader = run(READS_AS_NOBODY, store)
    assert (reader.stdout, reader.stderr) == ("{'open': [1]} ['cannot be read (Permission denied)']\nb'e3'\n", "")
    (store / "closed").chmod(0o700)


def refuse_to_list(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Let no folder of this name be listed; a test that runs as root cannot have it by permissions."""
    scandir = os.scandir

    def refuse(folder: Path) -> Any:
        if Path(folder).name == name:
            raise OSError(number, os.strerror(number), str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ELOOP])
def test_a_model_whose_folder_cannot_be_listed_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    add(tmp_path)
    add(tmp_path, "closed")
    refuse_to_list(monkeypatch, "closed", number)
    found = list_store(tmp_path)
    assert found.versions == list_versions(tmp_path) == {"toy": [1]}
    assert str(found.unreadable["closed"]) == f"{tmp_path / 'closed'}: cannot be read ({os.strerror(number)})"
    assert open_version(tmp_path, "toy").encoder == b"e0"
    assert add(tmp_path).manifest.version == 2
    for use in (open_version, version_stamp):
        with pytest.raises(InvalidArtifactError, match="closed: cannot be read"):
            use(tmp_path, "closed", 1)
    with pytest.raises(InvalidArtifactError, match="closed: cannot be read"):
        add(tmp_path, "closed")


def test_a_model_that_vanishes_while_the_store_is_listed_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in ((errno.ENOENT, "gone"), (errno.ENOTDIR, "now-a-file")):
        add(tmp_path, name)
        refuse_to_list(monkeypatch, name, number)
    add(tmp_path)
    assert list_store(tmp_path) == Listing({"toy": [1]}, {})


def test_links_of_models_are_followed_those_to_nothing_are_named_and_a_version_is_no_link(tmp_path: Path) -> None:
    add(tmp_path / "store")
    add(tmp_path / "volume", "linked")
    (tmp_path / "store" / "linked").symlink_to(tmp_path / "volume" / "linked")
    (tmp_path / "store" / "dangling").symlink_to(tmp_path / "absent")
    (tmp_path / "store" / "loop").symlink_to("loop")
    add(tmp_path / "volume", "linked")
    (tmp_path / "store" / "toy" / "2").symlink_to(tmp_path / "volume" / "linked" / "2")
    (tmp_path / "store" / "toy" / "3").symlink_to(tmp_path / "absent")
    (tmp_path / "store" / "toy" / "4").symlink_to("4")
    found = list_store(tmp_path / "store")
    assert found.versions == {"linked": [1, 2], "toy": [1, 2, 3, 4]}
    assert {name: error.problem for name, error in found.unreadable.items()} == {
        "dangling": "a link to nothing",
        "loop": f"cannot be read ({os.strerror(errno.ELOOP)})",
    }
    for version in (2, 3, 4):
        assert version_stamp(tmp_path / "store", "toy", version) == ()
        with pytest.raises(
            InvalidArtifactError, match=rf"toy/{version}: a link; a version's folder and its files must be"
        ):
            open_version(tmp_path / "store", "toy", version)
    (tmp_path / "root").symlink_to("store")
    assert list_store(tmp_path / "root").versions == found.versions
    assert open_version(tmp_path / "root", "linked", 2).manifest.version == 2


def put_socket(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(file))  # a socket's path may not be long


LINK = "a link; a version's folder and its files must be there themselves"
NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, "not a file"),
    "a socket": (put_socket, "not a file"),
    "a folder": (Path.mkdir, "not a file"),
    "a device without end": (lambda file: file.symlink_to("/dev/zero"), LINK),
    "a terminal": (lambda file: file.symlink_to("/dev/ptmx"), LINK),
    "a link to itself": (lambda file: file.symlink_to(file.name), LINK),
    "a link to the file": (lambda file: file.symlink_to("aside"), LINK),
}


@pytest.mark.parametrize(("put", "problem"), NO_FILES.values(), ids=NO_FILES)
def test_only_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put: Callable[[Path], object], problem: str
) -> None:
    """Also where a file is there at the first look, and something else when it is opened."""
    folder = add(tmp_path).path
    monkeypatch.chdir(folder)
    for file in FILES:
        (folder / file).rename(folder / "aside")
        put(folder / file)
        with pytest.raises(InvalidArtifactError) as caught:
            open_version(tmp_path, "toy")
        assert (caught.value.file, caught.value.problem) == (folder / file, f"cannot be read ({problem})")
        with monkeypatch.context() as patched:
            look, real = os.stat, (folder / "aside").stat()
            patched.setattr(os, "stat", lambda path, **how: real if path in FILES else look(path, **how))  # noqa: B023
            with pytest.raises(InvalidArtifactError) as caught:
                open_version(tmp_path, "toy")
            assert caught.value.file == folder / file
        if put == Path.mkdir:
            (folder / file).rmdir()
        (folder / "aside").replace(folder / file)
    open_version(tmp_path, "toy")


def test_a_file_that_grows_while_it_is_read_is_read_to_where_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = add(tmp_path).path
    look = os.fstat

    def grow(descriptor: int) -> os.stat_result:
        found = look(descriptor)
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "encoder.onnx":
            with (folder / "encoder.onnx").open("ab") as stream:
                stream.write(b"more")
        return found

    monkeypatch.setattr(os, "fstat", grow)
    assert open_version(tmp_path, "toy").encoder == b"e0"
    with pytest.raises(InvalidArtifactError, match=r"encoder\.onnx: SHA-256 is"):
        open_version(tmp_path, "toy")


def test_the_digest_tells_versions_apart(tmp_path: Path) -> None:
    one, two = add(tmp_path), add(tmp_path, mark=1)
    assert one.digest != two.digest
    assert one.digest == hashlib.sha256((one.path / "manifest.json").read_bytes()).hexdigest()
    assert open_version(tmp_path, "toy", 1).digest == one.digest


def test_a_store_that_cannot_be_written_or_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/store: toy is not published: Not a directory"):
        add(tmp_path / "file" / "store")
    add(tmp_path)

    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StoreError, match="cannot be read \\(Permission denied\\)"):
        list_versions(tmp_path)


def let_the_clock_move(folder: Path) -> None:
    """Until a change made now bears another time than any before; file systems count in steps of milliseconds."""
    probe = folder.parent / "probe"
    probe.write_text("")
    before = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == before:
        probe.write_text("")


def test_a_stamp_differs_once_a_file_does(tmp_path: Path) -> None:
    folder = add(tmp_path).path
    stamps = [version_stamp(tmp_path, "toy", 1)]
    assert version_stamp(tmp_path, "toy", 1) == stamps[0]
    for change in (
        lambda: flip(folder / "encoder.onnx", 0),
        lambda: (folder / "decoder.onnx").chmod(0o600),
        lambda: (folder / "calibration.npz").unlink(),
        lambda: (folder / "notes").write_text(""),
    ):
        let_the_clock_move(folder)
        change()
        assert version_stamp(tmp_path, "toy", 1) not in stamps
        stamps.append(version_stamp(tmp_path, "toy", 1))
    (tmp_path / "toy" / "2").write_text("not a folder")
    assert version_stamp(tmp_path, "toy", 2) == ()
    for name, version in (("toy", 3), ("../toy", 1), ("other", 1)):
        with pytest.raises(ModelNotFoundError):
            version_stamp(tmp_path, name, version)


def rewrite(folder: Path, **fields: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | fields))


def replace_calibration(folder: Path, content: bytes) -> None:
    """Put another calibration.npz there, with a hash that fits."""
    (folder / "calibration.npz").write_bytes(content)
    hashes = json.loads((folder / "manifest.json").read_text())["sha256"]
    rewrite(folder, sha256=hashes | {"calibration.npz": hashlib.sha256(content).hexdigest()})


def npz(**arrays: Any) -> bytes:
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    return packed.getvalue()


def npy() -> bytes:
    packed = io.BytesIO()
    np.save(packed, SCORES)
    return packed.getvalue()


def flip(file: Path, byte: int) -> None:
    content = bytearray(file.read_bytes())
    content[byte] ^= 1
    file.write_bytes(content)


def shorten(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


Damage = Callable[[Path], object]


@pytest.mark.parametrize("file", ["encoder.onnx", "decoder.onnx", "likelihood.onnx", "calibration.npz"])
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        pytest.param(shorten, "truncated or altered", id="truncated"),
        pytest.param(lambda file: file.write_bytes(b""), "truncated or altered", id="emptied"),
        pytest.param(lambda file: flip(file, 0), "truncated or altered", id="first byte flipped"),
        pytest.param(lambda file: flip(file, -1), "truncated or altered", id="last byte flipped"),
        pytest.param(Path.unlink, "missing", id="missing"),
        pytest.param(lambda file: (file.unlink(), file.mkdir()), "cannot be read", id="a folder"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, file: str, damage: Damage, problem: str) -> None:
    folder = add(tmp_path).path
    damage(folder / file)
    with pytest.raises(InvalidArtifactError, match=problem) as caught:
        open_version(tmp_path, "toy")
    assert caught.value.file == folder / file
    assert str(caught.value).startswith(f"{folder / file}: ")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "missing"),
        (lambda folder: os.truncate(folder / "manifest.json", 200), "not JSON"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"), "not JSON"),
        (lambda folder: (folder / "manifest.json").write_text("[" * 100_000), "not JSON"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "format version None"),
        (lambda folder: rewrite(folder, format_version=3), "format version 3; this reader knows 1 and 2"),
        (lambda folder: rewrite(folder, format_version="1"), "format version '1'"),
        (lambda folder: rewrite(folder, colour="blue"), "colour: Extra inputs are not permitted"),
        (lambda folder: rewrite(folder, latent_dim=0), "latent_dim: Input should be greater than or equal to 1"),
        (lambda folder: rewrite(folder, name="other"), "says it is other version 1, but lies in toy/1"),
        (lambda folder: rewrite(folder, version=2), "says it is toy version 2, but lies in toy/1"),
    ],
)
def test_a_wrong_manifest_is_refused_by_name(tmp_path: Path, damage: Damage, problem: str) -> None:
    folder = add(tmp_path).path
    damage(folder)
    with pytest.raises(InvalidArtifactError) as caught:
        open_version(tmp_path, "toy")
    assert caught.value.file == folder / "manifest.json"
    assert problem in caught.value.problem


def test_a_file_without_a_hash_is_refused(tmp_path: Path) -> None:
    folder = add(tmp_path).path
    rewrite(folder, sha256={})
    with pytest.raises(InvalidArtifactError, match=r"encoder\.onnx: the manifest gives no SHA-256"):
        open_version(tmp_path, "toy")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not an .npz"),
        (b"not a zip", "not an .npz"),
        (npy(), "not an .npz"),
        (npz(log_likelihood=SCORES, elbo=SCORES)[:-30], "not an .npz"),
        (npz(log_likelihood=SCORES, elbo=np.array([None] * NUM_IMAGES)), "found object [5]"),
        (npz(log_likelihood=SCORES), "array 'elbo' is missing"),
        (npz(elbo=SCORES), "array 'log_likelihood' is missing"),
        (
            npz(log_likelihood=SCORES[1:], elbo=SCORES),
            "'log_likelihood' must be 5 finite float64 numbers, found float64 [4]",
        ),
        (
            npz(log_likelihood=SCORES, elbo=SCORES[:, None]),
            "'elbo' must be 5 finite float64 numbers, found float64 [5, 1]",
        ),
        (npz(log_likelihood=SCORES, elbo=SCORES.astype(np.float32)), "found float32 [5]"),
        (npz(log_likelihood=SCORES, elbo=np.where(SCORES < -90, np.nan, SCORES)), "'elbo' must be 5 finite"),
        (npz(log_likelihood=np.where(SCORES < -90, -np.inf, SCORES), elbo=SCORES), "'log_likelihood' must be 5 finite"),
        (npz(log_likelihood=SCORES, elbo=SCORES, more=SCORES[:2]), "'more' must be 5 finite"),
        (npz(log_likelihood=SCORES, elbo=SCORES, fitting=0 * SCORES + 0.5), "'fitting' must be of 0 and 1"),
        (npz(log_likelihood=SCORES, elbo=SCORES, fitting=0 * SCORES + 1), "'fitting' must be of 0 and 1, with a 0"),
        (npz(log_likelihood=SCORES, elbo=SCORES, latent_0=SCORES, latent_7=SCORES), "there must be latent_0 to"),
    ],
)
def test_a_wrong_calibration_is_refused_though_its_hash_fits(tmp_path: Path, content: bytes, problem: str) -> None:
    folder = add(tmp_path).path
    replace_calibration(folder, content)
    with pytest.raises(InvalidArtifactError) as caught:
        open_version(tmp_path, "toy")
    assert caught.value.file == folder / "calibration.npz"
    assert problem in caught.value.problem


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth > 1 else []


@pytest.mark.parametrize(
    ("configuration", "problem"),
    [
        ({"a": "\ud800"}, "cannot be written"),
        ({"a": "\x9b2J"}, "a text holds U\\+009B"),
        ({"a": nested(500)}, "cannot be written"),
        ({"a": nested(40)}, "lie more than 32 deep"),
        ({"a": 2**64}, "a whole number is too large"),
        ({"a": "x" * 2**20}, "at most 1048576 are read"),
        ({"a": object()}, "cannot be written"),
    ],
)
def test_what_no_reader_would_take_is_not_published(
    tmp_path: Path, configuration: dict[str, Any], problem: str
) -> None:
    described = add(tmp_path / "other").manifest
    provenance = described.provenance.model_copy(update={"configuration": configuration})
    with pytest.raises(InvalidArtifactError, match=problem) as caught:
        publish(
            tmp_path / "store",
            described.model_copy(update={"provenance": provenance}),
            encoder=b"e",
            decoder=b"d",
            likelihood=b"l",
            calibration={"log_likelihood": SCORES, "elbo": SCORES},
        )
    assert caught.value.file == Path("manifest.json")
    assert not (tmp_path / "store").exists()


def test_a_graph_larger_than_a_reader_takes_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publication, "MAX_GRAPH_BYTES", 1)
    with pytest.raises(InvalidArtifactError, match=r"encoder\.onnx: has 2 bytes; at most 1 are read"):
        add(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "scores", [SCORES[1:], SCORES * np.nan, SCORES.astype(object), SCORES.astype(np.float32), np.zeros(0)]
)
def test_a_wrong_calibration_is_not_published(tmp_path: Path, scores: AnyArray) -> None:
    with pytest.raises(InvalidArtifactError, match=r"calibration\.npz: 'log_likelihood' must be 5 finite float64"):
        add(tmp_path, scores=scores)
    assert list(tmp_path.iterdir()) == []
