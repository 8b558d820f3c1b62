"""(b) Every graph that the engine opens: CUDA against the CPU and against float64, curvature included.

Errors are in units of float32's rounding: the largest difference from float64 over the largest number of the output,
over 2⁻²⁴. A graph passes if CUDA's error is at most eight times the CPU's, or 32 units: both round every sum, in other
orders, and a difference quotient (curvature) enlarges both alike. TF32 rounds products to 2⁻¹¹, 8192 times as coarsely.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from gpu_parts import float64, models
from gpu_parts.record import Case, Options, Record
from service.engine.anomaly.explanation import NUM_DRAWS
from service.engine.chunks import complete
from service.engine.runtime import Runtime
from tests.opened import Inputs, Opened, RecordingRuntime

UNIT = 2.0**-24
TIMES_THE_CPUS, UNITS = 8, 32
CHUNK_ROWS = 64
Outputs = dict[str, NDArray[Any]]


def cases(options: Options) -> dict[str, Case]:
    """By models, some together; and one that must fail."""
    found: dict[str, Case] = {"TF32 must fail": tf32}
    return found | {group: partial(run, chosen) for group, chosen in models.groups(options).items()}


def run(names: list[str], record: Record, options: Options) -> None:
    """Compare every graph of some models."""
    runtime = Runtime("cuda" if options.device == "cuda" else "cpu")
    for name in names:
        with record.attempt(name):
            for opened in used(name, options):
                with record.attempt(f"{name}: {opened.label}"):
                    inputs = opened.largest()
                    found = runtime.open(opened.graph, opened.file).run(inputs)
                    compare(record, name, opened.label, found, *references(opened, inputs))


def used(name: str, options: Options) -> list[Opened]:
    """Every graph of a model, with what it is run on for a few images, familiar ones and strange ones."""
    recording = RecordingRuntime("cpu")
    model = models.load(name, options).open(recording, chunk_rows=CHUNK_ROWS)
    count = options.size(6, 2)
    familiar = complete(model.sample(count, seed=3)).images
    strange = models.strange(2, familiar.shape[1:])
    pixels = np.concatenate([familiar, strange])
    for proposal in ("laplace", "encoder", "prior"):
        complete(model.log_likelihood(pixels, proposal=proposal, num_samples=CHUNK_ROWS))
    code = complete(model.encode(pixels[:1])).mean
    model._sampler.surprise(pixels[0].reshape(-1), np.repeat(code, NUM_DRAWS, axis=0))
    return recording.opened


def references(opened: Opened, inputs: Inputs) -> tuple[Outputs, Outputs]:
    """What the CPU makes of these inputs, and what float64 makes of them."""
    return Runtime("cpu").open(opened.graph, opened.file).run(inputs), float64.run(opened.graph, inputs)


def compare(
    record: Record, name: str, label: str, found: Outputs, cpu: Outputs, exact: Outputs, *, passes: bool = True
) -> None:
    """A line for each output, and a check: that the graph passes, or, to show that it can, that it does not."""
    passed = True
    for output, truth in exact.items():
        scale = float(np.abs(truth).max()) or 1.0
        errors = [float(np.abs(np.float64(values[output]) - truth).max()) for values in (found, cpu)]
        good = bool(np.isfinite(errors[0])) and errors[0] <= max(TIMES_THE_CPUS * errors[1], UNITS * UNIT * scale)
        passed &= good
        record.row(
            "errors",
            model=name,
            graph=label,
            output=output,
            shape=str(list(truth.shape)),
            largest=scale,
            error=errors[0],
            units=errors[0] / scale / UNIT,
            cpu_units=errors[1] / scale / UNIT,
            from_cpu=float(np.abs(np.float64(found[output]) - cpu[output]).max()),
            same_bits=bool(np.array_equal(found[output], cpu[output], equal_nan=True)),
            passes=good,
        )
    record.expect(f"{name}, {label}: {'passes' if passes else 'does not pass'}", passed == passes)


def tf32(record: Record, options: Options) -> None:
    """The mnist model's decoder graphs with TF32, on the CPU with weights of as many bits: the check must see it."""
    for opened in used("mnist", options):
        if opened.label in ("encoder", "decoder", "sample"):  # a sample's pixels are 0 or 1, whatever the rounding
            continue
        with record.attempt(opened.label):
            inputs = opened.largest()
            found = _with_tf32(opened, inputs, options)
            compare(record, "mnist", opened.label, found, *references(opened, inputs), passes=False)


def _with_tf32(opened: Opened, inputs: Inputs, options: Options) -> Outputs:
    if options.device == "cpu":
        return Runtime("cpu").open(float64.rounded_weights(opened.graph, 10), Path("rounded.onnx")).run(inputs)
    settings = ort.SessionOptions()
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = ort.InferenceSession(opened.graph, settings, providers=[("CUDAExecutionProvider", {"use_tf32": "1"})])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))
