import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.proposal import UnknownProposalError
from service.engine.runtime import Runtime
from tests.rounding import FUNCTION, density_error, gamma, sampling_error
from training.data.splits import DataSplits
from training.errors import DataError
from training.fit.loaded_model import load_model
from training.fit.run import Run
from training.publish.evaluation import Protocol, calibration_arrays, evaluate, fresh_binarisation, in_unit_interval
from training.publish.export import export
from training.publish.publication import describe, load_engine
from training.publish.units import latent_units
from training.report.page import Measured
from training.terminal import print_measured

PROTOCOL = Protocol("encoder", num_samples=60, seed=3)
NATS = density_error(28 * 28, 400)


@pytest.fixture(scope="module")
def model(finished_run: Run, runtime: Runtime) -> Model:
    description = describe(finished_run.description, "tiny", PROTOCOL)
    return load_engine(description, export(load_model(finished_run)[0]), runtime=runtime)


def test_the_figures_are_those_of_the_engine(model: Model, splits: DataSplits) -> None:
    evaluation = evaluate(model, splits.test, PROTOCOL)
    drawn = np.random.default_rng(3).random(splits.test.shape, dtype=np.float32) < splits.test / np.float32(255)
    record = complete(model.log_likelihood(drawn.astype(np.float32), proposal="encoder", num_samples=60, seed=3))
    assert evaluation.log_likelihood == pytest.approx(record.log_likelihood.mean(), abs=NATS)
    assert evaluation.elbo == pytest.approx(record.elbo.mean(), abs=NATS)
    assert evaluation.elbo < evaluation.log_likelihood
    assert evaluation.std_error == pytest.approx(record.log_likelihood.std(ddof=1) / 10, abs=NATS / 10)
    assert evaluation.bits_per_dim == pytest.approx(-evaluation.log_likelihood / (784 * math.log(2)))
    assert evaluation.num_images == 100
    assert "proposal encoder, 60 samples, seed 3" in evaluation.protocol
    assert "binarised once, afresh" in evaluation.protocol
    assert "ELBO under the encoder" in evaluation.protocol


@pytest.mark.parametrize(
    ("proposal", "words"),
    [
        ("laplace", "importance sampling by the serving engine"),
        ("annealed", "annealing by the serving engine"),
        ("auto", "importance sampling, and annealing where needed, by the serving engine"),
    ],
)
def test_why_estimates_are_not_reliable_and_how_many_are_annealed(
    model: Model, splits: DataSplits, proposal: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images = splits.test[:12]
    evaluation = evaluate(model, images, Protocol(proposal, num_samples=40, seed=3))
    assert evaluation.protocol.startswith(f"{words} on the exported graphs: proposal {proposal}, 40 samples, seed 3")
    record = evaluation.record
    assert sum(evaluation.unreliable.values()) + evaluation.reliable == pytest.approx(1)
    assert evaluation.annealed == (record.proposal == "annealed").mean()
    assert {"laplace": evaluation.annealed == 0, "annealed": evaluation.annealed == 1}.get(proposal, True)
    for reason, share in evaluation.unreliable.items():
        assert share == (record.reason == reason).mean() > 0
    units = latent_units(model, images, seed=0)
    print_measured(Measured("tiny", "12 digits", images, [evaluation], units, seed=0))
    lines = capsys.readouterr().out.splitlines()
    (reliable,) = [line for line in lines if line.startswith("  reliable ")]
    reasons = ", ".join(f"{reason} {100 * share:.1f} %" for reason, share in evaluation.unreliable.items())
    shown = f"{100 * evaluation.reliable:.1f} % of images" + (f"; not: {reasons}" if reasons else "")
    assert reliable.removeprefix("  reliable ").strip() == shown
    annealed = [line.split() for line in lines if line.startswith("  annealed ")]
    assert annealed == (
        [["annealed", f"{100 * evaluation.annealed:.1f}", "%", "of", "images"]] * (proposal != "laplace")
    )


def test_the_figures_as_metrics(model: Model, splits: DataSplits) -> None:
    evaluation = evaluate(model, splits.test[:20], PROTOCOL)
    metrics = {metric.name: metric for metric in evaluation.as_metrics()}
    assert metrics["log_likelihood"].value == evaluation.log_likelihood
    assert metrics["log_likelihood"].std_error == evaluation.std_error
    assert metrics["elbo"].unit == "nats/image"
    assert metrics["bits_per_dim"].unit == "bits/dim"
    assert all((metric.num_images, metric.protocol) == (20, evaluation.protocol) for metric in metrics.values())


def test_black_and_white_images_stay_as_they_are(model: Model, splits: DataSplits) -> None:
    black_and_white = np.where(splits.test > 127, 255, 0).astype(np.uint8)
    first = evaluate(model, black_and_white, PROTOCOL)
    floats = evaluate(model, black_and_white.astype(np.float32) / np.float32(255), PROTOCOL)
    assert first == floats
    assert "images black and white already" in first.protocol


def test_calibration_scores_are_those_of_requests(model: Model, splits: DataSplits) -> None:
    scores = calibration_arrays(model, splits.calibration, PROTOCOL)
    one = in_unit_interval(splits.calibration[4:5])
    alone = complete(model.log_likelihood(one, proposal="encoder", num_samples=60, seed=3))
    assert {array.shape for array in scores.values()} == {(20,)}
    assert scores["log_likelihood"][4] == pytest.approx(alone.log_likelihood[0], abs=NATS)
    assert scores["elbo"][4] == pytest.approx(alone.elbo[0], abs=NATS)


@pytest.mark.parametrize("measure", [evaluate, calibration_arrays])
def test_the_engine_has_one_thread_of_blas_as_in_the_service(
    measure: Callable[..., Any], model: Model, splits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside ONNX Runtime's own: more of them took twice as long for small matrices."""

    def threads() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    seen = []

    def looked_at(method: Callable[..., Any]) -> Callable[..., Any]:
        def called(*given: Any, **more: Any) -> Any:
            seen.append(threads())
            return method(*given, **more)

        return called

    for name in ("log_likelihood", "statistics"):
        monkeypatch.setattr(Model, name, looked_at(getattr(Model, name)))
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        measure(model, splits.calibration[:4], PROTOCOL)
        assert threads() == before == {2}
    assert seen
    assert all(found == {1} for found in seen)


def test_the_prior_is_a_worse_proposal(model: Model, splits: DataSplits) -> None:
    prior = evaluate(model, splits.test[:20], Protocol("prior", num_samples=60, seed=0))
    assert prior.log_likelihood < evaluate(model, splits.test[:20], Protocol("encoder", 60, 0)).log_likelihood - 1


def test_a_single_image_has_no_standard_error(model: Model, splits: DataSplits) -> None:
    assert evaluate(model, splits.test[:1], PROTOCOL).std_error == 0


def test_images_of_another_size_are_refused(model: Model) -> None:
    with pytest.raises(DataError, match=r"images: \[1, 28, 20\] each, but the model takes \[1, 28, 28\]"):
        evaluate(model, np.zeros((3, 1, 28, 20), dtype=np.uint8), PROTOCOL)


def test_an_unknown_proposal_is_refused(model: Model, splits: DataSplits) -> None:
    with pytest.raises(UnknownProposalError, match="unknown proposal 'posterior'"):
        evaluate(model, splits.test[:2], Protocol("posterior", 10, 0))


def test_a_fresh_binarisation_has_the_grey_values_as_its_mean() -> None:
    grey = np.tile(np.array([0, 51, 204, 255], dtype=np.uint8), (5000, 1, 1, 1))
    drawn = fresh_binarisation(grey, "dynamic", seed=1)
    p = np.array([0, 0.2, 0.8, 1])
    error = sampling_error(np.sqrt(p * (1 - p)), 5000, num_means=4) + gamma(FUNCTION)  # of 51/255 and 204/255
    assert (np.abs(drawn.mean((0, 1, 2), dtype=np.float64) - p) <= error).all()
    assert (drawn == fresh_binarisation(grey, "dynamic", seed=1)).all()
    assert (drawn != fresh_binarisation(grey, "dynamic", seed=2)).any()
    assert fresh_binarisation(grey, "threshold", seed=1) is grey
