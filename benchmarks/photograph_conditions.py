"""Few ordinary photographs, and other light or position: what a model of features keeps of its scores.

python benchmarks/photograph_conditions.py few OUT features.onnx WORK          # OUT of photograph_sets.py; WORK is new
python benchmarks/photograph_conditions.py drift OUT features.onnx WORK RUN    # RUN: of benchmarks/photographs.py

`few` trains on 50, 100 and 200 of the training photographs, drawn by a seed, with the defaults, which keep a tenth for
calibration, and prints the AUROC of `local` (mean over the defects), the best peer's on the same features, and how many
ordinary test photographs are flagged at 0.05 after calibration by OUT/calibration.

`drift` alters the test and the calibration photographs: lighter, darker, moved (edges repeated). It prints the AUROC
among altered ones, and the share of altered ordinary ones that is flagged, calibrated as before, and again.
"""

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from feature_peers import NearestPosition, PositionGaussian
from photographs import Floats, Images, read, score_model, standardised, top_mean

from model_store import open_version
from service.__main__ import main as serve
from service.engine.anomaly.conformal import guarantee
from service.engine.anomaly.detector import compared_with
from service.engine.model import Model
from service.engine.runtime import Runtime
from training.__main__ import main as train
from training.features.graph import FeatureGraph, read_feature_graph
from training.publish.detection import auroc

SEED, COUNTS, ALPHA = 0, (50, 100, 200), 0.05
NAME = "photographs"


def moved(images: Images, pixels: int) -> Images:
    """Down and to the right, edges repeated."""
    return np.pad(images, ((0, 0), (0, 0), (pixels, 0), (pixels, 0)), mode="edge")[:, :, :-pixels, :-pixels]


def eight_bit(images: Images) -> Images:
    """To the nearest of 256 levels, as files have them."""
    return np.asarray(np.rint(255 * images) / 255, np.float32)


CHANGES: Mapping[str, Callable[[Images], Images]] = {
    "as they are": lambda images: images,
    "light × 0.95": lambda images: images * np.float32(0.95),
    "light × 0.8": lambda images: images * np.float32(0.8),
    "light × 1.2": lambda images: np.minimum(images * np.float32(1.2), 1),
    "moved by 2 pixels": lambda images: moved(images, 2),
    "moved by 8 pixels": lambda images: moved(images, 8),
}


def run(command: Callable[[Sequence[str]], int], *arguments: object) -> None:
    """One command line; its failure ends the benchmark."""
    if code := command([str(argument) for argument in arguments]):
        raise SystemExit(code)


def publish_run(folder: Path, store: Path) -> None:
    """Publish with scores by 16 samples of the encoder."""
    run(train, "publish", folder, "--name", NAME, "--store", store, "--workers", 0, "--images", 1,
        "--score-proposal", "encoder", "--score-samples", 16)  # fmt: skip


def calibrate(images: Images, store: Path, work: Path) -> Model:
    """The newest version, calibrated by these images: its p-values compare with all but those that fit scores."""
    np.save(work / "calibration.npy", np.rint(255 * images[:, 0]).astype(np.uint8))
    run(serve, "calibrate", "--model", NAME, "--store", store, "--images", work / "calibration.npy")
    return Model.open(open_version(store, NAME), runtime=Runtime("cpu"))


def test_images(data: Path, graph: FeatureGraph) -> dict[str, Images]:
    """By kind, `good` being the ordinary ones."""
    return {folder.name: read(folder, graph.image) for folder in sorted((data / "test").iterdir())}


def mean_auroc(by_kind: Mapping[str, Floats]) -> float:
    """Mean over the kinds of defect."""
    return float(np.mean([auroc(by_kind["good"], scores) for kind, scores in by_kind.items() if kind != "good"]))


def scores_of(model: Model, images: Mapping[str, Images]) -> tuple[float, float]:
    """The mean AUROC of the default score, and the share of ordinary images that is flagged."""
    found = {kind: score_model(model, pixels) for kind, pixels in images.items()}
    default = model.detector.default_method
    return mean_auroc({kind: one[0][default] for kind, one in found.items()}), float((found["good"][2] <= ALPHA).mean())


def flagged_share(model: Model, ordinary: Images) -> float:
    """Of ordinary images [N, 1, H, W]."""
    return float((score_model(model, ordinary)[2] <= ALPHA).mean())


def few(out: Path, features: Path, work: Path) -> None:
    """A line for each number of photographs."""
    graph = read_feature_graph(features, Runtime("cpu"))
    images = test_images(out / "data", graph)
    every = sorted((out / "data/train/good").iterdir())
    order = np.random.default_rng(SEED).permutation(len(every))
    lines = []
    for count in COUNTS:
        folder = work / str(count)
        (folder / "data").mkdir(parents=True)
        for index in order[:count]:
            shutil.copy(every[index], folder / "data")
        run(train, "fit", "--data", folder / "data", "--features", features, "--fit", "stretch", "--out",
            folder / "run", "--workers", 0)  # fmt: skip
        publish_run(folder / "run", folder / "store")
        model = calibrate(read(out / "calibration", graph.image), folder / "store", folder)
        found, flagged = scores_of(model, images)
        maps, theirs = standardised(graph, read(folder / "data", graph.image), images)
        peers = {
            name: mean_auroc({kind: top_mean(method.positions(of_kind)) for kind, of_kind in theirs.items()})
            for name, method in (
                ("Gaussian a position", PositionGaussian(maps)),
                ("nearest position", NearestPosition(maps, coreset=False)),
                ("nearest of a coreset", NearestPosition(maps, coreset=True)),
            )
        }
        beside = ", ".join(f"{name} {value:.3f}" for name, value in peers.items())
        lines.append(
            f"{count}: local {found:.3f}; {beside}; flagged {100 * flagged:.1f} % with "
            f"{model.detector.calibration_size} to compare with; by its own tenth: "
            f"{guarantee(compared_with(count // 10), ALPHA)}"
        )
    print("\n".join(lines))


def drift(out: Path, features: Path, work: Path, folder: Path) -> None:
    """A line for each change."""
    graph = read_feature_graph(features, Runtime("cpu"))
    images, ordinary = test_images(out / "data", graph), read(out / "calibration", graph.image)
    work.mkdir(parents=True)
    publish_run(folder, work / "store")
    before = calibrate(ordinary, work / "store", work)
    lines = []
    for name, change in CHANGES.items():
        altered = {kind: eight_bit(change(pixels)) for kind, pixels in images.items()}
        found, flagged = scores_of(before, altered)
        again = flagged_share(calibrate(change(ordinary), work / "store", work), altered["good"])
        lines.append(f"{name}: local {found:.3f}; flagged {100 * flagged:.1f} %, recalibrated {100 * again:.1f} %")
    print("\n".join(lines))


def main() -> None:
    """Few images, or changed ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("few", "drift"))
    for argument in ("out", "features", "work"):
        parser.add_argument(argument, type=Path)
    parser.add_argument("run", type=Path, nargs="?", help="only of drift")
    parsed = parser.parse_args()
    if parsed.what == "few":
        few(parsed.out, parsed.features, parsed.work)
    elif parsed.run is None:
        parser.error("drift needs RUN")
    else:
        drift(parsed.out, parsed.features, parsed.work, parsed.run)


if __name__ == "__main__":
    main()
