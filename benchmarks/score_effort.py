"""How few samples does an anomaly score need? AUROC and false alarms by proposal and number of samples.

    PYTHONPATH=. python benchmarks/score_effort.py --own ../shared/data/mnist --other ../shared/data/fashion-mnist

For choosing, so nothing of a test set is looked at: p-values are against the images held out as calibration, inside
are images held out as validation, and outside are the training images of the other data set, and other validation
images changed (outside_images.py). Each image's modes are found once, and the first samples of the largest number are
the samples of every smaller one, as a request's would be: so rows of one proposal are compared on the same noise.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
from detection import auroc, false_alarm_band
from outside_images import Bytes, outside_sets
from threadpoolctl import threadpool_limits

from model_store import BUNDLED, FITTING, open_version
from service.engine.anomaly.complexity import complexity
from service.engine.anomaly.detector import Detector, fitting_images
from service.engine.anomaly.statistics import Statistics, divergence, storable
from service.engine.arrays import Float64Array
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.posterior.estimate import estimate, evidence_lower_bound
from service.engine.posterior.laplace import SHARES, balanced, part_of
from service.engine.runtime import Runtime
from training.configuration import Configuration
from training.data.sources import read_source
from training.data.splits import split

METHODS = ("log_likelihood", "posterior_gap", "typicality", "input_complexity", "reconstruction", "kl", "combined")
ALPHAS = (0.05, 0.01)
_AT_ONCE = 50
Protocol = tuple[str, int]


def measure(model: Model, images: Bytes, protocols: Sequence[Protocol]) -> dict[Protocol, Statistics]:
    """The statistics of images [N, H, W] by every protocol."""
    parts: dict[Protocol, list[Statistics]] = {protocol: [] for protocol in protocols}
    for first in range(0, len(images), _AT_ONCE):
        some = _measure(model, images[first : first + _AT_ONCE], protocols)
        for protocol, found in some.items():
            parts[protocol].append(found)
    return {protocol: Statistics.join(found) for protocol, found in parts.items()}


def _measure(model: Model, images: Bytes, protocols: Sequence[Protocol]) -> dict[Protocol, Statistics]:
    prepared = complete(model._first.observe(images[:, None].astype(np.float32) / np.float32(255)))
    posterior = complete(model._encode(prepared))
    x = prepared[:].reshape(len(images), -1)
    nats, kl, every = complete(complexity(prepared.restored())), divergence(posterior), np.arange(len(images))
    found = {}
    for proposal in {name for name, _ in protocols}:
        most = max(count for name, count in protocols if name == proposal)
        plan = complete(model._estimator._plan(proposal, x, posterior, 0))
        log_weight, by_encoder = complete(plan.draw(every, 0, most))
        drawn_by_encoder = np.arange(most)
        if plan.mixture:
            drawn_by_encoder = drawn_by_encoder[part_of(drawn_by_encoder) == len(SHARES) - 1]
        for count in (count for name, count in protocols if name == proposal):
            elbo = evidence_lower_bound(by_encoder[:, drawn_by_encoder < count])
            weights = balanced(log_weight[:, :count]) if plan.mixture else log_weight[:, :count]
            record = estimate(weights, elbo, x.shape[1])
            mean = posterior.mean.astype(np.float64)
            found[proposal, count] = Statistics(record.log_likelihood, elbo, kl, mean, complexity=nats)
    return found


def main() -> None:
    """Print a table of AUROC for each protocol, and its false alarms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--own", type=Path, required=True, help="the folder of the data that the model was trained on")
    parser.add_argument("--other", type=Path, required=True, help="another data set's folder")
    parser.add_argument("--model", default="mnist", help="of the bundled ones")
    parser.add_argument("--images", type=int, default=150, help="of each outside set")
    parser.add_argument("--inside", type=int, default=800, help="of the validation images")
    parser.add_argument("--calibration", type=int, default=3000, help="of the calibration images")
    parser.add_argument("--laplace", type=int, nargs="*", default=[400, 256, 128, 64])
    parser.add_argument("--encoder", type=int, nargs="*", default=[400, 256, 128, 64])
    parser.add_argument("--seed", type=int, default=5)
    given = parser.parse_args()
    threadpool_limits(1, user_api="blas")
    stored = open_version(BUNDLED, given.model)
    model = Model.open(stored, runtime=Runtime("cpu"))
    choices = stored.manifest.provenance.configuration
    parts = split(
        read_source(given.own),
        Configuration(**{f.name: choices[f.name] for f in fields(Configuration) if f.name in choices}),
    )
    rng = np.random.default_rng(given.seed)
    held_out: Bytes = np.asarray(parts.validation)[rng.permutation(len(parts.validation)), 0]
    elsewhere = read_source(given.other).train
    others: Bytes = np.asarray(elsewhere)[rng.choice(len(elsewhere), given.images, replace=False), 0]
    inside, originals = held_out[: given.inside], held_out[given.inside :][: given.images]
    protocols = [("laplace", count) for count in given.laplace] + [("encoder", count) for count in given.encoder]
    own: Bytes = np.asarray(parts.calibration, np.uint8)[: given.calibration, 0]
    calibration = measure(model, own, protocols)
    print("calibration measured", flush=True)
    ordinary = measure(model, inside, protocols)
    print("inside measured", flush=True)
    outside = {}
    for name, images in outside_sets(originals, others, None, rng).items():
        outside[name] = measure(model, images, protocols)
        print(name, "measured", flush=True)
    for protocol in protocols:
        report(protocol, calibration[protocol], ordinary[protocol], {n: o[protocol] for n, o in outside.items()})


def _ascending(scores: Float64Array) -> Float64Array:
    """What is not a number is the strangest of all."""
    return np.sort(np.nan_to_num(scores, nan=np.inf, posinf=np.inf, neginf=-np.inf))


def report(protocol: Protocol, calibration: Statistics, inside: Statistics, outside: dict[str, Statistics]) -> None:
    """Print one protocol's table."""
    measured = storable(calibration.measured())
    detector = Detector({**measured, FITTING: fitting_images(len(calibration.elbo))})
    own = complete(detector.judge(inside, METHODS, alpha=ALPHAS[0], fdr=None))
    print(f"\n{protocol[0]}, {protocol[1]} samples: AUROC, and false alarms at {ALPHAS}")
    print(f"{'':18}" + "".join(f"{name[:9]:>10}" for name in outside) + f"{'mean':>8}")
    by_set = [complete(detector.judge(found, METHODS, alpha=ALPHAS[0], fdr=None)) for found in outside.values()]
    for method in METHODS:
        row = [auroc(_ascending(own[method].score), _ascending(judged[method].score)) for judged in by_set]
        alarms = " ".join(f"{(own[method].p_value <= alpha).mean():.4f}" for alpha in ALPHAS)
        print(f"{method:18}" + "".join(f"{value:10.4f}" for value in row) + f"{statistics.mean(row):8.4f}   {alarms}")
    bands = [false_alarm_band(detector.calibration_size, len(inside.elbo), alpha) for alpha in ALPHAS]
    print("99 % bands of false alarms: " + ", ".join(f"{low:.4f} to {high:.4f}" for low, high in bands), flush=True)


if __name__ == "__main__":
    main()
