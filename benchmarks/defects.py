"""How well a model's scores find defects, beside detectors that are trained on the same pixels.

    PYTHONPATH=. python benchmarks/defects.py STORE/NAME [STORE/NAME…] --data FOLDER --peers-python VENV/bin/python

The folder has the layout of MVTec AD: ordinary images in `train/good` and `test/good`, others in `test/<defect>`. All
test images are prepared as the first model's, and scored as each model was calibrated, by every method. The peers
(benchmarks/peers/outlier_detectors.py, scikit-learn in an environment of its own) have the images of `train/good`.
Without `--peers-python` they are left out. What is printed is the AUROC of each defect against `test/good`.
"""

import argparse
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.runtime import Runtime
from service.images.fitting import Levels
from training.data.image_sets import Reading
from training.data.preparation import Preparation
from training.data.sources import open_source
from training.data.splits import evenly_spaced
from training.publish.detection import Detection, auroc, detect
from training.publish.publication import open_stored

PEERS = {"isolation": "isolation_forest", "nearest": "nearest_neighbours"}
"""By their columns."""
SCRIPT = Path(__file__).parent / "peers" / "outlier_detectors.py"
ORDINARY = "good"


def by_peers(python: Path, train: Levels, sets: Mapping[str, Levels]) -> Detection:
    """AUROC of scikit-learn's detectors on the same pixels."""
    with tempfile.TemporaryDirectory() as folder:
        images, scores = Path(folder, "images.npz"), Path(folder, "scores.npz")
        flat = {name: some.reshape(len(some), -1, some.shape[-1]) for name, some in sets.items()}
        np.savez(images, allow_pickle=False, train=train.reshape(len(train), -1, train.shape[-1]), **flat)
        subprocess.run([python, SCRIPT, images, scores, *PEERS.values()], check=True)
        with np.load(scores, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    defects = [name for name in sets if name != ORDINARY]
    return Detection(
        auroc={
            name: {
                column: auroc(found[f"{peer}/{ORDINARY}"], found[f"{peer}/{name}"]) for column, peer in PEERS.items()
            }
            for name in defects
        },
        num_defects={name: len(sets[name]) for name in defects},
        num_ordinary=len(sets[ORDINARY]),
    )


def table(title: str, detection: Detection) -> None:
    """One table, with the mean over the defects at its end."""
    means, lines = "".join(f"{value:>18.3f}" for value in detection.mean().values()), detection.lines()
    print("\n".join([title, *lines, f"{'mean':<{len(lines[0]) - len(means)}}{means}"]), flush=True)


def main() -> None:
    """Score and print one table a model, and one of the peers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="store/NAME or store/NAME/VERSION")
    parser.add_argument("--data", type=Path, required=True, help="the folder with train/good and test/<defect>")
    parser.add_argument("--peers-python", type=Path, help="the interpreter of an environment that has scikit-learn")
    given = parser.parse_args()
    threadpool_limits(1, user_api="blas")  # as the service does
    stored = [open_stored(path) for path in given.models]
    source = open_source(given.data, Reading(preparation=Preparation.of_model(stored[0].manifest)))
    defects, problems = source.defects.read()
    if source.test is None or not defects:
        raise SystemExit(f"{given.data}: no test/{ORDINARY} or no test/<defect>")
    for file, problem in problems.items():
        print(f"left out {file}: {problem}")
    sets = {ORDINARY: source.test} | dict(defects)
    images = {name: np.asarray(evenly_spaced(some, len(some)), np.uint8) for name, some in sets.items()}
    for path, one in zip(given.models, stored, strict=True):
        model, protocol = Model.open(one, runtime=Runtime("cpu", 1)), one.manifest.calibration
        started = time.process_time()
        found = {
            name: complete(
                model.statistics(
                    some.astype(np.float32) / np.float32(255),
                    proposal=protocol.proposal,
                    num_samples=protocol.num_samples,
                    seed=protocol.seed,
                )
            )
            for name, some in images.items()
        }
        milliseconds = 1000 * (time.process_time() - started) / sum(map(len, images.values()))
        bits = -found[ORDINARY].log_likelihood.mean() / np.log(2) / images[ORDINARY][0].size
        table(
            f"{path}: {one.manifest.likelihood.kind}; {protocol.num_samples} samples by {protocol.proposal}, "
            f"{milliseconds:.0f} CPU ms an image; {len(images[ORDINARY])} ordinary images: {bits:.3f} bits a dimension",
            detect(one.calibration, found.pop(ORDINARY), found),
        )
    if given.peers_python:
        train = np.asarray(evenly_spaced(source.train, len(source.train)), np.uint8)
        table(f"trained on {len(train)} images", by_peers(given.peers_python, train, images))


if __name__ == "__main__":
    main()
