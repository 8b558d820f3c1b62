"""The phase that trains the encoder alone: what it gains, and what it must leave as it is."""

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.test_trainer import CPU, SHORT, equal, new_run, train, weights
from training.configuration import Configuration
from training.data.splits import DataSplits
from training.errors import ConfigurationError
from training.fit.encoder_phase import EncoderPhase, encoder_configuration
from training.fit.loaded_model import FinishedEncoder, load_model
from training.fit.run import RUN, Run, open_run
from training.fit.schedule import learning_rate
from training.fit.trainer import EpochFigures, fit, validate
from training.networks.vae import Vae
from training.publish.evaluation import Protocol
from training.publish.export import export
from training.publish.held_out import configuration_of
from training.publish.provenance import FINISHED_ENCODER
from training.publish.publication import describe
from training.terminal import print_finished_encoder

FINISHING = replace(SHORT, batch_size=16, finish_encoder=True, finish_epochs=5)


def finished(run: Run) -> FinishedEncoder:
    found = load_model(run).finished_encoder
    assert found is not None
    return found


def of(part: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name.startswith(f"{part}.")}


@pytest.fixture(scope="module")
def without(splits: DataSplits, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What the decoder is when the phase begins."""
    run = new_run(tmp_path_factory.mktemp("without") / "run", splits, replace(SHORT, batch_size=16))
    train(run, splits)
    return run


@pytest.fixture(scope="module")
def whole(splits: DataSplits, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = new_run(tmp_path_factory.mktemp("whole") / "run", splits, FINISHING)
    train(run, splits)
    return run


def test_the_elbo_rises_and_no_bit_of_the_decoder_changes(whole: Run, without: Run, splits: DataSplits) -> None:
    before, after = load_model(without).vae, load_model(whole).vae
    assert export(after).decoder == export(before).decoder
    assert equal(of("decoder", before.state_dict()), of("decoder", after.state_dict()))
    assert not any(
        torch.equal(value, after.state_dict()[name])
        for name, value in of("encoder", before.state_dict()).items()
        if name.endswith("weight")
    )
    validation = torch.from_numpy(splits.validation)
    elbos = [validate(vae, validation, FINISHING)[0] for vae in (before, after)]
    gain = finished(whole)
    assert [gain.elbo_before, gain.elbo_after] == elbos  # to the bit
    assert elbos[1] > elbos[0]


def test_it_gains_more_the_better_the_decoder_is(finished_run: Run, whole: Run) -> None:
    """Importance weighted training leaves the encoder the further behind, the longer it goes on."""
    trained, hardly = finished(finished_run), finished(whole)
    assert trained.elbo_after - trained.elbo_before > max(0.5, hardly.elbo_after - hardly.elbo_before)


def test_each_epoch_is_in_the_figures(whole: Run, without: Run) -> None:
    metrics, main = whole.read_metrics(), without.read_metrics()
    alone, gain = metrics[4:], finished(whole)
    assert [line["epoch"] for line in metrics] == list(range(1, 10))
    assert [line["encoder_epoch"] for line in metrics] == [0, 0, 0, 0, 1, 2, 3, 4, 5]
    assert [line["step"] for line in metrics] == [10 * epoch for epoch in range(1, 10)]
    assert {line["encoder_gain"] for line in main} == {0.0}
    assert [line["encoder_gain"] for line in alone] == [line["validation_elbo"] - gain.elbo_before for line in alone]
    assert gain.elbo_before == main[-1]["validation_elbo"]
    assert gain.elbo_after == max(line["validation_elbo"] for line in alone)
    assert alone[gain.kept_epoch - 1]["validation_elbo"] == gain.elbo_after
    assert alone[-1]["learning_rate"] < 0.1 * max(line["learning_rate"] for line in alone) < SHORT.learning_rate
    assert [session.first_epoch for session in whole.read_sessions()] == [1]


@pytest.mark.parametrize("stop_after", [4, 5, 8])
def test_a_run_stopped_within_it_or_right_before_it_ends_with_the_same_bits(
    whole: Run, splits: DataSplits, tmp_path: Path, stop_after: int
) -> None:
    broken = new_run(tmp_path, splits, FINISHING)
    assert train(broken, splits, stop_after=stop_after)[0] is None
    assert not load_model(broken).finished
    told = train(broken, splits)[1]
    assert [figures.epoch for figures in told] == list(range(stop_after + 1, 10))
    assert equal(weights(whole), weights(broken))
    assert finished(broken) == finished(whole)
    timeless = [
        [{**line, "seconds": 0, "images_per_second": 0} for line in run.read_metrics()] for run in (whole, broken)
    ]
    assert timeless[0] == timeless[1]
    assert [session.first_epoch for session in broken.read_sessions()] == [1, stop_after + 1]
    assert train(broken, splits)[1] == []  # at its end


@pytest.mark.parametrize(
    "options",
    [
        {"patience": 2, "learning_rate": 0.05, "ema_decay": 0.0, "epochs": 40},
        {
            "epochs": 2,
            "objective": "elbo",
            "kl_warm_up_epochs": 2.0,
            "free_bits": 0.1,
            "max_gradient_norm": 3.0,
            "shift": 1,
        },
        {
            "epochs": 1,
            "preset": "resnet",
            "width": 2,
            "depth": 1,
            "likelihood": "discretised_logistic",
            "binarisation": "none",
        },
    ],
    ids=["patience", "elbo", "resnet"],
)
def test_it_follows_any_kind_of_training(tmp_path: Path, splits: DataSplits, options: dict[str, Any]) -> None:
    recipe = Configuration(**{**vars(FINISHING), "finish_epochs": 2, **options})
    runs = [new_run(tmp_path / name, splits, recipe) for name in ("whole", "broken")]
    trained = new_run(tmp_path / "without", splits, replace(recipe, finish_encoder=False, finish_epochs=None))
    train(trained, splits)
    decoder = of("decoder", load_model(trained).vae.state_dict())  # where it has patience, the best epoch's
    last = trained.read_metrics()[-1]["epoch"]
    train(runs[0], splits)
    train(runs[1], splits, stop_after=int(last) + 1)
    train(runs[1], splits)
    assert equal(weights(runs[0]), weights(runs[1]))
    assert equal(decoder, of("decoder", load_model(runs[0]).vae.state_dict()))
    assert finished(runs[0]).elbo_after >= finished(runs[0]).elbo_before


def test_where_nothing_is_gained_the_encoder_stays(
    tmp_path: Path,
    splits: DataSplits,
    without: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def rate(step: int, steps_per_epoch: int, configuration: Configuration) -> float:
        alone = configuration.objective == "elbo"
        return 0.1 if alone else learning_rate(step, steps_per_epoch, configuration)  # steps that only harm

    monkeypatch.setattr("training.fit.loop.learning_rate", rate)
    run = new_run(tmp_path, splits, FINISHING)
    model, told = train(run, splits)
    assert model is not None
    assert all(figures.encoder_gain < 0 for figures in told[4:])
    for found in (model, load_model(run).vae):
        assert equal(found.state_dict(), load_model(without).vae.state_dict())
    assert finished(run)._replace(epochs=0) == FinishedEncoder(
        0, 0, finished(run).elbo_before, finished(run).elbo_before
    )
    print_finished_encoder(finished(run))
    told_last = capsys.readouterr().out
    assert re.match(r"encoder: as before; none of \d epochs had a validation ELBO above -\d+\.\d\d nats\n", told_last)


def test_it_ends_when_the_elbo_no_longer_rises_even_from_below() -> None:
    recipe = Configuration(epochs=8, finish_epochs=30)
    assert encoder_configuration(recipe).patience == 10

    def length(elbos: Iterable[float]) -> int:
        phase = EncoderPhase(before=8, elbo=-100.0)
        for epoch, elbo in enumerate(elbos, start=9):
            phase = phase.after(epoch, elbo)
            if phase.is_over(epoch, recipe):
                return epoch - phase.before
        raise AssertionError

    assert length(-100.0 + 0.1 * epoch for epoch in range(50)) == 30
    assert length(-103.0 + 0.1 * epoch for epoch in range(50)) == 30  # worse than before in the beginning
    assert length(-99.0 - 0.1 * epoch for epoch in range(50)) == 11
    assert length([-101.0, -99.0, *[-99.0] * 20]) == 12


def test_divergence_ends_it_and_costs_no_model(
    tmp_path: Path, splits: DataSplits, without: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rate(step: int, steps_per_epoch: int, configuration: Configuration) -> float:
        alone = configuration.objective == "elbo"
        return learning_rate(step, steps_per_epoch, configuration) * (1e38 if alone else 1)

    monkeypatch.setattr("training.fit.loop.learning_rate", rate)
    run = new_run(tmp_path, splits, FINISHING)
    lines: list[str] = []
    fit(run, splits, device=CPU, on_epoch=lambda figures, model: None, on_setback=lines.append)
    assert len(lines) == 3
    assert all("back to the weights of epoch 4, continuing with 0.25 times" in line for line in lines[:2])
    assert "for the third time: the encoder of epoch 4 is kept" in lines[2]
    loaded = load_model(run)
    assert loaded.finished
    assert equal(loaded.vae.state_dict(), load_model(without).vae.state_dict())
    assert train(run, splits)[1] == []
    assert [line["epoch"] for line in run.read_metrics()] == [1, 2, 3, 4]


def test_statistics_that_a_decoder_keeps_do_not_move(
    tmp_path: Path, splits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network here has any; one that a user adds may."""
    original = Vae.__init__

    class Counting(torch.nn.Module):
        count: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.count += len(hidden)
            return hidden

    def with_statistics(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        hidden = self.decoder.body.hidden
        assert isinstance(hidden, torch.nn.Sequential)
        hidden.append(Counting())

    monkeypatch.setattr(Vae, "__init__", with_statistics)
    counts: list[tuple[float, ...]] = []

    def on_epoch(_: EpochFigures, model: Vae) -> None:
        checkpoint = run.load_checkpoint(CPU)
        assert checkpoint is not None
        counts.append(tuple(float(checkpoint[part]["decoder.body.hidden.4.count"]) for part in ("model", "averaged")))

    run = new_run(tmp_path, splits, replace(FINISHING, epochs=2, finish_epochs=2))
    fit(run, splits, device=CPU, on_epoch=on_epoch)
    trained, more, alone, last = counts
    assert trained < more
    assert alone == last


def test_runs_and_versions_of_before_have_no_such_phase(without: Run, splits: DataSplits, tmp_path: Path) -> None:
    fields = json.loads((without.folder / RUN).read_text())
    del fields["configuration"]["finish_encoder"], fields["configuration"]["finish_epochs"]
    for file in without.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / RUN).write_text(json.dumps(fields))
    run = open_run(tmp_path)
    assert run.description == without.description
    assert load_model(run).finished
    assert load_model(run).finished_encoder is None
    assert train(run, splits)[1] == []
    provenance = describe(without.description, "old", Protocol("encoder", 4, 0)).provenance
    configuration = {name: value for name, value in provenance.configuration.items() if not name.startswith("finish_")}
    assert configuration_of(provenance.model_copy(update={"configuration": configuration})) == replace(
        SHORT, batch_size=16
    )


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="finish_epochs belongs to finish_encoder"):
        Configuration(finish_encoder=False, finish_epochs=3)


def test_the_manifest_has_the_gain(whole: Run) -> None:
    gain = finished(whole)
    provenance = describe(whole.description, "tiny", Protocol("encoder", 4, 0), finished_encoder=gain).provenance
    assert provenance.configuration[FINISHED_ENCODER] == {
        "epochs": 5,
        "kept_epoch": gain.kept_epoch,
        "elbo_before": gain.elbo_before,
        "elbo_after": gain.elbo_after,
    }
    assert configuration_of(provenance) == FINISHING
