"""Do anomaly scores tell images from elsewhere apart, beside the field's detectors, and do p-values keep their word?

python benchmarks/anomaly.py --mnist ../shared/data/mnist --fashion ../shared/data/fashion-mnist       # ours alone
python -m venv VENV && VENV/bin/pip install torch==2.13.0 pyod scikit-learn tqdm                        # three peers
python -m venv ALIBI && ALIBI/bin/pip install "alibi-detect[tensorflow]"                               # and the fourth
python benchmarks/anomaly.py --mnist … --fashion … --pyod-python VENV/bin/python --alibi-python ALIBI/bin/python

Each bundled model is held against ten sets of images unlike its own (outside_images.py). All detectors score the same
images, and those that train have the same training set. What is to be chosen, is chosen by the validation tables:
images held out of training as validation, and outside images with other originals and seeds than the test tables'.
scikit-learn's digits come with the first three peers; without them they are left out.
"""

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

import numpy as np
from combinations import COMBINATIONS, UPPER, Score
from detection import MEASURES, Measured, false_alarm_band, false_discoveries, measure
from numpy.typing import NDArray
from outside_images import Bytes, outside_sets
from threadpoolctl import threadpool_limits

from model_store import BUNDLED, FITTING, StoredModel, open_version
from service.engine.anomaly.detector import Detector
from service.engine.anomaly.scores import DEFAULT_METHOD, METHODS
from service.engine.anomaly.statistics import Statistics, Values, derived
from service.engine.arrays import Float64Array
from service.engine.chunks import complete
from service.engine.model import Model, Pixels
from service.engine.runtime import Runtime
from training.configuration import Configuration
from training.data.sources import Source, read_source
from training.data.splits import split

ROOT = Path(__file__).parents[1]
INSIDE = "inside"
ALPHAS = (0.05, 0.01)
FDR = 0.1
MIXTURES = 200
PYOD, ALIBI = ("pyod_vae", "isolation_forest", "nearest_neighbours"), ("alibi_vae",)
STATISTICS = ("log_likelihood", "posterior_gap", "reconstruction", "kl", "complexity")
"""What the ways of combining look at."""
ONE_SIDED = ("posterior_gap", "input_complexity")
"""What those look at that take statistics to be higher for stranger."""
Scores = Mapping[str, Float64Array]
"""By detector, [N]."""
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True)
class Subject:
    """One model with its images, all uint8 [N, H, W]."""

    stored: StoredModel
    model: Model
    train: Bytes
    test: Bytes
    sets: Mapping[str, Mapping[str, Bytes]]
    """`validation` and `test`: by name, the images inside and those outside."""


def prepare(
    stored: StoredModel, own: Source, other: Source, digits: NDArray[np.floating] | None, images: int
) -> Subject:
    """The model's own data as it was split for its training, and at most `images` of each test set."""
    provenance, known = stored.manifest.provenance, {field.name for field in fields(Configuration)}
    if own.sha256 not in provenance.data_set:
        raise SystemExit(f"{stored.manifest.name} was not trained on the images of {own.name}")
    choices = {name: value for name, value in provenance.configuration.items() if name in known}
    parts = split(own, Configuration(**choices))
    if other.test is None:
        raise SystemExit(f"{other.name} has no test images")
    train, validation, test, *elsewhere = (
        np.asarray(part)[:, 0] for part in (parts.train, parts.validation, parts.test, other.train, other.test)
    )
    sets = {}
    for seed, (part, held_out, count) in enumerate((("validation", validation, images // 2), ("test", test, images))):
        rng = np.random.default_rng(seed)
        inside, originals = np.array_split(_draw(held_out, 2 * count, rng), 2)
        half = None if digits is None else _draw(digits[seed::2], count, rng)
        others = _draw(elsewhere[seed], count, rng)
        sets[part] = {INSIDE: inside} | outside_sets(originals, others, half, rng)
    return Subject(stored, Model.open(stored, runtime=Runtime("cpu", 2)), train, test, sets)


def _draw(images: NDArray[Number], count: int, rng: np.random.Generator) -> NDArray[Number]:
    return images[rng.choice(len(images), min(count, len(images)), replace=False)]


def measure_statistics(subject: Subject, images: Bytes, what: str) -> Statistics:
    """The engine's statistics of images, in one call; prints what it took."""
    protocol = subject.stored.manifest.calibration
    _peak_memory()
    started = time.perf_counter()
    chunks = subject.model.statistics(
        _pixels(images), proposal=protocol.proposal, num_samples=protocol.num_samples, seed=protocol.seed
    )
    found = complete(chunks)
    milliseconds = 1000 * (time.perf_counter() - started) / len(images)
    print(f"  {what:28}{len(images):6} images {milliseconds:8.1f} ms each, peak {_peak_memory():6.0f} MiB", flush=True)
    return found


def _pixels(images: Bytes) -> Pixels:
    return images[:, None].astype(np.float32) / np.float32(255)


def _peak_memory() -> float:
    """The process's largest resident memory since the last call, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return int(peak.split()[1]) / 1024


class Ours:
    """Every method of the engine, and ways of combining that it could have instead."""

    def __init__(self, calibration: Values) -> None:
        if FITTING not in calibration:
            raise SystemExit("an older calibration; recalibrate the model: python -m service calibrate --help")
        self.detector = Detector(calibration)
        fitting = calibration[FITTING] > 0
        reference = {name: values[fitting] for name, values in _with_input_complexity(derived(calibration)).items()}
        self._ways: dict[str, tuple[Score, Sequence[str]]] = {}
        for name, fit in COMBINATIONS.items():
            looked_at = ONE_SIDED if name in UPPER else STATISTICS
            self._ways[f"({name})"] = fit(_matrix(reference, looked_at)), looked_at

    def scores(self, found: Statistics) -> dict[str, Float64Array]:
        """By method and, in brackets, way of combining: [N]."""
        judged = complete(self.detector.judge(found, tuple(METHODS), alpha=ALPHAS[0], fdr=None))
        values = _with_input_complexity(derived(found.measured()))
        ways = {name: score(_matrix(values, looked_at)) for name, (score, looked_at) in self._ways.items()}
        return {name: judgement.score for name, judgement in judged.items()} | ways

    def p_values(self, found: Statistics) -> dict[str, Float64Array]:
        """By method, [N]."""
        judged = complete(self.detector.judge(found, tuple(METHODS), alpha=ALPHAS[0], fdr=None))
        return {name: judgement.p_value for name, judgement in judged.items()}


def _with_input_complexity(values: Values) -> Values:
    return {**values, "input_complexity": -values["log_likelihood"] - values["complexity"]}


def _matrix(values: Values, names: Sequence[str]) -> Float64Array:
    """[N, S]; what is not a number is put further out than any number."""
    return np.nan_to_num(np.stack([values[name] for name in names], axis=1), nan=1e9, posinf=1e9, neginf=-1e9)


def peers(
    python: Path | None, names: Sequence[str], subject: Subject, most: int | None
) -> Mapping[tuple[str, str], Scores]:
    """The peers' scores: by part and set, then by detector."""
    if python is None:
        return {}
    images = {f"{part}/{name}": each for part, sets in subject.sets.items() for name, each in sets.items()}
    found: dict[tuple[str, str], dict[str, Float64Array]] = {
        (part, s): {} for part, sets in subject.sets.items() for s in sets
    }
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "images.npz", Path(folder) / "scores.npz"
        np.savez(source, allow_pickle=False, train=subject.train[:most], **images)
        script = ROOT / "benchmarks" / "peers" / "outlier_detectors.py"
        subprocess.run([python, script, source, target, *names], check=True)
        with np.load(target, allow_pickle=False) as archive:
            for key in archive.files:
                detector, part, name = key.split("/")
                found[part, name][detector] = archive[key]
    return found


def print_tables(title: str, measured: Mapping[str, Mapping[str, Mapping[str, Measured]]]) -> None:
    """A table a measure: a row a detector, a column a set, and the mean over sets; `measured` by set, then detector."""
    for name in MEASURES:
        print(f"\n{title}: {name}, with 95 % bootstrap intervals")
        print(f"{'':22}" + "".join(f"{each:>20}" for each in measured) + f"{'mean':>8}")
        for detector in next(iter(measured.values())):
            row = [measured[each][detector][name] for each in measured]
            cells = "".join(f"{m.value:8.3f} {f'{m.low:.3f}–{m.high:.3f}':11}" for m in row)
            print(f"{detector:22}{cells}{statistics.mean(m.value for m in row):8.3f}")


def check_promises(ours: Ours, inside: Statistics, outside: Sequence[Statistics]) -> None:
    """Of the untouched test images: the share flagged at each alpha; and false discoveries in mixtures."""
    p_values, size = ours.p_values(inside), ours.detector.calibration_size
    count = len(inside.elbo)
    for alpha in ALPHAS:
        low, high = false_alarm_band(size, count, alpha)
        print(f"\nflagged at alpha = {alpha}, of {count} test images; 99 % band of {size} images: {low:.4f}–{high:.4f}")
        for name, p_value in p_values.items():
            share = float((p_value <= alpha).mean())
            print(f"  {name:22}{share:8.4f}  {'inside' if low <= share <= high else 'OUTSIDE'}")
    everything = np.concatenate([ours.p_values(each)[DEFAULT_METHOD] for each in outside])
    proportion, power = false_discoveries(p_values[DEFAULT_METHOD], everything, fdr=FDR, rounds=MIXTURES)
    noise = 2 * statistics.stdev(proportion) / MIXTURES**0.5
    print(
        f"\n{DEFAULT_METHOD}, fdr = {FDR}, {MIXTURES} mixtures of 450 test images and 50 of all outside sets: "
        f"realised {statistics.mean(proportion):.4f} ± {noise:.4f}, found {statistics.mean(power):.3f} of those outside"
    )


def print_cost(subject: Subject) -> None:
    """What the default score of one image takes."""
    wall, compute = [], []
    for image in subject.test[:100]:
        before, started = time.process_time(), time.perf_counter()
        complete(subject.model.anomaly_scores(_pixels(image[None])))
        wall.append(1000 * (time.perf_counter() - started))
        compute.append(1000 * (time.process_time() - before))
    print(
        f"\none image by {DEFAULT_METHOD}, 2 threads: median {statistics.median(wall):.1f} ms, "
        f"90 % under {np.quantile(wall, 0.9):.1f} ms, {statistics.median(compute):.1f} ms of processor time"
    )


def report(subject: Subject, given: argparse.Namespace) -> dict[str, float]:
    """Print all that is measured of one model; returns each detector's mean AUROC over the validation pairs."""
    name = subject.stored.manifest.name
    print(f"\n{name}, version {subject.stored.manifest.version}")
    print_cost(subject)
    measure_statistics(subject, subject.test[:1000], "the first test images")
    untouched = measure_statistics(subject, subject.test[: given.inside], "test, for p-values")
    beside = [
        peers(given.pyod_python, PYOD, subject, given.train),
        peers(given.alibi_python, ALIBI, subject, given.train),
    ]
    ours = Ours(subject.stored.calibration)
    means: dict[str, float] = {}
    for part, sets in subject.sets.items():
        found = {each: measure_statistics(subject, images, f"{part}, {each}") for each, images in sets.items()}
        scores = {
            each: ours.scores(values) | {k: v for peer in beside for k, v in peer.get((part, each), {}).items()}
            for each, values in found.items()
        }
        own = scores.pop(INSIDE)
        measured = {
            each: {d: measure(own[d], values[d], rounds=given.bootstraps) for d in values}
            for each, values in scores.items()
        }
        print_tables(f"{name} inside, {part}", measured)
        if part == "validation":
            means = {d: statistics.mean(m[d]["AUROC"].value for m in measured.values()) for d in own}
        else:
            check_promises(ours, untouched, [values for each, values in found.items() if each != INSIDE])
    return means


def main() -> None:
    """Print the tables of both models, and what the validation pairs would choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--fashion", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--store", type=Path, default=BUNDLED, help="a store with the models mnist and fashion-mnist")
    parser.add_argument("--models", nargs="+", choices=("mnist", "fashion-mnist"), default=("mnist", "fashion-mnist"))
    parser.add_argument("--pyod-python", type=Path, help="python of the environment that has PyOD and scikit-learn")
    parser.add_argument("--alibi-python", type=Path, help="python of the environment that has alibi-detect")
    parser.add_argument("--images", type=int, default=200, help="of each test set, at most; validation sets have half")
    parser.add_argument("--train", type=int, help="training images that the peers get, at most (default: all)")
    parser.add_argument("--inside", type=int, default=10_000, help="test images for p-values")
    parser.add_argument("--bootstraps", type=int, default=500)
    given = parser.parse_args()
    threadpool_limits(1, user_api="blas")  # as the service does
    digits = load_digits(given.pyod_python) if given.pyod_python else None
    sources = {"mnist": read_source(given.mnist), "fashion-mnist": read_source(given.fashion)}
    means = []
    for (name, own), other in zip(sources.items(), reversed(sources.values()), strict=True):
        if name not in given.models:
            continue
        means.append(report(prepare(open_version(given.store, name), own, other, digits, given.images), given))
    print(f"\nmean AUROC over all validation pairs of {', '.join(given.models)}")
    overall = {detector: statistics.mean(each[detector] for each in means) for detector in means[0]}
    for detector, value in sorted(overall.items(), key=lambda item: -item[1]):
        print(f"  {detector:22}{value:8.4f}")


def load_digits(python: Path) -> NDArray[np.float64]:
    """scikit-learn's digits, [N, 8, 8] in [0, 1]."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "digits.npy"
        code = "import sys, numpy, sklearn.datasets as d; numpy.save(sys.argv[1], d.load_digits().images / 16)"
        subprocess.run([python, "-c", code, file], check=True)
        return np.asarray(np.load(file, allow_pickle=False))


if __name__ == "__main__":
    main()
