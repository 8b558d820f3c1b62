"""Whoever can write the store puts bombs into it: each is refused by name, for little memory, and hides no other model.

All of it runs in children under a memory limit: one that opens every bomb in turn, and a real service on a store with
some of them.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store import (
    ImageShape,
    InvalidArtifactError,
    StoreError,
    files,
    list_store,
    open_version,
    store,
    version_stamp,
)
from model_store.calibration import MAX_OTHER_ARRAYS
from model_store.manifest_file import MAX_DEPTH, MAX_MANIFEST_BYTES, parse_manifest
from tests.hostile.bombs import (
    BOMBS,
    MANIFEST,
    MEBIBYTE,
    NUM_IMAGES,
    SCORES,
    Bomb,
    calibration,
    configuration,
    edit,
    nested,
    npy,
    put_calibration,
)
from tests.hostile.harness import ROOT, ChildService, watched
from tests.toys import bernoulli_toy
from tests.web.conftest import put

MEMORY = 96 * MEBIBYTE
"""What opening any of the bombs may add; honest calibrations may take more."""
TRIALS = 2 * (160 * MEBIBYTE + MEMORY)
"""What the two processes that try versions out at once may have, with a bomb in each."""
ADDRESS_SPACE = 1024 * MEBIBYTE


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one model, to be copied."""
    root = tmp_path_factory.mktemp("honest")
    put(root, bernoulli_toy(ImageShape(channels=1, height=4, width=4), name="toy"))
    return root


OPENS = """
import json, resource, sys
from pathlib import Path
from model_store import StoreError, open_version

class Peak:
    def __init__(self):
        Path("/proc/self/clear_refs").write_text("5")
        self.before = self.resident("VmRSS")

    def resident(self, name):
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
        return 1024 * int(line.split()[1])

open_version(Path(sys.argv[1]), "toy")  # has imported by now what it needs
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
for line in sys.stdin:
    peak = Peak()
    try:
        stored = open_version(Path(line.rstrip()), "toy")
        told = ["accepted", "", json.loads(stored.manifest.model_dump_json())["name"]]
    except StoreError as error:
        told = [type(error).__name__, str(getattr(error, "file", "")), getattr(error, "problem", str(error))]
    print(json.dumps([*told, peak.resident("VmHWM") - peak.before]), flush=True)
"""


class Opener:
    """A process under a memory limit that opens the model `toy` of one store after another."""

    def __init__(self, honest: Path) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", OPENS, str(honest), str(ADDRESS_SPACE)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def open(self, root: Path) -> tuple[str, str, str, int]:
        """What came of it, the file named, the problem, and the bytes of memory that it took at most."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{root}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the process ended with status {self._process.wait()}"
        kind, file, problem, taken = json.loads(line)
        return kind, file, problem, taken

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def opener(honest: Path) -> Iterator[Opener]:
    started = Opener(honest)
    yield started
    started.end()


def copy_of(honest: Path, root: Path) -> Path:
    """A store of its own; the version's folder."""
    shutil.copytree(honest, root)
    return root / "toy" / "1"


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_name_for_little_memory(honest: Path, tmp_path: Path, opener: Opener, name: str) -> None:
    bomb, file, problem = BOMBS[name]
    bomb(copy_of(honest, tmp_path / "store"))
    kind, found, told, taken = opener.open(tmp_path / "store")
    assert (kind, Path(found).name) == ("InvalidArtifactError", file), told
    assert re.search(problem, told), told
    assert told.isprintable()
    assert len(told) < 1100
    assert taken < MEMORY, f"{taken / MEBIBYTE:.0f} MiB"


def for_each_file(folder: Path, change: Callable[[Path], None]) -> None:
    for file in list(folder.iterdir()):
        change(file)


ODD_BUT_HONEST: dict[str, Bomb] = {
    "as deep as it may be": configuration(json.dumps({"a": nested(MAX_DEPTH - 3)})),
    "numbers of 64 bits": configuration(f'{{"a": [{2**64 - 1}, {-(2**63)}, 1.7e308, 5e-324]}}'),
    "texts of other scripts, lines and pairs of surrogates": configuration(
        '{"Größe": "\\n\\t文字 \\ud83d\\ude00 שלום"}'
    ),
    "all the room there is": edit(
        lambda m: m["provenance"]["configuration"].update(a="x" * (MAX_MANIFEST_BYTES - 4000))
    ),
    "further arrays": calibration(*((f"{i}.npy", SCORES) for i in range(MAX_OTHER_ARRAYS - 2))),
    "codes of each image": calibration(*((f"latent_{i}.npy", SCORES) for i in range(3))),
    "not packed": calibration(packing=zipfile.ZIP_STORED),
    "written by np.savez_compressed": lambda folder: put_calibration(folder, compressed()),
    "files that others may write": lambda folder: for_each_file(folder, lambda file: file.chmod(0o666)),
    "files with a second name": lambda folder: for_each_file(folder, lambda one: os.link(one, f"{folder}-{one.name}")),
    "further files": lambda folder: [(folder / f"note-{i}").write_text("") for i in range(200)],
}


def compressed() -> bytes:
    packed = io.BytesIO()
    scores = np.linspace(-10, -5, NUM_IMAGES)
    np.savez_compressed(packed, log_likelihood=scores, elbo=scores)
    return packed.getvalue()


@pytest.mark.parametrize("name", ODD_BUT_HONEST)
def test_what_is_odd_but_honest_is_taken(honest: Path, tmp_path: Path, opener: Opener, name: str) -> None:
    ODD_BUT_HONEST[name](copy_of(honest, tmp_path / "store"))
    kind, _, told, _ = opener.open(tmp_path / "store")
    assert (kind, told) == ("accepted", "toy")


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None, exclude_categories=())),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec=None, exclude_categories=()), max_size=3), inner, max_size=3)
    ),
    max_leaves=20,
)


@given(value=ANY_JSON)
def test_whatever_a_manifest_holds_it_is_refused_by_name_or_can_be_told_again(honest: Path, value: object) -> None:
    fields = json.loads((honest / "toy" / "1" / MANIFEST).read_text())
    fields["provenance"]["configuration"] = {"a": value}
    file = Path(MANIFEST)
    problem = None
    try:
        manifest = parse_manifest(file, json.dumps(fields).encode())
    except InvalidArtifactError as error:
        problem = error.problem
    if problem is not None:
        assert problem.isprintable()
        return
    told = manifest.model_dump_json().encode()
    assert json.loads(told)["provenance"]["configuration"] == {"a": value}
    assert parse_manifest(file, told) == manifest


def test_a_folder_without_end_is_refused_and_one_model_s_hides_no_other(
    honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_store.store.MAX_ENTRIES", 9)
    copy_of(honest, tmp_path / "store")
    for version in range(2, 20):
        (tmp_path / "store" / "many").mkdir(exist_ok=True)
        (tmp_path / "store" / "many" / str(version)).mkdir()
    found = list_store(tmp_path / "store")
    assert found.versions == {"toy": [1]}
    assert found.unreadable["many"].problem == "cannot be read (it has more than 9 entries)"
    assert open_version(tmp_path / "store", "toy").manifest.name == "toy"
    for number in range(9):
        (tmp_path / "store" / f".junk-{number}").write_text("")
    with pytest.raises(StoreError, match=r"store: cannot be read \(it has more than 9 entries\)"):
        list_store(tmp_path / "store")


def test_only_numbers_are_versions(honest: Path, tmp_path: Path) -> None:
    folder = copy_of(honest, tmp_path / "store")
    for name in (
        "0",
        "01",
        "-1",
        "+1",
        "1.0",
        "1e3",
        "1" + "0" * 30,
        "9999999999",
        "٣",
        "²",
        "１",
        " 2",
        "2\n",
        "NaN",
        "1_0",
    ):
        (folder.parent / name).mkdir()
    for name in ("TOY", "a b", "toy\n", "-toy", "tøy", "t" * 65):
        shutil.copytree(folder.parent, tmp_path / "store" / name)
    assert list_store(tmp_path / "store").versions == {"toy": [1]}


def test_a_model_in_place_of_a_folder_that_is_a_file_a_pipe_or_a_loop_hides_no_other(
    honest: Path, tmp_path: Path
) -> None:
    copy_of(honest, tmp_path / "store")
    (tmp_path / "store" / "a-file").write_text("")
    os.mkfifo(tmp_path / "store" / "a-pipe")
    (tmp_path / "store" / "a-loop").symlink_to("a-loop")
    (tmp_path / "store" / "above").symlink_to("..")
    (tmp_path / "store" / "a-device").symlink_to("/dev/zero")
    found = list_store(tmp_path / "store")
    assert (found.versions, set(found.unreadable)) == ({"toy": [1]}, {"a-loop"})


def test_a_version_that_is_swapped_or_removed_while_it_is_read_is_never_mixed(
    honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(honest, tmp_path / "store")
    first = open_version(tmp_path / "store", "toy")
    other = copy_of(honest, tmp_path / "other")
    (other / "encoder.onnx").write_bytes(b"another")
    read = files.read_file

    def swap(file: Path, descriptor: int, *, most_bytes: int) -> bytes:
        content = read(file, descriptor, most_bytes=most_bytes)
        if file.name == MANIFEST and other.exists():
            folder.rename(tmp_path / "aside")
            other.rename(folder)
        return content

    monkeypatch.setattr(store, "read_file", swap)
    assert open_version(tmp_path / "store", "toy").encoder == first.encoder
    with pytest.raises(InvalidArtifactError, match=r"encoder\.onnx: SHA-256 is"):
        open_version(tmp_path / "store", "toy")

    def remove(file: Path, descriptor: int, *, most_bytes: int) -> bytes:
        content = read(file, descriptor, most_bytes=most_bytes)
        shutil.rmtree(folder, ignore_errors=True)
        return content

    monkeypatch.setattr(store, "read_file", remove)
    with pytest.raises(InvalidArtifactError, match=r"encoder\.onnx: missing"):
        open_version(tmp_path / "store", "toy")


def test_a_stamp_does_not_grow_with_the_folder(honest: Path, tmp_path: Path) -> None:
    folder = copy_of(honest, tmp_path / "store")
    before = version_stamp(tmp_path / "store", "toy", 1)
    for number in range(100):
        (folder / f"note-{number}").write_text("")
    after = version_stamp(tmp_path / "store", "toy", 1)
    assert after != before
    assert len(after) == len(before) == 6


SERVED = [
    "a latent of 2^40",
    "a configuration nested 500 deep",
    "half of a surrogate pair",
    "a terminal's escape of 8 bits",
    "an unknown key of a million characters",
    "as many unknown keys as there is room for",
    "scores that unpack to 64 MiB",
    "a shape of 80 GB",
    "a member named by a terminal's escape",
    "an encoder of a terabyte",
    "the version's folder is a link",
]


def test_a_service_goes_on_beside_bombs_and_names_each(honest: Path, tmp_path: Path) -> None:
    """Bombs as later versions of a model, and as a model that has no other: found at start, and by a reload."""
    key = "0123456789abcdef"
    root = tmp_path / "store"
    copy_of(honest, root)
    image = np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 4, 4)
    reference = "POST", "/v1/encode?model=toy", npy(image), {"Content-Type": "application/x-npy"}

    def plant(model: str, version: int, name: str) -> None:
        folder = root / model / str(version)
        shutil.copytree(honest / "toy" / "1", folder)
        edit(lambda fields: fields.update(name=model, version=version))(folder)
        BOMBS[name][0](folder)

    plant("alone", 1, SERVED[0])
    for number, name in enumerate(SERVED[::2]):
        plant("toy", 2 + number, name)
    with (
        ChildService(root, admin_keys=key, memory_limit=ADDRESS_SPACE) as service,
        watched(service, memory=service.resident() + MEMORY + TRIALS, reference=reference),
    ):
        for number, name in enumerate(SERVED[1::2]):
            plant("toy", 100 + number, name)
        authorised = {"Authorization": f"Bearer {key}"}
        assert service.ask("POST", "/v1/admin/reload", headers=authorised).status == 200
        answer = service.ask("GET", "/v1/models")
        assert answer.status == 200
        models = {model["name"]: model for model in json.loads(answer.body)["models"]}
        assert (models["toy"]["default_version"], models["alone"]["default_version"]) == (1, None)
        refused = {item["version"]: item["reason"] for item in models["toy"]["refused"]}
        assert len(refused) == len(SERVED)
        assert all(reason.isprintable() and len(reason) < 1200 for reason in refused.values())
        assert service.metric("logpx_refused_versions") == len(SERVED) + 1
        assert service.ask("GET", "/v1/models/toy?version=3").status == 503
        told = [line for line in service.log_lines() if line["event"] == "version refused"]
        assert len(told) >= len(SERVED) + 1
        assert all(value.isprintable() for line in told for value in line.values() if isinstance(value, str))
