"""(b) first: does every graph open on the device whole? Needs no results, so it can be tried without a card."""

from functools import partial

from gpu_parts import models
from gpu_parts.record import Case, Options, Record
from service.engine.runtime import Runtime
from tests.cuda_operators import without_kernel
from tests.opened import RecordingRuntime


def cases(options: Options) -> dict[str, Case]:
    """By models, some together."""
    return {group: partial(run, chosen) for group, chosen in models.groups(options).items()}


def run(names: list[str], record: Record, options: Options) -> None:
    """Open every graph of some models."""
    runtime = Runtime("cuda" if options.device == "cuda" else "cpu")
    for name in names:
        with record.attempt(name):
            recording = RecordingRuntime("cpu")
            models.load(name, options).open(recording)  # on the CPU, where every graph can be run
            for opened in recording.opened:
                refusals = without_kernel(opened.graph)
                with record.attempt(f"{name}: {opened.label} opens on {runtime.provider}"):
                    runtime.open(opened.graph, opened.file)
                    record.row("graphs", model=name, graph=opened.label, opens=True, by_the_table=not refusals)
                kernels = f"{name}, {opened.label}: a kernel for each node, by the table"
                record.expect(kernels, not refusals, nodes=refusals)
