"""python -m training fit|finish-encoder|evaluate|compare|publish|upgrade|features."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from model_store import Description, StoreError
from service.engine.proposal import TooFewSamplesError
from service.engine.runtime import DEVICE_ERRORS, Runtime
from service.images.folder import printable
from service.images.resampler import ResamplerError, check_resampler
from service.printing import print_any_name, print_published
from training.configuration import Configuration
from training.data.download import locate
from training.data.image_sets import Reading
from training.data.preparation import Preparation
from training.data.sources import Source, StreamedSource, open_source
from training.data.splits import evenly_spaced
from training.errors import TrainingError, UpgradeError
from training.features.maps import cached_splits
from training.fit.loaded_model import load_model
from training.fit.run import open_run
from training.fit_command import run_fit
from training.parser import build_parser
from training.publish.evaluation import Protocol, evaluate
from training.publish.feature_command import write_features
from training.publish.held_out import held_out_images, split_as_before
from training.publish.protocols import encoder_samples_of, measured_defects, measured_images, protocol_of, scoring_of
from training.publish.publication import SCORING_SEED, publish_run
from training.publish.units import latent_units
from training.publish.upgrade import upgrade
from training.report.comparison import common_images, compare_lines, open_model
from training.report.page import REPORT, Measured, write_report
from training.report.verdict import judge, measure
from training.terminal import (
    print_left_out,
    print_measured,
    print_skipped,
)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m training") -> int:
    """Run one command; returns the exit code: 0, 2 for an error of the user's making, 130 after Ctrl-C."""
    print_any_name()
    parsed = build_parser(__doc__, prog).parse_args(arguments)
    try:
        _COMMANDS[parsed.command](parsed)
    except (TrainingError, StoreError, ResamplerError, TooFewSamplesError, OSError, *DEVICE_ERRORS) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; continue a training run with --resume", file=sys.stderr)
        return 130
    return 0


def _reading(configuration: Configuration, workers: int) -> Reading:
    preparation = Preparation.asked(asdict(configuration))
    reading = Reading(configuration.max_memory, configuration.skip_corrupt, workers, progress=True)
    return replace(reading, preparation=preparation)


def _open(data: str, reading: Reading) -> Source | StreamedSource:
    source = open_source(locate(data), reading)
    print_skipped(source)
    return source


def _evaluate(parsed: argparse.Namespace) -> None:
    protocol = protocol_of(parsed, parsed.seed)
    opened = open_model(parsed.model, protocol, Runtime(parsed.device))
    model = opened.model
    source = _open_for(parsed.model, opened.description, parsed)
    images, what = held_out_images(source, model.description.provenance)
    if len(images) > (most := getattr(parsed, "images", len(images))):
        images, what = evenly_spaced(images, most), f"{most} of the {len(images)} images of {what}, evenly spaced"
    protocols = [protocol]
    if parsed.encoder_samples and protocol.proposal != "encoder":
        protocols.append(Protocol("encoder", parsed.encoder_samples, parsed.seed))
    evaluations = [evaluate(model, images, protocol, progress=True) for protocol in protocols]
    units = latent_units(model, images, seed=parsed.seed)
    measured = Measured(printable(parsed.model), what, images, evaluations, units, parsed.seed)
    print_measured(measured)
    if hasattr(parsed, "report"):
        write_report(parsed.report, model, measured, opened.curves)
        print(f"report: {parsed.report}")


def _open_for(path: Path, description: Description, parsed: argparse.Namespace) -> Source | StreamedSource:
    """The data set, prepared as the model wants it."""
    if warning := check_resampler(description.preparation):
        print(f"warning: {path}: {warning}", file=sys.stderr)
    reading = Reading(skip_corrupt=parsed.skip_corrupt, workers=parsed.workers, progress=True)
    return _open(parsed.data, replace(reading, preparation=Preparation.of_model(description)))


def _compare(parsed: argparse.Namespace) -> None:
    protocol = protocol_of(parsed, parsed.seed)
    opened = [open_model(path, protocol, Runtime(parsed.device)) for path in (parsed.first, parsed.second)]
    names = [printable(parsed.first), printable(parsed.second)]
    descriptions = [each.description for each in opened]
    sources = [_open_for(Path(name), each, parsed) for name, each in zip(names, descriptions, strict=True)]
    images, what = common_images(sources, [description.provenance for description in descriptions])
    some = [measured_images(parsed, each) for each in images]
    print(f"A {names[0]}, B {names[1]}: {len(some[0])} images, {what}")
    found = [evaluate(each.model, x, protocol, progress=True) for each, x in zip(opened, some, strict=True)]
    print("\n".join(compare_lines(names, descriptions, found)))


def _publish(parsed: argparse.Namespace) -> None:
    protocol = protocol_of(parsed, SCORING_SEED)
    runtime = Runtime(parsed.device)
    run = open_run(parsed.run)
    configuration = run.description.configuration
    source = _open(getattr(parsed, "data", run.description.source), _reading(configuration, parsed.workers))
    splits = split_as_before(source, configuration, run.description.things)
    test = measured_images(parsed, splits.test)
    defects, problems = source.defects.read()
    print_left_out(problems)
    publication = publish_run(
        run,
        splits,
        name=parsed.name,
        store=parsed.store,
        protocol=protocol,
        encoder_samples=encoder_samples_of(parsed, test),
        runtime=runtime,
        scoring=scoring_of(parsed, protocol, splits.test),
        test=test,
        defects=measured_defects(parsed, defects),
        progress=True,
    )
    print(f"ONNX and PyTorch differ by at most {publication.largest_difference:.2g}")
    done = [found for found in (publication.evaluation, publication.encoder_evaluation) if found is not None]
    detected = publication.detection.mean() if publication.detection else None
    figures = measure(
        run, load_model(run).vae, splits if run.description.features is None else cached_splits(run.folder, splits)
    )
    figures = replace(figures, reliable=publication.evaluation.reliable, detected=detected)
    what = source.name if test is splits.test else f"{source.name}, {len(test)} of its {len(splits.test)} test images"
    units, detection, examples = publication.units, publication.detection, source.originals.read()
    measured = Measured(parsed.name, what, test, done, units, SCORING_SEED, judge(figures), detection, examples)
    print_measured(measured)
    write_report(run.folder / REPORT, publication.model, measured, run.read_metrics())
    print(f"report: {run.folder / REPORT}")
    print_published(publication.stored)


def _upgrade(parsed: argparse.Namespace) -> None:
    failed = upgrade(
        parsed.store, getattr(parsed, "model", None), runtime=Runtime("cpu"), tell=partial(print, flush=True)
    )
    if failed:
        raise UpgradeError(f"{failed} of the models could not be upgraded")


def _features(parsed: argparse.Namespace) -> None:
    options = {name: value for name, value in vars(parsed).items() if name != "command"}
    print(write_features(**options, runtime=Runtime("cpu")))


_COMMANDS = {
    "fit": run_fit,
    "finish-encoder": run_fit,
    "evaluate": _evaluate,
    "compare": _compare,
    "publish": _publish,
    "upgrade": _upgrade,
    "features": _features,
}


if __name__ == "__main__":
    sys.exit(main())
