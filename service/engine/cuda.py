"""Can CUDA be used here? A probe of what the engine's graphs need, and sentences that say what is missing or wrong."""

import contextlib
import ctypes
import io
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

Arrays = dict[str, NDArray[Any]]
PROBE_TOLERANCE = 1e-5
"""Of a value. Float32's rounding stays a tenth of it, in sums of 72 products; TF32's ten bits make 5·10⁻⁴."""
_log = logging.getLogger(__name__)

_OUT_OF_MEMORY = re.compile(
    r"out of memory|cudaErrorMemoryAllocation|_STATUS_ALLOC_FAILED|Failed to allocate memory|is smaller than requested"
)
_OF_THE_DEVICE = re.compile(
    r"(CUDA|CUDNN|CUBLAS|CURAND) (failure|error)|cudaError|CUDNN_STATUS|CUBLAS_STATUS", re.IGNORECASE
)
_NO_SUCH_DEVICE = re.compile(r"Invalid device ID: \d+, must be between 0 \(inclusive\) and (\d+) \(exclusive\)")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device had no room: a smaller run may have."""
    return _OUT_OF_MEMORY.search(str(error)) is not None


def is_of_the_device(error: BaseException) -> bool:
    """Whether CUDA or one of its libraries failed, which may be for ever: a process cannot leave some errors behind."""
    return _OF_THE_DEVICE.search(str(error)) is not None


def num_devices_of(reason: str) -> int | None:
    """How many devices there are, where ONNX Runtime refused the one asked for."""
    found = _NO_SUCH_DEVICE.search(reason)
    return int(found[1]) if found else None


def preload_libraries() -> None:
    """Load CUDA's libraries from their Python packages. What ONNX Runtime prints becomes a line of the log."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        ort.preload_dlls()
    text = re.sub(r"\x1b\[\d+m", "", printed.getvalue()).strip()
    if text:
        _log.warning("loading CUDA's libraries: %s", "; ".join(text.splitlines()))


def missing_library() -> str | None:
    """The first library that ONNX Runtime's CUDA provider needs and the loader does not find, or None.

    ONNX Runtime itself tells only standard error, and then of nodes that would run on the CPU.
    """
    provider = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if not provider.exists():
        return None
    try:
        ctypes.CDLL(str(provider))
    except OSError as error:
        found = re.match(r"(\S+): cannot open shared object file", str(error))
        return found[1] if found else None  # else a symbol of ONNX Runtime's own, which is there when it loads this
    return None


def probe_graph() -> bytes:
    """One of each sort of operator in the engine's graphs: products, a convolution, reductions, and float64."""
    nodes = [
        helper.make_node("MatMul", ["a", "b"], ["MatMul"]),
        helper.make_node("Conv", ["x", "w"], ["Conv"], pads=[1, 1, 1, 1]),
        helper.make_node("ConvTranspose", ["x", "w"], ["ConvTranspose"]),
        helper.make_node("Softplus", ["b"], ["Softplus"]),
        helper.make_node("ReduceSum", ["a", "last"], ["ReduceSum"], keepdims=0),
        helper.make_node("ReduceProd", ["a", "last"], ["ReduceProd"], keepdims=0),
        helper.make_node("ReduceLogSumExp", ["a", "last"], ["ReduceLogSumExp"], keepdims=0),
        helper.make_node("Cast", ["a"], ["double"], to=TensorProto.DOUBLE),
        helper.make_node("Log", ["double"], ["Log in float64"]),
        helper.make_node("ReduceSum", ["double", "last"], ["ReduceSum in float64"], keepdims=0),
        helper.make_node("MatMul", ["double", "double"], ["MatMul in float64"]),
    ]
    shapes = {"a": [64, 64], "b": [64, 64], "x": [2, 8, 12, 12], "w": [8, 8, 3, 3]}
    outputs = [name for node in nodes for name in node.output if name != "double"]
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [
            helper.make_tensor_value_info(
                name, TensorProto.DOUBLE if name.endswith("float64") else TensorProto.FLOAT, None
            )
            for name in outputs
        ],
        initializer=[helper.make_tensor("last", TensorProto.INT64, [1], [-1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def probe_inputs() -> Arrays:
    """Numbers 1 + k/512 + 2⁻¹²: TF32 drops the last term of every one of them, float32 of none."""
    rng = np.random.default_rng(0)
    shapes = {"a": (64, 64), "b": (64, 64), "x": (2, 8, 12, 12), "w": (8, 8, 3, 3)}
    return {
        name: (1 + rng.integers(0, 16, shape) / 512 + 2.0**-12).astype(np.float32) for name, shape in shapes.items()
    }


def difference(found: Arrays, expected: Arrays, tolerance: float) -> str | None:
    """The output that differs most from the CPU's, by more than the tolerance times the largest value; None if none."""
    worst, name = 0.0, ""
    for output, value in expected.items():
        largest = np.abs(value).max(initial=0)
        with np.errstate(invalid="ignore"):  # ∞ − ∞
            apart = np.abs(found[output].astype(np.float64) - value)[np.isfinite(value)].max(initial=0)
        share = float(apart / largest) if largest and np.isfinite(largest) else float(apart)
        share = np.inf if np.isnan(share) else share
        if share > worst:
            worst, name = share, output
    if worst <= tolerance:
        return None
    return f"{name} differs by {worst:.1g} of its largest value (float32 allows {tolerance:g}, TF32 makes 5e-04)"
