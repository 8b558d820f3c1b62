"""(b) first: does every graph open on the device whole? Needs no results, so it can be tried without a card."""

from gpu_parts import models
from gpu_parts.record import Case, Options, Record
from service.engine.runtime import Runtime
from tests.cuda_operators import without_kernel
from tests.opened import RecordingRuntime


def cases(options: Options) -> dict[str, Case]:
    """A case a model."""
    chosen = models.names(options)
    return {name: _case(name) for name in (chosen[:3] if options.quick else chosen)}


def _case(name: str) -> Case:
    def run(record: Record, options: Options) -> None:
        recording = RecordingRuntime("cpu")
        models.load(name, options).open(recording)  # on the CPU, where every graph can be run
        runtime = Runtime("cuda" if options.device == "cuda" else "cpu")
        for opened in recording.opened:
            refusals = without_kernel(opened.graph)
            with record.attempt(f"{opened.label} opens on {runtime.provider}"):
                runtime.open(opened.graph, opened.file)
                record.row("graphs", graph=opened.label, opens=True, by_the_table=not refusals)
            record.expect(f"{opened.label}: a kernel for each node, by the table", not refusals, nodes=refusals)

    return run
