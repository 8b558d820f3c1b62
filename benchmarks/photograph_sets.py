"""Public photographs with defects, as folders for benchmarks/photographs.py.

python benchmarks/photograph_sets.py tiles Magnetic-tile-defect-datasets. OUT    # github.com/abin24
python benchmarks/photograph_sets.py roads CrackForest-dataset OUT               # github.com/cuilimeng
python benchmarks/photograph_sets.py boards DeepPCB/PCBData OUT                  # github.com/tangsanli5201
python benchmarks/photograph_sets.py classes CIFAR-10-images OUT --ordinary cat  # github.com/YoongiKim

OUT/data is laid out as MVTec AD is: train/good, test/good, test/<defect>, ground_truth/<defect>; OUT/calibration has
ordinary photographs that are in neither. OUT/data/table.csv says of each file its part, its kind and what it shows, so
that `fit --data OUT/data/table.csv` divides train/good by that. What shows the same thing is on one side: one tile was
photographed up to six times with other exposures (the nearest photograph of 96 in 100 is of the same tile), a road's
photograph and a board's are cut into several. Of a seed, three fifths of these things are to train on, 18 in 100 to
calibrate, the rest to test.

- tiles: grey, as they are; five kinds of defect with masks of pixels.
- roads: squares of 96 pixels of 118 photographs of asphalt; ordinary where the mask has no pixel, `crack` where it has
  at least 40.
- boards: squares of 160 pixels of 300 pairs of a printed circuit board and a flawless template; ordinary ones of
  templates, each kind of defect around the middle of its box, which is the mask.
- classes: colour photographs of 32 pixels, one class ordinary, the nine others strange: 600 of `train` to train on and
  150 to calibrate, of `test` 200 ordinary and 40 of each other class. Each is a thing by itself; there is no table.
"""

import argparse
import csv
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import loadmat

SEED = 0
TRAIN, CALIBRATION = 0.6, 0.18
SIDE, ROAD_SIDE = 160, 96
LEAST_CRACK = 40
LARGEST_GAP = 300
"""Between the numbers of two photographs of one tile."""
PAIRS, SQUARES, LEAST_SPREAD = 300, 4, 30
CLASS_IMAGES, ORDINARY_TESTED, STRANGE_TESTED = (600, 150), 200, 40
KINDS = ("open", "short", "mousebite", "spur", "copper", "pin-hole")

Levels = NDArray[np.uint8]


def parts(things: Sequence[Any]) -> dict[Any, str]:
    """For each thing, where its ordinary photographs go."""
    order = np.random.default_rng(SEED).permutation(len(things))
    train, calibration = (round(share * len(things)) for share in (TRAIN, TRAIN + CALIBRATION))
    return {
        things[index]: "data/train/good"
        if place < train
        else "calibration"
        if place < calibration
        else "data/test/good"
        for place, index in enumerate(order)
    }


def tiles_of(names: Iterable[str]) -> dict[str, int]:
    """By the name of a photograph, exp<exposure>_num_<number>, which tile it shows: exposures of one rise in order."""
    found: dict[str, int] = {}
    tile, last = 0, (0, -LARGEST_GAP)
    numbered = {name: tuple(map(int, re.findall(r"\d+", name))) for name in names}
    for name, (exposure, number) in sorted(numbered.items(), key=lambda item: item[1][1]):
        tile += exposure <= last[0] or number - last[1] > LARGEST_GAP
        found[name], last = tile, (exposure, number)
    return found


def tiles(source: Path, out: Path) -> None:
    """Folders `MT_Free/Imgs`, `MT_Blowhole/Imgs`, …, with masks as .png beside .jpg."""
    ordinary = sorted((source / "MT_Free").rglob("*.jpg"))
    tile = tiles_of(file.stem for file in ordinary)
    where = parts(sorted(set(tile.values())))
    for file in ordinary:
        _copy(file, out / where[tile[file.stem]])
    for folder in sorted(path for path in source.iterdir() if path.name.startswith("MT_") and path.name != "MT_Free"):
        kind = folder.name.removeprefix("MT_").lower()
        for file in sorted(folder.rglob("*.jpg")):
            _copy(file, out / "data/test" / kind)
            _copy(file.with_suffix(".png"), out / "data/ground_truth" / kind)


def roads(source: Path, out: Path) -> None:
    """Folders `image` and `groundTruth`, whose .mat files say of each pixel 1, or 2 where there is a crack."""
    files = sorted((source / "groundTruth").glob("*.mat"))
    where = parts([file.stem for file in files])
    for file in files:
        cracked = loadmat(file)["groundTruth"][0, 0]["Segmentation"] > 1
        pixels = np.asarray(Image.open(source / "image" / f"{file.stem}.jpg").convert("L"))
        for top in range(0, pixels.shape[0] - ROAD_SIDE + 1, ROAD_SIDE):
            for left in range(0, pixels.shape[1] - ROAD_SIDE + 1, ROAD_SIDE):
                square, mask = (array[top : top + ROAD_SIDE, left : left + ROAD_SIDE] for array in (pixels, cracked))
                name = f"{file.stem}-{top}-{left}"
                if not mask.any():
                    _save(square, out / where[file.stem] / f"{name}.png")
                elif mask.sum() >= LEAST_CRACK and where[file.stem].startswith("data/test"):
                    _save_defect(square, mask, out, "crack", name)


def boards(source: Path, out: Path) -> None:
    """Files `…_temp.jpg` and `…_test.jpg`, and of the latter's defects a line `x1 y1 x2 y2 kind` each."""
    every = sorted(source.rglob("*_temp.jpg"))
    rng = np.random.default_rng(SEED)
    chosen = [every[index] for index in sorted(rng.choice(len(every), PAIRS, replace=False))]
    where = parts(chosen)
    for file in chosen:
        number = file.stem.removesuffix("_temp")
        template = np.asarray(Image.open(file).convert("L"))
        for index, square in enumerate(_patterned(template, rng)):
            _save(square, out / where[file] / f"{number}-{index}.png")
        if where[file].startswith("data/test"):
            _board_defects(file, number, out)


def classes(source: Path, out: Path, ordinary: str) -> None:
    """Folders `train/<class>` and `test/<class>`."""
    rng = np.random.default_rng(SEED)
    every = sorted((source / "train" / ordinary).iterdir())
    chosen = [every[index] for index in rng.permutation(len(every))[: sum(CLASS_IMAGES)]]
    for place, file in enumerate(chosen):
        _copy(file, out / ("data/train/good" if place < CLASS_IMAGES[0] else "calibration"))
    for folder in sorted((source / "test").iterdir()):
        kind, count = ("good", ORDINARY_TESTED) if folder.name == ordinary else (folder.name, STRANGE_TESTED)
        files = sorted(folder.iterdir())
        for index in rng.permutation(len(files))[:count]:
            _copy(files[index], out / "data/test" / kind)


def _patterned(template: Levels, rng: np.random.Generator) -> list[Levels]:
    """Squares that are not of one level: many are, and all of those would be the same photograph."""
    corners = rng.integers(0, np.array(template.shape) - SIDE, (SQUARES, 2))
    squares = [template[top : top + SIDE, left : left + SIDE] for top, left in corners]
    return [square for square in squares if square.std() > LEAST_SPREAD]


def _board_defects(file: Path, number: str, out: Path) -> None:
    tested = np.asarray(Image.open(file.with_name(f"{number}_test.jpg")).convert("L"))
    lines = (file.parent.parent / f"{file.parent.name}_not" / f"{number}.txt").read_text().split("\n")
    boxes = [tuple(map(int, re.split(r"[ ,]", line.strip()))) for line in lines if line.strip()]
    mask = np.zeros(tested.shape, bool)
    for x1, y1, x2, y2, _ in boxes:
        mask[y1:y2, x1:x2] = True
    for index, (x1, y1, x2, y2, kind) in enumerate(boxes):
        middle = np.array([y1 + y2, x1 + x2]) // 2 - SIDE // 2
        top, left = np.clip(middle, 0, np.array(tested.shape) - SIDE)
        part = np.s_[top : top + SIDE, left : left + SIDE]
        _save_defect(tested[part], mask[part], out, KINDS[kind - 1], f"{number}-{index}")


def _save_defect(pixels: Levels, mask: NDArray[np.bool_], out: Path, kind: str, name: str) -> None:
    _save(pixels, out / "data/test" / kind / f"{name}.png")
    _save(mask.astype(np.uint8) * np.uint8(255), out / "data/ground_truth" / kind / f"{name}.png")


def _save(pixels: Levels, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def write_table(kind: str, out: Path) -> None:
    """OUT/data/table.csv: path, split, label, group."""
    folders = {
        folder: sorted(out.glob(f"{folder}/*")) for folder in ("data/train/good", "data/test/good", "calibration")
    }
    names = [file.stem for files in folders.values() for file in files]
    thing = {name: str(number) for name, number in tiles_of(names).items()} if kind == "tiles" else {}
    rows = [
        (f"{file.parent.parent.name}/{file.parent.name}/{file.name}", file.parent.parent.name, file.parent.name, group)
        for file in sorted((out / "data").glob("t*/*/*"))
        for group in [thing.get(file.stem) or file.stem.partition("-")[0]]
    ]
    with (out / "data/table.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "split", "label", "group"), *rows])


def _copy(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, folder / file.name)


SETS: dict[str, Callable[[Path, Path], None]] = {"tiles": tiles, "roads": roads, "boards": boards}


def main() -> None:
    """Divide one set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=[*SETS, "classes"])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--ordinary", default="cat", help="of classes: which one is ordinary")
    parsed = parser.parse_args()
    if parsed.set == "classes":
        classes(parsed.source, parsed.out, parsed.ordinary)
        return
    SETS[parsed.set](parsed.source, parsed.out)
    write_table(parsed.set, parsed.out)


if __name__ == "__main__":
    main()
