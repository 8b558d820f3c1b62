"""Divisions by what images show: all images of a thing on one side, in folders, archives, tables and streams."""

import json
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_store import FITTING, open_version
from tests.features import features_graph, ordinary
from training.__main__ import main
from training.configuration import Configuration
from training.data.image_sets import Reading
from training.data.preparation import Preparation
from training.data.sources import open_source, read_source
from training.data.splits import PARTS, DataSplits, split
from training.data.things import divide_things, fitting_of_things
from training.errors import ConfigurationError, DataError
from training.fit.run import RUN, open_run

THINGS, SHOTS = 40, 5
PATTERN = r"thing(\d+)_"
OPTIONS = ["--num-validation", "20", "--num-calibration", "60", "--num-test", "20", "--latent-dim", "2"]


def name_of(thing: int, shot: int) -> str:
    return f"day{shot % 2}/thing{thing:02}_{shot}.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photographs each of forty things; the first pixel says which thing it is."""
    folder = tmp_path_factory.mktemp("things")
    pixels = np.rint(255 * ordinary(THINGS * SHOTS, seed=61)).astype(np.uint8)[:, 0]
    for number, image in enumerate(pixels):
        thing, shot = divmod(number, SHOTS)
        image[0, 0] = 5 * thing
        file = folder / "photos" / name_of(thing, shot)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    (folder / "graph.onnx").write_bytes(features_graph())
    return folder


def table(folder: Path, names: dict[str, str] | None = None) -> Path:
    """Of the photographs' paths, with a column `group`, and with `names` in place of the things' own."""
    rows = [
        f"photos/{name_of(t, s)},{(names or {}).get(str(t), f'no {t}')}" for t in range(THINGS) for s in range(SHOTS)
    ]
    (folder / "things.csv").write_text("\n".join(["path,group", *rows]))
    return folder / "things.csv"


def shown(splits: DataSplits) -> dict[str, set[int]]:
    return {part: set((getattr(splits, part)[:, 0, 0, 0] // 5).tolist()) for part in PARTS}


def test_no_thing_is_on_two_sides_and_all_images_are_used(folder: Path) -> None:
    splits = split(read_source(folder / "photos"), Configuration(group=PATTERN, num_validation=10, num_test=33))
    found = shown(splits)
    assert sum(map(len, found.values())) == THINGS == len(set.union(*found.values()))
    assert {part: len(getattr(splits, part)) for part in PARTS} == {
        "train": 200 - 10 - 20 - 35,
        "validation": 10,
        "calibration": 20,
        "test": 35,
    }
    assert splits.division is not None
    assert splits.division.record == {"by": PATTERN, "train": 27, "validation": 2, "calibration": 4, "test": 7}
    assert shown(split(read_source(folder / "photos"), Configuration(seed=1, group=PATTERN)))["test"] != found["test"]
    assert split(read_source(folder / "photos"), Configuration()).division is None


def test_archives_tables_and_streams_are_divided_as_the_folder_is(folder: Path) -> None:
    configuration = Configuration(group=PATTERN)
    expected = shown(split(read_source(folder / "photos"), configuration))
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for file in sorted((folder / "photos").rglob("*.png")):
            archive.write(file, file.relative_to(folder / "photos"))
    assert shown(split(read_source(folder / "photos.zip"), configuration)) == expected
    stream = split(open_source(folder / "photos", Reading(max_memory=0)), configuration)
    held_out = {part: set((getattr(stream, part)[:, 0, 0, 0] // 5).tolist()) for part in PARTS[1:]}
    assert held_out == {part: expected[part] for part in PARTS[1:]}
    by_column = split(read_source(table(folder)), Configuration())
    assert by_column.division is not None
    assert by_column.division.by == "column group"
    assert sum(map(len, shown(by_column).values())) == THINGS
    alone = split(read_source(table(folder, {"7": ""})), Configuration())  # five things of one image
    assert alone.division is not None
    assert sum(alone.division.num_things.values()) == THINGS + SHOTS - 1


def test_images_that_cannot_be_read_move_no_other_name(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in sorted((folder / "photos").rglob("*.png")):
            content = file.read_bytes()
            broken = file.name in ("thing03_1.png", "thing20_0.png")
            archive.writestr(str(file.relative_to(folder / "photos")), content[:-40] if broken else content)
    for reading in (Reading(skip_corrupt=True), Reading(skip_corrupt=True, max_memory=0)):
        source = open_source(tmp_path / "photos.zip", reading)
        assert len(source.skipped) == 2
        splits = split(source, Configuration(group=PATTERN))
        found = {part: set((getattr(splits, part)[:, 0, 0, 0] // 5).tolist()) for part in PARTS[1:]}
        assert splits.division is not None
        assert sum(map(len, found.values())) == sum(splits.division.num_things[part] for part in found)
        assert not set.intersection(*found.values())


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        (r"tile(\d+)", "finds a name in 0 of 200 paths, and none in 'day0/thing00_0.png': change it so that its brack"),
        (r"thing0(\d)", "finds a name in 50 of 200 paths, and none in 'day0/thing10_0.png'"),
        (
            r"(thing)",
            "show 1 thing, such as 'thing', which cannot be divided into validation, calibration, test and tr",
        ),
        (r"(day\d)/", "show 2 things, such as 'day0', which cannot be divided"),
    ],
)
def test_a_pattern_that_tells_too_little_is_refused(folder: Path, pattern: str, sentence: str) -> None:
    with pytest.raises(DataError) as refusal:
        split(read_source(folder / "photos"), Configuration(group=pattern))
    assert sentence in str(refusal.value)


def test_what_cannot_be_a_pattern_or_has_no_paths_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"group must be a regular expression, not '\(': missing \)"):
        Configuration(group="(")
    np.save(tmp_path / "images.npy", np.full((40, 2, 2), 9, np.uint8))
    with pytest.raises(DataError, match="has no paths for --group; folders, archives and tables"):
        split(read_source(tmp_path / "images.npy"), Configuration(group="(.)"))


def test_parts_of_the_datas_own_may_not_share_a_thing(folder: Path, tmp_path: Path) -> None:
    """MVTec AD's layout: defects are in no part, and may be of the things that are trained on."""
    for thing in range(THINGS):
        part = "train" if thing < 30 else "test"
        for shot in range(SHOTS):
            target = tmp_path / part / ("bent" if thing == 30 else "good") / f"thing{thing % 39:02}_{shot}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((folder / "photos" / name_of(thing, shot)).read_bytes())
    with pytest.raises(DataError, match="the train and the test part both have images of '00': put all images"):
        split(read_source(tmp_path), Configuration(group=PATTERN))
    (tmp_path / "train/good").joinpath("thing00_0.png").rename(tmp_path / "train/good/thing30_9.png")
    for shot in range(SHOTS):
        (tmp_path / f"test/good/thing00_{shot}.png").unlink()
    splits = split(read_source(tmp_path), Configuration(group=PATTERN))
    assert splits.division is not None
    assert splits.division.num_things == {"train": 25, "validation": 3, "calibration": 3, "test": 8}


def test_things_of_any_size_leave_every_part_some() -> None:
    rng = np.random.default_rng(5)
    for trial in range(200):
        count = int(rng.integers(4, 30))
        things = [f"{t}" for t in range(count) for _ in range(int(rng.integers(1, rng.integers(2, 60))))]
        wanted = {"a": max(1, len(things) // 10), "b": max(1, len(things) // 10), "c": max(1, len(things) // 10)}
        order = rng.permutation(len(things))
        places = divide_things([things[k] for k in order], wanted, seed=trial, name="n")
        sides = [{things[k] for k in order[part]} for part in places]
        assert all(sides)
        assert sum(map(len, sides)) == count == len(set.union(*sides))
        assert sorted(np.concatenate(places).tolist()) == list(range(len(things)))
        again = divide_things(things, wanted, seed=trial, name="n")
        assert [{things[k] for k in part} for part in again] == sides  # whatever the order of the images
    large = ["large"] * 900 + [f"{t}" for t in range(50) for _ in range(2)]
    for seed in range(20):
        places = divide_things(large, {"a": 20, "b": 20}, seed=seed, name="n")
        assert [len(part) for part in places] == [20, 20, 960]


def test_scores_are_fitted_to_other_things_than_they_are_compared_with() -> None:
    rng = np.random.default_rng(6)
    for _ in range(100):
        things = np.repeat(np.arange(12), rng.integers(1, 9, 12))
        fitting = fitting_of_things(things[rng.permutation(len(things))])
        assert abs(fitting.mean() - 1 / 3) < 4 / len(things) + 0.02
    things = np.array([2, 0, 1, 2, 0, 1])
    assert not set(things[fitting_of_things(things) > 0]) & set(things[fitting_of_things(things) == 0])
    assert fitting_of_things(np.zeros(6, np.int64)).sum() == 2


def test_a_run_remembers_its_things_and_is_published_by_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, data = folder / "run", table(folder)
    arguments = ["fit", "--data", str(data), "--out", str(run), "--features", str(folder / "graph.onnx"), *OPTIONS]
    assert main([*arguments, "--workers", "0"]) == 0
    output = capsys.readouterr().out
    assert "divided by things (column group): 20 train, 4 validation, 12 calibration, 4 test\n" in output
    assert "of 60 calibration images 20 fit the scores and 40, of 8 things, are compared with" in output
    resume = ["fit", "--data", str(data), "--out", str(run), "--resume", "--workers", "0"]
    assert main(resume) == 0
    publish = ["publish", str(run), "--name", "things", "--store", str(folder / "store"), "--workers", "0"]
    publish += ["--score-proposal", "encoder", "--score-samples", "2"]
    table(folder, {"3": "no 4"})  # another division of the same images
    for command in (resume, publish):
        capsys.readouterr()
        assert main(command) == 2
        assert "things" in capsys.readouterr().err
    table(folder)
    assert main([*publish, "--images", "8"]) == 0
    stored = open_version(folder / "store", "things")
    record = {"by": "column group", "train": 20, "validation": 4, "calibration": 12, "test": 4}
    assert stored.manifest.provenance.configuration["things"] == record
    assert json.loads((run / RUN).read_text())["things"] == record
    configuration = open_run(run).description.configuration
    splits = split(read_source(data, preparation=Preparation.asked(asdict(configuration))), configuration)
    assert splits.division is not None
    assert np.array_equal(stored.calibration[FITTING], fitting_of_things(splits.division.of_calibration))
    capsys.readouterr()
    evaluate = ["evaluate", str(folder / "store" / "things"), "--workers", "0", "--images", "8", "--data"]
    assert main([*evaluate, str(data)]) == 0
    assert "held out of training as its test" in capsys.readouterr().out
