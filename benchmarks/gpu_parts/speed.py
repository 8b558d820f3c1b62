"""(d) Encode, decode, log P(x) and anomaly scores, by images a call and rows a run, beside PyTorch and the CPU."""

from collections.abc import Callable
from functools import partial

import numpy as np

from gpu_parts import models, torch_speed
from gpu_parts.record import Case, Options, Record, repeated
from gpu_parts.timing import TimingRuntime, medians
from service.engine.chunks import complete
from service.engine.model import Model, Pixels
from service.engine.runtime import Choice

IMAGES = (1, 64, 256, 4096)
CHUNKS = (256, 4096, 65_536)
REPEATS = 9
SECONDS = 2.0
"""For the repeats of one line, the last one not cut off."""
NUM_SAMPLES = 400
COMPARED = 64
"""Images whose estimates are compared with the CPU's."""


def cases(options: Options) -> dict[str, Case]:
    """The engine by chunk, PyTorch's log weight beside ONNX Runtime's, and the engine on the CPU."""
    device: Choice = "cuda" if options.device == "cuda" else "cpu"
    found: dict[str, Case] = {"mnist": partial(engine, "mnist", device, None, IMAGES)}
    found["PyTorch, mlp"] = partial(torch_speed.compare, "mlp")
    for rows in CHUNKS[:1] if options.quick else CHUNKS:
        found[f"mnist, chunks of {rows}"] = partial(engine, "mnist", device, rows, IMAGES[2:])
    found["mnist on the CPU"] = partial(engine, "mnist", "cpu", None, IMAGES[:3])
    found["PyTorch, resnet"] = partial(torch_speed.compare, "resnet")
    found["strange images"] = strange
    found["fashion-mnist"] = partial(engine, "fashion-mnist", device, None, IMAGES[:3])
    return found


def engine(
    name: str, device: Choice, chunk_rows: int | None, counts: tuple[int, ...], record: Record, options: Options
) -> None:
    """One model's operations by numbers of images, `chunk_rows` as the engine has it where it is None."""
    runtime, model = _open(name, device, chunk_rows, options)
    about = {"model": name, "on": runtime.device, "chunk": chunk_rows or "engine's"}
    for count in (1, 8) if options.quick else counts:
        pixels = models.digits(count)
        for operation, work in operations(model, pixels, options).items():
            with record.attempt(f"{operation} of {count}"):
                line(record, options, runtime, work, **about, operation=operation, images=count)
    with record.attempt("estimates beside the CPU's"):
        _, cpu = _open(name, "cpu", 512, options)
        found, expected = (
            complete(opened.log_likelihood(models.digits(options.size(COMPARED, 4)))).log_likelihood
            for opened in (model, cpu)
        )
        off = np.abs(found - expected)
        record.row("nats from the CPU's estimates", **about, largest=float(off.max()), median=float(np.median(off)))


def strange(record: Record, options: Options) -> None:
    """Images that no mode search is made for: most of the time is the host's."""
    runtime, model = _open("mnist", "cuda" if options.device == "cuda" else "cpu", None, options)
    pixels = models.strange(options.size(64, 2), (1, 28, 28))
    work = partial(_log_likelihood, model, pixels, "laplace", NUM_SAMPLES)
    line(record, options, runtime, work, model="mnist", on=runtime.device, operation="log P", images=len(pixels))


def operations(model: Model, pixels: Pixels, options: Options) -> dict[str, Callable[[], object]]:
    """What is timed."""
    samples = options.size(NUM_SAMPLES, 40)
    latents = np.random.default_rng(2).standard_normal((len(pixels), model.description.latent_dim), np.float32)
    found: dict[str, Callable[[], object]] = {
        "encode": lambda: complete(model.encode(pixels)),
        "decode": lambda: complete(model.decode(latents)),
        "log P, laplace": partial(_log_likelihood, model, pixels, "laplace", samples),
        "log P, encoder": partial(_log_likelihood, model, pixels, "encoder", samples),
    }
    if not options.quick:
        found["scores"] = lambda: complete(model.anomaly_scores(pixels))
    return found


def line(
    record: Record,
    options: Options,
    runtime: TimingRuntime,
    work: Callable[[], object],
    *,
    images: int,
    **about: object,
) -> None:
    """Time some repeats of one operation."""
    found: list[dict[str, float]] = []
    seconds = SECONDS if options.device == "cuda" else 1.0
    repeated(lambda: found.append(runtime.count(work)), repeats=options.size(REPEATS, 2), seconds=seconds)
    middle = medians(found[1:])
    record.row("engine", **about, images=images, a_second=images / middle["seconds"], **middle, repeats=len(found) - 1)


def _open(name: str, device: Choice, chunk_rows: int | None, options: Options) -> tuple[TimingRuntime, Model]:
    runtime = TimingRuntime(device)
    keywords = {} if chunk_rows is None else {"chunk_rows": chunk_rows}
    return runtime, models.load(name, options).open(runtime, **keywords)


def _log_likelihood(model: Model, pixels: Pixels, proposal: str, num_samples: int) -> object:
    return complete(model.log_likelihood(pixels, proposal=proposal, num_samples=num_samples))
