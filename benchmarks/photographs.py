"""Defects on photographs: a model of features beside the field's methods on the same features.

git clone https://github.com/abin24/Magnetic-tile-defect-datasets.
python benchmarks/photographs.py divide Magnetic-tile-defect-datasets. TILES        # folders as MVTec AD has them
python -m training features --from efficientnet-lite0 --colour grey --size 128 --grid 8x8 --out features.onnx
python -m training fit --data TILES --features features.onnx --fit stretch --out RUN --minutes 10
python -m training publish RUN --name tiles --store STORE --score-proposal encoder --score-samples 100
python benchmarks/photographs.py measure TILES RUN STORE

A quarter of the ordinary images, drawn by a seed, is the test part; no image of a defect is looked at before. All
methods have the run's features of the run's training images, standardised in the same way, and give each position a
number. An image's score is the mean of the sixteenth of its positions with the largest (for all methods alike, and
beside it the largest alone), and its map these numbers, interpolated to the image. The peers are

- a Gaussian a position with all of its covariance plus 0.01·I (PaDiM, Defard et al. 2020, with all channels);
- the distance to the nearest training position, wherever in its image (PatchCore, Roth et al. 2022, without coreset
  and smoothing);
- one Gaussian of the mean over positions, which has no map.

Intervals are of 1000 bootstrap resamples of ordinary and defective images: 2.5 to 97.5 %. Pixel AUROC is over all
pixels of the images of a defect; its masks are resampled as the images are.
"""

import argparse
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from model_store import open_version
from service.engine.anomaly.local import at_image_size
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.runtime import Runtime
from training.features.maps import FOLDER, run_graph
from training.publish.detection import auroc

SUFFIXES = {".jpg", ".png"}
ORDINARY, MASKS = "free", "ground_truth"
SEED, RESAMPLES = 0, 1000
TEST_EVERY = 4
REGULARISATION = 0.01
SHARE = 16
"""Of positions, one in so many counts in an image's score: service/engine/anomaly/local.py."""
IMAGES_AT_ONCE = 16

Floats = NDArray[np.float64]
Images = NDArray[np.float32]


def divide(source: Path, target: Path) -> None:
    """Copy the tiles of `MT_Free`, `MT_Blowhole`, … as train/good, test/good, test/<defect>, ground_truth/<defect>."""
    for folder in sorted(path for path in source.iterdir() if path.name.startswith("MT_")):
        kind = folder.name.removeprefix("MT_").lower()
        files = sorted(folder.rglob("*.jpg"))
        order = np.random.default_rng(SEED).permutation(len(files))
        for place, index in enumerate(order):
            file = files[index]
            part = f"test/{kind}"
            if kind == ORDINARY:
                part = "train/good" if place % TEST_EVERY else "test/good"
            _copy(file, target / part)
            if kind != ORDINARY:
                _copy(file.with_suffix(".png"), target / MASKS / kind)


def _copy(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, folder / file.name)


def read(folder: Path, shape: tuple[int, int, int], *, nearest: bool = False) -> Images:
    """Grey images stretched to [N, 1, H, W] in [0, 1], by name; masks by the nearest pixel."""
    _, height, width = shape
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    found = [np.asarray(Image.open(file).convert("L").resize((width, height), how), np.float32) for file in files]
    return np.stack(found)[:, None] / np.float32(255)


class PositionGaussian:
    """Mahalanobis distance at each position: maps [N, F, h, w]."""

    def __init__(self, train: Images) -> None:
        rows = train.reshape(*train.shape[:2], -1).astype(np.float64)  # [N, F, p]
        self._mean = rows.mean(axis=0)
        centred = rows - self._mean
        covariance = np.einsum("nfp,ngp->pfg", centred, centred, optimize=True) / len(rows)
        self._precision = np.linalg.inv(covariance + REGULARISATION * np.eye(rows.shape[1]))

    def positions(self, maps: Images) -> Floats:
        """[N, F, h, w] → [N, p], squared distances."""
        centred = maps.reshape(*maps.shape[:2], -1) - self._mean
        return np.asarray(np.einsum("nfp,pfg,ngp->np", centred, self._precision, centred, optimize=True))


class NearestPosition:
    """Euclidean distance to the nearest training position, wherever it lies."""

    def __init__(self, train: Images) -> None:
        self._bank = _rows(train)
        self._squares = np.square(self._bank).sum(axis=1)

    def positions(self, maps: Images) -> Floats:
        """[N, F, h, w] → [N, p]."""
        found = []
        for image in maps:
            rows = _rows(image[None])
            found.append((self._squares - 2 * rows @ self._bank.T).min(axis=1) + np.square(rows).sum(axis=1))
        return np.sqrt(np.maximum(np.array(found, np.float64), 0))


def _rows(maps: Images) -> Images:
    return maps.reshape(*maps.shape[:2], -1).transpose(0, 2, 1).reshape(-1, maps.shape[1])


def mean_distance(train: Images, maps: Images) -> Floats:
    """Mahalanobis distance of the mean over positions: [N, F, h, w] → [N]."""
    of_train = train.mean(axis=(2, 3), dtype=np.float64)
    precision = np.linalg.inv(np.cov(of_train.T) + REGULARISATION * np.eye(of_train.shape[1]))
    centred = maps.mean(axis=(2, 3), dtype=np.float64) - of_train.mean(axis=0)
    return np.asarray(np.einsum("nf,fg,ng->n", centred, precision, centred))


def interval(ordinary: Floats, strange: Floats) -> str:
    """AUROC with its bootstrap interval."""
    rng = np.random.default_rng(SEED)
    resampled = [
        auroc(rng.choice(ordinary, len(ordinary)), rng.choice(strange, len(strange))) for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return f"{auroc(ordinary, strange):.3f} [{low:.3f}, {high:.3f}]"


def pixel_auroc(maps: Floats, masks: Images) -> float:
    """Of all pixels of the images [N, 1, H, W]."""
    inside = masks > 0.5
    return auroc(maps[~inside], maps[inside])


def score_model(model: Model, images: Images) -> tuple[Mapping[str, Floats], Floats, Floats]:
    """By method the scores [N], the maps [N, 1, H, W], and the p-values of the default method [N]."""
    scores: dict[str, list[Floats]] = {}
    maps, p_values = [], []
    for start in range(0, len(images), IMAGES_AT_ONCE):
        some = images[start : start + IMAGES_AT_ONCE]
        found = complete(model.anomaly_scores(some, methods=model.detector.available, explain=True))
        for method, judgement in found.by_method.items():
            scores.setdefault(method, []).append(judgement.score)
        p_values.append(found.by_method[model.detector.default_method].p_value)
        assert found.explanation is not None
        maps.append(found.explanation)
    return (
        {name: np.concatenate(parts) for name, parts in scores.items()},
        np.concatenate(maps),
        np.concatenate(p_values),
    )


def measure(data: Path, run: Path, store: Path, name: str) -> None:
    """Print the tables."""
    runtime = Runtime("cpu")
    stored = open_version(store, name)
    model, graph = Model.open(stored, runtime=runtime), run_graph(run, runtime)
    shape = graph.image
    train = np.load(run / FOLDER / "train.npy")
    kinds = sorted(folder.name for folder in (data / "test").iterdir() if folder.name != "good")
    images = {kind: read(data / "test" / kind, shape) for kind in ["good", *kinds]}
    masks = {kind: read(data / MASKS / kind, shape, nearest=True) for kind in kinds}
    started = time.process_time()
    features = {kind: graph.of(pixels) for kind, pixels in images.items()}
    count = sum(map(len, images.values()))
    print(f"features: {1000 * (time.process_time() - started) / count:.1f} ms of processor time an image")
    rows: dict[str, dict[str, Floats]] = {}
    located: dict[str, dict[str, Floats]] = {}
    for peer, method in (
        ("Gaussian a position", PositionGaussian(train)),
        ("nearest position", NearestPosition(train)),
    ):
        positions = {kind: np.sort(method.positions(maps), axis=1) for kind, maps in features.items()}
        top = max(1, positions["good"].shape[1] // SHARE)
        rows[f"{peer}, largest sixteenth"] = {kind: found[:, -top:].mean(axis=1) for kind, found in positions.items()}
        rows[f"{peer}, largest"] = {kind: found[:, -1] for kind, found in positions.items()}
        located[peer] = {kind: _to_image(method.positions(features[kind]), features[kind], shape) for kind in kinds}
    rows["Gaussian of the mean"] = {kind: mean_distance(train, maps) for kind, maps in features.items()}
    started = time.process_time()
    scored = {kind: score_model(model, pixels) for kind, pixels in images.items()}
    print(
        f"model: {1000 * (time.process_time() - started) / count:.1f} ms of processor time an image, features included"
    )
    for score in model.detector.available:
        rows[f"model, {score}"] = {kind: found[0][score] for kind, found in scored.items()}
    located["model"] = {kind: scored[kind][1] for kind in kinds}
    default = model.detector.default_method
    print(f"image AUROC, {len(images['good'])} ordinary test images; {len(train)} to train on; default {default}")
    print(f"{'':<40}{'mean':>7}" + "".join(f"{f'{kind} ({len(images[kind])})':>23}" for kind in kinds))
    for row, by_kind in rows.items():
        mean = np.mean([auroc(by_kind["good"], by_kind[kind]) for kind in kinds])
        print(f"{row:<40}{mean:>7.4f}" + "".join(f"{interval(by_kind['good'], by_kind[kind]):>23}" for kind in kinds))
    print("pixel AUROC")
    for row, by_kind in located.items():
        found = [pixel_auroc(by_kind[kind], masks[kind]) for kind in kinds]
        print(f"{row:<40}{np.mean(found):>7.4f}" + "".join(f"{value:>23.3f}" for value in found))
    flagged, compared = int((scored["good"][2] <= 0.05).sum()), model.detector.calibration_size
    rank, ordinary = int(0.05 * (compared + 1)), len(images["good"])
    band = stats.betabinom(ordinary, rank, compared + 1 - rank)
    print(
        f"p ≤ 0.05 for {flagged} of {ordinary} ordinary test images; with {compared} images to compare with, the 99 % "
        f"band is {band.ppf(0.005):.0f} to {band.ppf(0.995):.0f}"
    )


def _to_image(positions: Floats, features: Images, shape: tuple[int, int, int]) -> Floats:
    return at_image_size(positions.reshape(len(features), 1, *features.shape[2:]), shape[1], shape[2])


def main() -> None:
    """Divide, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    dividing, measuring = commands.add_parser("divide"), commands.add_parser("measure")
    dividing.add_argument("source", type=Path)
    dividing.add_argument("target", type=Path)
    for argument in ("data", "run", "store"):
        measuring.add_argument(argument, type=Path)
    measuring.add_argument("--name", default="tiles")
    parsed = parser.parse_args()
    if parsed.command == "divide":
        divide(parsed.source, parsed.target)
    else:
        measure(parsed.data, parsed.run, parsed.store, parsed.name)


if __name__ == "__main__":
    main()
