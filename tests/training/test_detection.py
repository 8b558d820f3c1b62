"""AUROC of each kind of defect by each method."""

import numpy as np
import pytest

from model_store import FITTING, LATENT
from service.engine.anomaly.detector import fitting_images
from service.engine.anomaly.statistics import Statistics, storable
from training.publish.detection import Detection, auroc, detect


def statistics(count: int, shift: float, seed: int) -> Statistics:
    rng = np.random.default_rng(seed)
    log_likelihood = rng.normal(-100 - shift, 5, count)
    return Statistics(
        log_likelihood=log_likelihood,
        elbo=log_likelihood - rng.uniform(1, 3 + shift, count),
        kl=rng.normal(20, 2, count),
        complexity=rng.normal(90, 4, count),
        mean=rng.normal(0, 1, (count, 2)),
    )


@pytest.fixture(scope="module")
def found() -> Detection:
    calibration = storable(statistics(60, 0, 1).measured()) | {FITTING: fitting_images(60)}
    return detect(calibration, statistics(40, 0, 2), {"cut": statistics(17, 8, 3), "none": statistics(23, 0, 4)})


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    rng = np.random.default_rng(0)
    ordinary, strange = rng.integers(0, 9, 31).astype(float), rng.integers(2, 12, 23).astype(float)
    pairs = [(s > o) + (s == o) / 2 for o in ordinary for s in strange]
    assert auroc(ordinary, strange) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auroc(ordinary, np.array([np.nan, np.inf, -np.inf])) == pytest.approx(2 / 3)
    assert auroc(strange, strange) == 0.5


def test_every_method_is_measured_and_the_combined_score_comes_first(found: Detection) -> None:
    assert found.methods[0] == "combined"
    assert {"log_likelihood", "posterior_gap", "typicality", "input_complexity", "reconstruction", "kl"} < set(
        found.methods
    )
    assert (found.num_defects, found.num_ordinary) == ({"cut": 17, "none": 23}, 40)
    inside, outside = statistics(40, 0, 2), statistics(17, 8, 3)
    expected = auroc(-inside.log_likelihood, -outside.log_likelihood)
    assert found.auroc["cut"]["log_likelihood"] == pytest.approx(expected)
    assert found.auroc["cut"]["combined"] > 0.8
    assert all(0.25 < value < 0.75 for value in found.auroc["none"].values())


def test_a_calibration_that_allows_fewer_methods_gives_fewer() -> None:
    calibration = storable(statistics(60, 0, 1).measured())
    older = {name: calibration[name] for name in ("log_likelihood", "elbo")}
    assert not any(name.startswith(LATENT) for name in older)
    found = detect(older, statistics(40, 0, 2), {"cut": statistics(17, 8, 3)})
    assert found.methods == ["log_likelihood", "posterior_gap"]


def test_the_manifest_and_the_table_say_the_same(found: Detection) -> None:
    by_name = {metric.name: metric for metric in found.as_metrics()}
    assert len(by_name) == 2 * len(found.methods)
    metric = by_name["auroc.cut.combined"]
    assert (metric.value, metric.num_images) == (found.auroc["cut"]["combined"], 17)
    head, *rows = found.lines()
    assert head.split() == ["AUROC", "images", *found.methods]
    name, count, *values = rows[0].split()
    assert (name, int(count)) == ("cut", 17)
    assert [float(value) for value in values] == pytest.approx(list(found.auroc["cut"].values()), abs=0.0006)
