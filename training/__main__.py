"""python -m training fit|evaluate|publish."""

import argparse
import itertools
import os
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from model_store import StoreError
from model_store.manifest import ModelName
from service.engine.calibration import promises
from service.engine.model import Model
from service.engine.proposal import (
    DEFAULT_NUM_SAMPLES,
    DEFAULT_PROPOSAL,
    PROPOSALS,
    TooFewSamplesError,
    check_request,
)
from service.engine.runtime import ExecutionProviderError, Runtime
from training.configuration import Configuration
from training.data import split
from training.download import locate
from training.errors import TrainingError
from training.evaluate import Evaluation, Protocol, evaluate, latent_units
from training.export import export
from training.figures import draw_figures
from training.image_sets import Reading
from training.networks import Vae
from training.options import add_configuration_options
from training.publication import (
    SCORING_SEED,
    describe,
    held_out_images,
    load_engine,
    load_model,
    open_stored,
    publish_run,
)
from training.recipes import complete_configuration
from training.report import REPORT, Measured, write_report
from training.run import RUN, Run, RunDescription, create_run, describe_run, open_run, resume_run
from training.sources import Source, StreamedSource, open_source
from training.trainer import EpochFigures, fit
from training.workers import Compilation, Precision, Team, choose_acceleration, choose_device, join_team

_EPOCHS_BETWEEN_FIGURES = 10
_MOST_WORKERS = 8
_NAMED = 20  # images that a warning names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for an error of the user's making, 130 after Ctrl-C."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.command(parsed)
    except (TrainingError, StoreError, ExecutionProviderError, TooFewSamplesError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; a training run goes on with --resume", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    data_help = "mnist or fashion-mnist (downloaded once), a folder, or a .parquet, .npy or .npz file"

    fit_parser = _add_command(commands, "fit", _fit, "Train a model; the defaults are the bundled model's recipe.")
    fit_parser.add_argument("--data", required=True, default=argparse.SUPPRESS, help=data_help)
    fit_parser.add_argument(
        "--out", type=Path, required=True, default=argparse.SUPPRESS, help="the run's folder, new or empty"
    )
    fit_parser.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    fit_parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train")
    fit_parser.add_argument(
        "--precision",
        choices=typing.get_args(Precision),
        default="auto",
        help="of the networks in training, densities and bounds being float32 always; auto: bfloat16 on a GPU alone",
    )
    fit_parser.add_argument(
        "--compile", choices=typing.get_args(Compilation), default="auto", help="torch.compile; auto: on a GPU alone"
    )
    add_configuration_options(fit_parser)
    _add_workers(fit_parser)

    summary = (
        "Score a data set's test images; where it has no test part, those that the model's own training held out of it "
        "for that, or all its images where the model was trained on others."
    )
    evaluate_parser = _add_command(commands, "evaluate", _evaluate, summary)
    evaluate_parser.add_argument("model", type=Path, help="a run's folder, or store/NAME or store/NAME/VERSION")
    evaluate_parser.add_argument("--data", required=True, default=argparse.SUPPRESS, help=data_help)
    evaluate_parser.add_argument("--skip-corrupt", action="store_true", help="leave out images that cannot be decoded")
    evaluate_parser.add_argument(
        "--report", type=Path, default=argparse.SUPPRESS, help="an HTML page to write, with pictures"
    )
    evaluate_parser.add_argument(
        "--seed", type=_natural, default=SCORING_SEED, help="of the noise and the binarisation"
    )

    publish_parser = _add_command(
        commands, "publish", _publish, "Export, check, evaluate, calibrate and publish a run."
    )
    publish_parser.add_argument("run", type=Path, help="the run's folder")
    publish_parser.add_argument(
        "--name", type=_model_name, required=True, default=argparse.SUPPRESS, help="the model's name in the store"
    )
    publish_parser.add_argument("--store", type=Path, default=Path("model_store/artifacts"), help="the store's folder")
    publish_parser.add_argument(
        "--data", default=argparse.SUPPRESS, help="the run's data (default: where it was read from)"
    )
    defaults = ", ".join(f"{DEFAULT_NUM_SAMPLES[proposal]} by {proposal}" for proposal in PROPOSALS)
    for scoring, encoder_samples in ((evaluate_parser, 0), (publish_parser, 5000)):
        scoring.add_argument("--proposal", choices=PROPOSALS, default=DEFAULT_PROPOSAL, help="where samples come from")
        scoring.add_argument(
            "--num-samples",
            type=_positive,
            default=argparse.SUPPRESS,
            help=f"importance samples an image (default: the proposal's own, {defaults})",
        )
        scoring.add_argument(
            "--encoder-samples",
            type=_natural,
            default=encoder_samples,
            help="samples an image of a second estimate, from the encoder as in the literature; 0 leaves it out",
        )
        scoring.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the graphs run")
        _add_workers(scoring)
    return parser


def _add_workers(parser: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument(
        "--workers",
        type=_natural,
        default=min(cores, _MOST_WORKERS),
        help="processes that decode images that stream; 0: none but this one. No result depends on it",
    )


def _model_name(text: str) -> str:
    try:
        name: str = TypeAdapter(ModelName).validate_python(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(error.errors()[0]["msg"]) from error
    return name


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _natural(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return number


def _add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: Callable[[argparse.Namespace], None],
    summary: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.set_defaults(command=command)
    return parser


def _fit(parsed: argparse.Namespace) -> None:
    device = choose_device(parsed.device)
    with join_team(device) as team:
        _fit_in_team(parsed, device, team)


def _fit_in_team(parsed: argparse.Namespace, device: torch.device, team: Team) -> None:
    given = {field.name: getattr(parsed, field.name) for field in fields(Configuration) if hasattr(parsed, field.name)}
    max_memory = given.get("max_memory", Configuration.max_memory)
    source = _open(parsed.data, Reading(max_memory, given.get("skip_corrupt", False), parsed.workers))
    configuration = complete_configuration(given, source.train)
    splits = split(source, configuration)
    description = describe_run(configuration, splits, source=parsed.data)
    run = _open_in_team(parsed, description, team)
    acceleration = choose_acceleration(device, parsed.precision, parsed.compile)
    if team.leads:
        parts = ", ".join(f"{count} {part}" for part, count in description.num_images.items())
        streamed = "; training images stream" if isinstance(source, StreamedSource) else ""
        what = f"{parts} images of {list(splits.image_shape)}; {_in_words(configuration)}"
        print(f"{splits.name}: {what}; on {device}{streamed}")

    def on_epoch(figures: EpochFigures, model: Vae) -> None:
        print(
            f"epoch {figures.epoch}/{configuration.epochs}: train {figures.train_bound:.2f}, validation "
            f"{figures.validation_bound:.2f}, ELBO {figures.validation_elbo:.2f} nats; "
            f"{figures.images_per_second:.0f} images/s",
            flush=True,
        )
        if figures.epoch % _EPOCHS_BETWEEN_FIGURES == 0:
            draw_figures(run, model, splits.validation)

    model = fit(
        run,
        splits,
        device=device,
        on_epoch=on_epoch,
        team=team,
        acceleration=acceleration,
        progress=_at_terminal(),
    )
    if team.leads:
        draw_figures(run, model, splits.validation)
        metrics = run.read_metrics(configuration.epochs)
        seconds = sum(line["seconds"] for line in metrics)
        print(f"{parsed.out}: trained {len(metrics)} epochs in {seconds / 60:.1f} minutes")


def _open_in_team(parsed: argparse.Namespace, description: RunDescription, team: Team) -> Run:
    """The run's folder: the leading process begins a new one, and the others open what it has begun."""
    if parsed.resume:
        return resume_run(parsed.out, description)
    if team.leads:
        create_run(parsed.out, description)
    team.wait()
    return open_run(parsed.out)


def _in_words(configuration: Configuration) -> str:
    return f"{configuration.preset}, {configuration.likelihood}, binarisation {configuration.binarisation}"


def _reading(configuration: Configuration, workers: int) -> Reading:
    return Reading(configuration.max_memory, configuration.skip_corrupt, workers)


def _open(data: str, reading: Reading) -> Source | StreamedSource:
    source = open_source(locate(data), reading)
    if source.skipped:
        print(f"warning: {len(source.skipped)} images cannot be read and are left out:", file=sys.stderr)
        for name, problem in itertools.islice(source.skipped.items(), _NAMED):
            print(f"  {name}: {problem}", file=sys.stderr)
        if len(source.skipped) > _NAMED:
            print(f"  and {len(source.skipped) - _NAMED} more", file=sys.stderr)
    return source


def _evaluate(parsed: argparse.Namespace) -> None:
    protocol = _protocol(parsed, parsed.seed)
    runtime = Runtime(parsed.device)
    curves: list[dict[str, float]] = []
    if (parsed.model / RUN).is_file():
        run = open_run(parsed.model)
        model = load_engine(describe(run.description, "run", protocol), export(load_model(run)[0]), runtime=runtime)
        curves = run.read_metrics(run.description.configuration.epochs)
    else:
        model = Model.open(open_stored(parsed.model), runtime=runtime)
    source = _open(parsed.data, Reading(skip_corrupt=parsed.skip_corrupt, workers=parsed.workers))
    images, what = held_out_images(source, model.description.provenance)
    protocols = [protocol]
    if parsed.encoder_samples and protocol.proposal != "encoder":
        protocols.append(Protocol("encoder", parsed.encoder_samples, parsed.seed))
    evaluations = [evaluate(model, images, protocol, progress=_at_terminal()) for protocol in protocols]
    units = latent_units(model, images, seed=parsed.seed)
    measured = Measured(str(parsed.model), what, images, evaluations, units, parsed.seed)
    _print_measured(measured)
    if hasattr(parsed, "report"):
        write_report(parsed.report, model, measured, curves)
        print(f"report: {parsed.report}")


def _protocol(parsed: argparse.Namespace, seed: int) -> Protocol:
    num_samples = getattr(parsed, "num_samples", DEFAULT_NUM_SAMPLES[parsed.proposal])
    check_request(parsed.proposal, num_samples)
    return Protocol(parsed.proposal, num_samples, seed)


def _publish(parsed: argparse.Namespace) -> None:
    protocol = _protocol(parsed, SCORING_SEED)
    runtime = Runtime(parsed.device)
    run = open_run(parsed.run)
    configuration = run.description.configuration
    source = _open(getattr(parsed, "data", run.description.source), _reading(configuration, parsed.workers))
    splits = split(source, configuration)
    for line in promises(len(splits.calibration)):
        print(line)
    publication = publish_run(
        run,
        splits,
        name=parsed.name,
        store=parsed.store,
        protocol=protocol,
        encoder_samples=parsed.encoder_samples,
        runtime=runtime,
        progress=_at_terminal(),
    )
    print(f"ONNX and PyTorch differ by at most {publication.largest_difference:.2g}")
    evaluations = [publication.evaluation, publication.encoder_evaluation]
    done = [evaluation for evaluation in evaluations if evaluation is not None]
    measured = Measured(parsed.name, source.name, splits.test, done, publication.units, SCORING_SEED)
    _print_measured(measured)
    write_report(run.folder / REPORT, publication.model, measured, run.read_metrics(configuration.epochs))
    print(f"report: {run.folder / REPORT}")
    print(f"published {publication.stored.path}")


def _print_measured(measured: Measured) -> None:
    for evaluation in measured.evaluations:
        _print_evaluation(f"{measured.title} on {measured.data}", evaluation)
    units = measured.units
    print(f"  {'active units':<16}{units.num_active:>10} of {len(units.kl)}")


def _print_evaluation(title: str, evaluation: Evaluation) -> None:
    print(f"{title}: {evaluation.num_images} images; {evaluation.protocol}")
    rows = (
        ("log_likelihood", evaluation.log_likelihood, evaluation.std_error, "nats/image"),
        ("elbo", evaluation.elbo, evaluation.elbo_std_error, "nats/image"),
        ("bits_per_dim", evaluation.bits_per_dim, evaluation.bits_per_dim_std_error, "bits/dim"),
    )
    for name, value, std_error, unit in rows:
        print(f"  {name:<16}{value:>10.4f} ± {std_error:.4f} {unit}")
    print(f"  {'reliable':<16}{100 * evaluation.reliable:>10.1f} % of images")


def _at_terminal() -> bool:
    return sys.stderr.isatty()


if __name__ == "__main__":
    sys.exit(main())
