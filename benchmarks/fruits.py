"""How well the bundled colour model's scores tell other pictures, and changed ones, from its own test images.

    PYTHONPATH=. python benchmarks/fruits.py --test fruits/Test --outside photographs=FOLDER emoji=FOLDER
        [--images 256] [--store STORE]

`--test` is the data set's folder of test images, of which every sixth by name calibrates the model and is left out; the
others are neither trained nor calibrated on. All are prepared as the service prepares uploads. Of each set, images
are evenly spaced. The changed ones are other test images than those they are compared with: red and blue exchanged; and
a white square of a quarter of each side in the middle.
"""

import argparse
from pathlib import Path

import numpy as np

from model_store import BUNDLED, open_version
from service.engine.anomaly.detector import Detector
from service.engine.anomaly.statistics import Statistics
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.runtime import Runtime
from service.images.fitting import Levels
from training.data.preparation import Preparation
from training.data.sources import read_source
from training.data.splits import evenly_spaced
from training.publish.detection import detect

ALPHA = 0.05
CALIBRATED_BY = 6


def changed(images: Levels) -> dict[str, Levels]:
    """By name: images [N, 3, H, W] with other colours, and with a white square."""
    height, width = images.shape[2:]
    square = images.copy()
    square[:, :, 3 * height // 8 : 5 * height // 8, 3 * width // 8 : 5 * width // 8] = 255
    return {"red and blue exchanged": images[:, ::-1], "white square": square}


def main() -> None:
    """Print the AUROC of every method, and the shares that are flagged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", type=Path, required=True, help="the folder of the data set's test images")
    parser.add_argument("--outside", nargs="*", default=[], metavar="NAME=FOLDER", help="folders of other pictures")
    parser.add_argument("--images", type=int, default=256, help="of each set, at most")
    parser.add_argument("--store", type=Path, default=BUNDLED, help="whose newest version of fruits is measured")
    given = parser.parse_args()
    stored = open_version(given.store, "fruits")
    preparation = Preparation.of_model(stored.manifest)
    own = read_source(given.test, preparation=preparation).train
    untouched = own[np.arange(len(own)) % CALIBRATED_BY != 0]
    some = np.asarray(evenly_spaced(untouched, 2 * given.images), np.uint8)
    sets: dict[str, Levels] = {"test images": some[::2], **changed(some[1::2])}
    for name, _, folder in (text.partition("=") for text in given.outside):
        pictures = read_source(Path(folder), preparation=preparation).train
        sets[name] = np.asarray(evenly_spaced(pictures, given.images), np.uint8)
    model, protocol = Model.open(stored, runtime=Runtime("cpu", 1)), stored.manifest.calibration
    found: dict[str, Statistics] = {}
    for name, images in sets.items():
        pixels = images.astype(np.float32) / np.float32(255)
        found[name] = complete(
            model.statistics(pixels, proposal=protocol.proposal, num_samples=protocol.num_samples, seed=protocol.seed)
        )
    detector = Detector(stored.calibration)
    for name, statistics in found.items():
        judged = complete(detector.judge(statistics, (detector.default_method,), alpha=ALPHA, fdr=None))
        share = float((judged[detector.default_method].p_value <= ALPHA).mean())
        bits = -float(statistics.log_likelihood.mean()) / np.log(2) / some[0].size
        print(f"{name}: {len(sets[name])} images, {share:.3f} flagged at alpha = {ALPHA}, {bits:.3f} bits a number")
    print("\n".join(detect(stored.calibration, found.pop("test images"), found).lines()))


if __name__ == "__main__":
    main()
