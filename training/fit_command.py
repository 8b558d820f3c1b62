"""`fit` and `finish-encoder`: from options and images to a trained run, in one process or several."""

import argparse
import sys
from contextlib import ExitStack
from dataclasses import fields

import torch

from service.engine.runtime import Runtime
from training.configuration import Configuration
from training.data.download import locate
from training.data.image_sets import Reading
from training.data.preparation import Preparation
from training.data.sources import open_source
from training.data.splits import split
from training.fit.devices import choose_acceleration, choose_device
from training.fit.distributed import ProcessGroup, join_process_group
from training.fit.first_stage import complete_options, linear_model, open_graph, to_features
from training.fit.linear import begin_linear
from training.fit.loaded_model import load_model
from training.fit.lock import lock_folder
from training.fit.plan import plan_on_machine
from training.fit.recipes import complete_configuration
from training.fit.run import Run, RunDescription, create_run, describe_run, open_run, resume_run
from training.fit.start import begin, check_begun, check_start, fingerprint
from training.fit.trainer import EpochFigures, fit
from training.networks.vae import Vae
from training.publish.stored_start import open_start
from training.report.figures import draw_figures
from training.report.verdict import judge, measure
from training.terminal import (
    is_terminal,
    print_chosen,
    print_epoch,
    print_finished_encoder,
    print_plan,
    print_setback,
    print_skipped,
    print_start,
    print_verdict,
)

_EPOCHS_BETWEEN_FIGURES = 10


def run_fit(parsed: argparse.Namespace) -> None:
    """Train as the command line asks; prints what it chose, each epoch, and its verdict."""
    device = choose_device(parsed.device)
    with join_process_group(device) as processes, ExitStack() as locks:
        _fit_in_group(parsed, device, processes, locks)


def _fit_in_group(parsed: argparse.Namespace, device: torch.device, processes: ProcessGroup, locks: ExitStack) -> None:
    before = open_run(parsed.out).description if parsed.resume else None
    start = open_start(parsed.start_from, Runtime("cpu")) if hasattr(parsed, "start_from") else None
    encoder_alone = parsed.command == "finish-encoder"
    given = {field.name: getattr(parsed, field.name) for field in fields(Configuration) if hasattr(parsed, field.name)}
    runtime = Runtime("auto" if device.type == "cuda" else "cpu")
    graph = open_graph(getattr(parsed, "features", None), before, runtime)
    given = complete_options(given, parsed.out, before, start, graph, encoder_alone=encoder_alone)
    reading = Reading(
        given.get("max_memory", Configuration.max_memory),
        given.get("skip_corrupt", Configuration.skip_corrupt),
        parsed.workers,
        progress=processes.leads,
        preparation=Preparation.asked(given),
    )
    source = open_source(locate(parsed.data), reading)
    if processes.leads:
        print_chosen(source)
    given |= source.preparation.as_options()
    configuration = complete_configuration(given, source.train)
    of_images = split(source, configuration)
    splits, features = to_features(
        parsed.out, of_images, configuration, graph, before, processes=processes, runtime=runtime
    )
    linear = linear_model(given, splits, parsed.out)
    given |= linear.options if linear else {}
    configuration = complete_configuration(given, splits.train) if features else configuration
    acceleration = choose_acceleration(
        device,
        parsed.precision,
        parsed.compile,
        before=before.acceleration if before else None,
        device_before=before.device if before else None,
    )
    minutes: float | None = getattr(parsed, "minutes", None)
    if planned := plan_on_machine(
        given, splits, minutes, device=device, processes=processes, acceleration=acceleration
    ):
        configuration = planned.configuration
    description = describe_run(
        configuration,
        splits,
        source=parsed.data,
        start=fingerprint(start.weights) if start else before.start if before else None,
        acceleration=acceleration,
        device=device.type,
        features=features,
    )
    if start:
        check_start(start, description, encoder_alone=encoder_alone)
    run = _open_in_group(parsed, description, processes, locks)
    if start and processes.leads and not run.has_checkpoint:
        begin(run, start, encoder_alone=encoder_alone)
    if linear and processes.leads:
        print_epoch(begin_linear(run, splits, linear, acceleration), configuration, splits.image_shape)
    processes.wait()
    check_begun(run)
    if processes.leads:
        print_skipped(source)
        run.write_skipped(source.skipped)
        print_start(splits, description, device, begun_on=run.description.device)
        print_plan(planned)

    def on_epoch(figures: EpochFigures, model: Vae) -> None:
        print_epoch(figures, configuration, model.image_shape)
        if figures.epoch % _EPOCHS_BETWEEN_FIGURES == 0:
            draw_figures(run, model, splits.validation)

    model = fit(
        run,
        splits,
        device=device,
        on_epoch=on_epoch,
        processes=processes,
        acceleration=acceleration,
        progress=is_terminal(),
        on_setback=print_setback,
    )
    if processes.leads:
        draw_figures(run, model, splits.validation)
        metrics, loaded = run.read_metrics(), load_model(run)
        if loaded.finished_encoder:
            print_finished_encoder(loaded.finished_encoder)
        minutes = sum(line["seconds"] for line in metrics) / 60
        print(f"{parsed.out}: trained {len(metrics)} epochs in {minutes:.1f} minutes")
        print_verdict(judge(measure(run, loaded.vae, splits)))


def _open_in_group(
    parsed: argparse.Namespace, description: RunDescription, processes: ProcessGroup, locks: ExitStack
) -> Run:
    """The run's folder, locked: the leading process begins a new one, and the others open what it has begun."""
    run = resume_run(parsed.out, description) if parsed.resume else None
    if processes.leads and (problem := locks.enter_context(lock_folder(parsed.out))):
        print(f"warning: {problem}", file=sys.stderr)
    if run:
        return run
    if processes.leads:
        create_run(parsed.out, description)
    processes.wait()
    return open_run(parsed.out)
