"""(f) Memory of the device, or of the process without one: before and after opening a model, by rows of a run."""

import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

from gpu_parts import models
from gpu_parts.record import Case, Options, Record
from service.engine.chunks import complete
from service.engine.runtime import Runtime
from tests.opened import Opened, RecordingRuntime

CHUNKS = (512, 4096, 65_536)
STRATEGIES = ("kNextPowerOfTwo", "kSameAsRequested")


def cases(options: Options) -> dict[str, Case]:
    """Each in a process of its own, so that what one has taken is not there for the next."""
    chunks = CHUNKS[:1] if options.quick else CHUNKS
    found: dict[str, Case] = {f"mnist, {rows or 'the engine’s'} rows": partial(engine, rows) for rows in (0, *chunks)}
    for strategy in STRATEGIES:
        found |= {f"mixture, {rows} rows, {strategy}": partial(arena, rows, strategy) for rows in chunks}
    return found


def engine(chunk_rows: int, record: Record, options: Options) -> None:
    """A whole model, at rest and after a request."""
    runtime = Runtime("cuda" if options.device == "cuda" else "cpu")
    before = used(options)
    model = models.load("mnist", options).open(runtime, **({"chunk_rows": chunk_rows} if chunk_rows else {}))
    opened = used(options)
    _line(record, "mnist open", chunk_rows, before, opened)
    complete(model.log_likelihood(models.digits(options.size(256, 4))))
    _line(record, "mnist, after log P(x)", chunk_rows, before, used(options))


def arena(chunk_rows: int, strategy: str, record: Record, options: Options) -> None:
    """The mixture's graph alone, by the arena's strategy."""
    Runtime("cuda" if options.device == "cuda" else "cpu")  # so that the context of the card is there before
    opened = _mixture(chunk_rows, options)
    before = used(options)
    settings = ort.SessionOptions()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    cuda = ("CUDAExecutionProvider", {"use_tf32": "0", "arena_extend_strategy": strategy})
    session = ort.InferenceSession(
        opened.graph, settings, providers=[cuda if options.device == "cuda" else "CPUExecutionProvider"]
    )
    _line(record, "open", chunk_rows, before, used(options), strategy)
    inputs = opened.largest()
    for run in (1, 2, 3):
        session.run(None, inputs)
        _line(record, f"after run {run}", chunk_rows, before, used(options), strategy)


def _mixture(chunk_rows: int, options: Options) -> Opened:
    recording = RecordingRuntime("cpu")
    model = models.load("mnist", options).open(recording, chunk_rows=chunk_rows)
    samples = 400
    complete(model.log_likelihood(models.digits(max(1, chunk_rows // samples)), num_samples=samples))
    return next(opened for opened in recording.opened if opened.label == "mixture")


def used(options: Options) -> dict[str, float]:
    """MiB: of the card by NVIDIA's own count and by torch's, and of this process in the host's memory."""
    status = Path("/proc/self/status").read_text().splitlines()
    found = {"host": int(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024}
    if options.device == "cuda":
        import torch

        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        found["nvidia_smi"] = float(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])
        free, total = torch.cuda.mem_get_info()
        found["torch"] = (total - free) / 2**20
    return found


def _line(
    record: Record,
    what: str,
    rows: int,
    before: dict[str, float],
    after: dict[str, float],
    strategy: str = "engine's",
) -> None:
    grown = {f"{name}_mib": after[name] - before[name] for name in after}
    device = grown.get("torch_mib", grown["host_mib"])
    per_row = {"kib_a_row": 1024 * device / rows if rows else float(np.nan)}
    record.row("memory", what=what, strategy=strategy, rows=rows or "engine's", **grown, **per_row)
