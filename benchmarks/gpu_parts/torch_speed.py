"""(d) The engine's graphs beside PyTorch, eager and compiled: the same weights, the same noise.

At matmul precision `highest` PyTorch computes what the engine does; `high` is TF32, and another computation. Host to
host, as the engine works: inputs are NumPy arrays, and so are the results. PyTorch's figure without these copies is
beside.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpu_parts.presets import PRESETS, SMALL, Exported, exported
from gpu_parts.record import Options, Record, quartiles, repeated
from service.engine import graphs
from service.engine.runtime import Runtime
from service.engine.verification import read_graphs

REPEATS, SECONDS = 30, 4.0
SAME = 1e-5
"""Of the largest number, that PyTorch may be off at precision `highest`: a hundred roundings."""
ROWS = {"mlp": (512, 65_536), "resnet": (4096,)}
SAMPLES = 64
Arrays = dict[str, NDArray[np.float32]]


def compare(preset: str, record: Record, options: Options) -> None:
    """Encode, decode and the log weight, by rows."""
    images = np.random.default_rng(11).integers(0, 256, (64, 1, 28, 28), np.uint8)
    sizes = SMALL if options.quick else {}
    model = exported(PRESETS[PRESETS.index(preset)], "bernoulli", images, **sizes)
    for rows in (SAMPLES,) if options.quick else ROWS[preset]:
        for operation in ("encode", "decode", "log weight"):
            with record.attempt(f"{operation}, {rows} rows"):
                _compare(record, options, model, preset, operation, rows)


def _compare(record: Record, options: Options, model: Exported, preset: str, operation: str, rows: int) -> None:
    inputs = _inputs(operation, model, rows)
    about = {"network": preset, "operation": operation, "rows": rows}
    ours, bound = _onnxruntime(operation, model, inputs, options)
    expected = ours()
    _line(record, options, about, "ONNX Runtime", ours, rows)
    _line(record, options, about, "ONNX Runtime, inputs there", bound, rows)
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = precision == "high"
        for compiled in (False, True):
            way = f"torch {precision}{', compiled' if compiled else ''}"
            with record.attempt(way):
                torch.compiler.reset()
                copied, there = _torch(operation, model, inputs, options, compiled=compiled)
                off = float(np.abs(copied() - expected).max())
                if precision == "highest":
                    record.expect(f"{way}: the same", off <= SAME * float(np.abs(expected).max()), off=off)
                _line(record, options, about, way, copied, rows, off)
                _line(record, options, about, f"{way}, no copies", there, rows)


def _inputs(operation: str, model: Exported, rows: int) -> Arrays:
    rng = np.random.default_rng(3)
    shape, latent_dim = model.description.image.chw, model.description.latent_dim
    if operation == "encode":
        return {"x": (rng.random((rows, *shape)) < 0.3).astype(np.float32)}
    if operation == "decode":
        return {"z": rng.standard_normal((rows, latent_dim), np.float32)}
    images = rows // SAMPLES
    return {
        "x": (rng.random((images, *shape)) < 0.3).astype(np.float32),
        "mean": rng.standard_normal((images, 1, latent_dim), np.float32),
        "log_var": rng.standard_normal((images, 1, latent_dim), np.float32) - 2,
        "noise": rng.standard_normal((1, SAMPLES, latent_dim), np.float32),
    }


def _onnxruntime(
    operation: str, model: Exported, inputs: Arrays, options: Options
) -> tuple[Callable[[], NDArray[Any]], Callable[[], NDArray[Any]]]:
    """The engine's session, on host arrays and on arrays that lie on the device."""
    runtime = Runtime("cuda" if options.device == "cuda" else "cpu")
    output = {"encode": "mean", "decode": "logits", "log weight": graphs.LOG_WEIGHT}[operation]
    if operation == "log weight":
        made = model.graphs
        written = read_graphs(model.description, made.encoder, made.decoder, made.likelihood, Path(operation))
        graph = written.log_weight()
        x, size = inputs["x"], model.description.image.size
        given: dict[str, Any] = {graphs.X: x.reshape(len(x), 1, size), graphs.MEAN: inputs["mean"]}
        given |= {graphs.LOG_VAR: inputs["log_var"], graphs.NOISE: inputs["noise"]}
        given[graphs.SHAPE] = np.array([len(x), SAMPLES, -1], np.int64)
    else:
        graph, given = getattr(model.graphs, f"{operation}r"), dict(inputs)
    session = runtime.open(graph, Path(operation))
    there = {name: value if name == graphs.SHAPE else runtime.place(value) for name, value in given.items()}
    return lambda: session.run(given)[output], lambda: session.run(there)[output]


def _torch(
    operation: str, model: Exported, inputs: Arrays, options: Options, *, compiled: bool
) -> tuple[Callable[[], NDArray[Any]], Callable[[], object]]:
    """The same by PyTorch, from NumPy to NumPy and on the device alone."""
    device = torch.device(options.device)
    vae = model.vae.to(device).eval()

    def log_weight(x: Tensor, mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
        z = mean + torch.exp(0.5 * log_var) * noise  # [B, K, D]
        return vae.conditional_log_likelihood(x, z) + 0.5 * (noise**2 + log_var - z**2).sum(-1)

    def encode(x: Tensor) -> Tensor:
        mean: Tensor = vae.encoder(x)[0]
        return mean

    def decode(z: Tensor) -> Tensor:
        logits: Tensor = vae.decoder(z)[0]
        return logits

    ways: dict[str, Callable[..., Tensor]] = {"encode": encode, "decode": decode, "log weight": log_weight}
    function = torch.compile(ways[operation], dynamic=False) if compiled else ways[operation]
    there = [torch.from_numpy(array).to(device) for array in inputs.values()]

    @torch.inference_mode()
    def copied() -> NDArray[Any]:
        found: Tensor = function(*(torch.from_numpy(array).to(device) for array in inputs.values()))
        return np.asarray(found.cpu().numpy())

    @torch.inference_mode()
    def alone() -> object:
        found = function(*there)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return found

    return copied, alone


def _line(
    record: Record,
    options: Options,
    about: dict[str, Any],
    way: str,
    run: Callable[[], object],
    rows: int,
    off: float | None = None,
) -> None:
    seconds = repeated(run, repeats=options.size(REPEATS, 2), seconds=options.size(int(SECONDS), 1), warm_up=3)
    taken = {f"us_a_row_{name}": 1e6 * value / rows for name, value in quartiles(seconds).items()}
    record.row("beside PyTorch", way=way, **about, **taken, off=off, repeats=len(seconds))
