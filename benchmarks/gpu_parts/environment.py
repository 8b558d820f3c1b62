"""(a) What the machine is, which libraries were loaded from where, and whether the engine's probe works."""

import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from gpu_parts.record import Case, Options, Record
from service.engine.runtime import Runtime

LIBRARIES = re.compile(r"/lib(cublas|cublasLt|cudnn|cudart|cuda|curand|cufft|nvrtc|onnxruntime|torch_cuda)[\w.-]*\.so")
COPY_BYTES, SIDE = 2**31, 8192


def cases(_: Options) -> dict[str, Case]:
    """The card before all else."""
    return {"machine": machine, "onnxruntime": alone, "onnxruntime after torch": after_torch, "ceilings": ceilings}


def machine(record: Record, options: Options) -> None:
    """Processor, card, driver, versions of what is installed."""
    record.text("platform", f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} processors")
    for command in (["lscpu"], ["nvidia-smi"], ["nvidia-smi", "-q", "-d", "MEMORY,CLOCK,POWER,COMPUTE"]):
        if command[0] == "nvidia-smi" and options.device != "cuda":
            continue
        with record.attempt(" ".join(command)):
            record.text(" ".join(command), subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    with record.attempt("pip freeze"):
        frozen = [sys.executable, "-m", "pip", "freeze", "--disable-pip-version-check"]
        found = subprocess.run(frozen, capture_output=True, text=True, check=True).stdout
        record.text("pip freeze", found)


def alone(record: Record, options: Options) -> None:
    """As the service starts: no torch in the process."""
    _look(record, options)


def after_torch(record: Record, options: Options) -> None:
    """With torch's libraries loaded first."""
    with record.attempt("import torch"):
        import torch

        record.text("torch", torch.__config__.show())
        if options.device == "cuda":
            record.text("card", str(torch.cuda.get_device_properties(0)))
            torch.ones(2, device="cuda").sum().item()
    _look(record, options)


def _look(record: Record, options: Options) -> None:
    record.row("onnxruntime", version=ort.__version__, providers=" ".join(ort.get_available_providers()))
    record.text("build", ort.get_build_info())
    record.text("libraries before", "\n".join(loaded()) or "none")
    for choice in ("auto", options.device):
        with record.attempt(f"the engine's probe, {choice}"), output() as read:
            started = time.perf_counter()
            runtime = Runtime("cuda" if choice == "cuda" else "cpu" if choice == "cpu" else "auto")
            seconds = time.perf_counter() - started
        with record.attempt(f"the engine's runtime, {choice}"):
            record.row(
                "probe", asked=choice, got=runtime.provider, seconds=seconds, reason=str(runtime.fallback_reason)
            )
            record.expect(f"{choice} gives {options.device}", runtime.device == options.device, got=runtime.device)
            record.expect(f"{choice}: nothing is printed", not read(), printed=read())
    with record.attempt("Relu"):
        relu(record, options)
    record.text("libraries after", "\n".join(loaded()) or "none")


def relu(record: Record, options: Options) -> None:
    """The least of graphs, exactly."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    x = np.random.default_rng(1).standard_normal(100_003).astype(np.float32)
    runtime = Runtime("cuda" if options.device == "cuda" else "cpu")
    found = runtime.open(model.SerializeToString(), Path("relu.onnx")).run({"x": x})["y"]
    record.expect("Relu", bool((found == np.maximum(x, 0)).all()), different=int((found != np.maximum(x, 0)).sum()))


def ceilings(record: Record, options: Options) -> None:
    """The two numbers that everything else is held against: copied bytes and multiplied numbers a second."""
    import torch

    device = torch.device(options.device)
    count = COPY_BYTES // 4 if options.device == "cuda" else 2**22
    side = SIDE if options.device == "cuda" else 512
    source = torch.rand(count, device=device)
    target = torch.empty_like(source)
    record.row("ceiling", what="copy, TB/s", value=2 * 4 * count / _seconds(lambda: target.copy_(source)) / 1e12)
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        factor = torch.rand(side, side, device=device)
        seconds = _seconds(partial(torch.matmul, factor, factor))
        record.row("ceiling", what=f"float32 {precision}, TFLOP/s", value=2 * side**3 / seconds / 1e12)
    low = torch.rand(side, side, device=device, dtype=torch.bfloat16)
    record.row(
        "ceiling", what="bfloat16, TFLOP/s", value=2 * side**3 / _seconds(partial(torch.matmul, low, low)) / 1e12
    )


def _seconds(run: Callable[[], object]) -> float:
    """The median of ten runs, each waited for."""
    import torch

    taken = []
    for _ in range(13):
        started = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return float(np.median(taken[3:]))


def loaded() -> list[str]:
    """Files of the CUDA libraries, and ONNX Runtime's, that lie in this process."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return sorted({line.split(maxsplit=5)[5] for line in maps if LIBRARIES.search(line)})


@contextmanager
def output() -> Iterator[Callable[[], str]]:
    """What is written to standard output, by libraries too; to be read after the block."""
    sys.stdout.flush()
    kept = os.dup(1)
    with tempfile.TemporaryFile("w+") as file:
        os.dup2(file.fileno(), 1)
        found: list[str] = []
        try:
            yield lambda: found[0] if found else ""
        finally:
            sys.stdout.flush()
            os.dup2(kept, 1)
            os.close(kept)
            file.seek(0)
            found.append(file.read())
