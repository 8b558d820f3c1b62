"""Defects on photographs: a model of features beside the field's methods on the same features.

python benchmarks/photograph_sets.py tiles Magnetic-tile-defect-datasets. OUT
python -m training features --from efficientnet-lite0 --colour grey --size 128 --grid 8x8 --out features.onnx
python -m training fit --data OUT/data/table.csv --features features.onnx --fit stretch --out RUN
python -m training publish RUN --name tiles --store STORE --score-proposal encoder --score-samples 16
python -m service calibrate --model tiles --store STORE --images OUT/calibration
python benchmarks/photographs.py OUT/data RUN STORE tiles

All methods have the same features, and give each position a number: the model, of whitened ones; the peers
(benchmarks/feature_peers.py), of standardised ones. They are fitted to all of train/good; the model to eight in ten,
since its run keeps a tenth to validate and a tenth to calibrate. An image's score is the
mean of the sixteenth of its positions with the largest number (for all methods alike; beside it the largest alone),
and its map these numbers, interpolated to the image. Peers that say one number of an image have means over positions.

Intervals are of 1000 bootstrap resamples of ordinary and defective images: 2.5 to 97.5 %. FPR is the share of ordinary
images that score at least as high as 95 % of the defective ones do. Pixel AUROC is over all pixels of the images of a
defect. PRO (Bergmann et al. 2020) is the mean share of a connected part of the mask that is found, over thresholds by
which up to 30 % of these images' other pixels are, too.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from feature_peers import NearestPosition, PositionGaussian, mean_distance, pyod_scores
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, stats

from model_store import open_version
from service.engine.anomaly.local import at_image_size
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.runtime import Runtime
from training.features.graph import FeatureGraph, read_feature_graph
from training.features.maps import run_graph
from training.publish.detection import auroc

SUFFIXES = {".jpg", ".png"}
MASKS = "ground_truth"
SEED, RESAMPLES = 0, 1000
SHARE = 16
"""Of positions, one in so many counts in an image's score: service/engine/anomaly/local.py."""
IMAGES_AT_ONCE = 16
MOST_FALSE = 0.3
THRESHOLDS = 100

Floats = NDArray[np.float64]
Images = NDArray[np.float32]


def read(folder: Path, shape: tuple[int, int, int], *, nearest: bool = False) -> Images:
    """Images stretched to [N, C, H, W] in [0, 1], by name; masks by the nearest pixel."""
    channels, height, width = shape
    colour = "L" if channels == 1 else "RGB"
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    found = [np.asarray(Image.open(file).convert(colour).resize((width, height), how), np.float32) for file in files]
    return np.stack(found).reshape(-1, height, width, channels).transpose(0, 3, 1, 2) / np.float32(255)


def top_mean(positions: Floats) -> Floats:
    """The mean of the sixteenth with the largest: [N, p] → [N]."""
    return np.asarray(np.sort(positions, axis=1)[:, -max(1, positions.shape[1] // SHARE) :].mean(axis=1))


def interval(ordinary: Floats, strange: Floats) -> str:
    """AUROC with its bootstrap interval, and the FPR."""
    rng = np.random.default_rng(SEED)
    resampled = [
        auroc(rng.choice(ordinary, len(ordinary)), rng.choice(strange, len(strange))) for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return f"{auroc(ordinary, strange):.3f} [{low:.3f}, {high:.3f}] {false_positives(ordinary, strange):.2f}"


def false_positives(ordinary: Floats, strange: Floats) -> float:
    """Of ordinary images, the share that is at least as high as 95 % of the defective ones."""
    return float((ordinary >= np.quantile(strange, 0.05, method="lower")).mean())


def pixel_auroc(maps: Floats, masks: Images) -> float:
    """Of all pixels of the images [N, 1, H, W]."""
    inside = masks > 0.5
    return auroc(maps[~inside], maps[inside])


def per_region_overlap(maps: Floats, masks: Images) -> float:
    """PRO, of maps and masks [N, 1, H, W]."""
    inside = masks[:, 0] > 0.5
    outside = np.sort(maps[:, 0][~inside])
    shares = np.linspace(0, MOST_FALSE, THRESHOLDS + 1)
    thresholds = outside[np.minimum(((1 - shares) * len(outside)).astype(int), len(outside) - 1)]
    overlaps = []
    for one, mask in zip(maps[:, 0], inside, strict=True):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        for number in range(1, count + 1):
            part = np.sort(one[labels == number])
            overlaps.append(1 - np.searchsorted(part, thresholds, side="right") / len(part))
    return float(np.trapezoid(np.mean(overlaps, axis=0), shares) / MOST_FALSE)


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


def standardised(graph: FeatureGraph, train: Images, by_kind: Mapping[str, Images]) -> tuple[Images, dict[str, Images]]:
    """Maps of the training images and of each kind, by mean and spread of each number over the former."""
    plain = graph.of(train)
    mean = plain.mean(axis=0)
    channel = np.square(plain - mean).mean(axis=(0, 2, 3))[:, None, None]
    spread = np.sqrt((np.square(plain - mean).sum(axis=0) + 10 * channel) / (len(plain) + 10)) + np.float32(1e-6)
    return (plain - mean) / spread, {kind: (graph.of(pixels) - mean) / spread for kind, pixels in by_kind.items()}


def within_band(flagged: int, ordinary: int, compared: int) -> str:
    """Whether so many of the ordinary test images are as many as the calibration's size implies."""
    rank = int(0.05 * (compared + 1))
    band = stats.betabinom(ordinary, rank, compared + 1 - rank)
    low, high = int(band.ppf(0.005)), int(band.ppf(0.995))
    verdict = "within" if low <= flagged <= high else "OUTSIDE"
    return (
        f"p ≤ 0.05 for {flagged} of {ordinary} ordinary test images; with {compared} images to compare with, the 99 % "
        f"band is {low} to {high}: {verdict}"
    )


def closed_form(run: Path, maps: Images) -> Floats | None:
    """log P of whitened maps by the normal density of a linear run's weights, in float64; None of other runs."""
    import torch

    from training.fit.loaded_model import load_model
    from training.fit.run import open_run
    from training.likelihoods.location_scale import LOC_UNIT

    opened = open_run(run)
    if opened.description.configuration.preset != "linear":
        return None
    vae = load_model(opened).vae
    pixels = vae.decoder.body.get_submodule("pixels")
    weights: dict[str, torch.Tensor] = pixels.state_dict()
    loadings, mean = (LOC_UNIT * weights[name].numpy().astype(np.float64) for name in ("weight", "bias"))
    variance = float(opened.description.configuration.gaussian_scale or 1) ** 2
    inner = np.eye(loadings.shape[1]) + loadings.T @ loadings / variance  # Woodbury, and the determinant lemma
    centred = maps.reshape(len(maps), -1) - mean
    projected = centred @ loadings
    squares = np.square(centred).sum(axis=1) / variance - (
        (projected @ np.linalg.inv(inner) * projected).sum(axis=1) / variance**2
    )
    size = centred.shape[1]
    return np.asarray(-0.5 * (squares + size * np.log(2 * np.pi * variance) + np.linalg.slogdet(inner)[1]))


def measure(data: Path, run: Path, store: Path, name: str, plain: Path) -> None:
    """Print the tables."""
    runtime = Runtime("cpu")
    model, graph = Model.open(open_version(store, name), runtime=runtime), run_graph(run, runtime)
    kinds = sorted(folder.name for folder in (data / "test").iterdir() if folder.name != "good")
    images = {kind: read(data / "test" / kind, graph.image) for kind in ["good", *kinds]}
    masked = [kind for kind in kinds if (data / MASKS / kind).is_dir()]
    masks = {kind: read(data / MASKS / kind, (1, *graph.image[1:]), nearest=True) for kind in masked}
    count = sum(map(len, images.values()))
    started = time.process_time()
    features = {kind: graph.of(pixels) for kind, pixels in images.items()}
    print(f"features: {1000 * (time.process_time() - started) / count:.1f} ms of processor time an image")
    train, theirs = standardised(read_feature_graph(plain, runtime), read(data / "train/good", graph.image), images)
    rows: dict[str, dict[str, Floats]] = {}
    located: dict[str, dict[str, Floats]] = {}
    for peer in ("Gaussian a position", "nearest position", "nearest of a coreset"):
        started = time.process_time()
        method = PositionGaussian(train) if peer.startswith("G") else NearestPosition(train, coreset="coreset" in peer)
        fitted, started = time.process_time() - started, time.process_time()
        positions = {kind: method.positions(maps) for kind, maps in theirs.items()}
        milliseconds = 1000 * (time.process_time() - started) / count
        size = 4 * method.numbers / 2**20
        print(f"{peer}: {fitted:.1f} s to fit, {milliseconds:.1f} ms an image without features, {size:.1f} MiB")
        rows[f"{peer}, sixteenth"] = {kind: top_mean(found) for kind, found in positions.items()}
        rows[f"{peer}, largest"] = {kind: found.max(axis=1) for kind, found in positions.items()}
        located[peer] = {
            kind: at_image_size(positions[kind].reshape(-1, 1, *graph.maps[1:]), *graph.image[1:]) for kind in masked
        }
    rows["Gaussian of the mean"] = mean_distance(train, theirs)
    rows |= {f"PyOD {detector} of the mean": found for detector, found in pyod_scores(train, theirs).items()}
    started = time.process_time()
    scored = {kind: score_model(model, pixels) for kind, pixels in images.items()}
    milliseconds = 1000 * (time.process_time() - started) / count
    version = open_version(store, name).path
    size = sum(file.stat().st_size for file in version.iterdir()) / 2**20
    print(f"model: {milliseconds:.1f} ms of processor time an image, features and map included; {size:.1f} MiB")
    default = model.detector.default_method
    for score in (default, *(other for other in model.detector.available if other != default)):
        rows[f"model, {score}"] = {kind: found[0][score] for kind, found in scored.items()}
    located["model"] = {kind: scored[kind][1] for kind in masked}
    print(f"image AUROC, interval and FPR, {len(images['good'])} ordinary; {len(train)} to train on; default {default}")
    print(f"{'':<34}{'mean':>7}" + "".join(f"{f'{kind} ({len(images[kind])})':>28}" for kind in kinds))
    for row, by_kind in rows.items():
        mean = np.mean([auroc(by_kind["good"], by_kind[kind]) for kind in kinds])
        print(f"{row:<34}{mean:>7.4f}" + "".join(f"{interval(by_kind['good'], by_kind[kind]):>28}" for kind in kinds))
    for title, figure in (("pixel AUROC", pixel_auroc), ("PRO", per_region_overlap)) if masked else ():
        print(title)
        for row, by_kind in located.items():
            values = [figure(by_kind[kind], masks[kind]) for kind in masked]
            print(f"{row:<34}{np.mean(values):>7.4f}" + "".join(f"{value:>28.3f}" for value in values))
    print(within_band(int((scored["good"][2] <= 0.05).sum()), len(images["good"]), model.detector.calibration_size))
    everything = np.concatenate(list(images.values()))
    estimate = complete(model.log_likelihood(everything, proposal="auto"))
    print(f"estimates by auto: {100 * estimate.reliable.mean():.1f} % of {count} images reliable")
    exact = closed_form(run, np.concatenate(list(features.values())))
    if exact is not None:
        error = np.abs(estimate.log_likelihood - exact)
        within = (error <= 3 * estimate.std_error + 1e-6 * np.abs(exact)).mean()
        print(f"closed form: within 3 standard errors {100 * within:.1f} %, largest error {error.max():.3f} nats")


def main() -> None:
    """Measure one published model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for argument in ("data", "run", "store"):
        parser.add_argument(argument, type=Path)
    parser.add_argument("name")
    parser.add_argument("--features", type=Path, default=Path("features.onnx"), help="as fit had it, not whitened")
    parsed = parser.parse_args()
    measure(parsed.data, parsed.run, parsed.store, parsed.name, parsed.features)


if __name__ == "__main__":
    main()
